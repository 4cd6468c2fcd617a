"""What a training step takes."""

from typing import Any, NamedTuple

import tensorflow as tf


class Batch(NamedTuple):
    """A training batch: B labelled images, and U unlabelled ones of the same size."""

    labeled: tf.Tensor
    """Labelled images (B,H,W,3), RGB in 0..255, float32."""
    labels: tf.Tensor
    """Their label maps (B,H,W), int32: 0..K-1, or 255 where a pixel counts for nothing."""
    unlabeled: tf.Tensor | None = None
    """Unlabelled images (U,H,W,3); None where the method has no use for them."""
    valid: tf.Tensor | None = None
    """Which of their pixels are of the image, and not of its padding: (U,H,W) bool."""
    weak: tf.Tensor | None = None
    """Images with image-level labels (W,H,W,3); None where there are none."""
    weak_classes: tf.Tensor | None = None
    """Which classes these hold: (W,K) float32 of 0 and 1."""


def as_batch(data: Any) -> Batch:
    """The batch in what `fit` was given: `(images, labels)`, or `({"labeled": images, "unlabeled": images}, labels)`
    with what else there is under its name in `Batch` ("valid" under "unlabeled_valid")."""
    images, labels_BHW = data
    images = images if isinstance(images, dict) else {"labeled": images}
    unlabeled, valid = images.get("unlabeled"), images.get("unlabeled_valid")
    if unlabeled is not None and valid is None:
        valid = tf.ones(tf.shape(unlabeled)[:3], tf.bool)
    return Batch(
        images["labeled"],
        tf.cast(labels_BHW, tf.int32),
        unlabeled,
        valid,
        images.get("weak"),
        images.get("weak_classes"),
    )
