"""How each val image of a run was segmented, and how far a score depends on which images were measured.

`val_images.jsonl` of a run folder: a line for each image. Needs no TensorFlow. Legend: N images, K classes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from serving.common.files import write_atomically

FILE = "val_images.jsonl"
SAMPLES = 2000
"""How often images are drawn for an interval."""


def pixels_by_class(confusion_KK: np.ndarray) -> np.ndarray:
    """(3,K) of a confusion matrix, rows truth: right pixels of each class, those of the truth, the predicted ones."""
    return np.stack([np.diagonal(confusion_KK), confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)])


@dataclass(frozen=True)
class ImageScores:
    """Pixels of each image by class."""

    names: tuple[str, ...]
    counts_N3K: np.ndarray
    """`pixels_by_class` of each image, int64."""

    @classmethod
    def read(cls, folder: Path, classes: list[str]) -> Self | None:
        """Those of a run folder; None for a run from before they were kept.

        Raises:
            ValueError: the file does not hold what it should.
        """
        file = folder / FILE
        if not file.is_file():
            return None
        index = {name: number for number, name in enumerate(classes)}
        names, counts = [], []
        for line in file.read_text(encoding="utf-8").splitlines():
            counts_3K = np.zeros((3, len(classes)), np.int64)
            try:
                row = json.loads(line)
                names.append(row["image"])
                for name, three in row["pixels"].items():
                    counts_3K[:, index[name]] = three
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{file}: expected an image and its pixels by class, found {line[:80]!r}") from error
            counts.append(counts_3K)
        return cls(tuple(names), np.reshape(counts, (-1, 3, len(classes))))

    def write(self, folder: Path, classes: list[str]) -> None:
        """A line for each image: its name, its share of right pixels, and for each class that occurs the pixels that
        are right, that have it in the label map, and that were predicted to have it."""
        lines = []
        for name, counts_3K, accuracy in zip(self.names, self.counts_N3K, self.accuracy_N, strict=True):
            present = np.flatnonzero(counts_3K.any(axis=0))
            pixels = {classes[index]: counts_3K[:, index].tolist() for index in present}
            line = {"image": name, "pixel_accuracy": None if np.isnan(accuracy) else float(accuracy), "pixels": pixels}
            lines.append(json.dumps(line) + "\n")
        write_atomically(folder / FILE, "".join(lines).encode())

    @property
    def accuracy_N(self) -> np.ndarray:
        """Share of right pixels of each image; NaN where all pixels are ignored."""
        right_N, counted_N = self.counts_N3K[:, 0].sum(axis=1), self.counts_N3K[:, 1].sum(axis=1)
        return np.divide(right_N, counted_N, out=np.full(len(self.names), np.nan), where=counted_N > 0)

    def worst(self, count: int) -> list[str]:
        """The names of up to `count` images with the smallest share of right pixels, the worst first."""
        accuracy_N = self.accuracy_N
        order = np.argsort(accuracy_N, kind="stable")
        return [self.names[index] for index in order[:count] if not np.isnan(accuracy_N[index])]


def mean_iou(counts_S3K: np.ndarray) -> np.ndarray:
    """mIoU (S) of summed counts, over the classes that occur in the truth or the prediction; NaN where none does."""
    right_SK, truth_SK, predicted_SK = np.moveaxis(counts_S3K, 1, 0)
    union_SK = truth_SK + predicted_SK - right_SK
    iou_SK = np.divide(right_SK, union_SK, out=np.zeros(union_SK.shape), where=union_SK > 0)
    known_S = (union_SK > 0).sum(axis=1)
    return np.divide(iou_SK.sum(axis=1), known_S, out=np.full(len(known_S), np.nan), where=known_S > 0)


def interval(scores: ImageScores, other: ImageScores | None = None) -> tuple[float, float] | None:
    """The 95 % interval of mIoU, or of its difference to that of another run, over which images were measured.

    By the bootstrap (Efron 1979): as many images are drawn with replacement, the same for both runs; mIoU is computed
    from their pixels; the interval holds all but the lowest and the highest 2.5 % of the results. The same images and
    pixels give the same interval.

    Args:
        other: the run to compare with; its images must be the same.

    Returns:
        (low, high), 0..1; None where there are fewer than two images, those of the other run are others, or all pixels
        are ignored.
    """
    count = len(scores.names)
    if count < 2:
        return None
    counts = [scores.counts_N3K]
    if other is not None:
        place = {name: index for index, name in enumerate(other.names)}
        if place.keys() != set(scores.names):
            return None
        counts.append(other.counts_N3K[[place[name] for name in scores.names]])
    drawn_SN = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=SAMPLES)
    ours, *theirs = (
        mean_iou((drawn_SN @ each.reshape(count, -1)).reshape(SAMPLES, *each.shape[1:])) for each in counts
    )
    found = ours - theirs[0] if theirs else ours
    if np.isnan(found).all():
        return None
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)
