"""Images larger than a network was made for: shrunk before it, its answer brought back to their own size after it.

All of it is TensorFlow that `export` can convert, so a served model answers at an image's own size by itself.

Legend: B batch; H, W size of the images; h, w their size for the network; K classes; N pixels at borders.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tensorflow as tf

P = ParamSpec("P")
R = TypeVar("R")

MIXED = 255
"""Stands in for the label of a place where labels meet; no class has this number."""

VALUES_AT_ONCE = 2**21
"""Interpolated probabilities that are in memory at a time."""


def named(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the function's operations are in the scope `working_size`, by which `export` knows them."""

    @functools.wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        with tf.name_scope("working_size/"):
            return function(*args, **kwargs)

    return within


def working_shape(height, width, longer_side: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The size, int32, at which images of this size are segmented: as they are, or with a longer side of `longer_side`
    pixels where they are larger."""
    # Whole numbers, so that every runtime rounds alike.
    sides = [tf.cast(side, tf.int64) for side in (height, width)]
    longest = tf.maximum(*sides)
    most = tf.minimum(longest, longer_side)
    h, w = [tf.cast(tf.maximum((2 * side * most + longest) // (2 * longest), 1), tf.int32) for side in sides]
    return h, w


@named
def shrink(images_BHW3: tf.Tensor, longer_side: int) -> tf.Tensor:
    """Images in 0..255 at their `working_shape`, float32 (B,h,w,3).

    A triangle as wide as the pixels of the smaller image is the filter (antialiased bilinear, as in Pillow), so that
    nothing flickers that is smaller than they are.
    """
    shape = tf.shape(images_BHW3)
    return tf.image.resize(
        tf.cast(images_BHW3, tf.float32), working_shape(shape[1], shape[2], longer_side), antialias=True
    )


def shrink_by_products(images_BHW3: tf.Tensor, longer_side: int) -> tf.Tensor:
    """What `shrink` gives, by two matrices of weights: for runtimes without its filter. It takes longer."""
    shape = tf.shape(images_BHW3)
    h, w = working_shape(shape[1], shape[2], longer_side)

    def weights(small: tf.Tensor, large: tf.Tensor) -> tf.Tensor:
        """How much each of the pixels along a side counts for each of fewer: (small,large)."""
        ratio = tf.cast(large, tf.float32) / tf.cast(small, tf.float32)
        centres = (tf.cast(tf.range(small), tf.float32) + 0.5) * ratio
        distance = tf.cast(tf.range(large), tf.float32) + 0.5 - centres[:, tf.newaxis]
        triangle = tf.maximum(1.0 - tf.abs(distance) / ratio, 0.0)
        return triangle / tf.reduce_sum(triangle, axis=1, keepdims=True)

    rows_BhX = tf.matmul(weights(h, shape[1]), tf.reshape(images_BHW3, [shape[0], shape[1], shape[2] * 3]))
    columns = tf.reshape(rows_BhX, [shape[0] * h, shape[2], 3])
    return tf.reshape(tf.matmul(weights(w, shape[2]), columns), [shape[0], h, w, 3])


def shrink_labels(labels_BHW: tf.Tensor, longer_side: int) -> tf.Tensor:
    """Label maps at their `working_shape`: at each place the label of the nearest pixel, so that no class appears that
    was not there. Their type stays."""
    shape = tf.shape(labels_BHW)
    size = working_shape(shape[1], shape[2], longer_side)
    return tf.image.resize(labels_BHW[..., tf.newaxis], size, "nearest")[..., 0]


@named
def enlarge(values_BhwC: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Values brought to `size` (H,W) by bilinear interpolation: (B,H,W,C)."""
    return tf.image.resize(values_BhwC, size)


@named
def likeliest(probabilities_BhwK: tf.Tensor, size: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    """The likeliest class of each pixel and its probability, from probabilities of smaller images.

    Equal to argmax and max of `enlarge(probabilities_BhwK, size)`, which has K numbers for each pixel: gigabytes for a
    telephone's photograph. Where four neighbours have one label, so have all pixels between them, since theirs are
    weighted means of the neighbours' probabilities. So only pixels between different labels need all K numbers, a part
    of them at a time.

    Args:
        size: H, W of the answer; that of the probabilities when None.

    Returns:
        labels uint8 (B,H,W), and their probabilities float32 (B,H,W).
    """
    labels_Bhw = tf.cast(tf.argmax(probabilities_BhwK, axis=-1), tf.uint8)
    largest_Bhw = tf.cast(tf.reduce_max(probabilities_BhwK, axis=-1), tf.float32)
    if size is None:
        return labels_Bhw, largest_Bhw
    shape = tf.shape(labels_Bhw)
    above_H, down_H = _places(size[0], shape[1])
    left_W, right_W = _places(size[1], shape[2])

    # The cell between four neighbours: their label, if they have one; at the edges between two, or at a corner.
    padded = tf.pad(tf.cast(labels_Bhw, tf.int32), [[0, 0], [1, 1], [1, 1]], "SYMMETRIC")
    corners = [padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]]
    alike = tf.reduce_min(corners, axis=0) == tf.reduce_max(corners, axis=0)
    alike |= tf.reduce_all(tf.equal(size, shape[1:]))  # then nothing is between neighbours
    cells = tf.cast(tf.where(alike, corners[0], MIXED), tf.uint8)
    labels_BHW = tf.gather(tf.gather(cells, above_H + 1, axis=1), left_W + 1, axis=2)
    largest_BHW = enlarge(largest_Bhw[..., tf.newaxis], size)[..., 0]

    places_N3 = tf.cast(tf.where(labels_BHW == MIXED), tf.int32)
    at_once = VALUES_AT_ONCE // probabilities_BhwK.shape[-1]

    def fill(start, labels_BHW, largest_BHW):
        part_n3 = places_N3[start : start + at_once]
        b, y, x = tf.unstack(part_n3, axis=-1)
        top, left = tf.gather(above_H, y), tf.gather(left_W, x)
        down, right = tf.gather(down_H, y), tf.gather(right_W, x)

        def value(i: int, j: int) -> tf.Tensor:
            """The probabilities (n,K) of one of the four neighbours."""
            row, column = tf.clip_by_value(top + i, 0, shape[1] - 1), tf.clip_by_value(left + j, 0, shape[2] - 1)
            return tf.gather_nd(probabilities_BhwK, tf.stack([b, row, column], axis=-1))

        upper, lower = [_between(value(i, 0), value(i, 1), right) for i in (0, 1)]
        p_nK = _between(upper, lower, down)
        labels_BHW = tf.tensor_scatter_nd_update(labels_BHW, part_n3, tf.cast(tf.argmax(p_nK, axis=-1), tf.uint8))
        largest_BHW = tf.tensor_scatter_nd_update(largest_BHW, part_n3, tf.reduce_max(p_nK, axis=-1))
        return start + at_once, labels_BHW, largest_BHW

    _, labels_BHW, largest_BHW = tf.while_loop(
        lambda start, *_: start < tf.shape(places_N3)[0], fill, (0, labels_BHW, largest_BHW), parallel_iterations=1
    )
    return labels_BHW, largest_BHW


def _places(length: tf.Tensor, smaller: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """For each of `length` positions along an axis, as `tf.image.resize` does: the neighbour before it among `smaller`
    ones, from -1 on, int32; and how far the position is from that to the next, 0..1."""
    ratio = tf.cast(smaller, tf.float32) / tf.cast(length, tf.float32)
    position = (tf.cast(tf.range(length), tf.float32) + 0.5) * ratio - 0.5
    before = tf.floor(position)
    return tf.cast(before, tf.int32), position - before


def _between(first_nK: tf.Tensor, second_nK: tf.Tensor, share_n: tf.Tensor) -> tf.Tensor:
    """So far on the way from the first values to the second."""
    return first_nK + (second_nK - first_nK) * share_n[:, tf.newaxis]
