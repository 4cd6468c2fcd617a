"""Published datasets in their true layout, with a few tiny images, for the builders to read."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from kerasseg.data import default_palette

SIZE = (24, 32)
# What the lists of VOC 2012 and SBD say here. One image is in VOC's and SBD's train, one in VOC's val and SBD's.
VOC_TRAIN = ("2007_000032", "2007_000039")
VOC_VAL = ("2007_000033", "2007_000042")
SBD_TRAIN = ("2007_000032", "2008_000002", "2008_000003")
SBD_VAL = ("2007_000033", "2008_000007")
VOC2012_COUNTS = {"train": 5, "val": 2}
CONTEXT_NAMES = {"train": ("2008_000002", "2008_000003", "2008_000004"), "val": ("2008_000007", "2008_000008")}
CONTEXT_COUNTS = {"train": 3, "val": 2}
CITIES = {
    "train": ("aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019"),
    "val": ("munster_000000_000019",),
    "test": ("berlin_000000_000019",),
}
CITYSCAPES_COUNTS = {"train": 3, "val": 1}
ADE20K_NAMES = {
    "train": ("ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000003"),
    "val": ("ADE_val_00000001",),
}
ADE20K_COUNTS = {"train": 3, "val": 1}
COCO_NAMES = {"train": ("000000000009", "000000000025", "000000000030"), "val": ("000000000139", "000000000285")}
COCO_COUNTS = {"train": 3, "val": 2}
COCO_GREY = "000000000025"


def values(name: str, highest: int) -> np.ndarray:
    """A label map (H, W) of numbers 0..highest that tells one name from another."""
    rng = np.random.default_rng(list(name.encode()))
    return rng.integers(0, highest + 1, SIZE)


def image(name: str) -> np.ndarray:
    """The image (H, W, 3) of a name."""
    return np.random.default_rng([1, *name.encode()]).integers(0, 256, (*SIZE, 3)).astype(np.uint8)


def voc2012(manual: Path) -> None:
    """The archive of VOC 2012 and that of SBD, with other numbers than VOC's where both have a label map."""
    voc = {"VOCdevkit/VOC2012/Annotations/2007_000032.xml": b"<annotation/>"}
    for split, names in (("train", VOC_TRAIN), ("val", VOC_VAL)):
        voc[f"VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt"] = lines(names)
        for name in names:
            voc[f"VOCdevkit/VOC2012/SegmentationClass/{name}.png"] = palette_png(voc_label(name))
    for name in {*VOC_TRAIN, *VOC_VAL, *SBD_TRAIN, *SBD_VAL}:
        voc[f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"] = jpeg(name)
    tar(manual / "VOCtrainval_11-May-2012.tar", voc)

    sbd = {"benchmark_RELEASE/dataset/train.txt": lines(SBD_TRAIN), "benchmark_RELEASE/dataset/val.txt": lines(SBD_VAL)}
    for name in (*SBD_TRAIN, *SBD_VAL):
        structure = np.zeros((1, 1), [("Segmentation", object), ("Boundaries", object)])
        structure["Segmentation"][0, 0] = sbd_label(name)
        sbd[f"benchmark_RELEASE/dataset/cls/{name}.mat"] = mat(GTcls=structure)
        sbd[f"benchmark_RELEASE/dataset/img/{name}.jpg"] = jpeg(name)
    tar(manual / "benchmark.tgz", sbd)


def voc_label(name: str) -> np.ndarray:
    label = values(name, 20)
    label[:2] = 255
    return label.astype(np.uint8)


def sbd_label(name: str) -> np.ndarray:
    return values(f"sbd {name}", 20).astype(np.uint8)


def pascal_context(manual: Path) -> None:
    """The archive of VOC 2010 and the release's own with its .mat files."""
    voc = {}
    for split, names in CONTEXT_NAMES.items():
        voc[f"VOCdevkit/VOC2010/ImageSets/Main/{split}.txt"] = lines(names)
        voc |= {f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg": jpeg(name) for name in names}
    tar(manual / "VOCtrainval_03-May-2010.tar", voc)
    names = [name for part in CONTEXT_NAMES.values() for name in part]
    labels = {f"trainval/{n}.mat": mat(LabelMap=values(n, 459).astype(np.uint16)) for n in names}
    tar(manual / "trainval.tar.gz", labels)


def cityscapes(manual: Path) -> None:
    """Both archives, with what else lies in them."""
    images, labels = {"README": b"", "license.txt": b""}, {"README": b""}
    for split, names in CITIES.items():
        for name in names:
            city = name.split("_")[0]
            images[f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"] = png(image(name))
            place = f"gtFine/{split}/{city}/{name}_gtFine"
            labels[f"{place}_labelIds.png"] = png(values(name, 33).astype(np.uint8))
            labels[f"{place}_instanceIds.png"] = png(values(name, 33).astype(np.uint16))
            labels[f"{place}_color.png"] = png(image(name))
    zip_file(manual / "leftImg8bit_trainvaltest.zip", images)
    zip_file(manual / "gtFine_trainvaltest.zip", labels)


def ade20k(manual: Path) -> None:
    """The archive, with the two text files next to the images."""
    files = {"sceneCategories.txt": lines(f"{n} street" for names in ADE20K_NAMES.values() for n in names)}
    head, wall = "Idx\tRatio\tTrain\tVal\tName", "1\t0.1576\t11664\t1172\twall"
    files["objectInfo150.txt"] = f"{head}\n{wall}\n".encode()
    for folder, names in (("training", ADE20K_NAMES["train"]), ("validation", ADE20K_NAMES["val"])):
        for name in names:
            files[f"images/{folder}/{name}.jpg"] = jpeg(name)
            files[f"annotations/{folder}/{name}.png"] = png(values(name, 150).astype(np.uint8))
    zip_file(manual / "ADEChallengeData2016.zip", {f"ADEChallengeData2016/{path}": f for path, f in files.items()})


def coco(manual: Path) -> None:
    """The archives of images, one of them grey, and that of the annotations with its other files."""
    coco_images(manual)
    annotations = {}
    for split, names in COCO_NAMES.items():
        instances = {
            "info": {"year": 2017},
            "licenses": [{"id": 1, "name": "a licence"}],
            "images": [
                {"id": int(name), "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1], "license": 1}
                for name in names
            ],
            "annotations": [{"image_id": int(name), **each} for name in names for each in coco_instances(name)],
            "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
        }
        annotations[f"annotations/instances_{split}2017.json"] = json.dumps(instances).encode()
        annotations[f"annotations/captions_{split}2017.json"] = b"not read"
    zip_file(manual / "annotations_trainval2017.zip", annotations)


def coco_stuff(manual: Path) -> None:
    """The archives of COCO's images, and that of the label maps."""
    coco_images(manual)
    names = [(split, name) for split, names in COCO_NAMES.items() for name in names]
    labels = {f"{split}2017/{name}.png": png(stuff_label(name)) for split, name in names}
    zip_file(manual / "stuffthingmaps_trainval2017.zip", labels)


def stuff_label(name: str) -> np.ndarray:
    """A label map as it is published, with the numbers 0..181 and 255."""
    label = values(name, 181)
    label[:2] = 255
    return label.astype(np.uint8)


def coco_images(manual: Path) -> None:
    for split, names in COCO_NAMES.items():
        images = {f"{split}2017/{name}.jpg": grey_jpeg(name) if name == COCO_GREY else jpeg(name) for name in names}
        zip_file(manual / f"{split}2017.zip", images)


def coco_instances(name: str) -> list[dict]:
    """The annotations of an image; of the last one in train there are none."""

    def rectangle(top: float, left: float, bottom: float, right: float) -> list[float]:
        return [left, top, right, top, right, bottom, left, bottom]

    def instance(number: int, category: int, segmentation, area: float, iscrowd: int = 0) -> dict:
        one = {"id": number, "category_id": category, "segmentation": segmentation, "area": area, "iscrowd": iscrowd}
        return one | {"bbox": [0, 0, 1, 1]}

    if name == "000000000030":
        return []
    rows, columns = SIZE
    person = instance(1, 1, [rectangle(2, 3, 10, 9), rectangle(12, 3, 14, 9)], 60.0)
    table = instance(3, 67, [rectangle(4.4, 5.6, 20.4, 30.4)], 400.0)
    crowd = {"size": [rows, columns], "counts": [rows * 2, rows * 6, rows * (columns - 8)]}  # columns 2..7
    return [person, instance(2, 90, [rectangle(0, 20, 24, 32)], 400.0), table, instance(4, 2, crowd, 144.0, iscrowd=1)]


def coco_label(name: str) -> np.ndarray:
    """What the annotations of an image look like: of the toothbrush and the table, which have the same area, the
    table lies on top; the person, smaller, over the table; the crowd of bicycles below all."""
    label = np.zeros(SIZE, np.uint8)
    if coco_instances(name):
        label[:, 2:8] = 255
        label[:, 20:32] = 80
        label[4:20, 6:30] = 61
        label[2:10, 3:9] = label[12:14, 3:9] = 1
    return label


def lines(names) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def png(array: np.ndarray) -> bytes:
    return encoded(Image.fromarray(array), "PNG")


def palette_png(label: np.ndarray) -> bytes:
    image = Image.fromarray(label)
    image.putpalette(np.array(default_palette(256), np.uint8).tobytes())
    return encoded(image, "PNG")


def jpeg(name: str) -> bytes:
    return encoded(Image.fromarray(image(name)), "JPEG")


def grey_jpeg(name: str) -> bytes:
    return encoded(Image.fromarray(image(name)[..., 0]), "JPEG")


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def mat(**variables) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=True)
    return file.getvalue()


def tar(path: Path, files: dict[str, bytes]) -> None:
    """An archive of these files, compressed if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))


def zip_file(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
