"""What a dataset is to the rest of kerasseg, and how one is found by name or by folder.

Legend: H, W size of one image; K number of classes; N number of images.
"""

import pkgutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf

from kerasseg.losses import IGNORE_LABEL
from serving.common.palettes import default_palette

SPLITS = ("train", "val", "test")

# One line per known dataset: its name on the command line, and what opens it without arguments.
DATASETS = {
    "shapes": "kerasseg.data.shapes:ShapesDataset",
    "voc2012": "kerasseg.data.builders.voc2012:open_dataset",
    "pascal_context": "kerasseg.data.builders.pascal_context:open_dataset",
    "cityscapes": "kerasseg.data.builders.cityscapes:open_dataset",
    "ade20k": "kerasseg.data.builders.ade20k:open_dataset",
    "coco": "kerasseg.data.builders.coco:open_dataset",
    "coco_stuff": "kerasseg.data.builders.coco_stuff:open_dataset",
    "oxford_iiit_pet": "kerasseg.data.builders.oxford_iiit_pet:open_dataset",
}


class Dataset(ABC):
    """Named images in train, val and test, some of them with label maps.

    An image is uint8 RGB (H, W, 3), a label map uint8 (H, W) with values 0..K-1, and 255 where no class is
    known. Images of one dataset may differ in size; an image and its label map never do.

    Attributes:
        name: goes into run folders and decides, with the seed, which images a split labels.
        classes: K class names, in the order of the label values.
        palette: K colours (r, g, b), 0..255.
        ignore_label: always 255, whatever the files say.
    """

    ignore_label = IGNORE_LABEL

    def __init__(self, name: str, classes: Sequence[str], palette: Sequence[Sequence[int]] | None = None) -> None:
        self.name = name
        self.classes = tuple(classes)
        usual = default_palette(len(classes), background=classes[0] == "background")
        self.palette = usual if palette is None else tuple(map(_color, palette))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """The splits that are there, among "train", "val" and "test"."""

    @abstractmethod
    def image_names(self, split: str) -> tuple[str, ...]:
        """Names of all images of a split, sorted. Raises ValueError for a split that is not there."""

    def label_names(self, split: str) -> tuple[str, ...]:
        """Names of the images that have a label map, sorted."""
        return self.image_names(split)

    @abstractmethod
    def load_image(self, split: str, name: str) -> np.ndarray:
        """uint8 (H, W, 3)."""

    @abstractmethod
    def load_label(self, split: str, name: str) -> np.ndarray:
        """uint8 (H, W), 255 = ignore."""

    def image_size(self, split: str, name: str) -> tuple[int, int]:
        """Height and width of an image, pixels."""
        height, width = self.load_image(split, name).shape[:2]
        return height, width

    def describe(self, split: str, name: str) -> str:
        """The name of an image in messages: its file, where it has one of its own."""
        return f"the {split} image {name!r} of {self.name}"

    def tf_image(self, split: str, name: tf.Tensor) -> tf.Tensor:
        """`load_image` for use inside `tf.data.Dataset.map`: scalar string tensor to uint8 (H, W, 3)."""
        return self._in_graph(self.load_image, split, name, (None, None, 3))

    def tf_label(self, split: str, name: tf.Tensor) -> tf.Tensor:
        """`load_label` for use inside `tf.data.Dataset.map`: scalar string tensor to uint8 (H, W)."""
        return self._in_graph(self.load_label, split, name, (None, None))

    @staticmethod
    def _in_graph(load, split: str, name: tf.Tensor, shape: tuple) -> tf.Tensor:
        # stateful=False: the same name always gives the same pixels, so tf.data may run it in parallel
        # even where operations must be deterministic.
        array = tf.numpy_function(
            lambda n: load(split, np.asarray(n).item().decode()), [name], tf.uint8, stateful=False
        )
        return tf.ensure_shape(array, shape)

    def _no_split(self, split: str) -> ValueError:
        return ValueError(f"dataset {self.name!r} has no split {split!r}; it has {', '.join(self.splits) or 'none'}")


def open_dataset(name_or_path: str | Path) -> Dataset:
    """Opens a known dataset by name, or a dataset folder by path.

    A published dataset is prepared the first time, which takes minutes (`kerasseg.data.prepared`).

    Args:
        name_or_path: a name is a string; a `Path` is always a folder.

    Raises:
        ValueError: neither a known name nor an existing folder, a folder that is not a dataset, or a published dataset
            whose archives are missing or incomplete.
    """
    if isinstance(name_or_path, str) and name_or_path in DATASETS:
        if Path(name_or_path).is_dir():
            print(
                f"warning: {name_or_path} is the built-in dataset; for the folder of that name give ./{name_or_path}",
                file=sys.stderr,
            )
        return pkgutil.resolve_name(DATASETS[name_or_path])()
    if not Path(name_or_path).is_dir():
        raise ValueError(
            f"unknown dataset {str(name_or_path)!r}: not one of {', '.join(sorted(DATASETS))}, and no "
            f"folder of that path was found (looked for {Path(name_or_path).absolute()})"
        )
    return pkgutil.resolve_name("kerasseg.data.folder:FolderDataset")(name_or_path)


def count_pixels(dataset: Dataset, split: str, names: Sequence[str]) -> np.ndarray:
    """int64 (N, 256): how many pixels of each value the label maps of these images have. Each is decoded once.

    Raises:
        ValueError: a label map cannot be read.
    """

    def count(name: str) -> np.ndarray:
        try:
            return np.bincount(dataset.load_label(split, name).ravel(), minlength=256)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the label map of the {split} image {name!r} cannot be read: {error}; "
                "`kerasseg check` names all such files"
            ) from error

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(count, names)), np.int64).reshape(-1, 256)


def _color(rgb: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rgb)
    return red, green, blue
