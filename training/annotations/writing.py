"""Annotated images to a dataset folder.

Legend: H, W size of an image; K classes.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from kerasseg.data.folder import ClassTable, read_image
from kerasseg.data.image_header import read_header
from kerasseg.data.problems import KINDS, FileError
from kerasseg.losses import IGNORE_LABEL
from serving.common.files import naming, write_atomically
from serving.common.images import index_png, read_file
from serving.common.inputs import Names
from serving.common.palettes import default_palette
from training.annotations.contact_sheet import TILE, Tile
from training.annotations.contract import IGNORED, AnnotatedImage, Annotations, Notes

BACKGROUND = "background"
IGNORED_NAMES = ("ignore", "ignored", "void")
"""Names of classes whose pixels are ignored, without underscores (labelme's __ignore__), lower case."""

MOST_TILES = 24
"""Images on the contact sheet."""

OTHER_SIZE = "annotation of another size than its image: give the image on which it was drawn, at its full size"


@dataclass(frozen=True)
class ClassPlan:
    """The classes of the dataset folder, and the label of each class of the source."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    labels: np.ndarray
    """uint8 (K of the source + 2): the label for `IGNORED`, for `REST`, and for each class of the source."""

    def number(self, drawn_HW: np.ndarray) -> np.ndarray:
        """uint8 (H, W) from what `AnnotatedImage.draw` gives."""
        return self.labels[drawn_HW.astype(np.int64) - IGNORED]


def plan_classes(annotations: Annotations, rest: str, wanted: ClassTable | None = None) -> ClassPlan:
    """Numbers the classes: a background comes first, and names that differ in letter case only are one class.

    Args:
        rest: "background" or "ignored", for pixels without annotation; these are ignored too where `wanted` has no
            background.
        wanted: the classes of the result with their numbers and colours, also those without annotation.

    Raises:
        ValueError: no class, one that is not in `wanted`, or more than a label map has room for.
    """
    kept = {} if wanted is None else {_key(name): name for name in wanted.classes}
    if wanted is not None and len(kept) < len(wanted.classes):
        raise ValueError("the file of --classes has two names that differ in letter case only: rename one of them")
    positions: list[str | None] = []
    for name in annotations.classes:
        key = _key(name)
        if key.strip("_") in IGNORED_NAMES and (wanted is None or key not in kept):
            annotations.notes.add(f'the pixels of the class "{name}" are ignored, as its name says')
            positions.append(None)
            continue
        if wanted is not None and key not in kept:
            raise ValueError(
                f'the class "{name}" is not in the file of --classes: add it there, or rename it in the tool'
            )
        if wanted is None and key in kept and kept[key] != name:
            annotations.notes.add(f'the classes "{kept[key]}" and "{name}" are one: they differ in letter case only')
        kept.setdefault(key, BACKGROUND if key == BACKGROUND and name != name.strip("_") else " ".join(name.split()))
        positions.append(key)
    if not any(positions):
        raise ValueError("no annotation with a class was found, so there is nothing to learn; see the warnings above")
    if rest == "background" and not annotations.complete and wanted is None:
        kept.setdefault(BACKGROUND, BACKGROUND)
    order = list(kept) if wanted is not None else sorted(kept, key=lambda key: key != BACKGROUND)  # stable
    if len(order) > IGNORE_LABEL:
        raise ValueError(f"{len(order)} classes; a label map has room for {IGNORE_LABEL}: merge some in the tool")
    labels = [IGNORE_LABEL if key is None else order.index(key) for key in positions]
    of_rest = order.index(BACKGROUND) if rest == "background" and BACKGROUND in kept else IGNORE_LABEL
    return ClassPlan(
        tuple(kept[key] for key in order),
        (wanted and wanted.palette) or _palette(annotations, order, positions),
        np.array([IGNORE_LABEL, of_rest, *labels], np.uint8),
    )


def _key(name: str) -> str:
    """One text for the names of one class."""
    key = " ".join(name.split()).casefold()
    return BACKGROUND if key.strip("_") == BACKGROUND else key


def _palette(annotations: Annotations, order: list[str], positions: list[str | None]) -> tuple:
    """The source's colours if all classes have one and all differ; else the usual ones."""
    colors = dict[str, tuple[int, int, int]]()
    for key, color in zip(positions, annotations.palette or [], strict=False):
        if key is not None:
            colors.setdefault(key, color)
    if annotations.palette:
        colors.setdefault(BACKGROUND, (0, 0, 0))
    found = [colors.get(key) for key in order]
    usual = default_palette(len(order), background=BACKGROUND in order[:1])
    return tuple(found) if None not in found and len(set(found)) == len(found) else usual


@dataclass
class Drawn:
    """The images that can be used, with their label maps in a folder."""

    images: list[AnnotatedImage]
    names: list[str]
    """What the images are called in the dataset folder, without extension."""
    tiles: list[Tile]
    """Small images with their overlays, `MOST_TILES` or fewer."""


def draw_label_maps(
    folder: Path, images: Sequence[AnnotatedImage], names: Sequence[str], plan: ClassPlan, notes: Notes
) -> Drawn:
    """Writes FOLDER/NAME.png for each image with annotation; one label map is in memory at a time.

    An image that cannot be read, or whose annotation cannot be used, is left out and noted.

    Args:
        folder: is made.
        names: of the images, without extension.
    """
    folder.mkdir()
    labeled = [i for i, image in enumerate(images) if image.draw is not None]
    shown = {labeled[k] for k in np.linspace(0, len(labeled) - 1, min(MOST_TILES, len(labeled))).round().astype(int)}
    result = Drawn([], [], [])
    for i, (image, name) in enumerate(zip(tqdm(images, "images", disable=None), names, strict=True)):
        try:
            image_HWC = read_image(read_file(image.path))
            label_HW = None if image.draw is None else plan.number(_drawn(image, image_HWC.shape[:2]))
        except (OSError, ValueError) as error:
            remedy = f": {error.remedy or KINDS[error.kind][2]}" if isinstance(error, FileError) else ""
            notes.add(f"{error}; left out{remedy}", image.name)
            continue
        if label_HW is not None:
            write_atomically(folder / f"{name}.png", index_png(label_HW, plan.palette))
            if i in shown:
                result.tiles.append(_tile(name, image_HWC, label_HW))
        result.images.append(image)
        result.names.append(name)
    return result


def write_folder(
    folder: Path, drawn: Drawn, label_maps: Path, splits: Sequence[str | None], plan: ClassPlan, link: str
) -> None:
    """Writes images and classes.json to a dataset folder, and moves the label maps there.

    Args:
        label_maps: the folder of `draw_label_maps`, which is removed.
        splits: of the images; one without is left out.
        link: "copy", "hard" or "symbolic".

    Raises:
        ValueError: a hard link cannot be made.
    """
    for image, name, split in zip(drawn.images, drawn.names, splits, strict=True):
        if split is None:
            continue
        target = folder / "images" / split / f"{name}{image.path.suffix.lower()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        _place(image.path, target, link)
        if image.draw is not None:
            path = folder / "labels" / split / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            (label_maps / path.name).rename(path)
    label_maps.rmdir()
    content = {"classes": plan.names, "palette": plan.palette}
    write_atomically(folder / "classes.json", (json.dumps(content, ensure_ascii=False) + "\n").encode())


def add_to_folder(
    folder: Path,
    building: Path,
    drawn: Drawn,
    label_maps: Path,
    known: Mapping[Path, tuple[str, str]],
    link: str,
    notes: Notes,
) -> None:
    """Adds images and label maps to a dataset folder, in which nothing is changed.

    An image that is in the folder, by its path or by its name, gets its label map unless it has one. Others are added
    to the split that the source gives them, or to train.

    Args:
        folder: the dataset.
        building: a folder on the same disk, for images until they are whole.
        label_maps: the folder of `draw_label_maps`.
        known: the images of the dataset, by their real paths: split and name.
        link: "copy", "hard" or "symbolic".
    """
    by_name = {name: (split, name) for split, name in known.values()}
    names = Names(by_name)
    for image, name in zip(drawn.images, drawn.names, strict=True):
        place = known.get(Path(os.path.realpath(image.path)))
        if place is None and (found := names.find(name)):
            place = by_name[found]
        split, stem = place or (image.split or "train", name)
        label_map = folder / "labels" / split / f"{stem}.png"
        if image.draw is not None and label_map.exists():
            notes.add("an image that has a label map already, which is kept: remove it, to take the new one", stem)
            continue
        if place is None:
            target = folder / "images" / split / f"{name}{image.path.suffix.lower()}"
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(image.path, building / target.name, link)
            (building / target.name).rename(target)
        if image.draw is not None:
            label_map.parent.mkdir(parents=True, exist_ok=True)
            (label_maps / f"{name}.png").rename(label_map)


def _drawn(image: AnnotatedImage, upright: tuple[int, ...]) -> np.ndarray:
    """The drawn label map, upright as training takes images, or as the image is stored where it was drawn on that."""
    header = read_header(image.path)
    stored = header.stored if header else upright
    if image.size is not None and image.size not in (upright, stored):
        raise ValueError(OTHER_SIZE)
    height, width = upright if image.size is None else image.size
    assert image.draw is not None
    drawn_HW = image.draw(height, width)
    if drawn_HW.shape not in (upright, stored):
        raise ValueError(OTHER_SIZE)
    return drawn_HW


def _place(source: Path, target: Path, link: str) -> None:
    if link == "symbolic":
        target.symlink_to(source.resolve())
    elif link == "hard":
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            raise ValueError(
                f"{source} cannot be linked to ({error.strerror}): --link symbolic works over the borders of disks"
            ) from error
    else:
        with naming(target):
            shutil.copyfile(source, target)


def _tile(name: str, image_HWC: np.ndarray, label_HW: np.ndarray) -> Tile:
    if label_HW.shape != image_HWC.shape[:2]:  # drawn on the image as it is stored: shown as it is drawn
        image_HWC = np.asarray(Image.fromarray(image_HWC).resize(label_HW.shape[::-1]))
    scale = min(TILE / side for side in label_HW.shape)
    size = tuple(max(1, round(side * min(scale, 1))) for side in label_HW.shape[::-1])
    return Tile(
        name,
        np.asarray(Image.fromarray(image_HWC).resize(size, Image.Resampling.BILINEAR)),
        np.asarray(Image.fromarray(label_HW).resize(size, Image.Resampling.NEAREST)),
    )
