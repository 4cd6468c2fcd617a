"""Checkpoints of a run: all that an unbroken continuation needs, each in one file.

A file `step_NNNNNNN.npz` holds the arrays of `training_variables` and, as JSON, the rest of the state. NumPy's archive
has a checksum of every array, so a damaged file is recognised before it is used.
"""

import json
import sys
import zipfile
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import keras
import numpy as np
import tensorflow as tf

from kerasseg.checks import require_one_of
from kerasseg.methods import Method, find_method
from serving.common.files import temporary_file
from training.run_folder import Run

CheckpointName = Literal["last", "best"]

KEEP = 2
"""How many of the last ones are kept; the best by mIoU on val is kept too."""

DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError)
"""The errors of reading a file that was cut short, or has changed."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    file: Path
    step: int
    split_fingerprint: str
    scores: dict[int, float | None]
    """mIoU on val, 0..1, by step: for this state and for those that were kept then. None where nothing was measured."""
    log: dict[str, Any]
    """The values that the log had collected since its last line."""
    arrays: dict[str, np.ndarray]
    """The variables' values, by the names of `replica_copies`."""

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads a file; raises one of `DAMAGED` where it is not whole."""
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(str(arrays.pop("about")))
        about["scores"] = {int(step): score for step, score in about["scores"].items()}
        return cls(file=file, **about, arrays=arrays)

    @classmethod
    def latest(cls, folder: Path) -> Self | None:
        """The newest that is whole; damaged ones are named on stderr. None where there is no file.

        Raises:
            ValueError: there are files, and none is whole.
            OSError: a file cannot be read at present; it may be whole.
        """
        files = checkpoint_files(folder)
        for file in files:
            try:
                return cls.read(file)
            except DAMAGED as error:
                print(f"{file} is damaged ({error}): continuing from the checkpoint before it", file=sys.stderr)
        if files:
            raise ValueError(f"no checkpoint in {folder} is whole: move that folder away to train from the start again")
        return None

    @classmethod
    def best(cls, folder: Path) -> Self:
        """The checkpoint with the highest mIoU on val.

        Raises:
            ValueError: none was measured, or its file is damaged.
        """
        latest = cls.latest(folder)
        measured = [step for step, score in latest.scores.items() if score is not None] if latest else []
        if latest is None or not measured:
            raise ValueError(f"{folder} holds no checkpoint that was measured on val")
        file = folder / file_name(max(measured, key=lambda step: (latest.scores[step], step)))
        try:
            return latest if file == latest.file else cls.read(file)
        except (*DAMAGED, FileNotFoundError) as error:
            raise ValueError(f"{file}, the best checkpoint, is missing or damaged ({error})") from error

    def restore(self, method: Method) -> None:
        """Restores the state; only the networks where the method is not compiled.

        Raises:
            ValueError: it belongs to other networks or optimizers.
        """
        copies = replica_copies(method)
        if vars(method.training_optimizers):
            arrays = self.arrays
        else:  # one on a single device, which is not going to be trained
            arrays = {
                name: array for name, array in self.arrays.items() if name.startswith("model/") and "@" not in name
            }
        if {name: array.shape for name, array in arrays.items()} != {
            name: tuple(each[0].shape) for name, each in copies.items()
        }:
            raise ValueError(
                f"{self.file} was written by other networks or optimizers, or on another number of devices, than these "
                "settings have: resume with the settings of the run"
            )
        for name, each in copies.items():
            for copy in each:
                copy.assign(arrays[name])


def open_method(run: Run, checkpoint: CheckpointName = "last") -> tuple[Method, dict[str, Any]]:
    """The trained method of a run, not compiled, and its result on val: from the end of the training ("last"), or from
    the step with the best score there ("best").

    Raises:
        ValueError: another word, no model.keras, no checkpoint that was measured, or a method from a package that
            cannot be imported.
    """
    require_one_of("--checkpoint", checkpoint, get_args(CheckpointName))
    for name in (run.config["method"], run.config.get("branch_method")):
        if name is not None:
            find_method(name)  # so that Keras knows its class
    method = keras.saving.load_model(run.model, compile=False)
    if checkpoint == "last":
        return method, run.result or {}
    best = Checkpoint.best(run.folder / "checkpoints")
    best.restore(method)
    print(f"the best checkpoint is that of step {best.step}", file=sys.stderr)
    return method, {"mIoU": best.scores[best.step], "steps": best.step}


def training_variables(method: Method) -> dict[str, tf.Variable]:
    """Everything that a training resumed from here needs: weights, random state, the optimizers of all stages.

    Named by position, because Keras numbers equal layer names by what else the process has built.
    """
    groups = {"model": method.variables} | {
        f"{name}_optimizer": optimizer.variables
        for stage in method.stages()
        for name, optimizer in vars(stage.training_optimizers).items()
    }
    return {
        f"{group}/{index}": variable.value
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }


def replica_copies(method: Method) -> dict[str, tuple[tf.Variable, ...]]:
    """`training_variables` on each replica; those that must have one value are under one name.

    Batch-norm statistics differ between replicas, so the replica's number is behind the name, except for the first's.
    Random states differ too, but follow from the first's (`separate_random_numbers`).
    """
    copies: dict[str, tuple[tf.Variable, ...]] = {}
    for name, variable in training_variables(method).items():
        first, *others = method.distribute_strategy.experimental_local_results(variable)
        if name.startswith("model/") and not variable.trainable and variable.dtype.is_floating:
            copies |= {name: (first,)} | {f"{name}@{number}": (other,) for number, other in enumerate(others, start=1)}
        else:
            copies[name] = (first, *others)
    return copies


class Checkpoints:
    """The last few states of a training, and the best one, in a folder.

    A thread writes them, first under another name and then renamed, while training goes on. As a context manager it
    waits for that on leaving.

    Args:
        folder: made when missing. Unfinished files of a killed process are removed.
        method: compiled; its weights, random states and optimizers are stored.
        split_fingerprint: of the split that it learns from.
        before: the checkpoint from which the training continues. Later ones, which are damaged, are renamed.
    """

    def __init__(self, folder: Path, method: Method, split_fingerprint: str, before: Checkpoint | None = None):
        folder.mkdir(exist_ok=True)
        self.folder, self.method, self.split_fingerprint = folder, method, split_fingerprint
        self.step = before.step if before else 0
        self.scores = dict(before.scores) if before else {}
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()
        for file in checkpoint_files(folder):
            if step_of(file) > self.step:
                file.rename(file.with_suffix(".damaged"))
            elif step_of(file) not in self.scores:
                file.unlink()
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        try:
            self.wait()
        finally:
            self.writer.shutdown()

    def save(self, step: int, log: dict[str, Any], score: float | None = None) -> None:
        """Stores the state after `step` steps; one already stored is written again only where it was measured since.

        Args:
            log: JSON types only.
            score: mIoU on val, 0..1.

        Raises:
            OSError: this file or the one before could not be written; earlier ones are untouched.
        """
        if self.step == step and self.scores.get(step) == score:
            return
        self.wait()
        self.step, self.scores[step] = step, score
        kept = self.kept()
        superfluous = self.scores.keys() - kept
        self.scores = {step: self.scores[step] for step in kept}
        about = {"step": step, "split_fingerprint": self.split_fingerprint, "scores": self.scores, "log": log}
        arrays = {name: copies[0].numpy() for name, copies in replica_copies(self.method).items()}
        arrays["about"] = np.array(json.dumps(about))
        self.writing = self.writer.submit(self._write, step, arrays, superfluous)

    def _write(self, step: int, arrays: dict[str, Any], superfluous: set[int]) -> None:
        with temporary_file(self.folder / file_name(step), durable=True) as file:
            np.savez(file, **arrays)
        for other in superfluous:
            (self.folder / file_name(other)).unlink(missing_ok=True)

    def wait(self) -> None:
        """Returns when all writing has ended; raises the errors of writing."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def kept(self) -> set[int]:
        """The steps of the last `KEEP` states and of the best one; among equals, the later one."""
        best = max(self.scores, key=lambda step: (self.scores[step] is not None, self.scores[step] or 0.0, step))
        return {best, *sorted(self.scores)[-KEEP:]}


def file_name(step: int) -> str:
    return f"step_{step:07}.npz"


def step_of(file: Path) -> int:
    return int(file.stem.removeprefix("step_"))


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, the newest first."""
    return sorted((file for file in folder.glob("step_*.npz") if file.stem[5:].isdigit()), key=step_of, reverse=True)
