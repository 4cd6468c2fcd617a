"""Masks in files: which mask belongs to which image, what is in it, and tables of colours.

Legend: H, W size of a mask; K classes.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from kerasseg.data import imports
from kerasseg.data.folder import parse_classes
from serving.common.images import open_image, read_file
from serving.common.inputs import comparable, read_text
from training.annotations.contract import IGNORED, Draw, Notes
from training.annotations.source import KIND_FOLDERS, Source, split_of

MASK_FOLDERS = (
    *imports.MASK_FOLDERS,  # those that a dataset folder does not have itself
    "labels", "label", "annotation", "groundtruth", "targets",
    "segmentations", "segmentation", "segmentationobject", "labelids",
)  # fmt: skip
"""Folders that hold masks, lower case."""

MASK_SUFFIXES = (
    "_mask",
    "_masks",
    "_gt",
    "_l",
    "_label",
    "_labels",
    "_seg",
    "_segmentation",
    "-mask",
    "-label",
    "_labelids",
)
"""What follows the name of the image in that of its mask, lower case."""

LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".gif")
"""How names of masks end: JPEG changes the numbers."""

Color = tuple[int, int, int]
ColorTable = dict[str, Color]
"""Colours by the name of the class, in the order of the file."""

VOC_BORDER = (224, 224, 192)
"""The colour of Pascal VOC's ignored pixels."""

_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png|bmp|tiff?)$", re.I)


def is_mask(file: str) -> bool:
    """Whether the folders of a file say that it is a mask: labels/, train_masks/, trainannot/."""
    return any(
        folder in MASK_FOLDERS or folder.endswith(("_masks", "_mask", "_labels", "_gt", "annot"))
        for folder in file.lower().split("/")[:-1]
    )


def paired(source: Source) -> dict[str, str]:
    """The mask of each image that has one, by file.

    A mask lies in a folder that says so, or its name is that of another image with one of `MASK_SUFFIXES`. It belongs
    to the image of the same name and the same folders, without those of split and kind; else to the only one of its
    name.
    """
    lossless = [file for file in source.images if file.lower().endswith(LOSSLESS)]
    stems = {(str(PurePosixPath(f).parent), comparable(PurePosixPath(f).stem)) for f in source.images}
    masks = [
        f
        for f in lossless
        if is_mask(f)
        or ((base := _base(f)) != _stem(f) and (str(PurePosixPath(f).parent), base) in stems)
        or _IMAGE_SUFFIX.search(PurePosixPath(f).stem)
    ]
    images = [file for file in source.images if file not in set(masks) and not is_mask(file)]
    exact = {(_place(image), _stem(image)): image for image in images}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for image in images:
        by_stem[_stem(image)].append(image)
    found: dict[str, str] = {}
    for mask in masks:
        for stem in (_stem(mask), _base(mask)):
            alike = by_stem[stem]
            of_mask = exact.get((_place(mask), stem)) or (alike[0] if len(alike) == 1 else None)
            if of_mask:
                found.setdefault(of_mask, mask)
                break
    return found


def _stem(file: str) -> str:
    return comparable(PurePosixPath(file).stem)


def _base(file: str) -> str:
    """The name of the image that a mask's name has in it: `a` of `a_mask.png` and of `a.jpg.png`."""
    stem = _IMAGE_SUFFIX.sub("", _stem(file))
    suffix = next((s for s in sorted(MASK_SUFFIXES, key=len, reverse=True) if stem.endswith(s)), "")
    return stem.removesuffix(suffix)


def _place(file: str) -> tuple[str, ...]:
    """The folders of a file without those that say only what kind of file it is; `trainannot` is `train`."""
    places = []
    for folder in file.lower().split("/")[:-1]:
        bare = re.sub(r"(_?annot|_masks?|_labels|_gt|_images)$", "", folder)
        if bare not in MASK_FOLDERS and bare not in KIND_FOLDERS and bare:
            places.append(split_of(bare) or bare)
    return tuple(places)


def read_mask(path: Path) -> Image.Image:
    """A mask, decoded.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with open_image(read_file(path)) as image:
            image.load()
            return image.copy()
    except (OSError, ValueError) as error:
        raise ValueError(f"a mask that cannot be read ({error}): copy it again from its source") from error


def index_values(path: Path) -> np.ndarray | None:
    """int32 (H, W): the numbers in a grey or palette mask, also where red, green and blue are equal; None where it has
    colours.

    Raises:
        ValueError: it cannot be read.
    """
    image = read_mask(path)
    if image.mode == "1":
        image = image.convert("L")
    values = np.asarray(image)
    if values.ndim == 2:
        return values.astype(np.int32)
    if values.shape[2] == 2:  # grey and transparency
        return values[..., 0].astype(np.int32)
    return values[..., 0].astype(np.int32) if (values[..., :3] == values[..., :1]).all() else None


def draw_numbers(path: Path, position: dict[int, int], notes: Notes, file: str) -> Draw:
    """Draws a mask of class numbers.

    Args:
        position: of each number in the classes, or `IGNORED`.
        notes: gets one about other numbers, whose pixels are ignored.
    """

    def draw(height: int, width: int) -> np.ndarray:
        values_HW = index_values(path)
        if values_HW is None:
            raise ValueError(
                "colours in place of class numbers: give a table of colours (label_colors.txt: r g b name)"
            )
        labels_HW, others = _look_up(values_HW, position)
        if others:
            notes.add(f"values without a class ({', '.join(map(str, others[:5]))}), whose pixels are ignored", file)
        return labels_HW

    return draw


def _look_up(values_HW: np.ndarray, position: dict[int, int]) -> tuple[np.ndarray, list[int]]:
    """int16 (H, W), the position of each value or `IGNORED`; the values that have none, in ascending order.

    Args:
        values_HW: integers.
        position: of values from -1 on.
    """
    above = max(position, default=0) + 1
    table, known = np.full(above + 2, IGNORED, np.int16), np.zeros(above + 2, bool)
    for value, label in position.items():
        table[value + 1], known[value + 1] = label, True
    at_HW = np.clip(values_HW, -1, above) + 1
    return table[at_HW], np.unique(values_HW[~known[at_HW]]).tolist()


def draw_colors(path: Path, colors: Sequence[Color | None], notes: Notes, file: str) -> Draw:
    """Draws a mask of colours, or a palette mask with them.

    Args:
        colors: of the classes; None for a class without one.
        notes: gets one about other colours, whose pixels are ignored.
    """
    position = {_packed(color): k for k, color in enumerate(colors) if color is not None}
    ignored = {_packed(VOC_BORDER): IGNORED}

    def draw(height: int, width: int) -> np.ndarray:
        red_HW, green_HW, blue_HW = np.moveaxis(np.asarray(read_mask(path).convert("RGB")).astype(np.int32), -1, 0)
        labels_HW, others = _look_up(_packed((red_HW, green_HW, blue_HW)), ignored | position)
        if others:
            shown = ", ".join(str((v >> 16, v >> 8 & 255, v & 255)) for v in others[:3])
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            notes.add(f"colours without a class, whose pixels are ignored: add them to the table ({shown}{more})", file)
        if others and (labels_HW == IGNORED).all():
            raise ValueError("a mask with no colour of the table: see that the table is that of the masks")
        return labels_HW

    return draw


def _packed(color: Sequence[Any]) -> Any:
    """Red, green and blue, 0..255, numbers or arrays, as one number."""
    return color[0] << 16 | color[1] << 8 | color[2]


TABLE_READERS: dict[str, Callable[[str], ColorTable]] = {}


def find_table(source: Source) -> tuple[str, ColorTable] | None:
    """The file with a table of colours, and the table; None where there is none.

    Raises:
        ValueError: a file of that name holds no such table.
    """
    for name, reader in TABLE_READERS.items():
        for file in source.files:
            if PurePosixPath(file).name.lower() == name:
                try:
                    table = reader(read_text(source[file]))
                except (OSError, ValueError, KeyError, IndexError) as error:
                    raise ValueError(f"{source[file]} is not a table of colours ({error}): see the README") from error
                if table:
                    return file, table
    return None


def _camvid(text: str) -> ColorTable:
    """Lines "r g b name"."""
    fields = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {" ".join(line[3:]): _color(line[:3]) for line in fields}


def _labelmap(text: str) -> ColorTable:
    """Lines "name:r,g,b:parts:actions", as CVAT writes them."""
    lines = [line.split(":") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {line[0]: _color(line[1].split(",")) for line in lines if line[1].strip()}


def _class_dict(text: str) -> ColorTable:
    """A table with the columns name, r, g and b."""
    rows = csv.DictReader(text.splitlines(), skipinitialspace=True)
    return {row["name"].strip(): _color([row["r"], row["g"], row["b"]]) for row in rows}


def _classes_json(text: str) -> ColorTable:
    table, _ = parse_classes(text)
    return dict(zip(table.classes, table.palette, strict=True)) if table and table.palette else {}


def _color(fields: Sequence[str]) -> Color:
    r, g, b = (int(field) for field in fields)
    if not all(0 <= value <= 255 for value in (r, g, b)):
        raise ValueError(f"colour {r} {g} {b} is not within 0..255")
    return r, g, b


TABLE_READERS |= {
    "label_colors.txt": _camvid,
    "labelmap.txt": _labelmap,
    "class_dict.csv": _class_dict,
    "classes.json": _classes_json,
}


def names_file(source: Source) -> list[str] | None:
    """Names of classes, one a line, from classes.txt, class_names.txt or labels.txt; None without such a file."""
    for file in source.ending(".txt"):
        if PurePosixPath(file).name.lower() in ("classes.txt", "class_names.txt", "labels.txt"):
            return [line.strip() for line in read_text(source[file]).splitlines() if line.strip()]
    return None
