"""Published datasets in their true layout, with a few tiny images, for the builders to read."""

import io
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
    "training": ("ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000003"),
    "validation": ("ADE_val_00000001",),
}
ADE20K_COUNTS = {"train": 3, "val": 1}


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
    """The archive, with what else lies in it."""
    files = {"objectInfo150.txt": b"Idx\tRatio", "sceneCategories.txt": b""}
    for folder, names in ADE20K_NAMES.items():
        for name in names:
            files[f"images/{folder}/{name}.jpg"] = jpeg(name)
            files[f"annotations/{folder}/{name}.png"] = png(values(name, 150).astype(np.uint8))
    zip_file(
        manual / "ADEChallengeData2016.zip", {f"ADEChallengeData2016/{path}": each for path, each in files.items()}
    )


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
