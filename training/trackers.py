"""Where else a run's curves and settings go: Weights & Biases, MLflow (`--log-to`).

Each tracker gets every line of metrics.jsonl and the images of evaluations. (Keras' own callbacks of both see the loss
terms only: scores are measured between two steps.) What the services need, such as a login or an address, they take
from their own environment variables and files.
"""

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np

from training.run_folder import settings, write_json

TrackerName = Literal["wandb", "mlflow"]
PROJECT = "kerasseg"
IDS = "trackers.json"
"""The file of a run folder with what the services call the run, by which a resumed run continues there."""


class Tracker(Protocol):
    """A run at a service."""

    id: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds values to the curves of their names."""

    def show(self, step: int, panels_NHW3: np.ndarray) -> None:
        """Adds images, uint8 RGB."""

    def end(self, failed: bool) -> None:
        """Ends the run, or this session of it."""


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, wandb: ModuleType, folder: Path, values: Mapping[str, Any], run_id: str | None):
        self.wandb = wandb
        self.run = wandb.init(
            project=PROJECT, name=folder.name, id=run_id, resume="allow", config=dict(values), dir=str(folder)
        )
        self.id = self.run.id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def show(self, step: int, panels_NHW3: np.ndarray) -> None:
        self.run.log({"val images": [self.wandb.Image(panel) for panel in panels_NHW3]}, step=step)

    def end(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class Mlflow:
    """A run of MLflow."""

    def __init__(self, mlflow: ModuleType, folder: Path, values: Mapping[str, Any], run_id: str | None):
        self.mlflow = mlflow
        run = mlflow.start_run(run_id=run_id, run_name=folder.name)
        self.id = run.info.run_id
        if run_id is None:
            mlflow.log_params({name: str(value)[:500] for name, value in values.items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def show(self, step: int, panels_NHW3: np.ndarray) -> None:
        for number, panel in enumerate(panels_NHW3):
            self.mlflow.log_image(panel, artifact_file=f"val_images/{number}_step_{step:07}.png")

    def end(self, failed: bool) -> None:
        self.mlflow.end_run(status="FAILED" if failed else "FINISHED")


TRACKERS: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def require_installed(names: Sequence[TrackerName]) -> None:
    """ValueError where the package of a service is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"--log-to {name} needs the package {name}: pip install {name}")


@contextlib.contextmanager
def trackers(names: Sequence[TrackerName], folder: Path, config: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """The run at each service, from its beginning to its end; a resumed run goes on there.

    Args:
        config: the content of config.json.

    Raises:
        ValueError: a service cannot be reached, or refuses the run.
    """
    ids = json.loads((folder / IDS).read_text()) if (folder / IDS).is_file() else {}
    values = settings(config)
    opened: list[Tracker] = []
    failed = True
    try:
        for name in names:
            try:
                module = importlib.import_module(name)
                opened.append(TRACKERS[name](module, folder, values, ids.get(name)))
            except Exception as error:  # each service has its own
                raise ValueError(f"--log-to {name}: {' '.join(str(error).split())}") from error
            ids[name] = opened[-1].id
            write_json(folder / IDS, ids)
        yield opened
        failed = False
    finally:
        for tracker in opened:
            tracker.end(failed)
