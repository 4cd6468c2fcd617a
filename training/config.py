"""What a run is: every flag of `training.run`, checked when built."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from kerasseg.data import Augmentation
from kerasseg.data.weighting import parse_class_weights
from kerasseg.methods import Method, MethodConfig, find_method
from kerasseg.segmenters import BACKBONES, SEGMENTERS

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
STRATEGIES = ("auto", "single", "mirrored", "multiworker")


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


def one_of(name: str, value: str, choices) -> None:
    """ValueError listing the choices unless the value is one of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


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
class RunConfig:
    """Settings of a run. Those of the method itself are flags of their own, such as --s4gan.gamma."""

    method: str = "mlmt"
    """supervised, meanteacher, advsemiseg, s4gan, mlmt, ecs, latent, dualgan or unimatch; or package.module:Class for
    one of your own, imported from the present folder or PYTHONPATH."""
    dataset: str = "shapes"
    """The built-in shapes, the path of a dataset folder, or voc2012, pascal_context, cityscapes, oxford_iiit_pet:
    these are prepared once in the directory TFDS_DATA_DIR, from the archives in TFDS_MANUAL_DIR."""
    labeled: str = "1/8"
    """Which training images are labelled: a fraction (1/8, 0.125), a count (45), all, or a file of image names."""
    cover: bool = False
    """Choose the labelled images so that every class is in as many of them as possible, rare classes first."""
    image_labels: str | None = None
    """Which of the others have image-level labels (mlmt learns from them): same forms as --labeled; or a .csv file of
    `image,class` lines."""
    seed: int = 0
    """Decides the labelled subset, the initial weights and every random number of training."""
    recipe: str = "auto"
    """Where the other defaults come from; auto is shapes for the built-in dataset and photos for all else."""

    segmenter: str = "deeplab_v3plus"
    """deeplab_v2 or deeplab_v3plus."""
    backbone: str = "mobilenet_v2"
    """mobilenet_v2, mobilenet_v2_c4 (less its last stage), resnet34, resnet50 or resnet101."""
    output_stride: int = 16
    """Of the backbone: 16, or 8 for finer and slower."""
    head_channels: int | None = None
    """Width of deeplab_v3plus' head; None for the paper's 256. deeplab_v2's head has no width."""
    head_dropout: float = 0.1
    """Share of the values that deeplab_v3plus' head drops while training; deeplab_v2's drops none."""
    rates: tuple[int, ...] | None = None
    """Dilation of the head's 3x3 convolutions, in positions of the backbone's last map: three for deeplab_v3plus, four
    for deeplab_v2. None for the published ones where the crop has room for them, and smaller ones where not."""
    weights: str = "imagenet"
    """imagenet (of the backbone: Keras' own, from its cache or the network), none, or a file with weights of the
    backbone or of a whole segmenter: .keras (a run's model.keras, say), .weights.h5 or .h5."""

    crop: tuple[int, int] = (321, 321)
    """Height and width of training crops, pixels."""
    scale: tuple[float, float] = (0.5, 1.5)
    """Training pictures are resized by a random factor in this range."""
    flip: bool = True
    """Mirror training pictures at random."""
    color_jitter: float = 0.0
    """Random change of brightness, contrast, saturation and hue, 0 (none) to 1."""
    blur: float = 0.0
    """Largest standard deviation of a random Gaussian blur, pixels."""
    rare_class_temperature: float | None = None
    """Draw labelled crops by the classes they show, rare ones the more often the lower this is (DAFormer: 0.01)."""
    copy_paste: float = 0.0
    """Probability with which pixels of a rare class of another labelled picture are pasted onto a labelled crop."""
    class_weights: str = "none"
    """Weights of the classes in the labelled loss: none, inverse_log, effective_number, or a number for each class,
    separated by commas."""
    batch_size: int = 8
    """Labelled images in a step, on all devices together."""
    unlabeled_batch_size: int | None = None
    """Unlabelled images in a step; None for as many as labelled ones."""
    steps: int | None = None
    """Training steps, in place of --METHOD.steps; for mlmt of each of its two branches."""
    learning_rate: float | None = None
    """Initial learning rate of the segmenter, in place of --METHOD.learning-rate."""
    average_weights: bool = False
    """Evaluate and export an average of the segmenter's weights over the last steps, in place of the last weights. The
    report shows both."""

    branch_run: Path | None = None
    """For mlmt: the finished run whose segmenter gets a classifier; the segmenter is left as it is."""
    precision: str = "float32"
    """float32, mixed_bfloat16 or mixed_float16."""
    strategy: str = "auto"
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
    evaluate_every: int = 500
    """Steps between evaluations on the val split, of whole pictures at their own size."""
    checkpoint_every: int = 500
    """Steps between checkpoints, from which --resume goes on; there is one at the end too, and when training is
    stopped by Ctrl-C or SIGTERM. The last two stay, and the best one that was evaluated."""
    protocol: str = "native"
    """How the trained run is measured: native, multiscale_flip, sliding_window or resized."""
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
        _ = self.method_class  # checks the name
        one_of("--segmenter", self.segmenter, SEGMENTERS)
        one_of("--backbone", self.backbone, BACKBONES)
        one_of("--precision", self.precision, PRECISIONS)
        one_of("--strategy", self.strategy, STRATEGIES)
        for name in ("batch_size", "evaluate_every", "checkpoint_every", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(self, name)}")
        if self.unlabeled_batch_size is not None and self.unlabeled_batch_size < 1:
            raise ValueError(f"--unlabeled-batch-size must be at least 1; got {self.unlabeled_batch_size}")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"--head-dropout must be in 0..1 (below 1); got {self.head_dropout}")
        if self.output_stride not in (8, 16):
            raise ValueError(f"--output-stride must be 8 or 16; got {self.output_stride}")
        if self.rare_class_temperature is not None and not 0 < self.rare_class_temperature < float("inf"):
            raise ValueError(f"--rare-class-temperature must be above 0; got {self.rare_class_temperature}")
        if not 0 <= self.copy_paste <= 1:
            raise ValueError(f"--copy-paste must be a probability 0..1; got {self.copy_paste}")
        parse_class_weights(self.class_weights)
        _ = self.augmentation  # checks its fields

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(
            crop=self.crop, scale=self.scale, flip=self.flip, color_jitter=self.color_jitter, blur=self.blur
        )

    @property
    def method_class(self) -> type[Method]:
        return find_method(self.method)

    @property
    def method_fields(self) -> dict[str, dict[str, Any]]:
        """Fields by registry name: the flags --METHOD.FIELD, with --steps and --learning-rate put in."""
        groups = {name: (type(group), dataclasses.asdict(group)) for name, group in self.groups.items()}
        return {name: fields | self.shared(group) for name, (group, fields) in groups.items()}

    def shared(self, group: type[MethodConfig]) -> dict[str, Any]:
        """--steps, --learning-rate and --average-weights where they are given and the group has such a field."""
        known = {entry.name for entry in dataclasses.fields(group)}
        values = {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "average_weights": self.average_weights or None,
        }
        return {key: value for key, value in values.items() if value is not None and key in known}

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


def with_groups(config: RunConfig, fields: dict[str, dict[str, Any]]) -> RunConfig:
    """The configuration with the groups of its method as fields of their own: what the command line is parsed into.

    Args:
        fields: values already known, by registry name.
    """
    classes = config.method_class.config_groups(fields)
    extended = dataclasses.make_dataclass(
        "RunConfig",
        [(name, group, field(default_factory=group)) for name, group in classes.items()],
        bases=(RunConfig,),
        frozen=True,
        kw_only=True,
        namespace={"groups": property(lambda self: {name: getattr(self, name) for name in classes})},
    )
    # A recipe's steps and learning rate become the groups' defaults, which --steps and --learning-rate override.
    values = {entry.name: getattr(config, entry.name) for entry in dataclasses.fields(RunConfig)}
    values |= {"steps": None, "learning_rate": None, "average_weights": False}
    groups = {name: group(**config.shared(group) | fields.get(name, {})) for name, group in classes.items()}
    return extended(**values, **groups)
