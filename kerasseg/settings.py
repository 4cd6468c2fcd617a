"""The settings that decide a training, in groups: recipes fill them in, and they are flags of `training.run`."""

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from kerasseg.checks import require_choices
from kerasseg.data import Augmentation, Dataset, ShrunkDataset, Split, auto_size, train_dataset
from kerasseg.data.shrunk import at_working_size
from kerasseg.data.weighting import parse_class_weights, resolve_class_weights
from kerasseg.methods import Method, MethodConfig, TrainingData, find_method
from kerasseg.segmenters import SEGMENTERS, Segmenter, SegmenterName, build_segmenter, fitting_rates, require_drop_path

ProtocolName = Literal["native", "multiscale_flip", "sliding_window", "resized"]
"""How a run is measured (`training.protocols`)."""

LEAST_SIZE = 32
"""The smallest working size, pixels: networks pad to multiples of it."""

Fields = dict[str, dict[str, Any]]
"""Fields of methods by registry name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A group of settings, checked when built."""

    def __post_init__(self):
        require_choices(self)


@dataclass(frozen=True, kw_only=True)
class MethodSettings(Settings):
    """How unlabelled images are used."""

    method: str = "mlmt"
    """A method's name (the list at the top of --help), or package.module:Class for one of your own, imported from the
    current folder or PYTHONPATH."""

    def __post_init__(self):
        super().__post_init__()
        _ = self.method_class  # checks the name

    @property
    def method_class(self) -> type[Method]:
        return find_method(self.method)


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which images are used for training, and what is known about them."""

    dataset: str = "shapes"
    """The built-in shapes, the path of a dataset folder, or voc2012, pascal_context, cityscapes, ade20k, coco,
    coco_stuff, oxford_iiit_pet: these are prepared once in the directory TFDS_DATA_DIR, from the archives in
    TFDS_MANUAL_DIR."""
    labeled: str = "1/8"
    """Which training images are labelled: a fraction of those with a label map (1/8, 0.125), a count (45), all of them,
    or a file of image names."""
    cover: bool = False
    """Choose the labelled images so that every class is in as many of them as possible, rare classes first."""
    image_labels: str | None = None
    """Which other images have image-level labels (mlmt learns from them): as for --labeled; or a .csv file of
    `image,class` lines."""
    size: str = "native"
    """Working size: the longer side, pixels, to which larger images are shrunk to be trained on and segmented; answers
    come back at an image's own size. native shrinks none; auto chooses by the training images and the crop."""
    seed: int = 0
    """Decides which images are labelled, the initial weights and every random number of training."""

    def __post_init__(self):
        super().__post_init__()
        if self.size not in ("auto", "native") and not (self.size.isdecimal() and int(self.size) >= LEAST_SIZE):
            raise ValueError(
                f"--size must be auto, native, or the longer side of images in pixels, at least {LEAST_SIZE}; got "
                f"{self.size}"
            )


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Settings):
    """The segmenter and its initial weights."""

    segmenter: SegmenterName = "deeplab_v3plus"
    """The head, with its decoder, on the backbone: dpt on plain vision transformers, the others on networks with
    features of several strides."""
    backbone: str = "mobilenet_v2"
    """The image network, such as mobilenet_v2, resnet50, convnext_tiny or dinov2_small; --list-backbones has all."""
    output_stride: Literal[8, 16] = 16
    """For DeepLab's heads: stride of the backbone's last map, pixels; 8 for finer maps and slower training. Backbones
    that cannot be dilated keep their own."""
    head_channels: int | None = None
    """Width of the head; None for the published one: 256, and for dpt by the backbone's width, 64 on dinov2_small.
    deeplab_v2's head has no width."""
    head_dropout: float = 0.1
    """Share of the values that the head drops while training; those of deeplab_v2 and dpt drop none."""
    drop_path: float = 0.0
    """Stochastic depth of vision transformers: share of the training images for which the last block is left out.
    Earlier blocks have less, the first none."""
    rates: tuple[int, ...] | None = None
    """Dilation of the head's 3x3 convolutions, in positions of the backbone's last map: three for deeplab_v3plus, four
    for deeplab_v2, none for others. None for the published ones where the crop has room for them, and smaller ones
    where not."""
    weights: str = "imagenet"
    """imagenet (the backbone's published weights; from Keras' cache, or downloaded), none, or a file with weights of
    the backbone or of a whole segmenter: .keras (for example a run's model.keras), .weights.h5 or .h5; or of
    the backbone from timm or torchvision: .pth or .safetensors."""

    def __post_init__(self):
        super().__post_init__()
        _ = self.stride  # checks the backbone, and whether the segmenter fits it
        if self.rates and not SEGMENTERS[self.segmenter].RATES:
            raise ValueError(f"{self.segmenter} has no dilated convolutions: leave --rates out")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"--head-dropout must be in 0..1 (below 1); got {self.head_dropout}")
        require_drop_path(self.backbone, self.drop_path)

    @property
    def stride(self) -> int:
        """Stride of the backbone's last features, pixels."""
        return SEGMENTERS[self.segmenter].stride_on(self.backbone, self.output_stride)

    def build_segmenter(self, num_classes: int, crop: tuple[int, int], weights: str | None = None) -> Segmenter:
        """The segmenter.

        Args:
            num_classes: K, background included.
            crop: height and width of the training crops, pixels; the head's rates must fit it.
            weights: instead of the setting.
        """
        segmenter = SEGMENTERS[self.segmenter]
        head: dict[str, Any] = {
            "rates": self.rates or fitting_rates(segmenter, crop, self.stride),
            "head_channels": self.head_channels,
            "head_dropout": self.head_dropout,
        }
        known = inspect.signature(segmenter.build_head).parameters
        head = {name: value for name, value in head.items() if name in known and value is not None}
        return build_segmenter(
            self.segmenter,
            backbone=self.backbone,
            num_classes=num_classes,
            output_stride=self.output_stride,
            weights=weights or self.weights,
            drop_path=self.drop_path,
            **head,
        )


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings(Settings):
    """How training crops are made from the images."""

    crop: tuple[int, int] = (321, 321)
    """Height and width of training crops, pixels."""
    scale: tuple[float, float] = (0.5, 1.5)
    """Training images are resized by a random factor in this range."""
    flip: bool = True
    """Mirror training images at random."""
    color_jitter: float = 0.0
    """Random change of brightness, contrast, saturation and hue, 0 (none) to 1."""
    blur: float = 0.0
    """Largest standard deviation of a random Gaussian blur, pixels."""
    rare_class_temperature: float | None = None
    """Draw labelled crops by the classes they show. The lower this is, the more often rare classes are drawn (DAFormer:
    0.01)."""
    copy_paste: float = 0.0
    """Probability with which pixels of a rare class of another labelled image are pasted onto a labelled crop."""

    def __post_init__(self):
        super().__post_init__()
        if self.rare_class_temperature is not None and not 0 < self.rare_class_temperature < float("inf"):
            raise ValueError(f"--rare-class-temperature must be above 0; got {self.rare_class_temperature}")
        if not 0 <= self.copy_paste <= 1:
            raise ValueError(f"--copy-paste must be a probability 0..1; got {self.copy_paste}")
        _ = self.augmentation  # checks its fields

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(
            crop=self.crop, scale=self.scale, flip=self.flip, color_jitter=self.color_jitter, blur=self.blur
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings(Settings):
    """How long a training is, how many images a step has, and what it minimises."""

    class_weights: str = "none"
    """Weights of the classes in the labelled loss: none, inverse_log, effective_number, or a number for each class,
    separated by commas."""
    batch_size: int = 8
    """Labelled images in a step, on all devices together."""
    unlabeled_batch_size: int | None = None
    """Unlabelled images in a step; None for as many as labelled ones."""
    steps: int | None = None
    """Training steps, instead of --METHOD.steps; for mlmt, steps of each of its two branches."""
    learning_rate: float | None = None
    """Initial learning rate of the segmenter, instead of --METHOD.learning-rate."""
    average_weights: bool = False
    """Evaluate and export an average of the segmenter's weights over the last steps, instead of the last weights. The
    report shows both."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("batch_size", "unlabeled_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(self, name)}")
        parse_class_weights(self.class_weights)

    def shared(self, group: type[MethodConfig]) -> dict[str, Any]:
        """The fields of a method that these settings decide, where they are given and the method has such a field."""
        known = {entry.name for entry in dataclasses.fields(group)}
        values = {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "average_weights": self.average_weights or None,
        }
        return {key: value for key, value in values.items() if value is not None and key in known}


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(ScheduleSettings, AugmentationSettings, NetworkSettings, DataSettings, MethodSettings):
    """How the result is measured. With its groups, all that a recipe sets except for the methods' own fields."""

    evaluate_every: int = 500
    """Steps between evaluations on the val split, of whole images at their own size."""
    protocol: ProtocolName = "native"
    """How the trained run is measured."""

    def __post_init__(self):
        super().__post_init__()
        if self.evaluate_every < 1:
            raise ValueError(f"--evaluate-every must be at least 1; got {self.evaluate_every}")

    def method_configs(self, fields: Fields) -> dict[str, MethodConfig]:
        """The method's configuration, and those of methods inside it, by registry name: `fields`, with those that these
        settings decide."""
        classes = self.method_class.config_groups(fields)
        return {name: group(**self.shared(group) | fields.get(name, {})) for name, group in classes.items()}

    def working_size(self, dataset: Dataset) -> int | None:
        """The longer side, pixels, that `size` means for a dataset; None for native."""
        if self.size == "auto":
            return auto_size(dataset, self.crop)
        return None if self.size == "native" else int(self.size)

    def at_working_size(self, dataset: Dataset) -> Dataset:
        """The dataset, with images shrunk that are larger than the working size."""
        return dataset if isinstance(dataset, ShrunkDataset) else at_working_size(dataset, self.working_size(dataset))

    def build_method(self, dataset: Dataset, split: Split, fields: Fields, weights: str | None = None) -> Method:
        """The method around a new segmenter, not compiled.

        Args:
            fields: those of the methods, by registry name.
            weights: the segmenter's initial weights, instead of the setting.
        """
        segmenter = self.build_segmenter(dataset.num_classes, self.crop, weights)
        return self.method_class.from_segmenter(segmenter, self.known_fields(dataset, split, fields))

    def known_fields(self, dataset: Dataset, split: Split, fields: Fields) -> dict[str, dict[str, Any]]:
        """The fields, with those that follow from the data: the working size, class weights, rates for the crop,
        numbers of images."""
        known = self.method_class.with_data(fields, TrainingData(len(split.labeled), self.crop))
        found: dict[str, Any] = {"working_size": self.working_size(dataset)}
        if class_weights := resolve_class_weights(self.class_weights, dataset, split):
            found["class_weights"] = class_weights
        for name, group in known.items():
            if group.get("working_size") not in (None, found["working_size"]):
                raise ValueError(f"--size decides the working size of all methods: leave --{name}.working-size out")
        return {
            name: group | {field: value for field, value in found.items() if field in group}
            for name, group in known.items()
        }

    def unlabeled_images(self, method: Method, replicas: int = 1) -> int:
        """How many unlabelled images a step takes; ValueError where so many devices cannot share them equally."""
        if not method.needs_unlabeled:
            return 0
        wanted = (self.unlabeled_batch_size or self.batch_size) * method.unlabeled_sets
        if wanted // replicas % method.unlabeled_sets:
            raise ValueError(
                f"{self.method} takes {method.unlabeled_sets} unlabelled images for each that it learns from, so "
                f"each device needs a multiple of that; got {wanted // replicas}: choose another --unlabeled-batch-size"
            )
        return max(wanted, method.least_unlabeled * replicas)

    def batches(self, dataset: Dataset, split: Split, unlabeled: int, whole: bool, **more: Any) -> tf.data.Dataset:
        """Endless training batches.

        Args:
            dataset: at its own size, or shrunk already, so that no image is shrunk twice (`at_working_size`).
            unlabeled: unlabelled images in each (`unlabeled_images`).
            whole: whether they hold whole images instead of crops.
            more: as in `train_dataset`.
        """
        return train_dataset(
            self.at_working_size(dataset),
            split,
            dataclasses.replace(self.augmentation, whole=whole),
            batch_size=self.batch_size,
            unlabeled_batch_size=unlabeled,
            seed=self.seed,
            rare_class_temperature=self.rare_class_temperature,
            copy_paste=self.copy_paste,
            **more,
        )
