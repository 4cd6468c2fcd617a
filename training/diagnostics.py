"""Diagnostics of a run beyond its scores: how hard its losses pull, whether its confidence can be trusted, ..."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from kerasseg.data import Dataset, Split, eval_dataset, evenly_spaced
from kerasseg.distribution import state_restored
from kerasseg.losses import IGNORE_LABEL
from kerasseg.methods import Method
from kerasseg.methods.gradient_norms import gradient_norms
from kerasseg.metrics import Reliability, count_pixels
from kerasseg.working_size import shrink_labels
from training.image_scores import ImageScores, pixels_by_class

TRAINING_IMAGES = 50


class GradientNorms:
    """How hard each loss term pulls (`gradient_norms`), on the same batch throughout a training.

    Args:
        method: compiled.
        batch: as `update` takes it, for all replicas together.
    """

    def __init__(self, method: Method, batch: Any):
        self.method = method
        strategy = method.distribute_strategy

        def share(context):
            number, count = context.replica_id_in_sync_group, context.num_replicas_in_sync
            return tf.nest.map_structure(
                lambda tensor: tensor[number * len(tensor) // count : (number + 1) * len(tensor) // count], batch
            )

        self.batch = strategy.experimental_distribute_values_from_function(share)

    def __call__(self) -> dict[str, float]:
        """The present norms, as `"grad_" + term`. The method's state is restored, so the training is not affected."""
        strategy = self.method.distribute_strategy
        with state_restored(self.method):
            norms = strategy.run(partial(gradient_norms, self.method), args=(self.batch,))
        return {f"grad_{name}": float(strategy.experimental_local_results(norm)[0]) for name, norm in norms.items()}


class Findings(NamedTuple):
    """What is found about a method on some images."""

    confidence: dict[str, Any]
    """`Reliability.summary` of each confidence."""
    observed: dict[str, np.ndarray]
    """`Method.observe` of all images."""
    confusion_KK: np.ndarray
    """Pixels by true (rows) and predicted class."""
    counts_N3K: np.ndarray
    """`pixels_by_class` of each image."""


def diagnose(method: Method, dataset: Dataset, split: Split) -> tuple[dict[str, Any], ImageScores]:
    """The content of diagnostics.json, and how each val image was segmented; measured at native size.

    Returns:
        For the val images "confidence": `Reliability.summary` of "softmax" (the likeliest class's probability) and of
        "critic", where the method's critic judges pixels; "confusion": pixels by true (rows) and predicted class; and
        what the method itself adds (`Method.diagnostics`). Under "training" the confidence and the method's own, where
        they depend on images, for labelled and unlabelled training images: up to `TRAINING_IMAGES` each, if the dataset
        has label maps for them. Second, the pixels of each val image.
    """
    classes = len(dataset.classes)
    any_size = (tf.TensorSpec((None, None, None, 3), tf.float32), tf.TensorSpec((None, None, None), tf.int32))

    @tf.function(input_signature=any_size)
    def predict(images_BHW3, labels_BHW):
        answer = method.infer(images_BHW3)
        prediction_BHW, largest_BHW = answer.label_map()
        confidence = {"softmax": largest_BHW}
        if answer.reliability_BHW is not None:
            confidence["critic"] = answer.reliability_BHW
        confusion = count_pixels(labels_BHW, prediction_BHW, classes)
        images_Bhw3, own_size = method.at_working_size(images_BHW3)
        if own_size is not None:
            labels_BHW = shrink_labels(labels_BHW, method.config.working_size)
        observed = method.observe(images_Bhw3, labels_BHW)
        return tf.cast(prediction_BHW, tf.int32), confidence, observed, confusion

    def measure(images: tf.data.Dataset) -> Findings:
        confusion_KK, counts = np.zeros((classes, classes), np.int64), []
        measured: dict[str, Reliability] = {}
        observations: dict[str, list[np.ndarray]] = {}
        for images_1HW3, labels_1HW in images:
            prediction_1HW, confidence, observed, of_image_KK = predict(images_1HW3, labels_1HW)
            confusion_KK += of_image_KK.numpy()
            counts.append(pixels_by_class(of_image_KK.numpy()))
            known = labels_1HW != IGNORE_LABEL
            right = (prediction_1HW == labels_1HW)[known].numpy()
            for name, confidence_1HW in confidence.items():
                measured.setdefault(name, Reliability()).add(confidence_1HW[known].numpy(), right)
            for name, rows in observed.items():
                observations.setdefault(name, []).append(rows.numpy())
        return Findings(
            {name: each.summary() for name, each in measured.items()},
            {name: np.concatenate(rows) for name, rows in observations.items()},
            confusion_KK,
            np.stack(counts),
        )

    known_names = set(dataset.label_names("train"))
    training = {}
    for role in ("labeled", "unlabeled"):
        names = [name for name in getattr(split, role) if name in known_names]
        if names:
            chosen = evenly_spaced(names, TRAINING_IMAGES)
            found = measure(eval_dataset(dataset, "train", chosen))
            own = method.diagnostics(found.observed) if found.observed else {}
            training[role] = {"confidence": found.confidence} | own
    names = sorted(dataset.label_names("val"))
    found = measure(eval_dataset(dataset, "val", names))
    content = {"split": "val", "confidence": found.confidence, "confusion": found.confusion_KK.tolist()}
    content |= method.diagnostics(found.observed) | {"training": training}
    return content, ImageScores(tuple(names), found.counts_N3K)
