"""`python -m training.evaluate RUN`: scores of a finished run on any split of any dataset with its classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

# isort: off
import kerasseg  # noqa: F401 (first: it prepares the start of TensorFlow)

# isort: on
import tyro

from kerasseg.data import naming_unreadable, open_dataset
from kerasseg.data.check import require_sound
from kerasseg.settings import ProtocolName
from serving.common import cli
from training.checkpoints import CheckpointName, open_method
from training.config import ProtocolFlags, ProtocolSettings
from training.console import print_scores
from training.evaluation import evaluate, find_min_pixels
from training.protocols import make_protocol, recorded
from training.run_folder import Run


@dataclass(frozen=True)
class EvaluateConfig:
    """What to evaluate, and on what."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    dataset: str | None = None
    """A dataset's name or folder; None for the one the run was trained on."""
    split: Literal["train", "val", "test"] = "val"
    """The split whose images it is measured on."""
    protocol: ProtocolName | None = None
    """How each image is segmented for the comparison; None for the protocol of the run's own result, with its
    settings."""
    protocol_settings: ProtocolFlags = ProtocolSettings()
    checkpoint: CheckpointName = "last"
    """The state at the end of the training, or the one with the best score on val during it."""
    find_min_pixels: bool = False
    """Also find the pixel thresholds of --mlmt.gate pixel_count on this split."""


def main(config: EvaluateConfig) -> dict[str, Any]:
    run = Run.read(config.run)
    own, settings = recorded(run.result["protocol"]) if run.result else ("native", {})
    if config.protocol is not None:
        own, settings = config.protocol, {}
    protocol = make_protocol(own, run.config["crop"], **settings | config.protocol_settings.given)
    dataset = open_dataset(config.dataset or run.config["dataset"])
    require_sound(dataset, splits=(config.split,))
    if list(dataset.classes) != run.classes:
        raise ValueError(
            f"{dataset.name} has the classes {', '.join(dataset.classes)}; the run was trained on "
            f"{', '.join(run.classes)}"
        )
    method, _ = open_method(run, config.checkpoint)
    with naming_unreadable(config.dataset or run.config["dataset"], splits=(config.split,)):
        result = evaluate(method, dataset, config.split, protocol=protocol)
        if config.find_min_pixels:
            result["pixel_thresholds"] = find_min_pixels(method, dataset, config.split, protocol=protocol)
    print_scores(result)
    return result


COMMAND = cli.Command(
    main, EvaluateConfig, "Scores a run's model by a named protocol, with an integer confusion matrix."
)

if __name__ == "__main__":
    COMMAND.run()
