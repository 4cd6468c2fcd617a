"""`python -m training.evaluate RUN`: scores of a finished run on any split of any dataset with its classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

# isort: off
import kerasseg  # noqa: F401 (first: it starts TensorFlow)

# isort: on
import keras
import tyro

from kerasseg.data import open_dataset
from kerasseg.data.check import require_sound
from serving import cli
from training.evaluation import evaluate, find_min_pixels
from training.run_folder import Run


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, and on what."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    dataset: str | None = None
    """A dataset's name or folder; None for the one the run was trained on."""
    split: str = "val"
    """train, val or test."""
    find_min_pixels: bool = False
    """Also find the pixel thresholds of --mlmt.gate pixel_count on this split."""


def main(config: EvaluateConfig) -> dict[str, Any]:
    run = Run.read(config.run)
    dataset = open_dataset(config.dataset or run.config["dataset"])
    require_sound(dataset)
    if list(dataset.classes) != run.classes:
        raise ValueError(
            f"{dataset.name} has the classes {', '.join(dataset.classes)}; the run was trained on "
            f"{', '.join(run.classes)}"
        )
    method = keras.saving.load_model(run.model)
    method.compile()
    found = {"pixel_thresholds": find_min_pixels(method, dataset, config.split)} if config.find_min_pixels else {}
    return evaluate(method, dataset, config.split) | found


def cli_main(arguments: list[str] | None = None) -> None:
    description = "Scores a run's model at native size, with an integer confusion matrix."
    cli.run(main, EvaluateConfig, description, args=arguments)


if __name__ == "__main__":
    cli_main()
