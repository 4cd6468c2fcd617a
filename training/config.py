"""What a run is: every flag of `training.run`, checked when built."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from kerasseg.methods import MethodConfig
from kerasseg.settings import Fields, TrainingSettings

DECIDE_NOTHING = {
    "out",
    "resume",
    "gradient_norms",
    "protocol",
    "protocol_settings",
    "checkpoint_every",
    "dry_run",
}
"""Settings of a run that decide nothing of its result, and that config.json leaves out."""


def defaults(settings: type) -> dict[str, Any]:
    """The default values of a dataclass's fields, as JSON has them."""
    values = {entry.name: entry.default for entry in dataclasses.fields(settings)}
    given = {name: value for name, value in values.items() if value is not dataclasses.MISSING}
    return json.loads(json.dumps(given, default=str))


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """Of the protocol by which a run is measured; None leaves one as it is."""

    scales: tuple[float, ...] | None = None
    """Of multiscale_flip: factors of the picture's size; None for 0.5 0.75 1 1.25 1.5 1.75."""
    window: tuple[int, int] | None = None
    """Of sliding_window: height and width, pixels; None for those of the run's training crops."""
    stride: float | None = None
    """Of sliding_window: step between windows as a share of the window; None for two thirds."""
    window_batch_size: int | None = None
    """Of sliding_window: windows segmented at once, which changes the speed alone; None for 4."""
    size: tuple[int, int] | None = None
    """Of resized: height and width, pixels; None for 512 1024."""
    labels: str | None = None
    """Of resized: resized compares at that size, native at the picture's own; None for resized."""

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


ProtocolFlags = Annotated[ProtocolSettings, tyro.conf.arg(name="")]
"""The settings as flags of their own names, `--window` and not `--protocol-settings.window`."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingSettings):
    """Settings of a run. Those of the method itself are flags of their own, such as --s4gan.gamma."""

    recipe: str = "auto"
    """Where the other defaults come from; auto is shapes for the built-in dataset and photos for all else."""

    branch_run: Path | None = None
    """For mlmt: the finished run whose segmenter gets a classifier; the segmenter is left as it is."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Of the arithmetic: mixed ones keep weights and losses in float32."""
    strategy: Literal["auto", "single", "mirrored", "multiworker"] = "auto"
    """mirrored trains on all local GPUs, single on one device; auto is mirrored where there are several GPUs.
    multiworker trains on the machines that TF_CONFIG names, each of which runs this command."""
    accumulate: int = 1
    """Networks take a batch in so many parts, one after the other: less memory, more time (a second forward pass), the
    same gradients. Only batch norm goes by the parts."""
    sync_batch_norm: bool = False
    """Batch norm goes by the batches of all devices together. Otherwise each device's share is normalised by itself,
    which is faster, and the first one's moving averages are those of the trained model."""
    deterministic: bool = False
    """Bit-equal repeats: deterministic ops, one op at a time."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which --resume goes on; there is one at the end too, and when training is
    stopped by Ctrl-C or SIGTERM. The last two stay, and the best one that was evaluated."""
    protocol_settings: ProtocolFlags = ProtocolSettings()
    gradient_norms: bool = True
    """At evaluations, measure how hard each loss pulls; off where that wants too much memory."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl, each a mean over them."""
    out: Path | None = None
    """The run folder; None for runs/DATASET_METHOD_LABELED_seedSEED."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    dry_run: bool = False
    """Train for a few steps, write nothing, and tell how long the whole will take and how much memory."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("checkpoint_every", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(self, name)}")

    @property
    def method_fields(self) -> dict[str, dict[str, Any]]:
        """Fields by registry name: the flags --METHOD.FIELD, with --steps and --learning-rate put in."""
        groups = {name: (type(group), dataclasses.asdict(group)) for name, group in self.groups.items()}
        return {name: fields | self.shared(group) for name, (group, fields) in groups.items()}

    groups: ClassVar[dict[str, MethodConfig]] = {}
    """The method configurations by registry name; `with_groups` makes them fields."""

    @property
    def folder(self) -> Path:
        if self.out is not None:
            return self.out
        dataset = Path(self.dataset).resolve().name
        labeled = Path(self.labeled).stem if Path(self.labeled).is_file() else self.labeled.replace("/", "-")
        covering = "-cover" if self.cover else ""
        return Path("runs") / f"{dataset}_{self.method_class.registry_name}_{labeled}{covering}_seed{self.seed}"


def with_groups(settings: TrainingSettings, fields: Fields, recipe: str = "auto") -> RunConfig:
    """A recipe's settings with the groups of the method as fields of their own: what the command line is parsed into.

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
