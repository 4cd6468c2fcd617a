"""ADE20K with the 150 classes of its scene parsing benchmark: 20,210 training and 2,000 validation images."""

import numpy as np
import tensorflow_datasets as tfds

from kerasseg.data.builders.builder import File, Item, SegmentationBuilder, Source
from kerasseg.data.folder import read_label
from kerasseg.data.prepared import PreparedDataset
from kerasseg.losses import IGNORE_LABEL

# B. Zhou et al.: Scene Parsing through ADE20K Dataset, CVPR 2017.
ARCHIVE = Source(
    archive="ADEChallengeData2016.zip",
    folder="ADEChallengeData2016",
    home="https://sceneparsing.csail.mit.edu",
    suffixes=(".jpg", ".png"),
)
FOLDERS = {"train": "training", "val": "validation"}
# The first word of each row of the archive's objectInfo150.txt, in its order.
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television receiver", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator",
    "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer",
    "plaything", "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle",
    "oven", "ball", "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake",
    "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan",
    "pier", "crt screen", "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
CLASS_OF_NUMBER = np.full(256, IGNORE_LABEL, np.uint8)
CLASS_OF_NUMBER[1 : len(CLASSES) + 1] = range(len(CLASSES))


class Ade20k(SegmentationBuilder):
    """The benchmark's 150 classes; pixels of other things, which it numbers 0, are 255, ignored.

    Images are known as in the archive, such as ADE_train_00000001. The test images have no published labels.
    """

    CLASSES = CLASSES
    HOMEPAGE = ARCHIVE.home
    COUNTS = {"train": 20_210, "val": 2000}

    def items(self, downloads: tfds.download.DownloadManager) -> dict[str, dict[str, Item]]:
        files = self.find(ARCHIVE, downloads)
        splits: dict[str, dict[str, Item]] = {}
        for split, folder in FOLDERS.items():
            prefix = f"images/{folder}/"
            names = sorted(path[len(prefix) : -len(".jpg")] for path in files if path.startswith(prefix))
            splits[split] = {
                name: Item(File(files, f"{prefix}{name}.jpg"), File(files, f"annotations/{folder}/{name}.png"))
                for name in names
            }
        return splits

    def decode_label(self, path: str, contents: bytes) -> np.ndarray:
        return CLASS_OF_NUMBER[read_label(contents)]


def open_dataset() -> PreparedDataset:
    return PreparedDataset("ade20k", Ade20k, Ade20k.CLASSES)
