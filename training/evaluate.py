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
from training.protocols import make_protocol
from training.run_folder import Run

SETTINGS = ("scales", "window", "stride", "batch_size", "size", "labels")


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, and on what."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    dataset: str | None = None
    """A dataset's name or folder; None for the one the run was trained on."""
    split: str = "val"
    """train, val or test."""
    protocol: str | None = None
    """native, multiscale_flip, sliding_window or resized: how a picture is segmented for the comparison; None for that
    of the run's own result."""
    scales: tuple[float, ...] | None = None
    """Of multiscale_flip: factors of the picture's size; None for 0.5 0.75 1 1.25 1.5 1.75."""
    window: tuple[int, int] | None = None
    """Of sliding_window: height and width, pixels; None for those of the run's training crops."""
    stride: float | None = None
    """Of sliding_window: step between windows as a share of the window; None for two thirds."""
    batch_size: int | None = None
    """Of sliding_window: windows segmented at once, which changes the speed alone; None for 4."""
    size: tuple[int, int] | None = None
    """Of resized: height and width, pixels; None for 512 1024."""
    labels: str | None = None
    """Of resized: resized compares at that size, native at the picture's own; None for resized."""
    find_min_pixels: bool = False
    """Also find the pixel thresholds of --mlmt.gate pixel_count on this split."""


def main(config: EvaluateConfig) -> dict[str, Any]:
    run = Run.read(config.run)
    settings = {name: getattr(config, name) for name in SETTINGS}
    measured = run.result["protocol"]["name"] if run.result else "native"
    protocol = make_protocol(config.protocol or measured, run.config["crop"], **settings)
    dataset = open_dataset(config.dataset or run.config["dataset"])
    require_sound(dataset)
    if list(dataset.classes) != run.classes:
        raise ValueError(
            f"{dataset.name} has the classes {', '.join(dataset.classes)}; the run was trained on "
            f"{', '.join(run.classes)}"
        )
    method = keras.saving.load_model(run.model)
    method.compile()
    result = evaluate(method, dataset, config.split, protocol=protocol)
    if config.find_min_pixels:
        result["pixel_thresholds"] = find_min_pixels(method, dataset, config.split, protocol=protocol)
    return result


def cli_main(arguments: list[str] | None = None) -> None:
    description = "Scores a run's model by a named protocol, with an integer confusion matrix."
    cli.run(main, EvaluateConfig, description, args=arguments)


if __name__ == "__main__":
    cli_main()
