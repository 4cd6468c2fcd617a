"""COCO with 81 classes, 80 things and background: 118,287 training and 5,000 validation images.

Legend: H, W size of an image.
"""

import functools
import json
from collections import defaultdict
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from kerasseg.data.builders.builder import File, Item, SegmentationBuilder, Source
from kerasseg.data.builders.files import Files
from kerasseg.data.builders.train_classes import read_train_classes
from kerasseg.data.polygons import fill_polygon
from kerasseg.data.prepared import PreparedDataset
from kerasseg.data.rle import decode_coco
from kerasseg.losses import IGNORE_LABEL

# T.-Y. Lin et al.: Microsoft COCO: Common Objects in Context, 2014. Sizes and sha256 are those that tensorflow-datasets
# knows (checksums.tsv; its url_checksums/coco.txt).
HOME = "https://cocodataset.org/#download"
HOST = "http://images.cocodataset.org"
IMAGES = {
    split: Source(archive=f"{split}2017.zip", folder=f"{split}2017", home=HOME, url=f"{HOST}/zips/{split}2017.zip")
    for split in ("train", "val")
}
ANNOTATIONS = Source(
    archive="annotations_trainval2017.zip",
    folder="annotations",
    home=HOME,
    url=f"{HOST}/annotations/annotations_trainval2017.zip",
    suffixes=("instances_train2017.json", "instances_val2017.json"),
)
# The things in the order of their ids, 1..90 with gaps, are classes 1..80; the colours are those of the panoptic task
# (A. Kirillov et al.: Panoptic Segmentation, 2019).
TRAIN_CLASSES = read_train_classes("coco")
CLASS_OF_ID = {c.label_id: number for number, c in enumerate(TRAIN_CLASSES, 1)}


class Coco81(SegmentationBuilder):
    """COCO 2017 as semantic segmentation: 80 classes of things, and background where no thing is annotated.

    Label maps are drawn from the annotations of instances. A pixel in several of them has the class of the smallest (by
    COCO's "area"; among equal ones the last in the file): what lies in front is mostly smaller than what it hides.
    Crowds are outlined roughly: their pixels are 255, ignored, except where a single instance is annotated. A pixel
    belongs to a polygon if its centre does. Images are known as 000000000139. (tfds has a `coco` of its own, with
    boxes.)
    """

    CLASSES = ("background", *(c.name for c in TRAIN_CLASSES))
    HOMEPAGE = "https://cocodataset.org"
    COUNTS = {"train": 118287, "val": 5000}

    def items(self, downloads: tfds.download.DownloadManager) -> dict[str, dict[str, Item]]:
        annotations = self.find(ANNOTATIONS, downloads)
        splits: dict[str, dict[str, Item]] = {}
        for split, source in IMAGES.items():
            images, labels = self.find(source, downloads), self._labels(annotations, f"instances_{split}2017.json")
            paths = {label: PurePosixPath(label) for label in sorted(labels)}
            splits[split] = {
                path.stem: Item(File(images, path.name), File(labels, label)) for label, path in paths.items()
            }
        return splits

    def _labels(self, annotations: Files, path: str) -> Files:
        return self._read(File(annotations, path), label_texts)[1] if path in annotations else {}

    def decode_label(self, path: str, contents: bytes) -> np.ndarray:
        return draw_instances(**json.loads(contents))


class _Instance(NamedTuple):
    image_id: int
    text: str


def _keep_as_text(entry: dict[str, Any]) -> dict[str, Any] | _Instance:
    """An annotation as text, as soon as it is parsed; all else as it is."""
    if "segmentation" not in entry:
        return entry
    kept = {key: entry[key] for key in ("category_id", "segmentation", "area", "iscrowd")}
    return _Instance(entry["image_id"], json.dumps(kept, separators=(",", ":")))


def _text(height: int, width: int, instances: list[str]) -> bytes:
    return f'{{"height": {height}, "width": {width}, "instances": [{",".join(instances)}]}}'.encode()


def label_texts(path: str, contents: bytes) -> Files:
    """For each image that a file of instances names, as FILE/IMAGE: the JSON text of what `draw_instances` takes.

    It takes a quarter of the memory of the objects that it describes. Any error where the file is damaged.
    """
    data = json.loads(contents, object_hook=_keep_as_text)
    by_image = defaultdict(list)
    for instance in data["annotations"]:
        by_image[instance.image_id].append(instance.text)
    return {
        f"{path}/{image['file_name']}": functools.partial(_text, image["height"], image["width"], by_image[image["id"]])
        for image in data["images"]
    }


def draw_instances(height: int, width: int, instances: list[dict[str, Any]]) -> np.ndarray:
    """The label map uint8 (H, W) of an image: classes 0..80, 255 = ignore.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        instances: annotations of instances as in COCO's files.
    """
    label_HW = np.zeros((height, width), np.uint8)
    for instance in sorted(instances, key=lambda i: (not i["iscrowd"], -i["area"])):  # the first lies at the bottom
        label = IGNORE_LABEL if instance["iscrowd"] else CLASS_OF_ID[instance["category_id"]]
        segmentation = instance["segmentation"]
        if isinstance(segmentation, dict):
            label_HW[decode_coco(segmentation)] = label
        else:
            for polygon in segmentation:
                rows, columns, mask = fill_polygon(np.array(polygon, np.float64).reshape(-1, 2), height, width)
                label_HW[rows, columns][mask] = label
    return label_HW


def open_dataset() -> PreparedDataset:
    palette = [(0, 0, 0), *(c.color for c in TRAIN_CLASSES)]
    return PreparedDataset("coco", Coco81, Coco81.CLASSES, palette)
