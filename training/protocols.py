"""How a method is measured: protocols with names, one class for each, so that a result can name its protocol.

Legend: H, W size of an image; h, w of a window; N windows; K classes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import tensorflow as tf

from kerasseg.checks import require_one_of
from kerasseg.data.augment import PAD_VALUE
from serving.common.windows import corners, steps

LabelSize = Literal["resized", "native"]
"""The size at which `Resized` compares predictions with label maps."""

Predict = Callable[[tf.Tensor], tf.Tensor]
"""Images (N,H,W,3) to class probabilities (N,H,W,K), such as `Method.class_probabilities`."""

COUNTED = "ignored pixels left out; mean over all classes that occur in truth or prediction"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What happens between an image and the segmentation that is compared with its label map.

    Only the segmenter's probabilities are averaged over views of an image. What a method does with them for the whole
    image (`Method.variants_from`, such as mlmt's gate) follows once, on the average.
    """

    name: ClassVar[str]

    def prepare(self, images_1HW3: tf.Tensor, labels_1HW: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """An image and its labels as they are measured, of one size."""
        return images_1HW3, labels_1HW

    def segment(self, predict: Predict, images_1HW3: tf.Tensor) -> tf.Tensor:
        """The class probabilities (1,H,W,K) of a prepared image; `predict` gives those of images as they are."""
        return predict(images_1HW3)

    def settings(self) -> dict[str, Any]:
        """The settings that decide its results; JSON types."""
        return {}

    def words(self) -> str:
        """The protocol in a sentence, without what is the same for all."""
        raise NotImplementedError

    def describe(self, working_size: int | None = None) -> dict[str, Any]:
        """The protocol in result.json: "name", its settings, "description".

        Args:
            working_size: the method's own, to which it shrinks the images that the protocol gives it.
        """
        words, own = self.words(), self.settings()
        if working_size is not None:
            own["working_size"] = working_size
            words += (
                f"; larger images shrunk to a longer side of {working_size} pixels, and the softmax probabilities "
                "brought back to the size before it"
            )
        return {"name": self.name, **own, "description": f"{words}; {COUNTED}"}


@dataclass(frozen=True, kw_only=True)
class Native(Protocol):
    """Whole images as they are: the default, also used during training."""

    name = "native"

    def words(self):
        return "each image once at its own size, one scale, no flip"


@dataclass(frozen=True, kw_only=True)
class MultiscaleFlip(Protocol):
    """Several sizes of an image, each also mirrored."""

    name = "multiscale_flip"
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    """Factors of the image's size; those of DeepLab's and PSPNet's papers."""

    def __post_init__(self):
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"--scales must be factors above 0, such as 0.5 1 1.5; got {_shown(self.scales)}")

    def segment(self, predict, images_1HW3):
        size = tf.shape(images_1HW3)[1:3]
        views = []
        for scale in self.scales:
            scaled = tf.maximum(tf.round(scale * tf.cast(size, tf.float32)), 1.0)
            # As in training (kerasseg.data.augment): bilinear, and nothing is smoothed before it shrinks.
            view_1hw3 = tf.image.resize(images_1HW3, tf.cast(scaled, tf.int32))
            S_1hwK = (predict(view_1hw3) + predict(view_1hw3[:, :, ::-1])[:, :, ::-1]) / 2
            views.append(tf.image.resize(S_1hwK, size))
        return tf.add_n(views) / len(views)

    def settings(self):
        return {"scales": list(self.scales), "flip": True}

    def words(self):
        return (
            f"each image at {_shown(self.scales)} times its own size, as it is and mirrored, the softmax probabilities "
            "averaged at its own size"
        )


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(Protocol):
    """Windows of one size, such as that of the training crops."""

    name = "sliding_window"
    window: tuple[int, int]
    """Height and width, pixels."""
    stride: float = 2 / 3
    """Step from one window to the next as a share of the window; with PSPNet's two thirds, a third overlaps."""
    window_batch_size: int = 4
    """Windows that are segmented at once; affects only the speed."""

    def __post_init__(self):
        if min(self.window) < 1:
            raise ValueError(f"--window must be two positive numbers of pixels; got {_shown(self.window)}")
        _ = self.step  # checks the stride
        if self.window_batch_size < 1:
            raise ValueError(f"--window-batch-size must be at least 1 window; got {self.window_batch_size}")

    @property
    def step(self) -> tuple[int, int]:
        """The stride in pixels, rounded up."""
        return steps(self.window, self.stride)

    def segment(self, predict, images_1HW3):
        height, width = tf.unstack(tf.shape(images_1HW3)[1:3])
        h, w = self.window
        # An image smaller than the window gets mean grey below and to its right, like training crops.
        outside = [[0, tf.maximum(h - height, 0)], [0, tf.maximum(w - width, 0)], [0, 0]]
        image_HW3 = tf.pad(images_1HW3[0], outside, constant_values=PAD_VALUE)
        corners_N2 = tf.numpy_function(
            lambda size: corners(size, self.window, self.step), [tf.shape(image_HW3)[:2]], tf.int32, stateful=False
        )
        corners_N2 = tf.ensure_shape(corners_N2, (None, 2))
        offsets_hw2 = tf.stack(tf.meshgrid(tf.range(h), tf.range(w), indexing="ij"), axis=-1)

        def windows(start):
            places_Nhw2 = corners_N2[start : start + self.window_batch_size, tf.newaxis, tf.newaxis] + offsets_hw2
            S_NhwK = predict(tf.ensure_shape(tf.gather_nd(image_HW3, places_Nhw2), (None, h, w, 3)))
            # The last channel counts windows.
            return places_Nhw2, tf.concat([S_NhwK, tf.ones_like(S_NhwK[..., :1])], axis=-1)

        def add(start, total_HWC):
            return start + self.window_batch_size, tf.tensor_scatter_nd_add(total_HWC, *windows(start))

        places_Nhw2, counted = windows(0)  # before the loop, because it gives the number of classes
        total_HWC = tf.scatter_nd(places_Nhw2, counted, [*tf.unstack(tf.shape(image_HW3)[:2]), counted.shape[-1]])
        _, total_HWC = tf.while_loop(
            lambda start, _: start < tf.shape(corners_N2)[0],
            add,
            (self.window_batch_size, total_HWC),
            parallel_iterations=1,
        )
        total_HWC = total_HWC[:height, :width]
        return (total_HWC[..., :-1] / total_HWC[..., -1:])[tf.newaxis]

    def settings(self):
        return {"window": list(self.window), "stride": list(self.step)}

    def words(self):
        return (
            f"windows of {_by(self.window)} pixels every {_by(self.step)} at the image's own size, the last of a row "
            "and of a column shifted inward, smaller images padded; the softmax probabilities averaged where windows "
            "overlap"
        )


@dataclass(frozen=True, kw_only=True)
class Resized(Protocol):
    """Images brought to one size: Cityscapes at half size in Hung et al. 2018 and Mittal et al. 2019.

    The papers do not say at which size predictions are compared with label maps. The reference code of Mittal et al.
    resizes these too; that of Hung et al. leaves Cityscapes out.
    """

    name = "resized"
    resized_to: tuple[int, int] = (512, 1024)
    """Height and width, pixels."""
    labels: LabelSize = "resized"
    """resized: label maps are brought to the same size (reference code of Mittal et al. 2019). native: they stay as
    they are, and the probabilities are brought to theirs."""

    def __post_init__(self):
        if min(self.resized_to) < 1:
            raise ValueError(f"--resized-to must be two positive numbers of pixels; got {_shown(self.resized_to)}")
        require_one_of("--labels", self.labels, get_args(LabelSize))

    def prepare(self, images_1HW3, labels_1HW):
        if self.labels == "native":
            return images_1HW3, labels_1HW
        labels_1hw1 = tf.image.resize(labels_1HW[..., tf.newaxis], self.resized_to, "nearest")
        return self.shrink(images_1HW3), labels_1hw1[..., 0]

    def segment(self, predict, images_1HW3):
        if self.labels == "resized":
            return predict(images_1HW3)
        return tf.image.resize(predict(self.shrink(images_1HW3)), tf.shape(images_1HW3)[1:3])

    def shrink(self, images_1HW3: tf.Tensor) -> tf.Tensor:
        """Resized, with smoothing where it shrinks, as by Pillow's bilinear filter, which the reference code uses."""
        return tf.image.resize(images_1HW3, self.resized_to, antialias=True)

    def settings(self):
        return {"resized_to": list(self.resized_to), "labels": self.labels}

    def words(self):
        compared = {
            "resized": "and its label map resized to {}, and compared there",
            "native": "resized to {}, the softmax probabilities brought back to its own size, and compared there",
        }[self.labels]
        return f"each image {compared.format(_by(self.resized_to) + ' pixels')}, one scale, no flip"


PROTOCOLS: dict[str, type[Protocol]] = {
    protocol.name: protocol for protocol in (Native, MultiscaleFlip, SlidingWindow, Resized)
}


def make_protocol(name: str, crop: Sequence[int], **given: Any) -> Protocol:
    """The protocol of that name.

    Args:
        crop: height and width of the run's training crops: the window, unless that is given.
        given: settings of protocols.

    Raises:
        ValueError: no such protocol, a setting of another one, or an impossible value.
    """
    require_one_of("--protocol", name, PROTOCOLS)
    protocol = PROTOCOLS[name]
    known = {field.name for field in dataclasses.fields(protocol)}
    if foreign := sorted(given.keys() - known):
        flag = foreign[0].replace("_", "-")
        of = next(other for other, theirs in PROTOCOLS.items() if foreign[0] in theirs.__annotations__)
        raise ValueError(f"--{flag} is a setting of --protocol {of}, not of {name}: leave it out")
    if "window" in known:
        given = {"window": tuple(crop)} | given
    return protocol(**given)


def recorded(said: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the settings, from what `Protocol.describe` gave, with which `make_protocol` makes it again."""
    protocol = PROTOCOLS[said["name"]]
    if "size" in said:  # its name before --size was the working size
        said = {**said, "resized_to": said["size"]}
    known = {field.name for field in dataclasses.fields(protocol)} & said.keys()
    settings = {name: tuple(said[name]) if isinstance(said[name], list) else said[name] for name in known}
    if "stride" in settings:  # in pixels there; the largest share of the window that gives both of them
        settings["stride"] = min(step / side for step, side in zip(settings["stride"], settings["window"], strict=True))
    return protocol.name, settings


def _shown(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
