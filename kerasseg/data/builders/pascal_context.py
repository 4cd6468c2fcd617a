"""PASCAL-Context with 59 classes and background: 4,998 training and 5,105 validation images of VOC 2010."""

import io

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from kerasseg.data.builders.builder import File, Item, SegmentationBuilder, Source
from kerasseg.data.builders.files import names_in
from kerasseg.data.folder import read_label
from kerasseg.data.prepared import PreparedDataset

# R. Mottaghi et al.: The Role of Context for Object Detection and Semantic Segmentation in the Wild, 2014.
VOC = Source(
    archive="VOCtrainval_03-May-2010.tar",
    folder="VOCdevkit/VOC2010",
    home="http://host.robots.ox.ac.uk/pascal/VOC/voc2010",
    # As in torchvision/prototype/datasets/_builtin/voc.py.
    sha256="1af4189cbe44323ab212bff7afbc7d0f55a267cc191eb3aac911037887e5c7d4",
)
CONTEXT = Source(
    archive="trainval.tar.gz",
    folder="trainval",
    home="https://cs.stanford.edu/~roozbeh/pascal-context",
    suffixes=(".mat",),
)

# The 59 classes among the 459 numbers of the release's labels.txt. In the order of these numbers, which is that of the
# alphabet, they are classes 1..59, as in the label maps of other projects (SegmentationClassContext); the release's
# own 59_labels.txt has another order.
NUMBERS = {
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25, "boat": 31,
    "book": 33, "bottle": 34, "building": 44, "bus": 45, "cabinet": 46, "car": 59, "cat": 65, "ceiling": 68,
    "chair": 72, "cloth": 80, "computer": 85, "cow": 98, "cup": 104, "curtain": 105, "dog": 113, "door": 115,
    "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189, "horse": 207,
    "keyboard": 220, "light": 232, "motorbike": 258, "mountain": 259, "mouse": 260, "person": 284, "plate": 295,
    "platform": 296, "pottedplant": 308, "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354,
    "sign": 355, "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416, "tree": 420,
    "truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
CLASS_OF_NUMBER = np.zeros(1 << 16, np.uint8)
CLASS_OF_NUMBER[list(NUMBERS.values())] = range(1, 60)


class PascalContext(SegmentationBuilder):
    """PASCAL-Context: every pixel of the VOC 2010 training and validation images, as 59 classes or background.

    Label maps are the release's .mat files, or, where VOCdevkit/VOC2010 has them, the PNG files of the folder
    SegmentationClassContext that other projects make from it. train and val are VOC's lists.
    """

    CLASSES = ("background", *NUMBERS)
    HOMEPAGE = CONTEXT.home
    COUNTS = {"train": 4998, "val": 5105}

    def items(self, downloads: tfds.download.DownloadManager) -> dict[str, dict[str, Item]]:
        voc = self.find(VOC, downloads)
        if any(path.startswith("SegmentationClassContext/") for path in voc):
            labels, pattern, lists = voc, "SegmentationClassContext/{}.png", "SegmentationContext"
        else:
            labels, pattern, lists = self.find(CONTEXT, downloads), "{}.mat", "Main"
        return {
            split: {
                name: Item(File(voc, f"JPEGImages/{name}.jpg"), File(labels, pattern.format(name)))
                for name in names_in(voc, f"ImageSets/{lists}/{split}.txt")
            }
            for split in ("train", "val")
        }

    def decode_label(self, path: str, contents: bytes) -> np.ndarray:
        if path.endswith(".mat"):
            return CLASS_OF_NUMBER[scipy.io.loadmat(io.BytesIO(contents))["LabelMap"]]
        return read_label(contents)


def open_dataset() -> PreparedDataset:
    return PreparedDataset("pascal_context", PascalContext, PascalContext.CLASSES)
