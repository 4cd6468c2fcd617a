"""Reads a run folder: for the report, for evaluation, for export, for a run that builds on another.

Needs no TensorFlow.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from serving.common.files import write_atomically

KEYS = ("method", "dataset", "steps", "classes", "palette", "split_fingerprint")
"""The keys that every config.json must have."""

METRICS, SPEED = "metrics.jsonl", "speed.jsonl"

SPLIT_FILES = {"labeled": "labeled.txt", "image_labeled": "weak.txt", "unlabeled": "unlabeled.txt"}
"""The files of a split by role, as `kerasseg.data.splits.ROLES` names them; to import that needs TensorFlow."""

NOT_CURVES = {"step", "learning_rate"}

ADDED_SETTINGS = {
    "cover": False,
    "rare_class_temperature": None,
    "copy_paste": 0.0,
    "class_weights": "none",
    "average_weights": False,
    "rates": None,
    "size": "native",
}
"""Settings that an old config.json lacks, and their values at that time."""


NO_SETTINGS = {
    "classes", "palette", "versions", "machine", "commit", "command", "finished", "about_method", "terms",
}  # fmt: skip
"""Facts in config.json that are no settings."""


class Curve(NamedTuple):
    """Values over training steps."""

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Run:
    """What a run folder says about a run."""

    folder: Path
    config: dict[str, Any]
    history: list[dict[str, Any]]
    """The logged steps in ascending order, one entry for each."""
    result: dict[str, Any] | None
    """None until the run was evaluated at its end."""
    split: dict[str, list[str]]
    """Names of the training images by role, the keys of `SPLIT_FILES`."""
    diagnostics: dict[str, Any] | None = None
    """The findings of `training.diagnostics` at the end; None before."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the files that exist; only `config.json` must exist.

        Raises:
            ValueError: not a run folder, or a file in it does not hold what it should.
        """
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise ValueError(f"{folder} is not a run folder: no config.json in it; give the --out of kerasseg train")
        config = ADDED_SETTINGS | _read_json(config_file)
        if missing := [key for key in KEYS if key not in config]:
            raise ValueError(f"{config_file} lacks {', '.join(missing)}; was it written by kerasseg train?")
        result_file, diagnostics_file = folder / "result.json", folder / "diagnostics.json"
        return cls(
            folder=folder,
            config=config,
            history=read_lines(folder / METRICS),
            result=_read_json(result_file) if result_file.is_file() else None,
            split={role: _read_names(folder / "split" / name) for role, name in SPLIT_FILES.items()},
            diagnostics=_read_json(diagnostics_file) if diagnostics_file.is_file() else None,
        )

    @classmethod
    def read_finished(cls, folder: Path) -> Self:
        """As `read`; also a ValueError unless the run was trained to its end and has its model."""
        run = cls.read(folder)
        run.require_finished()
        _ = run.model  # raises where it is missing
        return run

    def require_finished(self) -> None:
        """ValueError unless it was trained to its end and measured."""
        if not self.finished:
            raise ValueError(f"the run in {self.folder} is not finished: continue it with kerasseg train --resume")

    @property
    def finished(self) -> bool:
        return bool(self.config.get("finished")) and self.result is not None

    @property
    def last_step(self) -> int:
        return self.history[-1]["step"] if self.history else 0

    @property
    def classes(self) -> list[str]:
        return self.config["classes"]

    @property
    def dataset(self) -> str:
        return Path(self.config["dataset"]).name

    @property
    def model(self) -> Path:
        """model.keras; ValueError where the run was stopped before it was written."""
        file = self.folder / "model.keras"
        if not file.is_file():
            raise ValueError(
                f"the run in {self.folder} has no model.keras yet: continue it with kerasseg train --resume"
            )
        return file

    @property
    def variants(self) -> dict[str, dict[str, Any]]:
        """Scores of the method's other predictions by name, such as `without_gate`."""
        scores = {key: value for key, value in (self.result or {}).items() if isinstance(value, dict)}
        return {key: value for key, value in scores.items() if "per_class_IoU" in value}

    @property
    def title(self) -> str:
        """How other reports call this run."""
        return f"{self.config['method']} ({self.folder.resolve().name})"

    def curve(self, key: str) -> Curve:
        """The logged values of one quantity; steps without a finite one are left out."""
        points = [(row["step"], row[key]) for row in self.history if is_number(row.get(key))]
        return Curve([step for step, _ in points], [value for _, value in points])

    def curve_names(self) -> list[str]:
        """What was logged as numbers, in the order of its first appearance."""
        names = dict.fromkeys(key for row in self.history for key, value in row.items() if is_number(value))
        return [name for name in names if name not in NOT_CURVES]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl or speed.jsonl by step; a last line that a crash cut short is left out.

    Raises:
        ValueError: another line does not hold what it should.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            # A resumed run repeats the steps after its checkpoint: the later line counts.
            rows[row["step"]] = rows.get(row["step"], {}) | row
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            found = f"line {number} is {line[:80]!r}"
            raise ValueError(f"{file}: expected a JSON object with a step on each line, {found}") from error
    return [rows[step] for step in sorted(rows)]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by their names, joined with dots."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json by name, the method's fields among them, without its other facts."""
    kept = {key: value for key, value in config.items() if key not in NO_SETTINGS}
    return {name.removeprefix("fields."): value for name, value in flat(kept).items()}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a file of a run folder, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} does not hold JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold one JSON object, it holds a {type(content).__name__}")
    return content


def _read_names(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
