"""ADE20K with the 150 classes of SceneParsing: 20,210 training and 2,000 validation images."""

from pathlib import PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from kerasseg.data.builders.builder import File, Item, SegmentationBuilder, Source
from kerasseg.data.builders.train_classes import read_train_classes
from kerasseg.data.folder import read_label
from kerasseg.data.prepared import PreparedDataset

# B. Zhou et al.: Scene Parsing through ADE20K Dataset, 2017. Neither size nor sha256 of the archive is published.
ARCHIVE = Source(
    archive="ADEChallengeData2016.zip",
    folder="ADEChallengeData2016",
    home="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
)
# The names are the first synonyms of the archive's objectInfo150.txt; the colours are the benchmark's (color150).
TRAIN_CLASSES = read_train_classes("ade20k")


class Ade20k(SegmentationBuilder):
    """ADE20K as its benchmark SceneParsing has it: 150 classes of things and stuff, and no background.

    Pixels of other objects, 0 in the published label maps, are 255, ignored; 1..150 are the classes 0..149. Images are
    known as ADE_train_00000001 and ADE_val_00000001. The test images have no labels and are left out.
    """

    CLASSES = tuple(c.name for c in TRAIN_CLASSES)
    HOMEPAGE = "https://ade20k.csail.mit.edu"
    COUNTS = {"train": 20210, "val": 2000}

    def items(self, downloads: tfds.download.DownloadManager) -> dict[str, dict[str, Item]]:
        files = self.find(ARCHIVE, downloads)
        splits: dict[str, dict[str, Item]] = {}
        for split, folder in (("train", "training"), ("val", "validation")):
            images = sorted(path for path in files if path.startswith(f"images/{folder}/") and path.endswith(".jpg"))
            names = {PurePosixPath(path).stem: path for path in images}
            splits[split] = {
                name: Item(File(files, path), File(files, f"annotations/{folder}/{name}.png"))
                for name, path in names.items()
            }
        return splits

    def decode_label(self, path: str, contents: bytes) -> np.ndarray:
        return read_label(contents) - np.uint8(1)  # unsigned, so that 0 is 255, ignored


def open_dataset() -> PreparedDataset:
    palette = [c.color for c in TRAIN_CLASSES]
    return PreparedDataset("ade20k", Ade20k, Ade20k.CLASSES, palette)
