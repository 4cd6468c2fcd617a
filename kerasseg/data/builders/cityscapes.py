"""Cityscapes with its 19 training classes: 2,975 training and 500 validation images."""

import numpy as np
import tensorflow_datasets as tfds

from kerasseg.data.builders.builder import File, Item, SegmentationBuilder, Source
from kerasseg.data.builders.train_classes import TrainClass
from kerasseg.data.folder import read_label
from kerasseg.data.prepared import PreparedDataset
from kerasseg.data.splits import CITYSCAPES_SUFFIX
from kerasseg.losses import IGNORE_LABEL

# M. Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding, 2016.
HOME = "https://www.cityscapes-dataset.com/downloads (free account)"
IMAGES = Source(archive="leftImg8bit_trainvaltest.zip", folder="leftImg8bit", home=HOME)
LABELS = Source(archive="gtFine_trainvaltest.zip", folder="gtFine", home=HOME, suffixes=("_gtFine_labelIds.png",))


TRAIN_CLASSES = (
    TrainClass("road", 7, (128, 64, 128)),
    TrainClass("sidewalk", 8, (244, 35, 232)),
    TrainClass("building", 11, (70, 70, 70)),
    TrainClass("wall", 12, (102, 102, 156)),
    TrainClass("fence", 13, (190, 153, 153)),
    TrainClass("pole", 17, (153, 153, 153)),
    TrainClass("traffic light", 19, (250, 170, 30)),
    TrainClass("traffic sign", 20, (220, 220, 0)),
    TrainClass("vegetation", 21, (107, 142, 35)),
    TrainClass("terrain", 22, (152, 251, 152)),
    TrainClass("sky", 23, (70, 130, 180)),
    TrainClass("person", 24, (220, 20, 60)),
    TrainClass("rider", 25, (255, 0, 0)),
    TrainClass("car", 26, (0, 0, 142)),
    TrainClass("truck", 27, (0, 0, 70)),
    TrainClass("bus", 28, (0, 60, 100)),
    TrainClass("train", 31, (0, 80, 100)),
    TrainClass("motorcycle", 32, (0, 0, 230)),
    TrainClass("bicycle", 33, (119, 11, 32)),
)
CLASS_OF_ID = np.full(256, IGNORE_LABEL, np.uint8)
CLASS_OF_ID[[c.label_id for c in TRAIN_CLASSES]] = range(len(TRAIN_CLASSES))


class Cityscapes19(SegmentationBuilder):
    """Cityscapes, finely annotated, with the 19 classes of its benchmark; all other label ids are 255, ignored.

    Images are known as CITY_SEQUENCE_FRAME, such as aachen_000000_000019. The test split has no labels and is left
    out. (tfds has a `cityscapes` of its own, with the raw label ids.)
    """

    CLASSES = tuple(c.name for c in TRAIN_CLASSES)
    HOMEPAGE = "https://www.cityscapes-dataset.com"
    COUNTS = {"train": 2975, "val": 500}

    def items(self, downloads: tfds.download.DownloadManager) -> dict[str, dict[str, Item]]:
        images, labels = self.find(IMAGES, downloads), self.find(LABELS, downloads)
        splits: dict[str, dict[str, Item]] = {split: {} for split in self.COUNTS}
        for path in sorted(images):
            split, _, file = path.partition("/")
            if split in splits and file.endswith(f"{CITYSCAPES_SUFFIX}.png"):
                place = file.removesuffix(f"{CITYSCAPES_SUFFIX}.png")
                label = File(labels, f"{split}/{place}_gtFine_labelIds.png")
                splits[split][place.split("/")[-1]] = Item(File(images, path), label)
        return splits

    def decode_label(self, path: str, contents: bytes) -> np.ndarray:
        return CLASS_OF_ID[read_label(contents)]


def open_dataset() -> PreparedDataset:
    palette = [c.color for c in TRAIN_CLASSES]
    return PreparedDataset("cityscapes", Cityscapes19, Cityscapes19.CLASSES, palette)
