"""The README: its commands run, its flags exist, and every flag is in it."""

import contextlib
import functools
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import tests.backbone  # noqa: F401 (--backbone tiny)
from tests.kerasseg.data.folders import make_folder
from tests.serving.images import encoded_image
from tests.serving.servers import running
from tests.serving.toy_model import write_toy_model

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
# What makes the README's commands fit a test; nothing else about them changes.
SMALL = "--weights none --steps 2 --crop 32 32 --batch-size 2 --head-channels 8 --no-gradient-norms"
TINY = {"my_photos": SMALL, "supervised": f"{SMALL} --backbone tiny", "export.run": "--parity-images 1"}
# Each in a process of its own, which has nothing but the files that the others left.
ALONE = ("training.evaluate", "training.report", "serving.batch")


def command_sections() -> dict[str, str]:
    """Text of the README's sections about a command, by module."""
    sections = re.findall(r"^### `python -m ([\w.]+).*?`\n(.*?)(?=^##)", README, re.M | re.S)
    return dict(sections)


def run(module: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """`python -m module`, in this process, which has imported TensorFlow already."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    status = 0
    with (
        mock.patch.object(sys, "argv", [module, *arguments]),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".*found in sys.modules after import of package", RuntimeWarning)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code or 0
    told = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess([module, *arguments], status, *told)


def run_alone(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@functools.cache
def flags_of(module: str) -> set[str]:
    """What the command's --help-all offers; for training.run with the fields of every method it builds on."""
    # Where an option starts a line; descriptions name flags too, of other commands as well.
    options = re.findall(r"^  ((?:--[\w.-]+(?:, )?)+)", run(module, "--help-all").stdout, re.M)
    return {flag for line in options for flag in line.split(", ")}


def commands(block: str) -> list[list[str]]:
    """The lines of a ```bash block as argument lists."""
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def test_the_readme_has_a_section_for_every_command():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for package in ("training", "export", "serving")
        for path in (ROOT / package).rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert command_sections().keys() == modules


@pytest.mark.slow
@pytest.mark.parametrize("module", command_sections())
def test_the_flags_of_a_command(module):
    """Both ways: none that does not exist, none that is not explained (fields of methods are too many)."""
    section = re.sub("^curl .*", "", command_sections()[module], flags=re.M)  # has flags of its own
    documented = set(FLAG.findall(section)) - {"--help", "--help-all"}
    offered = {flag for flag in flags_of(module) if "." not in flag}
    assert documented <= offered
    explained = {re.sub("^--no-", "--", flag) for flag in documented}
    assert {flag for flag in offered if not flag.startswith("--no-")} <= explained


@pytest.mark.slow
def test_flags_elsewhere_exist():
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.M | re.S))
    flags = {flag for span in spans if span.startswith("--") for flag in FLAG.findall(span)}
    assert flags - {"--help", "--help-all"} <= set().union(*map(flags_of, command_sections()))


def test_make_targets_exist():
    text = README + (ROOT / "CONTRIBUTING.md").read_text()
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M))
    assert {"train", "test"} <= targets
    makefile = (ROOT / "Makefile").read_text()
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.M))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_server_answers_what_is_sent(tmp_path):
    block = re.search(r"```bash\n(.*?)```", command_sections()["serving.run"], re.S)[1]
    write_toy_model(tmp_path / "models" / "photos", 1)
    (tmp_path / "photo.jpg").write_bytes(encoded_image(format="JPEG"))
    with running(tmp_path / "models") as server:
        for command in commands(block.replace("localhost:8000", server.url)):
            subprocess.run([*command, "--fail", "--silent"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    for name, mode in (("labels.png", "P"), ("overlay.jpg", "RGB"), ("confidence.png", "L")):
        with Image.open(tmp_path / name) as answer:
            assert (answer.size, answer.mode) == ((8, 6), mode)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")
def test_your_own_images(tmp_path, eager):
    """From a folder of images to segmented ones, with the commands as they stand in the README."""
    make_folder(tmp_path / "my_photos", train=14, val=2)
    blocks = re.findall(r"^<!-- tests/test_readme.py runs these in order.*?```bash\n(.*?)```", README, re.M | re.S)
    results = []
    for python, dash_m, module, *arguments in commands("".join(blocks)):
        assert (python, dash_m) == ("python", "-m")
        start = run_alone if module in ALONE else run
        small = TINY.get(arguments[1] if module == "training.run" else module, "")
        ended = start(module, *arguments, *small.split(), cwd=tmp_path)
        assert ended.returncode == 0, f"{module}: {ended.stderr[-2000:]}"
        results.append((module, json.loads(ended.stdout.splitlines()[-1])))

    by_module = dict(results)
    trained = next(result for module, result in results if module == "training.run")
    assert by_module["training.evaluate"]["mIoU"] == pytest.approx(trained["mIoU"])
    assert "runs/supervised" in (tmp_path / "runs/first/report.html").read_text()
    assert [result["written"] for module, result in results if module == "serving.batch"] == [2, 14]
    assert (tmp_path / "ranked/ranking.csv").read_text().splitlines()[0] == "input,uncertainty,distance"
    labels = np.asarray(Image.open(tmp_path / "segmented/labels/val_0.png"))
    manifest = [json.loads(line) for line in (tmp_path / "segmented/manifest.jsonl").read_text().splitlines()]
    [record] = [record for record in manifest if record["input"] == "val_0.png"]
    assert (record["height"], record["width"]) == labels.shape == (24, 32)


def test_readme_and_help_say_when_to_take_each_method():
    from kerasseg.methods import METHODS
    from training.run import DESCRIPTION

    for name, method in METHODS.items():
        assert method.when and f"| `{name}` | {method.when} |" in README
        assert method.when in DESCRIPTION
