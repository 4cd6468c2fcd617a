"""`python -m training.evaluate RUN`: scores of a finished run on any split of any dataset with its classes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

# isort: off
import kerasseg  # noqa: F401 (first: it starts TensorFlow quietly)

# isort: on
import keras
import tyro

from kerasseg.data import open_dataset
from kerasseg.data.check import require_sound
from serving import cli
from training.evaluation import evaluate, find_min_pixels


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
    if not (config.run / "model.keras").is_file():
        raise ValueError(
            f"{config.run} is not a run folder with a model.keras: give the folder that training.run wrote"
        )
    settings = json.loads((config.run / "config.json").read_text())
    dataset = open_dataset(config.dataset or settings["dataset"])
    require_sound(dataset)
    if dataset.classes != tuple(settings["classes"]):
        raise ValueError(
            f"{dataset.name} has the classes {', '.join(dataset.classes)}; the run was trained on "
            f"{', '.join(settings['classes'])}"
        )
    method = keras.saving.load_model(config.run / "model.keras")
    method.compile()
    found = {"pixel_thresholds": find_min_pixels(method, dataset, config.split)} if config.find_min_pixels else {}
    return evaluate(method, dataset, config.split) | found


def cli_main(arguments: list[str] | None = None) -> None:
    description = "Scores a run's model at native size, with an integer confusion matrix."
    cli.run(main, EvaluateConfig, description, args=arguments)


if __name__ == "__main__":
    cli_main()
