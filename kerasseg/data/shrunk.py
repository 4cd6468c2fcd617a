"""Datasets at a working size: which size, and each image read and shrunk only once.

Legend: H, W size of an image; h, w its size after shrinking.
"""

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

LARGE = 3.0
"""Images are shrunk where the longer side of the median one is more than so many times that of the training crop."""

SIDES_OF_CROP = 2.0
"""The longer side of shrunk images, in longer sides of the crop."""

LOOKED_AT = 200
"""Images of a dataset whose size is looked at."""


@functools.lru_cache(maxsize=8)
def median_size(dataset: Dataset, split: str = "train") -> tuple[int, int]:
    """Height and width of an image whose longer side is the median of the dataset's, pixels."""
    names = evenly_spaced(dataset.image_names(split), LOOKED_AT)
    with ThreadPoolExecutor() as pool:
        sizes = sorted(pool.map(lambda name: dataset.image_size(split, name), names), key=max)
    return sizes[len(sizes) // 2]


def auto_size(dataset: Dataset, crop: tuple[int, int]) -> int | None:
    """The working size that suits a dataset: the longer side, pixels; None to leave images as they are.

    Images whose longer side is more than three times the crop's are brought to twice the crop's, so that a crop sees
    about a quarter of an image (docs/decisions/photographs.md).

    Args:
        crop: height and width of training crops, pixels.
    """
    longest = max(crop)
    return round(SIDES_OF_CROP * longest) if max(median_size(dataset)) > LARGE * longest else None


def explain_size(dataset: Dataset, crop: tuple[int, int], working_size: int | None) -> str:
    """A line on a working size, or on images that are large without one; empty where there is nothing to say."""
    height, width = median_size(dataset)
    share = min(crop[0], height) * min(crop[1], width) / (height * width)
    shown = f"a crop of {crop[1]}x{crop[0]} pixels shows {100 * share:.2g} % of the median image of {width}x{height}"
    if working_size is None:
        large = max(height, width) > LARGE * max(crop)
        return f"images keep their own size, and {shown}: --size auto shrinks them" if large else ""
    return f"larger images are shrunk to a longer side of {working_size} pixels: {shown} at its own size"


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
            with beside.open("wb") as opened:
                np.save(opened, array)
            beside.replace(file)
        except OSError as error:
            self._keeps = False
            beside.unlink(missing_ok=True)
            print(
                f"warning: {self.folder} has no room for shrunk images ({error.strerror or error}), so the large "
                "ones are read again and again; set TMPDIR to a folder with more room",
                file=sys.stderr,
            )
