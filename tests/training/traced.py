"""Every command in turn, in one process that `test_network.py` watches. It is given a folder with `pets`, a dataset."""

import contextlib
import sys
from pathlib import Path

import kerasseg  # noqa: F401  as the commands do, first
import tests.backbone  # noqa: F401 (--backbone tiny)
from export import run as export_run
from serving.batch import command as batch
from serving.common import cli
from tests.training.commands import TINY
from training import check_data, compare, evaluate, report, run

folder = Path(sys.argv[1])
RUN, MODEL, PETS = str(folder / "run"), str(folder / "models" / "pets"), str(folder / "pets")


def command(main, config, *arguments: str) -> None:
    with contextlib.suppress(SystemExit):
        cli.run(main, config, "", list(arguments))


with contextlib.suppress(SystemExit):
    run.main(["--dataset", PETS, "--out", RUN, "--method", "supervised", "--labeled", "2", "--steps", "1", *TINY])
with contextlib.suppress(SystemExit):
    evaluate.COMMAND.run([RUN])
command(check_data.main, check_data.CheckDataConfig, PETS)
command(report.main, report.ReportConfig, RUN)
command(compare.main, compare.CompareConfig, RUN)
formats = ("--formats", "onnx", "saved_model", "openvino")
command(export_run.main, export_run.ExportConfig, RUN, "--out", MODEL, "--parity-images", "1", *formats)
command(batch.main, batch.BatchConfig, MODEL, f"{PETS}/images/val", str(folder / "out"), "--provider", "cpu")
