"""COCO-Stuff with 171 classes, 80 of things and 91 of stuff: 118,287 training and 5,000 validation images of COCO."""

from pathlib import PurePosixPath

import numpy as np
import tensorflow_datasets as tfds

from kerasseg.data.builders.builder import File, Item, SegmentationBuilder, Source
from kerasseg.data.builders.coco import IMAGES, TRAIN_CLASSES
from kerasseg.data.folder import read_label
from kerasseg.data.prepared import PreparedDataset
from kerasseg.losses import IGNORE_LABEL

# H. Caesar et al.: COCO-Stuff: Thing and Stuff Classes in Context, 2018. Neither size nor sha256 of the archive is
# published.
HOME = "https://github.com/nightrome/cocostuff"
LABELS = {
    split: Source(archive="stuffthingmaps_trainval2017.zip", folder=f"{split}2017", home=HOME, suffixes=(".png",))
    for split in IMAGES
}
# The stuff among the 182 names of the release's labels.txt, numbers 92..182. Eleven things of it, such as 12 street
# sign, occur in no label map.
STUFF = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet",
    "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff",
    "dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower",
    "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement", "pillow",
    "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug",
    "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable", "wall-brick", "wall-concrete",
    "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind",
    "window-other", "wood",
)  # fmt: skip
# In label maps each number is one less than in labels.txt.
CLASS_OF_VALUE = np.full(256, IGNORE_LABEL, np.uint8)
CLASS_OF_VALUE[[c.label_id - 1 for c in TRAIN_CLASSES] + list(range(91, 182))] = range(171)


class CocoStuff(SegmentationBuilder):
    """COCO-Stuff 164k: the images of COCO 2017 with a class of things or stuff for nearly every pixel.

    Pixels without one, 255 in the published label maps, are ignored. Images are known as 000000000139.
    """

    CLASSES = (*(c.name for c in TRAIN_CLASSES), *STUFF)
    HOMEPAGE = HOME
    COUNTS = {"train": 118287, "val": 5000}

    def items(self, downloads: tfds.download.DownloadManager) -> dict[str, dict[str, Item]]:
        splits: dict[str, dict[str, Item]] = {}
        for split, source in LABELS.items():
            labels, images = self.find(source, downloads), self.find(IMAGES[split], downloads)
            names = [PurePosixPath(path).stem for path in sorted(images) if path.endswith(".jpg")]
            splits[split] = {name: Item(File(images, f"{name}.jpg"), File(labels, f"{name}.png")) for name in names}
        return splits

    def decode_label(self, path: str, contents: bytes) -> np.ndarray:
        return CLASS_OF_VALUE[read_label(contents)]


def open_dataset() -> PreparedDataset:
    return PreparedDataset("coco_stuff", CocoStuff, CocoStuff.CLASSES)
