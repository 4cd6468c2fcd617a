"""A training that is killed at a chosen moment: what `test_killed.py` starts, each time in a process of its own."""

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import tensorflow as tf

import tests.backbone  # noqa: F401 (--backbone tiny)
from kerasseg.methods import Method
from tests.training.commands import NARROW, TINY
from training import run
from training.callbacks import StepCallback

FLAGS = [
    *TINY, *NARROW["mlmt"], "--method", "mlmt", "--labeled", "2", "--steps", "6", "--deterministic",
    "--head-dropout", "0.3", "--evaluate-every", "100", "--checkpoint-every", "1", "--log-every", "3",
    "--s4gan.gamma", "0.3",
]  # fmt: skip


def train(dataset: Path, out: Path, operation: int | None = None, delay: float | None = None) -> None:
    """The run in `out`, begun or resumed. From its first step on it is killed before the given one of the process' file
    operations (opening, renaming, removing), or after that many seconds."""
    # Tracing graphs would take most of the time.
    Method.compile = functools.partialmethod(Method.compile, run_eagerly=True)  # type: ignore[method-assign]
    begin = StepCallback.on_train_begin

    def on_train_begin(self, logs=None):
        StepCallback.on_train_begin = begin  # for the first callback only
        if operation is not None:
            sys.addaudithook(KillBefore(operation))
        if delay is not None:
            threading.Thread(target=kill_after, args=(delay,), daemon=True).start()
        begin(self, logs)

    StepCallback.on_train_begin = on_train_begin
    resume = ["--resume"] if (out / "config.json").exists() else []
    tf.autograph.experimental.do_not_convert(run.main)(["--dataset", str(dataset), "--out", str(out), *FLAGS, *resume])


class KillBefore:
    """An audit hook."""

    def __init__(self, operation: int):
        self.left = operation

    def __call__(self, event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.remove"):
            self.left -= 1
            if self.left < 0:
                kill()


def kill_after(seconds: float) -> None:
    time.sleep(seconds)
    kill()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
