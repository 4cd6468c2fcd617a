"""What a training step takes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Batch(NamedTuple):
    """A training batch: B labelled images, and U unlabelled ones of the same size."""

    labeled: tf.Tensor
    """Labelled images (B,H,W,3), RGB in 0..255, float32."""
    labels: tf.Tensor
    """Their label maps (B,H,W), int32: 0..K-1, or 255 for an ignored pixel."""
    unlabeled: tf.Tensor | None = None
    """Unlabelled images (U,H,W,3); None where the method has no use for them."""
    valid: tf.Tensor | None = None
    """Which of their pixels belong to the image, not to its padding: (U,H,W) bool."""
    image_labeled: tf.Tensor | None = None
    """Images with image-level labels (W,H,W,3); None where there are none."""
    image_labels: tf.Tensor | None = None
    """Which classes these hold: (W,K) float32 of 0 and 1."""


def as_batch(data: Any) -> Batch:
    """The batch that `fit` was given: `(images, labels)`, or `({"labeled": images, "unlabeled": images}, labels)` with
    the other fields of `Batch` under their names ("valid" under "unlabeled_valid")."""
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise ValueError("sample_weight is not used: give a pixel the label 255 to leave it out")
    images = dict(images) if isinstance(images, Mapping) else {"labeled": images}
    if "labeled" not in images or isinstance(images["labeled"], tuple | list):
        raise ValueError(
            f'a batch is ({{"labeled": images, "unlabeled": images}}, labels); got {sorted(images)}: map your pipeline '
            'to that, as zip(labelled, unlabelled).map(lambda l, u: ({"labeled": l[0], "unlabeled": u}, l[1]))'
        )
    images |= {name: image_batch(images[name]) for name in ("labeled", "unlabeled", "image_labeled") if name in images}
    labels_BHW = label_maps(labels)
    unlabeled, valid = images.get("unlabeled"), images.get("unlabeled_valid")
    for name, size in (
        ("labels", labels_BHW.shape[1:]),
        ("unlabeled", () if unlabeled is None else unlabeled.shape[1:3]),
    ):
        if size and not images["labeled"].shape[1:3].is_compatible_with(size):
            raise ValueError(
                f"{name} must be as large as the labelled images, {images['labeled'].shape[1:3]}; got {size}"
            )
    if unlabeled is not None and valid is None:
        valid = tf.ones(tf.shape(unlabeled)[:3], tf.bool)
    return Batch(
        images["labeled"],
        labels_BHW,
        unlabeled,
        valid,
        images.get("image_labeled"),
        images.get("image_labels"),
    )


def image_batch(images: tf.Tensor) -> tf.Tensor:
    """Images (B,H,W,3) as float32; ValueError for another shape."""
    images = tf.convert_to_tensor(images)
    if images.shape.rank != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be (B,H,W,3), RGB in 0..255; got {images.shape}")
    return tf.cast(images, tf.float32)


def label_maps(labels: tf.Tensor) -> tf.Tensor:
    """Labels (B,H,W) or (B,H,W,1) as int32 (B,H,W); ValueError for another shape."""
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 4 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.shape.rank != 3:
        raise ValueError(
            f"labels must be class numbers (B,H,W), 255 for ignored pixels; got {labels.shape}"
            + (": take the argmax of one-hot labels" if labels.shape.rank == 4 else "")
        )
    return tf.cast(labels, tf.int32)


def concatenated(network: keras.Model, *batches: tf.Tensor, training: bool) -> list[tf.Tensor]:
    """One forward pass over several batches of one image size, so that batch norm sees them together."""
    outputs = network(tf.concat(batches, axis=0), training=training)
    return tf.split(outputs, [tf.shape(batch)[0] for batch in batches], axis=0, num=len(batches))
