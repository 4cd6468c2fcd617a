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
    """The scores of a confusion matrix; all in 0..1, and None where no pixel was counted."""

    mean_iou: float | None
    """The mean over all classes that occur in the truth or in the prediction, those without a hit included."""
    mean_iou_reference: float | None
    """The mean over the classes with a hit only, as in published code: never below `mean_iou`."""
    iou: tuple[float | None, ...]
    """IoU of each class; None where a class occurs in neither."""
    pixel_accuracy: float | None


def scores(confusion: np.ndarray) -> Scores:
    """IoU and accuracy from a (K,K) matrix of pixel counts, rows truth, columns prediction.

    IoU of a class is hits / (truth + predicted - hits). The mean leaves out only classes absent from both: leaving out
    those without a hit flatters. The code of Hung et al. 2018 does so, and that of Mittal et al. 2019 did when it came
    out (since October 2020 it divides by the number of all classes, also those absent from both): `mean_iou_reference`.
    """
    confusion = np.asarray(confusion, np.int64)
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    iou = [float(hit / count) if count else None for hit, count in zip(hits, union, strict=True)]
    known = [value for value in iou if value is not None]
    if not known:
        return Scores(None, None, tuple(iou), None)
    return Scores(
        mean_iou=float(np.mean(known)),
        mean_iou_reference=float(np.mean([value for value in known if value > 0] or 0.0)),
        iou=tuple(iou),
        pixel_accuracy=float(hits.sum() / confusion.sum()),
    )


def count_pixels(labels_BHW, predictions_BHW, num_classes: int) -> tf.Tensor:
    """The confusion matrix of label maps and predictions: (K,K) int64, rows truth. Labels of 255 are left out."""
    labels = tf.cast(tf.reshape(labels_BHW, [-1]), tf.int64)
    predictions = tf.cast(tf.reshape(predictions_BHW, [-1]), tf.int64)
    cells = tf.boolean_mask(labels * num_classes + predictions, labels != IGNORE_LABEL)
    counts = tf.math.bincount(
        tf.cast(cells, tf.int32), minlength=num_classes**2, maxlength=num_classes**2, dtype=tf.int64
    )
    return tf.reshape(counts, [num_classes, num_classes])


def roc(scores_P: np.ndarray, positive_P: np.ndarray, points: int = 100) -> dict:
    """The receiver operating characteristic of a score, for thresholds from the highest to the lowest.

    Returns:
        "false_positive_rate" and "true_positive_rate", 0..1, at up to `points` thresholds, both ends included; and
        "auc", the area under the whole curve, None where nothing is positive or nothing negative.
    """
    order_P = np.argsort(-scores_P, kind="stable")
    last_of_equals = np.append(np.diff(scores_P[order_P]) != 0, True)  # equal scores pass together
    hits = np.append(0, np.cumsum(positive_P[order_P])[last_of_equals])
    alarms = np.append(0, np.cumsum(~positive_P[order_P])[last_of_equals])
    hit_rate, alarm_rate = hits / max(hits[-1], 1), alarms / max(alarms[-1], 1)
    known = hits[-1] > 0 and alarms[-1] > 0
    shown = np.unique(np.linspace(0, len(hits) - 1, points).round().astype(int))
    return {
        "false_positive_rate": alarm_rate[shown].tolist(),
        "true_positive_rate": hit_rate[shown].tolist(),
        "auc": float(np.trapezoid(hit_rate, alarm_rate)) if known else None,
    }


class Reliability:
    """Whether a confidence separates right pixels from wrong ones: counts of both by confidence."""

    BINS = 20
    LEVELS, LARGEST_LOGIT = 4096, 17.0  # finely spaced where softmax ends: float32 knows no logit above 17

    def __init__(self):
        self.bins_2N = np.zeros((2, self.BINS), np.int64)
        """Wrong and right pixels by confidence in steps of 1 / BINS."""
        self.confidence_N = np.zeros(self.BINS)
        """Sum of the confidences in each step."""
        self.levels_2L = np.zeros((2, self.LEVELS), np.int64)
        """Wrong and right pixels by the confidence's logit, to rank them."""

    def add(self, confidence_P: np.ndarray, right_P: np.ndarray) -> None:
        """Counts pixels: confidence in 0..1, and whether the prediction is right."""
        right_P = right_P.astype(np.int64)
        bins_P = np.minimum((confidence_P * self.BINS).astype(np.int64), self.BINS - 1)
        self.bins_2N += np.bincount(right_P * self.BINS + bins_P, minlength=2 * self.BINS).reshape(2, -1)
        self.confidence_N += np.bincount(bins_P, weights=confidence_P, minlength=self.BINS)
        confidence_P = confidence_P.astype(np.float64)
        with np.errstate(divide="ignore"):
            logit_P = np.log(confidence_P) - np.log1p(-confidence_P)
        level_P = (np.clip(logit_P / self.LARGEST_LOGIT, -1, 1) + 1) / 2 * (self.LEVELS - 1)
        level_P = right_P * self.LEVELS + np.rint(level_P).astype(np.int64)
        self.levels_2L += np.bincount(level_P, minlength=2 * self.LEVELS).reshape(2, -1)

    def summary(self) -> dict:
        """Figures from the counts.

        Returns:
            "pixels"; "accuracy"; "expected_calibration_error": mean distance of confidence and accuracy over the bins,
            0..1, weighted by their pixels (Guo et al. 2017, arXiv:1706.04599); "error_detection_auc": the probability
            that a right pixel has more confidence than a wrong one, 0.5 for a useless confidence, None where all
            pixels are right or all wrong; "bins": per step its "from", "right", "wrong" and mean "confidence" (None
            without pixels); "thresholds": for 0, 0.1 ... 0.9 the share of pixels "selected" at or above it and their
            "accuracy".
        """
        wrong_N, right_N = self.bins_2N
        count_N = wrong_N + right_N
        pixels = int(count_N.sum())
        error = np.abs(self.confidence_N - right_N).sum() / max(pixels, 1)
        wrong_L, right_L = self.levels_2L
        pairs = int(wrong_L.sum()) * int(right_L.sum())
        below_L = np.cumsum(wrong_L) - wrong_L
        bins = [
            {
                "from": index / self.BINS,
                "right": int(right_N[index]),
                "wrong": int(wrong_N[index]),
                "confidence": float(self.confidence_N[index] / count_N[index]) if count_N[index] else None,
            }
            for index in range(self.BINS)
        ]
        thresholds = []
        for tenth in range(10):
            start = tenth * self.BINS // 10
            selected = int(count_N[start:].sum())
            accuracy = float(right_N[start:].sum() / selected) if selected else None
            thresholds.append({"threshold": tenth / 10, "selected": selected / max(pixels, 1), "accuracy": accuracy})
        return {
            "pixels": pixels,
            "accuracy": float(right_N.sum() / max(pixels, 1)),
            "expected_calibration_error": float(error),
            "error_detection_auc": float((right_L * (below_L + wrong_L / 2)).sum() / pairs) if pairs else None,
            "bins": bins,
            "thresholds": thresholds,
        }


@register
class ConfusionMatrix(keras.metrics.Metric):
    """Counts pixels by true and predicted class; its result is the mean IoU (see `scores`).

    Args:
        num_classes: K. Labels of 255 are left out. Label values are checked where data is opened, not here.

    Example:
        >>> metric = kerasseg.metrics.ConfusionMatrix(2)
        >>> metric.update_state([[[0, 0, 1, 255]]], [[[0, 1, 1, 1]]])
        >>> float(metric.result())
        0.5
    """

    def __init__(self, num_classes: int, name: str = "mIoU", **kwargs):
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.matrix = self.add_variable((num_classes, num_classes), "zeros", dtype="int64", name="matrix")

    def update_state(self, labels_BHW, predictions_BHW, sample_weight=None):
        """Adds a batch: two integer label maps (B,H,W)."""
        self.matrix.assign_add(count_pixels(labels_BHW, predictions_BHW, self.num_classes))

    def result(self):
        matrix = tf.cast(self.matrix, tf.float64)
        hits = tf.linalg.diag_part(matrix)
        union = tf.reduce_sum(matrix, axis=0) + tf.reduce_sum(matrix, axis=1) - hits
        known = tf.cast(union > 0, tf.float64)
        mean = tf.math.divide_no_nan(tf.reduce_sum(tf.math.divide_no_nan(hits, union)), tf.reduce_sum(known))
        return tf.cast(mean, tf.float32)

    def get_config(self):
        return super().get_config() | {"num_classes": self.num_classes}
