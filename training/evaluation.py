"""Scores of a method on a split, and pictures to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasseg.data import Dataset, eval_dataset, evenly_spaced
from kerasseg.methods import Method
from kerasseg.methods.mlmt import gated, predicted_pixels
from kerasseg.metrics import ConfusionMatrix, scores
from kerasseg.visualize import panel
from serving.pictures import index_png, png, write_atomically


def evaluate(method: Method, dataset: Dataset, split: str = "val", names=None) -> dict:
    """Scores at native size, single scale, each image once.

    Returns:
        What result.json holds: "mIoU", "per_class_IoU" (None for a class that occurs neither in truth nor prediction),
        "pixel_accuracy", all 0..1, "absent_classes", "protocol"; and for each further prediction of the method the
        same scores under its name.
    """
    images = eval_dataset(dataset, split, names)
    method.evaluate(images, verbose=0)
    summaries = {
        variant: _summary(method.confusion[variant or "mIoU"].matrix.numpy(), dataset.classes)
        for variant in method.variants
    }
    main = summaries.pop("")
    protocol = {
        "name": "native",
        "split": split,
        "images": int(images.cardinality()),
        "description": "each image once at its own size, one scale, no flip; ignored pixels left out; mean over all "
        "classes that occur in truth or prediction",
    }
    return main | summaries | {"protocol": protocol}


def _summary(confusion: np.ndarray, classes: tuple[str, ...]) -> dict:
    result = scores(confusion)
    return {
        "mIoU": result.mean_iou,
        "per_class_IoU": dict(zip(classes, result.iou, strict=True)),
        "pixel_accuracy": result.pixel_accuracy,
        "absent_classes": [name for name, value in zip(classes, result.iou, strict=True) if value is None],
    }


def find_min_pixels(
    method: Method, dataset: Dataset, split: str = "val", candidates: Sequence[int] = range(0, 13_000, 1000)
) -> dict:
    """The pixel-count baselines of Mittal et al. 2019, table 5: below how many pixels is a class better switched off?

    Args:
        candidates: pixels; the paper tries 1000 to 12000 in steps of 1000.

    Returns:
        "mIoU": that of each candidate as the one threshold of all classes; "min_pixels": per class the candidate that
        gives the class its best IoU (the smallest of equals), for `--mlmt.gate pixel_count --mlmt.min-pixels`.
    """
    confusions = [ConfusionMatrix(dataset.num_classes) for _ in candidates]
    for images_1HW3, labels_1HW in eval_dataset(dataset, split):
        S_1HWK = method.predictions(images_1HW3)[method.variants[-1]]
        pixels_1K = predicted_pixels(S_1HWK)
        for confusion, least in zip(confusions, candidates, strict=True):
            confusion.update_state(labels_1HW, tf.argmax(gated(S_1HWK, pixels_1K >= least), axis=-1))
    results = [scores(confusion.matrix.numpy()) for confusion in confusions]
    iou = np.array([[value or 0.0 for value in result.iou] for result in results])
    return {
        "mIoU": {str(least): result.mean_iou for least, result in zip(candidates, results, strict=True)},
        "min_pixels": [int(candidates[index]) for index in iou.argmax(axis=0)],
    }


class Examples:
    """A method's view of a few held-out pictures."""

    def __init__(self, method: Method, dataset: Dataset, split: str, count: int):
        self.method, self.dataset, self.split = method, dataset, split
        self.names = evenly_spaced(dataset.label_names(split), count)
        self.predict = tf.function(self._predict, input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])

    def _predict(self, images_BHW3):
        predictions = self.method.predictions(images_BHW3)
        labels = {name: tf.argmax(probabilities, axis=-1) for name, probabilities in predictions.items()}
        judged = predictions[self.method.variants[-1]]
        return labels, self.method.scores(images_BHW3, judged), self.method.reliability(images_BHW3, judged)

    def __iter__(self):
        """Yields (name, image uint8 (H,W,3), truth (H,W), {variant: label map (H,W)}, critic's score or None,
        reliability (H,W) or None)."""
        for name in self.names:
            image_HW3 = self.dataset.load_image(self.split, name)
            labels, *judgements = self.predict(image_HW3[np.newaxis].astype(np.float32))
            maps = {variant: label[0].numpy().astype(np.uint8) for variant, label in labels.items()}
            truth_HW = self.dataset.load_label(self.split, name)
            yield name, image_HW3, truth_HW, maps, *(None if each is None else each[0].numpy() for each in judgements)

    def panels(self, height: int = 128) -> np.ndarray:
        """Panels (N,height,W,3) uint8 of image, truth, prediction and the critic's score, for TensorBoard."""
        rows = []
        for _, image, truth, maps, score, _ in self:
            row = panel(image, truth, maps[""], self.dataset.palette, score)
            rows.append(tf.image.resize(row, (height, 4 * height), "area").numpy().astype(np.uint8))
        return np.stack(rows)

    def write(self, folder: Path) -> None:
        """image.png, truth.png, prediction.png and a map for each further prediction, in a folder for each picture;
        reliability.png, grey 0..255, where a critic judges pixels."""
        for name, image, truth, maps, _, reliability in self:
            target = folder / name
            target.mkdir(parents=True, exist_ok=True)
            write_atomically(target / "image.png", png(image))
            if reliability is not None:
                write_atomically(target / "reliability.png", png(np.rint(255 * reliability).astype(np.uint8)))
            for stem, labels in ({"truth": truth, "prediction": maps.pop("")} | maps).items():
                write_atomically(target / f"{stem}.png", index_png(labels, self.dataset.palette))
