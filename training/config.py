"""What a run is: every flag of `training.run`, checked when built."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from kerasseg.methods import MethodConfig, SegmenterConfig
from kerasseg.settings import Fields, TrainingSettings
from training.protocols import LabelSize
from training.trackers import TrackerName

COMMON = (
    "--method",
    "--dataset",
    "--labeled",
    "--cover",
    "--size",
    "--seed",
    "--backbone",
    "--segmenter",
    "--weights",
    "--crop",
    "--batch-size",
    "--steps",
    "--learning-rate",
    "--recipe",
    "--evaluate-every",
    "--out",
    "--resume",
    "--dry-run",
)
"""The flags that most trainings need."""

SYNONYMS = {
    "--lr": "--learning-rate is the segmenter's initial learning rate",
    "--lr0": "--learning-rate is the segmenter's initial learning rate",
    "--epochs": "--steps says how long to train, in steps of --batch-size labelled images",
    "--imgsz": "--size is the longer side that images are shrunk to, pixels, and --crop the size of training crops",
    "--img-size": "--size is the longer side that images are shrunk to, pixels, and --crop the size of training crops",
    "--model": "--segmenter is the head and --backbone the image network",
    "--arch": "--segmenter is the head and --backbone the image network",
    "--data": "--dataset is a dataset's folder or name",
    "--batch": "--batch-size is the number of labelled images in a step",
    "--output": "--out is the run folder",
    "--project": "--out is the run folder",
    "--name": "--out is the run folder",
    "--pretrained": "--weights is imagenet, none or a file",
    "--device": "--strategy says which devices train, and CUDA_VISIBLE_DEVICES which GPUs there are",
    "--optimizer": "--METHOD.optimizer is sgd or adamw, such as --meanteacher.optimizer adamw",
    "--weight-decay": "--METHOD.weight-decay, such as --meanteacher.weight-decay 1e-4",
}
"""Flags of other tools, and ours."""


def defaults(settings: type) -> dict[str, Any]:
    """The default values of a dataclass's fields, as JSON has them."""
    values = {entry.name: entry.default for entry in dataclasses.fields(settings)}
    given = {name: value for name, value in values.items() if value is not dataclasses.MISSING}
    return json.loads(json.dumps(given, default=str))


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """Settings of the protocol that measures a run; None for the protocol's default."""

    scales: tuple[float, ...] | None = None
    """For multiscale_flip: factors of the image's size; None for 0.5 0.75 1 1.25 1.5 1.75."""
    window: tuple[int, int] | None = None
    """For sliding_window: height and width, pixels; None for those of the run's training crops."""
    stride: float | None = None
    """For sliding_window: step between windows as a share of the window; None for two thirds."""
    window_batch_size: int | None = None
    """For sliding_window: windows segmented at once; affects only the speed; None for 4."""
    resized_to: tuple[int, int] | None = None
    """For resized: height and width, pixels; None for 512 1024."""
    labels: LabelSize | None = None
    """For resized: resized compares with the label map at --resized-to, native with the label map at the image's own
    size; None for resized."""

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


ProtocolFlags = Annotated[ProtocolSettings, tyro.conf.arg(name="")]
"""The settings as flags of their own names, `--window` and not `--protocol-settings.window`."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingSettings):
    """Where the run is written, and how it is computed. The method's own fields are flags too."""

    recipe: str = "auto"
    """Where the other defaults come from; auto is shapes for the built-in dataset and photos for all others."""

    branch_run: Path | None = None
    """For mlmt: the finished run whose segmenter gets a classifier; the segmenter is left as it is."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Precision of the arithmetic; the mixed ones keep weights and losses in float32."""
    strategy: Literal["auto", "single", "mirrored", "multiworker"] = "auto"
    """mirrored trains on all local GPUs, single on one device; auto is mirrored where there are several GPUs.
    multiworker trains on the machines that TF_CONFIG names, each of which runs this command."""
    accumulate: int = 1
    """Number of parts in which networks take a batch, one after the other: less memory, more time (a second forward
    pass), the same gradients. Only batch norm uses each part's statistics."""
    sync_batch_norm: bool = False
    """Batch norm uses the batches of all devices together. Otherwise each device normalises its own share, which is
    faster, and the trained model gets the first device's moving averages."""
    deterministic: bool = False
    """Make repeated runs equal to the last bit: deterministic ops, one op at a time."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which --resume continues. There is also one at the end, and one when Ctrl-C or
    SIGTERM stops the training. The last two are kept, and the best one that was evaluated."""
    protocol_settings: ProtocolFlags = ProtocolSettings()
    gradient_norms: bool = True
    """At evaluations, measure the gradient norm of each loss; off where that needs too much memory."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl, each a mean over them; None for 20, and fewer in runs of less than 500
    steps, whose curves would have few points."""
    log_to: tuple[TrackerName, ...] = ()
    """Also send curves, settings and images to wandb (Weights & Biases) or mlflow; install its package first."""
    out: Path | None = None
    """The run folder; None for runs/DATASET_METHOD_LABELED_seedSEED."""
    resume: bool = False
    """Continue from the last checkpoint of the run folder."""
    dry_run: bool = False
    """Train for a few steps, write nothing, and say how much time and memory the whole training needs."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("checkpoint_every", "log_every", "accumulate"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {value}")

    @property
    def method_fields(self) -> dict[str, dict[str, Any]]:
        """Fields by registry name: the flags --METHOD.FIELD, with --steps and --learning-rate put in."""
        groups = {name: (type(group), dataclasses.asdict(group)) for name, group in self.groups.items()}
        return {name: fields | self.shared(group) for name, (group, fields) in groups.items()}

    groups: ClassVar[dict[str, MethodConfig]] = {}
    """The method configurations by registry name; `with_groups` makes them fields."""

    @property
    def decided_defaults(self) -> dict[str, Any]:
        """By flag, what is used where the flag is None."""
        own = self.groups[self.method_class.registry_name]
        found = {"--steps": own.steps, "--out": self.folder, "--unlabeled-batch-size": self.batch_size}
        rates = [group.learning_rate for group in self.groups.values() if isinstance(group, SegmenterConfig)]
        return found | {"--learning-rate": rates[-1]}

    @property
    def folder(self) -> Path:
        if self.out is not None:
            return self.out
        dataset = Path(self.dataset).resolve().name
        labeled = Path(self.labeled).stem if Path(self.labeled).is_file() else self.labeled.replace("/", "-")
        covering = "-cover" if self.cover else ""
        return Path("runs") / f"{dataset}_{self.method_class.registry_name}_{labeled}{covering}_seed{self.seed}"


def with_groups(settings: TrainingSettings, fields: Fields, recipe: str = "auto") -> RunConfig:
    """A recipe's settings with the groups of the method as fields of their own; the command line is parsed into it.

    Args:
        fields: values already known, by registry name.
    """
    configs = settings.method_configs(fields)
    extended = dataclasses.make_dataclass(
        "RunConfig",
        [(name, type(group), field(default_factory=type(group))) for name, group in configs.items()],
        bases=(RunConfig,),
        frozen=True,
        kw_only=True,
        namespace={"groups": property(lambda self: {name: getattr(self, name) for name in configs})},
    )
    # A recipe's steps and learning rate become the groups' defaults, which --steps and --learning-rate override.
    values = {entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(settings)}
    values |= {"recipe": recipe, "steps": None, "learning_rate": None, "average_weights": False}
    return extended(**values, **configs)
