"""An image and its label map: what is wrong with them, and what the label map holds.

Legend: H, W size of an image.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasseg.data.folder import read_image, read_label
from kerasseg.data.image_header import ImageHeader
from kerasseg.data.problems import FileError, Finding
from kerasseg.losses import IGNORE_LABEL
from serving.common.images import open_image, read_file
from serving.common.inputs import printable

Color = tuple[int, int, int]


class LabelMap(NamedTuple):
    """Counts of a label map; 255 stands for its pixels to ignore."""

    counts: np.ndarray
    """int64 (256,): how many pixels of each value."""
    solid: np.ndarray
    """bool (256,): the values that fill 3x3 pixels somewhere; all of a smaller map."""
    edges: int
    """How many times the value changes from a pixel to the next but one, across or down, none of the three ignored."""
    mixed: int
    """How many of these changes go over a value that lies between both, as blended edges do."""
    colors: dict[int, Color]
    """The palette's colours of the values that occur; none where the palette is a grey scale, or there is none."""


def read_pair(root: Path, image: Path | None, label: Path | None, ignore: int) -> tuple[list[Finding], LabelMap | None]:
    """What is wrong with an image and its label map, and what the latter holds (None: not readable)."""
    findings: list[Finding] = []
    header = label_map = None
    if image is not None:
        try:
            contents = _contents(image, "unreadable image")
            read_image(contents)
            with open_image(contents) as opened:
                header = ImageHeader.of(opened, contents)
        except FileError as error:
            findings.append(Finding(error.kind, shown_path(root, image), error.detail, error.remedy))
    if label is not None:
        try:
            contents = _contents(label, "unreadable label")
            label_HW = read_label(contents)
        except FileError as error:
            findings.append(Finding(error.kind, shown_path(root, label), error.detail, error.remedy))
        else:
            label_map = _count(label_HW, contents, ignore)
            if not label_map.counts[:IGNORE_LABEL].any():
                findings.append(Finding("all ignored", shown_path(root, label)))
    if image is None or header is None:
        return findings, label_map
    if label is not None and label_map is not None:
        size = label_HW.shape
        if size == header.stored != header.upright:
            findings.append(Finding("drawn as stored", shown_path(root, image), str(header.orientation)))
        elif size != header.upright:
            height, width = header.upright
            sizes = f"{size[1]}x{size[0]} for {width}x{height}"
            findings.append(Finding("size", shown_path(root, label), sizes))
        elif header.stored == header.upright and header.orientation != 1:
            findings.append(Finding("turned", shown_path(root, image), str(header.orientation)))
    return findings, label_map


def _contents(path: Path, kind: str) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise FileError(kind, error.strerror or str(error)) from error
    except ValueError as error:
        raise FileError("too large", str(error).removeprefix(f"{path} ")) from error


def _count(label_HW: np.ndarray, contents: bytes, ignore: int) -> LabelMap:
    counts = np.bincount(label_HW.ravel(), minlength=256)
    solid, edges, mixed = _edges(label_HW, counts > 0)
    with open_image(contents) as image:  # not `getpalette`, which would decode the image once more
        palette = bytes(image.palette.palette) if image.palette else b""
    values = [int(value) for value in np.flatnonzero(counts) if value not in (ignore, IGNORE_LABEL)]
    colors = {k: (palette[3 * k], palette[3 * k + 1], palette[3 * k + 2]) for k in values if 3 * k + 2 < len(palette)}
    if all(color == (value, value, value) for value, color in colors.items()):
        colors = {}
    if ignore != IGNORE_LABEL:
        counts[IGNORE_LABEL] += counts[ignore]
        solid[IGNORE_LABEL] |= solid[ignore]
        counts[ignore] = solid[ignore] = 0
    return LabelMap(counts, solid, edges, mixed, colors)


def _edges(label_HW: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, int, int]:
    """`solid`, `edges` and `mixed` of a `LabelMap`, of uint8 (H,W) with these values, bool (256,)."""
    height, width = label_HW.shape
    if min(height, width) < 3:
        return present, 0, 0
    shifted = [label_HW[row : row + height - 2, column : column + width - 2] for row, column in np.ndindex(3, 3)]
    low, high = functools.reduce(np.minimum, shifted), functools.reduce(np.maximum, shifted)
    solid = np.bincount(low[low == high], minlength=256) > 0
    edges = mixed = 0
    for before, middle, after in (
        (label_HW[:, :-2], label_HW[:, 1:-1], label_HW[:, 2:]),
        (label_HW[:-2], label_HW[1:-1], label_HW[2:]),
    ):
        edge = (before != after) & (np.maximum(np.maximum(before, middle), after) != IGNORE_LABEL)
        edges += int(edge.sum())
        rising, falling = (before < middle) & (middle < after), (before > middle) & (middle > after)
        mixed += int((edge & (rising | falling)).sum())
    return solid, edges, mixed


def shown_path(root: Path, path: Path) -> str:
    return printable(path.relative_to(root).as_posix())
