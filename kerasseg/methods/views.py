"""Random views of images (B,H,W,3), RGB in 0..255, that a method makes in addition to those of the input pipeline."""

from dataclasses import dataclass

import keras
import tensorflow as tf

from kerasseg.checks import require
from kerasseg.colors import gaussian_blur, grey, jitter_colors
from kerasseg.methods.config import MethodConfig, require_shares

LARGEST_BLUR = 2.0
"""Standard deviation in pixels; it is drawn from 0.1 upwards, as in the published codes."""


@dataclass(frozen=True, kw_only=True)
class StrongViewConfig(MethodConfig):
    """Fields of every method that shows its network images in other colours; the defaults are those of UniMatch's
    published code. Lower them where classes differ by colour."""

    jitter: float = 0.5
    """Brightness, contrast and saturation of a strong view change by up to this share."""
    hue: float = 0.25
    """The hue of a strong view turns by up to this share of the colour circle."""
    jitter_probability: float = 0.8
    """Probability that a strong view has other colours."""
    grey_probability: float = 0.2
    """Probability that a strong view is grey."""
    blur_probability: float = 0.5
    """Probability that a strong view is blurred, with a standard deviation of 0.1 to 2 pixels."""

    def __post_init__(self):
        super().__post_init__()
        require_shares(self, "jitter", "jitter_probability", "grey_probability", "blur_probability")
        require(0 <= self.hue <= 0.5, f"hue must be in 0..0.5; got {self.hue}")


class StrongView(keras.layers.Layer):
    """Images in other colours, grey, blurred, each with its own probability and its own random numbers.

    Args:
        config: what is drawn, and how far.
    """

    def __init__(self, config: StrongViewConfig, name: str = "strong_view"):
        super().__init__(name=name, dtype="float32")
        self.config = config
        self.random = keras.random.SeedGenerator(name=name)
        self.built = True

    def call(self, images_BHW3):
        config, batch = self.config, tf.shape(images_BHW3)[0]
        draws_8B = keras.random.uniform((8, batch), seed=self.random)

        def chosen(draw_B, probability):
            return (draw_B < probability)[:, tf.newaxis, tf.newaxis, tf.newaxis]

        if config.jitter_probability and (config.jitter or config.hue):
            jittered = jitter_colors(images_BHW3, draws_8B[:4], config.jitter, config.hue)
            images_BHW3 = tf.where(chosen(draws_8B[4], config.jitter_probability), jittered, images_BHW3)
        if config.grey_probability:
            images_BHW3 = tf.where(chosen(draws_8B[5], config.grey_probability), grey(images_BHW3), images_BHW3)
        if config.blur_probability:
            sigma_B = 0.1 + (LARGEST_BLUR - 0.1) * draws_8B[6]
            sigma_B = tf.where(draws_8B[7] < config.blur_probability, sigma_B, 0.0)
            images_BHW3 = gaussian_blur(images_BHW3, sigma_B, LARGEST_BLUR)
        return images_BHW3


def random_boxes(
    shape: tf.Tensor, area: tuple[float, float], ratio: tuple[float, float], random: keras.random.SeedGenerator
) -> tf.Tensor:
    """A rectangle in each image of that shape (B,H,W,...): (B,H,W) bool, True inside.

    A side that would be longer than the image's is cut to it.

    Args:
        area: the smallest and the largest share of the image.
        ratio: the smallest and the largest height as a share of the width.
    """
    B, H, W = shape[0], tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
    draw_4B = keras.random.uniform((4, B), seed=random)
    pixels_B = (area[0] + (area[1] - area[0]) * draw_4B[0]) * H * W
    ratio_B = ratio[0] + (ratio[1] - ratio[0]) * draw_4B[1]
    height, width = tf.minimum(tf.sqrt(pixels_B * ratio_B), H), tf.minimum(tf.sqrt(pixels_B / ratio_B), W)
    top, left = draw_4B[2] * (H - height), draw_4B[3] * (W - width)
    rows, columns = tf.range(H) + 0.5, tf.range(W) + 0.5
    in_rows = (rows >= top[:, tf.newaxis]) & (rows < (top + height)[:, tf.newaxis])
    in_columns = (columns >= left[:, tf.newaxis]) & (columns < (left + width)[:, tf.newaxis])
    return in_rows[:, :, tf.newaxis] & in_columns[:, tf.newaxis, :]


def cutmix_boxes(shape: tf.Tensor, probability: float, random: keras.random.SeedGenerator) -> tf.Tensor:
    """UniMatch's boxes, in some of the images of that shape (B,H,W,...): 2 to 40 % of the area, height 0.3 to 1 / 0.3
    times the width; (B,H,W) bool, True inside.

    Args:
        probability: that an image has a box.
    """
    boxes_BHW = random_boxes(shape, area=(0.02, 0.4), ratio=(0.3, 1 / 0.3), random=random)
    chosen_B = keras.random.uniform((shape[0],), seed=random) < probability
    return boxes_BHW & chosen_B[:, tf.newaxis, tf.newaxis]


def random_classes(labels_BHW: tf.Tensor, num_classes: int, random: keras.random.SeedGenerator) -> tf.Tensor:
    """The pixels of one half of the classes in each label map, drawn at random (rounded up): (B,H,W) bool.

    ClassMix (Olsson et al. 2021, arXiv:2007.07936). Labels are in 0..K-1.
    """
    present_BK = tf.reduce_any(tf.one_hot(labels_BHW, num_classes, on_value=True, off_value=False), axis=(1, 2))
    draw_BK = keras.random.uniform(tf.shape(present_BK), seed=random)
    draw_BK = tf.where(present_BK, draw_BK, 2.0)  # behind all that are there
    place_BK = tf.argsort(tf.argsort(draw_BK))
    half_B1 = (tf.reduce_sum(tf.cast(present_BK, tf.int32), axis=-1, keepdims=True) + 1) // 2
    return tf.gather(place_BK < half_B1, labels_BHW, batch_dims=1)


def partners(values_B) -> tf.Tensor:
    """For each item of a batch the one before it, and for the first one the second. Neighbours in the stream of
    unlabelled images are different images, also where one epoch follows another."""
    return tf.concat([values_B[1:2], values_B[:-1]], axis=0)


def mixed(values_B, pasted_B) -> tf.Tensor:
    """Each item of a batch, with its partner's values where `pasted_B` is True."""
    return tf.where(pasted_B, partners(values_B), values_B)


def require_partners(values_B, mixing: str, off: str) -> None:
    """ValueError where the items of a batch have no partners.

    Args:
        mixing: what pastes a partner's values.
        off: how to do without it.
    """
    require(
        values_B.shape[0] != 1,
        f"{mixing} pastes parts of another image: give at least 2 unlabelled images a step, got 1; or {off}",
    )
