"""Random scale, crop, flip, colour jitter and blur of one image, its label map alongside.

Every random number comes from the seed that is passed in; nothing here has a state.
Legend: H, W size of the image as stored; h, w the same after scaling; size without suffix is the crop's.
"""

from dataclasses import dataclass

import tensorflow as tf

from kerasseg.colors import gaussian_blur, jitter_colors
from kerasseg.losses import IGNORE_LABEL

# Outside of the image, the crop is mean grey, which the segmenter's normalisation turns into about 0. The papers'
# code pads with the same (zeros after subtracting the mean), and it is what a convolution's own padding
# looks like.
PAD_VALUE = 127.5


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of a training image. Scale, crop and flip move image and label map together.

    Example:
        >>> augmentation = kerasseg.data.Augmentation(crop=(176, 240), color_jitter=0.5)
    """

    crop: tuple[int, int]
    """Height and width of the crop, in pixels. A scaled image that is smaller lies at a random place in the crop, with
    mean grey and ignored labels around it."""

    scale: tuple[float, float] = (0.5, 1.5)
    """The image's size is multiplied by a number drawn from this range."""

    whole: bool = False
    """Squeeze the whole image to the size of the crop instead of cropping it; `scale` is then ignored."""

    flip: bool = True
    """Mirror left and right, half of the time."""

    color_jitter: float = 0.0
    """0..1: brightness, contrast and saturation change by up to this share, the hue by up to a quarter of
    it."""

    blur: float = 0.0
    """Gaussian blur with a standard deviation drawn from 0 to this many pixels."""

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise ValueError(f"crop must be two positive numbers of pixels, got {self.crop}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be two positive factors, the smaller first, got {self.scale}")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter must lie in 0..1, got {self.color_jitter}")
        if not self.blur >= 0:
            raise ValueError(f"blur must be a number of pixels >= 0, got {self.blur}")


def augment(
    image_HWC: tf.Tensor,
    label_HW: tf.Tensor | None,
    seed: tf.Tensor,
    augmentation: Augmentation,
    show: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """One random view of an image.

    Args:
        image_HWC: uint8 or float32, 0..255.
        label_HW: uint8, or None for an image without a label map.
        seed: two integers; the same seed gives the same view, with or without a label map.
        show: a class of the label map; the crop is then placed so that a random pixel of it is inside.

    Returns:
        float32 (*crop, 3) in 0..255, and int32 (*crop) with 255 outside of the image (or None).
    """
    scale_seed, y_seed, x_seed, flip_seed, color_seed, blur_seed = tf.unstack(
        tf.random.experimental.stateless_split(seed, 6)
    )
    size_HW = tf.cast(tf.shape(image_HWC)[:2], tf.float32)
    if augmentation.whole:
        size_hw = tf.constant(augmentation.crop, tf.float32)
    else:
        scale = tf.random.stateless_uniform((), scale_seed, *augmentation.scale)
        size_hw = tf.maximum(tf.round(size_HW * scale), 1.0)
    ratio_hw = size_hw / size_HW
    inside_y, inside_x = None, None
    if show is not None and label_HW is not None:
        pixel = _random_pixel(label_HW, show, tf.random.experimental.stateless_fold_in(seed, 6))
        inside_y, inside_x = tf.unstack(tf.minimum(tf.floor((pixel + 0.5) * ratio_hw), size_hw - 1.0))

    # Scale and crop in one go: only the pixels of the crop that lie in the image are computed, whatever the size of
    # the scaled image. They equal those of tf.image.resize followed by a crop. The rest is padded at the end.
    y, above, rows = _window(y_seed, size_hw[0], augmentation.crop[0], ratio_hw[0], inside_y)
    x, left, columns = _window(x_seed, size_hw[1], augmentation.crop[1], ratio_hw[1], inside_x)
    size = tf.stack([tf.size(rows), tf.size(columns)])
    flipped = tf.random.stateless_uniform((), flip_seed) < 0.5 if augmentation.flip else tf.constant(False)
    left = tf.where(flipped, augmentation.crop[1] - size[1] - left, left)
    around = [[above, augmentation.crop[0] - size[0] - above], [left, augmentation.crop[1] - size[1] - left]]

    image = tf.raw_ops.ScaleAndTranslate(
        images=image_HWC[None],
        size=size,
        scale=ratio_hw,
        translation=-tf.stack([y, x]),
        kernel_type="triangle",  # bilinear
        antialias=augmentation.whole,
    )[0]
    if augmentation.color_jitter:
        draws_41 = tf.random.stateless_uniform((4, 1), color_seed)
        image = jitter_colors(image[None], draws_41, augmentation.color_jitter, augmentation.color_jitter / 4)[0]
    if augmentation.blur:
        sigma_1 = tf.random.stateless_uniform((1,), blur_seed, maxval=augmentation.blur)
        image = gaussian_blur(image[None], sigma_1, augmentation.blur)[0]
    if augmentation.flip:
        image = tf.cond(flipped, lambda: tf.reverse(image, [1]), lambda: image)  # a quarter of the time of [:, ::-1]
    image = tf.ensure_shape(tf.pad(image, [*around, [0, 0]], constant_values=PAD_VALUE), (*augmentation.crop, 3))

    label = None
    if label_HW is not None:
        columns = tf.where(flipped, columns[::-1], columns)
        nearest = tf.gather(tf.gather(label_HW, rows), columns, axis=1)
        label = tf.cast(tf.pad(nearest, around, constant_values=IGNORE_LABEL), tf.int32)
        label = tf.ensure_shape(label, augmentation.crop)
    return image, label


def _random_pixel(label_HW: tf.Tensor, value: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Row and column, float32, of a random pixel with this value, which the label map has."""
    found = tf.where(tf.reshape(label_HW, [-1]) == tf.cast(value, label_HW.dtype))[:, 0]
    width = tf.shape(label_HW, tf.int64)[1]
    pixel = found[tf.random.stateless_uniform((), seed, maxval=tf.size(found, tf.int64), dtype=tf.int64)]
    return tf.cast(tf.stack([pixel // width, pixel % width]), tf.float32)


def _window(
    seed: tf.Tensor, scaled: tf.Tensor, crop: int, ratio: tf.Tensor, inside: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Along one axis: where in the scaled image the crop's part of it begins, how much padding comes before, and for
    each of its pixels the nearest source pixel. The scaled image's pixel `inside` is in the crop."""
    room = scaled - crop
    lowest, highest = tf.constant(0.0), tf.abs(room)
    if inside is not None:  # where the image is smaller than the crop, all of it is inside
        lowest = tf.where(room > 0, tf.maximum(inside - (crop - 1.0), lowest), lowest)
        highest = tf.where(room > 0, tf.minimum(inside, highest), highest)
    draw = lowest + tf.floor(tf.random.stateless_uniform((), seed) * (highest - lowest + 1.0))
    draw = tf.minimum(draw, highest)
    first, padding = tf.unstack(tf.where(room > 0, [draw, 0.0], [0.0, draw]))
    position = tf.range(tf.minimum(scaled, float(crop))) + first
    nearest = tf.floor((position + 0.5) / ratio)
    return first, tf.cast(padding, tf.int32), tf.cast(tf.minimum(nearest, tf.round(scaled / ratio) - 1.0), tf.int32)
