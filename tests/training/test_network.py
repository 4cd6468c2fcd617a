"""No command uses the network, or leaves files of a library's telemetry, unless that was asked for."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from tests.kerasseg.data.folders import make_folder
from tests.serving.servers import until
from tests.serving.toy_model import write_toy_model
from tests.test_project import ROOT

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace, which watches processes, is missing")

CACHES = {".keras", ".keras/keras.json", ".cache", ".cache/matplotlib", ".config", ".config/matplotlib"}
"""What Keras and Matplotlib keep in a user's home, besides Matplotlib's list of fonts: settings and caches."""


@pytest.fixture
def watched(tmp_path):
    """Starts Python in an empty home under strace; and what it did: addresses it connected to, files in its home."""
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "CUDA_VISIBLE_DEVICES") if name in os.environ}

    def start(*arguments):
        strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto", "-o", str(trace)]
        return subprocess.Popen(
            [*strace, sys.executable, *map(str, arguments)],
            env=kept | {"HOME": str(home)}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def found():
        addresses = set(re.findall(r"sin6?_port=.*", trace.read_text()))
        files = {path.relative_to(home).as_posix() for path in home.rglob("*")}
        return addresses, {file for file in files if "fontlist" not in file} - CACHES

    return start, found


@pytest.mark.slow
def test_commands(watched, tmp_path):
    start, found = watched
    make_folder(tmp_path / "pets", train=2, val=2)
    stdout, stderr = (process := start("-m", "tests.training.traced", tmp_path)).communicate()
    assert process.returncode == 0, stderr
    results = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
    assert len(results) == 7 and results[-1]["written"] == 2, stderr
    assert found() == (set(), set())
    ours = (
        "warning: ",
        "images: ",
        "working size: ",
        "report: ",
        "writing pets",
        "comparing with",
        "0%",
        "100%",
        "pets/1: ",
    )
    # The scores of a training: while it runs, and its table of classes.
    scores = r"step \d+ of \d+: val mIoU |\w+, \d+ images, \w+$|class +IoU |\S+ +([\d.]+ %|-) +[\d,]+( +([\d.]+ %|-))?$"
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr)]
    assert [line for line in lines if line and not line.startswith(ours) and not re.match(scores, line)] == []


def test_server(watched, tmp_path):
    start, found = watched
    write_toy_model(tmp_path / "models" / "toy", 1)
    process = start("-m", "serving.run", tmp_path / "models", "--port", "0", "--provider", "cpu")
    lines = []
    until(lambda: '"ready"' in (lines.append(process.stderr.readline()) or lines[-1]) or not lines[-1])
    server = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout)
    os.kill(server, signal.SIGTERM)
    _, rest = process.communicate()
    assert [json.loads(line)["event"] for line in [*lines, *rest.splitlines()]][-1] == "ready"
    assert found() == (set(), set())
