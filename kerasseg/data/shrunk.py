"""Datasets at a working size: which size, and each image read and shrunk only once.

Legend: H, W size of an image; h, w its size after shrinking.
"""

import errno
import functools
import hashlib
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasseg.data.datasets import Dataset
from kerasseg.data.splits import evenly_spaced
from kerasseg.working_size import shrink, shrink_labels

LARGE = 3
"""Images of up to so many times the longer side of the training crop stay as they are."""

SHRUNK_TO = 2
"""If most are larger, they are shrunk to so many times that side."""

MEASURED = 50
"""Label maps of which it is measured how wide classes are."""

LEFT_FREE = 2 * 2**30
"""Bytes of a disk that shrunk images leave free."""

Load = Callable[[str, tf.Tensor], tf.Tensor]
"""As `Dataset.tf_image`."""

LOOKED_AT = 1000
"""Images of a dataset whose size is looked at."""


@functools.lru_cache(maxsize=8)
def longer_sides(dataset: Dataset) -> tuple[int, ...]:
    """The longer sides of its training images, pixels, in ascending order."""
    names = evenly_spaced(dataset.image_names("train"), LOOKED_AT)
    with ThreadPoolExecutor() as pool:
        return tuple(sorted(pool.map(lambda name: max(dataset.image_size("train", name)), names)))


def median_side(dataset: Dataset) -> int:
    """The longer side of the median training image, pixels."""
    sides = longer_sides(dataset)
    return sides[len(sides) // 2]


def auto_size(dataset: Dataset, crop: tuple[int, int]) -> int:
    """The working size that suits a dataset: a longer side, pixels.

    If the longer side of the median image is at most three times that of the crop, images stay as they are: the size is
    that of the largest one, but no more than three crops. Otherwise they are shrunk to two crops, so that a crop shows
    about a quarter of an image (docs/decisions/photographs.md).

    Args:
        crop: height and width of training crops, pixels.
    """
    if median_side(dataset) > LARGE * max(crop):
        return SHRUNK_TO * max(crop)
    return min(longer_sides(dataset)[-1], LARGE * max(crop))


def explain_size(dataset: Dataset, crop: tuple[int, int], working_size: int | None) -> str:
    """The working size in a line, and what it means for these images."""
    sides, median, longest = longer_sides(dataset), median_side(dataset), max(crop)
    if working_size is None:
        if median <= LARGE * longest:
            return "working size: none, images are segmented at their own size"
        return (
            f"working size: none, though the median image has a longer side of {median} pixels, {median // longest} "
            "times that of a training crop: --size auto shrinks such images"
        )
    larger = sum(side > working_size for side in sides) / len(sides)
    if not larger:
        some = f"of {len(sides)} training images none" if len(sides) == LOOKED_AT else "no training image"
        return f"working size: {working_size} pixels; {some} is larger, and others are shrunk to it"
    return (
        f"working size: {working_size} pixels; {larger:.0%} of the training images are larger and are shrunk to it "
        f"(longer sides: {median} in the median, {longest} of a training crop)"
    )


def class_widths(dataset: Dataset, working_size: int) -> np.ndarray:
    """How wide each class is at a working size, pixels: (K,), NaN where no label map shows it.

    A strip's area is its width times its length, and its border twice the length. So the width is twice the area
    through the border, over `MEASURED` label maps together; for a disc it is a little less than its radius.
    """
    area_K, border_K = np.zeros((2, 256))
    for name in evenly_spaced(dataset.label_names("train"), MEASURED):
        label_HW = dataset.load_label("train", name)
        scale = min(1.0, working_size / max(label_HW.shape))
        area_K += scale**2 * np.bincount(label_HW.ravel(), minlength=256)
        for first, second in ((label_HW[:, :-1], label_HW[:, 1:]), (label_HW[:-1], label_HW[1:])):
            differ = first != second
            for side in (first, second):
                border_K += scale * np.bincount(side[differ], minlength=256)
    area_K, border_K = area_K[: dataset.num_classes], border_K[: dataset.num_classes]
    widths_K = np.full(dataset.num_classes, np.inf)
    np.divide(2 * area_K, border_K, out=widths_K, where=border_K > 0)
    return np.where(area_K > 0, widths_K, np.nan)


def at_working_size(dataset: Dataset, longer_side: int | None) -> Dataset:
    """The dataset, with images shrunk that are larger; itself where there are none."""
    if longer_side is None:
        return dataset
    sides = longer_sides(dataset)
    if sides[-1] <= longer_side and len(sides) == len(dataset.image_names("train")):
        return dataset
    return ShrunkDataset(dataset, longer_side)


class ShrunkDataset(Dataset):
    """A dataset whose larger images are shrunk to a working size, with their label maps.

    Each is read and shrunk once, and then kept in a temporary folder (in TMPDIR) for as long as the dataset lives. So
    12 megapixels cost no more time in training than an image that was small from the start.

    Args:
        dataset: the images at their own size.
        longer_side: the working size, pixels.
    """

    def __init__(self, dataset: Dataset, longer_side: int) -> None:
        super().__init__(dataset.name, dataset.classes, dataset.palette)
        self.original, self.longer_side = dataset, longer_side
        self.folder = Path(tempfile.mkdtemp(prefix="kerasseg-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)  # also when the process ends
        self._keeps = True
        self._large: dict[str, list[str]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return self.original.splits

    def image_names(self, split: str) -> tuple[str, ...]:
        return self.original.image_names(split)

    def label_names(self, split: str) -> tuple[str, ...]:
        return self.original.label_names(split)

    def describe(self, split: str, name: str) -> str:
        return self.original.describe(split, name)

    def load_image(self, split: str, name: str) -> np.ndarray:
        def shrunk(image_HW3: np.ndarray) -> np.ndarray:
            image_hw3 = shrink(tf.constant(image_HW3[np.newaxis]), self.longer_side)[0]
            return tf.cast(tf.round(image_hw3), tf.uint8).numpy()

        return self._kept(f"image/{split}/{name}", lambda: self.original.load_image(split, name), shrunk)

    def load_label(self, split: str, name: str) -> np.ndarray:
        def shrunk(label_HW: np.ndarray) -> np.ndarray:
            return shrink_labels(tf.constant(label_HW[np.newaxis]), self.longer_side)[0].numpy()

        return self._kept(f"label/{split}/{name}", lambda: self.original.load_label(split, name), shrunk)

    def tf_image(self, split: str, name: tf.Tensor) -> tf.Tensor:
        return self._unless_large(split, name, super().tf_image, self.original.tf_image)

    def tf_label(self, split: str, name: tf.Tensor) -> tf.Tensor:
        return self._unless_large(split, name, super().tf_label, self.original.tf_label)

    @tf.autograph.experimental.do_not_convert  # it is plain Python, called while a graph is made
    def _unless_large(self, split: str, name: tf.Tensor, shrunk: Load, as_it_is: Load) -> tf.Tensor:
        """What the one function gives of a large image, and the other one of others, which are read faster by it."""
        if split not in self._large:
            names = self.image_names(split)
            with ThreadPoolExecutor() as pool:
                sides = pool.map(lambda each: max(self.original.image_size(split, each)), names)
                self._large[split] = [each for each, side in zip(names, sides, strict=True) if side > self.longer_side]
        if not self._large[split]:
            return as_it_is(split, name)
        is_large = tf.reduce_any(tf.constant(self._large[split]) == name)
        return tf.cond(is_large, lambda: shrunk(split, name), lambda: as_it_is(split, name))

    def _kept(self, key: str, load: Callable[[], np.ndarray], shrunk: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """What `load` gives, shrunk; from the temporary folder, once it is there."""
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
        if file.exists():
            return np.load(file)
        array = load()
        if max(array.shape[:2]) <= self.longer_side:  # as fast to read again as from there
            return array
        with tf.device("CPU"):  # a GPU has better things to do, and perhaps no room
            array = shrunk(array)
        if self._keeps:
            self._keep(file, array)
        return array

    def _keep(self, file: Path, array: np.ndarray) -> None:
        beside = file.with_suffix(f".{os.getpid()}-{id(array)}.tmp")  # another thread may shrink the same image
        try:
            if shutil.disk_usage(self.folder).free < LEFT_FREE:  # a checkpoint may need it
                raise OSError(errno.ENOSPC, f"less than {LEFT_FREE // 2**30} GiB is left")
            with beside.open("wb") as opened:
                np.save(opened, array)
            beside.replace(file)
        except OSError as error:
            self._keeps = False
            beside.unlink(missing_ok=True)
            print(
                f"warning: {self.folder} cannot keep more shrunk images ({error.strerror or error}), so the others are "
                "read again and again; TMPDIR may name a folder with more room",
                file=sys.stderr,
            )
