"""Several workers on one machine: two processes that train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kerasseg.data.folders import make_folder
from tests.training.commands import TINY, call, error_line
from training import run

WORKER = """
import signal, sys
import tensorflow as tf
import tests.backbone
from training import callbacks, run

stop_at, after_step = int(sys.argv[1]), callbacks.MetricsLog.after_step

def after(self, logs):
    after_step(self, logs)
    if self.step == stop_at:
        signal.raise_signal(signal.SIGTERM)

callbacks.MetricsLog.after_step = after
# What follows saves seconds.
run.write_report = lambda folder: None
run.write_diagnostics = lambda session, examples: None
tf.autograph.experimental.do_not_convert(run.main)(sys.argv[2:])
"""


def start_workers(arguments, temporary: Path, stop_at: int = 0) -> list[subprocess.CompletedProcess]:
    """Two processes that run the command; the second one gets a SIGTERM after that step."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in sockets]}
    for each in sockets:
        each.close()
    processes = []
    for index in range(2):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = os.environ | {
            "TF_CONFIG": json.dumps(task),
            "TMPDIR": str(temporary),
            "TF_NUM_INTRAOP_THREADS": "1",
        }
        command = [sys.executable, "-c", WORKER, str(stop_at * index), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, env=environment, **pipes))
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.mark.slow
def test_two_workers_train_as_one_does_also_when_interrupted_and_resumed(only_scores, tmp_path, capsys):
    dataset = make_folder(tmp_path / "pets", train=9, val=3)
    (tmp_path / "tmp").mkdir()

    def arguments(out: str, *flags: str):
        common = ["--method", "supervised", "--dataset", dataset, "--labeled", "5", "--out", tmp_path / out]
        return [*common, *TINY, "--batch-size", "4", "--segmenter", "deeplab_v2", "--steps", "3", *flags]

    assert call(run.main, arguments("one"), capsys)[0] == 0
    shared = ["--strategy", "multiworker", "--sync-batch-norm"]
    stopped = start_workers(arguments("two", *shared), tmp_path / "tmp", stop_at=2)
    for worker in stopped:
        assert worker.returncode == 128 + 15, worker.stderr
        assert json.loads(worker.stdout)["steps"] == 2
    finished = start_workers(arguments("two", *shared, "--resume"), tmp_path / "tmp")
    for worker in finished:
        assert worker.returncode == 0, worker.stderr

    results = [json.loads((tmp_path / out / "result.json").read_text()) for out in ("one", "two")]
    for name in ("mIoU", "per_class_IoU", "pixel_accuracy"):  # from the same integers
        assert results[0][name] == results[1][name]
    logs = [(tmp_path / out / "metrics.jsonl").read_text().splitlines() for out in ("one", "two")]
    for one, two in zip(*([json.loads(line) for line in log] for log in logs), strict=True):
        assert one["step"] == two["step"] and two["L_ce"] == pytest.approx(one["L_ce"], rel=1e-4)
    chief, other = (json.loads(worker.stdout) for worker in finished)
    assert chief["run"] == str(tmp_path / "two")
    assert {name: chief[name] for name in chief if name != "seconds"} == {
        name: other[name] for name in other if name != "seconds"
    }
    assert not list((tmp_path / "tmp").iterdir())
    assert json.loads((tmp_path / "two/config.json").read_text())["finished"]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "needs the environment variable TF_CONFIG on each worker: {"),
        ("worker 0", "TF_CONFIG must look like {"),
        ('{"cluster": {"worker": ["a:1"]}}', "TF_CONFIG must look like {"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "the index counting from 0; got"),
        ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', "TF_CONFIG must look like {"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "TF_CONFIG must look like {"),
    ],
)
def test_a_tf_config_that_names_no_worker_is_refused(text, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    status, _, err = call(run.main, ["--strategy", "multiworker", "--out", tmp_path / "run", *TINY], capsys)
    assert status == 2 and message in error_line(err)
    assert not (tmp_path / "run").exists()
