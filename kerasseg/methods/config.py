"""Fields of the methods: frozen dataclasses that are checked when they are built."""

import dataclasses
from typing import Literal, NamedTuple, get_origin, get_type_hints

from kerasseg.checks import require, require_choices


class TrainingData(NamedTuple):
    """What a method may need to know about the data before its networks are built."""

    labeled_images: int
    """How many images have a label map."""
    crop: tuple[int, int]
    """Height and width of the training crops, pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Fields of every method. A `Literal` field is checked to hold one of its values."""

    steps: int = 20_000
    """Length of the training, in optimisation steps, over which schedules stretch."""
    working_size: int | None = None
    """Longer side, pixels, to which larger images are shrunk before they are segmented; the answer is brought back to
    their own size. None segments all as they are. `--size` chooses it, and training images follow."""

    @property
    def main_updates(self) -> int:
        """How many updates by the method's `main_optimizer` a step makes."""
        return 1

    def __post_init__(self):
        require_choices(self)
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is tuple:
                object.__setattr__(self, name, tuple(getattr(self, name)))  # a list, where it comes from a file
        require(self.steps >= 1, f"steps must be at least 1; got {self.steps}")
        require(
            self.working_size is None or self.working_size >= 1,
            f"working_size must be at least 1 pixel, or None; got {self.working_size}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmenterConfig(MethodConfig):
    """Fields of every method that trains a segmenter: SGD with momentum as in the papers, or AdamW; poly schedule."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The segmenter's optimizer. In short trainings AdamW scored higher (benchmarks/results/before/camvid.md), with a
    rate of 1e-3; SGD there needs 5e-3 and a `head_multiplier` of 10."""
    learning_rate: float = 2.5e-4
    """Initial rate of the segmenter's pretrained part."""
    head_multiplier: float = 10.0
    """The freshly initialised head learns this many times faster (reference code); 1 switches it off."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov's momentum with SGD."""
    weight_decay: float = 5e-4
    """With SGD an L2 penalty, added to the gradient; with AdamW decoupled from it."""
    decay_matrices_only: bool = False
    """Leave biases, normalisation, layer scales, position embeddings and tokens out of the weight decay, as is usual
    for transformers."""
    warmup: float = 0.0
    """Share of the training over which the segmenter's rate rises from near 0 to its schedule, in equal steps. 0
    switches it off."""
    layer_decay: float = 1.0
    """The rate of the backbone's first layer as a share of that of its last one; those between are in geometric steps,
    in their order. A decay by blocks is this number to the power of the blocks: 0.9 for each of 12 blocks is 0.28. 1
    switches it off."""
    freeze_backbone: bool = False
    """Keep the weights of the segmenter's backbone as they are; its batch norm is in inference mode. Only the head
    learns."""
    freeze_batch_norm: bool = False
    """Keep the segmenter's batch-norm statistics and affine parameters as they are."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class's pixels in the loss on labels, one number per class; none for equal weights.
    `--class-weights` computes them."""
    ohem_threshold: float = 1.0
    """The loss on labels counts only hard pixels, whose class has at most this probability (online hard example
    mining). 1 counts all."""
    ohem_share: float = 0.16
    """That loss counts at least this share of the labelled pixels, the hardest ones. UniMatch's published code has
    200,000 of 2 x 801 x 801."""
    dice_weight: float = 0.0
    """Weight of the Dice loss that is added to the cross-entropy on labels; it counts every class alike."""
    average_weights: bool = False
    """Evaluate, save and export an exponential moving average of the segmenter's weights in place of the last ones."""
    ema_decay: float = 0.99
    """Largest decay per step of that average, and of a teacher's."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "dice_weight")
        require_shares(self, "ohem_share")
        require(0 < self.ohem_threshold <= 1, f"ohem_threshold must be above 0, at most 1; got {self.ohem_threshold}")
        require(0 <= self.ema_decay < 1, f"ema_decay must be in 0..1 (below 1); got {self.ema_decay}")
        require(
            all(weight >= 0 for weight in self.class_weights),
            f"class_weights must be 0 or more; got {self.class_weights}",
        )
        require(self.learning_rate > 0, f"learning_rate must be above 0; got {self.learning_rate}")
        require(self.head_multiplier > 0, f"head_multiplier must be above 0; got {self.head_multiplier}")
        require(0 <= self.momentum < 1, f"momentum must be in 0..1 (below 1); got {self.momentum}")
        require(self.weight_decay >= 0, f"weight_decay must be 0 or more; got {self.weight_decay}")
        require(0 <= self.warmup < 1, f"warmup must be in 0..1 (below 1); got {self.warmup}")
        require(0 < self.layer_decay <= 1, f"layer_decay must be above 0, at most 1; got {self.layer_decay}")
        require(
            self.layer_decay == 1 or not self.freeze_backbone,
            f"layer_decay does nothing to a frozen backbone: leave it or freeze_backbone out; got {self.layer_decay}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemiSupervisedConfig(SegmenterConfig):
    """Fields of every method whose segmenter learns from unlabelled images too."""

    joint_batch_norm: bool = True
    """Pass labelled and unlabelled images through the segmenter together, so that batch norm sees them as one batch;
    off for a pass each, as in the reference code of hung2018 and mittal2019."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig(SegmenterConfig):
    """Fields of every method whose segmenter learns from its own predictions."""

    targets: Literal["train_mode", "inference_mode", "teacher"] = "train_mode"
    """Which forward pass the pseudo labels come from: the training pass itself (the papers), another one of the
    segmenter in inference mode, or one of its mean teacher in inference mode."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialConfig(SemiSupervisedConfig):
    """Fields of every method with a discriminator, which Adam trains (betas 0.9 and 0.99, poly schedule)."""

    discriminator_learning_rate: float = 1e-4
    """Initial rate of the discriminator's Adam."""
    discriminator_channels: int = 64
    """Channels of its first convolution; those after it have 2, 4 and 8 times as many."""

    def __post_init__(self):
        super().__post_init__()
        require(
            self.discriminator_channels >= 1,
            f"discriminator_channels must be at least 1; got {self.discriminator_channels}",
        )
        require(
            self.discriminator_learning_rate > 0,
            f"discriminator_learning_rate must be above 0; got {self.discriminator_learning_rate}",
        )


def require_weights(config: MethodConfig, *names: str) -> None:
    """ValueError unless these fields are 0 or more: factors of loss terms."""
    for name in names:
        require(getattr(config, name) >= 0, f"{name} must be 0 or more; got {getattr(config, name)}")


def require_shares(config: MethodConfig, *names: str) -> None:
    """ValueError unless these fields are in 0..1: scores, and shares of training."""
    for name in names:
        require(0 <= getattr(config, name) <= 1, f"{name} must be in 0..1; got {getattr(config, name)}")
