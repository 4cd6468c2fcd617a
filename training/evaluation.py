"""Scores of a method on a split, and images to look at."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasseg.data import Dataset, eval_dataset, evenly_spaced
from kerasseg.distribution import state_restored
from kerasseg.losses import IGNORE_LABEL
from kerasseg.methods import Method
from kerasseg.methods.mlmt import gated, predicted_pixels
from kerasseg.metrics import ConfusionMatrix, count_pixels, scores
from kerasseg.visualize import panel
from kerasseg.working_size import likeliest
from serving.common.files import write_atomically
from serving.common.images import index_png, png
from training.protocols import Native, Protocol


class Measurement:
    """Scores of a method on a split: each image once, whole, on one replica or distributed over several.

    It is called repeatedly while the method trains, and traces its graph once. (`Method.evaluate` needs batches that
    are equally large on each replica, and images differ in size.)
    """

    def __init__(
        self,
        method: Method,
        dataset: Dataset,
        split: str = "val",
        names: Sequence[str] | None = None,
        protocol: Protocol | None = None,
    ):
        self.method, self.classes, self.protocol, self.split = method, dataset.classes, protocol or Native(), split
        self.images = eval_dataset(dataset, split, names)
        self.image_count = int(self.images.cardinality())
        self.strategy = method.distribute_strategy
        self.steps = -(-self.image_count // self.strategy.num_replicas_in_sync)
        # A replica for which no image is left in the last step gets one in which all pixels are ignored.
        spare = self.images.take(1).map(lambda image, labels: (image, tf.fill(tf.shape(labels), IGNORE_LABEL)))
        self.shares = self.strategy.distribute_datasets_from_function(
            lambda context: self.images.shard(context.num_input_pipelines, context.input_pipeline_id).concatenate(
                spare.repeat()
            )
        )
        with self.strategy.scope():  # each replica counts its own; reading adds them up
            self.counts = {
                variant: tf.Variable(
                    tf.zeros((len(self.classes),) * 2, tf.int64),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for variant in method.variants
            }
        self.step = tf.function(self._step)
        self.follow_first = tf.function(lambda: self.strategy.run(self._follow_first))

    def __call__(self) -> dict:
        """The present scores.

        Returns:
            The content of result.json: "mIoU", "mIoU_reference" (see `kerasseg.metrics.scores`), "per_class_IoU" (None
            for a class that occurs neither in truth nor prediction), "pixel_accuracy", all 0..1 (None where every pixel
            is ignored; stderr then says so), "absent_classes", "per_class_pixels" (how many pixels of the label maps
            have each class), "protocol"; and for each further prediction of the method the same scores under its name.
        """
        matrices = self.confusion()
        summaries = {variant: _summary(matrix, self.classes) for variant, matrix in matrices.items()}
        pixels = dict(zip(self.classes, matrices[""].sum(axis=1).tolist(), strict=True))
        if summaries[""]["mIoU"] is None:
            print(f"nothing is measured: all pixels of the {self.split} label maps are ignored", file=sys.stderr)
        name, *rest = self.protocol.describe(self.method.config.working_size).items()
        protocol = dict([name, ("split", self.split), ("images", self.image_count), *rest])
        return summaries.pop("") | {"per_class_pixels": pixels} | summaries | {"protocol": protocol}

    def confusion(self) -> dict[str, np.ndarray]:
        """The present confusion matrix (K,K) of all images, for each prediction: the same integers on one replica or
        many, and for the saved method."""
        for count in self.counts.values():
            count.assign(tf.zeros_like(count))
        with state_restored(self.method):
            self.follow_first()
            shares = iter(self.shares)
            for _ in range(self.steps):
                self.step(shares)
        return {variant: count.numpy() for variant, count in self.counts.items()}

    def _follow_first(self) -> None:
        """Gives all replicas the batch-norm statistics of the first one, which are saved."""
        context = tf.distribute.get_replica_context()
        first = context.replica_id_in_sync_group == 0
        variables = [variable.value for variable in self.method.non_trainable_variables if variable.dtype == "float32"]
        values = [tf.where(first, variable, tf.zeros_like(variable)) for variable in variables]
        if not values:
            return
        for variable, value in zip(variables, context.all_reduce(tf.distribute.ReduceOp.SUM, values), strict=True):
            variable.assign(value)

    def _step(self, shares) -> None:
        self.strategy.run(self._count, args=next(shares))

    def _count(self, images_1HW3, labels_1HW) -> None:
        """Adds one image to the confusion matrix (K,K) of each prediction."""
        images_1HW3, labels_1HW = self.protocol.prepare(images_1HW3, labels_1HW)
        for variant, prediction_1HW in self.method.label_maps(images_1HW3, self.protocol.segment).items():
            self.counts[variant].assign_add(count_pixels(labels_1HW, prediction_1HW, len(self.classes)))


def evaluate(
    method: Method,
    dataset: Dataset,
    split: str = "val",
    names: Sequence[str] | None = None,
    protocol: Protocol | None = None,
) -> dict:
    """`Measurement`, called once."""
    return Measurement(method, dataset, split, names, protocol)()


def _summary(confusion: np.ndarray, classes: tuple[str, ...]) -> dict:
    result = scores(confusion)
    return {
        "mIoU": result.mean_iou,
        "mIoU_reference": result.mean_iou_reference,
        "per_class_IoU": dict(zip(classes, result.iou, strict=True)),
        "pixel_accuracy": result.pixel_accuracy,
        "absent_classes": [name for name, value in zip(classes, result.iou, strict=True) if value is None],
    }


def find_min_pixels(
    method: Method,
    dataset: Dataset,
    split: str = "val",
    candidates: Sequence[int] = range(0, 13_000, 1000),
    protocol: Protocol | None = None,
) -> dict:
    """The pixel-count baselines of Mittal et al. 2019, table 5: below how many pixels should a class be switched off?

    Args:
        candidates: pixels; the paper tries 1000 to 12000 in steps of 1000.

    Returns:
        "mIoU" with each candidate as the threshold of all classes; "min_pixels": for each class the candidate with its
        best IoU (the smallest among equals), for `--mlmt.gate pixel_count --mlmt.min-pixels`.
    """
    protocol = protocol or Native()
    confusions = [ConfusionMatrix(dataset.num_classes) for _ in candidates]
    for images_1HW3, labels_1HW in eval_dataset(dataset, split):
        images_1HW3, labels_1HW = protocol.prepare(images_1HW3, labels_1HW)
        images_1hw3, size = method.at_working_size(images_1HW3)
        S_1hwK = protocol.segment(method.class_probabilities, images_1hw3)
        pixels_1K = predicted_pixels(S_1hwK)
        for confusion, least in zip(confusions, candidates, strict=True):
            confusion.update_state(labels_1HW, likeliest(gated(S_1hwK, pixels_1K >= least), size)[0])
    results = [scores(confusion.matrix.numpy()) for confusion in confusions]
    iou = np.array([[value or 0.0 for value in result.iou] for result in results])
    return {
        "mIoU": {str(least): result.mean_iou for least, result in zip(candidates, results, strict=True)},
        "min_pixels": [int(candidates[index]) for index in iou.argmax(axis=0)],
    }


class Examples:
    """A method's predictions for a few held-out images. It traces its graph once, as `Measurement` does."""

    def __init__(self, method: Method, dataset: Dataset, split: str):
        self.method, self.dataset, self.split = method, dataset, split
        self.predict = tf.function(self._predict, input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])

    def _predict(self, images_BHW3):
        answer = self.method.infer(images_BHW3, last_weights=True)
        labels = {variant: answer.label_map(variant)[0] for variant in answer.variants}
        return labels, answer.critic_scores, answer.reliability_BHW

    def some(self, names: Sequence[str]):
        """Yields for each image (name, image uint8 (H,W,3), truth (H,W), {variant: label map (H,W)}, critic's score or
        None, reliability (H,W) or None)."""
        for name in names:
            image_HW3 = self.dataset.load_image(self.split, name)
            labels, *judgements = self.predict(tf.cast(image_HW3[np.newaxis], tf.float32))
            maps = {variant: label[0].numpy() for variant, label in labels.items()}
            truth_HW = self.dataset.load_label(self.split, name)
            yield name, image_HW3, truth_HW, maps, *(None if each is None else each[0].numpy() for each in judgements)

    def evenly_spaced(self, count: int) -> list[str]:
        """Names of up to `count` images."""
        return evenly_spaced(self.dataset.label_names(self.split), count)

    def panels(self, count: int, height: int = 128) -> np.ndarray:
        """Panels (N,height,W,3) uint8 of image, truth, prediction and the critic's score, for TensorBoard."""
        rows = []
        for _, image, truth, maps, score, _ in self.some(self.evenly_spaced(count)):
            row = panel(image, truth, maps[""], self.dataset.palette, score)
            rows.append(tf.image.resize(row, (height, 4 * height), "area").numpy().astype(np.uint8))
        return np.stack(rows)

    def write(self, folder: Path, names: Sequence[str]) -> None:
        """image.png, truth.png, prediction.png and a map for each further prediction, in a folder for each image;
        reliability.png, grey 0..255, where a critic judges pixels."""
        for name, image, truth, maps, _, reliability in self.some(names):
            target = folder / name
            target.mkdir(parents=True, exist_ok=True)
            write_atomically(target / "image.png", png(image))
            if reliability is not None:
                write_atomically(target / "reliability.png", png(np.rint(255 * reliability).astype(np.uint8)))
            for stem, labels in ({"truth": truth, "prediction": maps.pop("")} | maps).items():
                write_atomically(target / f"{stem}.png", index_png(labels, self.dataset.palette))
