"""Intersection over union from integer counts: the same integers on one replica or many.

Keras' own IoU metrics mishandle labels outside the class range and count in floating point.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from kerasseg.layers import register
from kerasseg.losses import IGNORE_LABEL


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says; all in 0..1."""

    mean_iou: float
    """Over all classes that occur in the truth or in the prediction, those without a hit included."""
    iou: tuple[float | None, ...]
    """Per class; None where a class occurs in neither."""
    pixel_accuracy: float


def scores(confusion: np.ndarray) -> Scores:
    """IoU and accuracy from a (K,K) matrix of pixel counts, rows truth, columns prediction.

    IoU of a class is hits / (truth + predicted - hits). The mean leaves out only classes absent from both: leaving out
    those without a hit, as published code does, flatters.
    """
    confusion = np.asarray(confusion, np.int64)
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = [float(hit / count) if count else None for hit, count in zip(hits, union, strict=True)]
    known = [value for value in iou if value is not None]
    return Scores(
        mean_iou=float(np.mean(known)) if known else 0.0,
        iou=tuple(iou),
        pixel_accuracy=float(hits.sum() / max(confusion.sum(), 1)),
    )


@register
class ConfusionMatrix(keras.metrics.Metric):
    """Counts pixels by true and predicted class; its result is the mean IoU (see `scores`).

    Args:
        num_classes: K. Labels of 255 are left out. Label values are checked where data is opened, not here.
    """

    def __init__(self, num_classes: int, name: str = "mIoU", **kwargs):
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.matrix = self.add_variable((num_classes, num_classes), "zeros", dtype="int64", name="matrix")

    def update_state(self, labels_BHW, predictions_BHW, sample_weight=None):
        """Adds a batch: two integer label maps (B,H,W)."""
        labels = tf.cast(tf.reshape(labels_BHW, [-1]), tf.int64)
        predictions = tf.cast(tf.reshape(predictions_BHW, [-1]), tf.int64)
        cells = tf.boolean_mask(labels * self.num_classes + predictions, labels != IGNORE_LABEL)
        counts = tf.math.bincount(
            tf.cast(cells, tf.int32),
            minlength=self.num_classes**2,
            maxlength=self.num_classes**2,
            dtype=tf.int64,
        )
        self.matrix.assign_add(tf.reshape(counts, [self.num_classes, self.num_classes]))

    def result(self):
        matrix = tf.cast(self.matrix, tf.float64)
        hits = tf.linalg.diag_part(matrix)
        union = tf.reduce_sum(matrix, axis=0) + tf.reduce_sum(matrix, axis=1) - hits
        known = tf.cast(union > 0, tf.float64)
        mean = tf.math.divide_no_nan(tf.reduce_sum(tf.math.divide_no_nan(hits, union)), tf.reduce_sum(known))
        return tf.cast(mean, tf.float32)

    def get_config(self):
        return super().get_config() | {"num_classes": self.num_classes}
