"""CVAT: one XML file, "CVAT for images"."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import numpy as np

from kerasseg.data.rle import decode_runs
from serving.common.inputs import read_text
from serving.common.predictions import is_predicted
from training.annotations.contract import AnnotatedImage, Annotations, Notes
from training.annotations.raster import Bitmap, Ellipse, Polygon, Shape, box, draw_shapes
from training.annotations.source import Source, name_of, split_in, split_of
from training.annotations.words import BAD_NUMBERS, EMPTY_CLASS, MISSING, NO_AREA, TOO_FEW, rest_unlabeled

SHAPES = ("polygon", "mask", "box", "ellipse")


def recognises(source: Source) -> bool:
    """Whether an XML file begins with CVAT's element."""
    return bool(_files(source))


def read(source: Source) -> Annotations:
    """Every image with its shapes, by z_order and then by their order in the file; classes in the order of the project.

    Raises:
        ValueError: the XML cannot be read, or is that of a video.
    """
    notes = Notes()
    listed: dict[str, tuple[int, int, int] | None] = {}
    entries: list[tuple[str, ElementTree.Element]] = []
    for file in _files(source):
        root = _parse(source, file)
        if root.find("track") is not None:
            raise ValueError(f'{source[file]} is of the format "CVAT for video": export the task as "CVAT for images"')
        for label in root.iterfind("meta//label"):
            name = label.findtext("name")
            if name:
                listed.setdefault(name, _color(label.findtext("color") or ""))
        entries += [(file, image) for image in root.iterfind("image")]
    used = {shape.get("label") or "" for _, image in entries for shape in image if shape.tag in SHAPES}
    for name in sorted(used - listed.keys()):
        listed[name] = None
    classes = [name for name in listed if name in used]
    for name in listed:
        if name not in used:
            notes.add(EMPTY_CLASS, name)
    images: dict[str, AnnotatedImage] = {}
    for file, entry in entries:
        annotated = _image(source, file, entry, classes, notes)
        if annotated is None:
            continue
        relative = annotated.path.relative_to(source.root).as_posix()
        if relative in images:
            notes.add("an image that is listed twice: its first annotation counts", relative)
        else:
            images[relative] = annotated
    colors = [color for name in classes if (color := listed[name])]
    return Annotations(
        classes,
        [*images.values(), *rest_unlabeled(source, images)],
        notes,
        palette=colors if len(colors) == len(classes) else None,
    )


def _files(source: Source) -> list[str]:
    found = []
    for file in source.saved_first(".xml"):
        with source[file].open("rb") as stream:
            start = stream.read(2000)
        if re.search(rb"<annotations>", start):
            found.append(file)
    return found


def _parse(source: Source, file: str) -> ElementTree.Element:
    text = read_text(source[file])
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities within entities fill the memory
        raise ValueError(f"{source[file]} defines entities, which CVAT never writes: export it again")
    try:
        return ElementTree.fromstring(text.encode("utf-8") if text.startswith("<?xml") else text)
    except ElementTree.ParseError as error:
        raise ValueError(f"{source[file]} is not XML that can be read ({error}): export it again") from error


def _color(text: str) -> tuple[int, int, int] | None:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        return None
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _image(
    source: Source, file: str, entry: ElementTree.Element, classes: list[str], notes: Notes
) -> AnnotatedImage | None:
    said, subset = entry.get("name") or "", entry.get("subset") or ""
    folder = "" if "/" not in file else str(PurePosixPath(file).parent)
    inside = f"{folder}/images".lstrip("/")
    image = source.find_image(said, [f"{inside}/{subset}", inside, folder] if subset else [inside, folder])
    if image is None:
        notes.add(MISSING, said)
        return None
    shapes = []
    for element in entry:
        if element.tag in ("polyline", "points", "cuboid", "skeleton"):
            notes.add(NO_AREA.format(element.tag), said)
        elif element.tag in SHAPES:
            label = classes.index(element.get("label") or "")
            try:
                shape = _shape(element.tag, element.attrib, label, notes, said)
            except (KeyError, ValueError):
                notes.add(BAD_NUMBERS, said)
                continue
            if shape is not None:
                shapes.append((int(element.get("z_order") or 0), shape))
    shapes.sort(key=lambda pair: pair[0])  # stable: of one z_order the later one lies on top
    sides = entry.get("height") or "", entry.get("width") or ""
    size = (int(sides[0]), int(sides[1])) if all(side.isdecimal() and int(side) for side in sides) else None
    draw = draw_shapes([shape for _, shape in shapes], notes, said)
    split = split_of(subset) or split_in(image)
    return AnnotatedImage(source[image], name_of(image), split, draw, size, is_predicted(source[file]))


def _shape(kind: str, at: Mapping[str, str], label: int, notes: Notes, file: str) -> Shape | None:
    angle = _number(at.get("rotation") or "0")
    if kind == "polygon":
        points = [[_number(value) for value in pair.split(",")] for pair in at["points"].split(";") if pair.strip()]
        if len(points) < 3:
            notes.add(TOO_FEW, file)
            return None
        return Polygon(label, np.array(points).reshape(-1, 2))
    if kind == "box":
        left, top, right, bottom = (_number(at[side]) for side in ("xtl", "ytl", "xbr", "ybr"))
        return Polygon(label, box(left, top, right, bottom, angle))
    if kind == "ellipse":
        cx, cy, rx, ry = (_number(at[name]) for name in ("cx", "cy", "rx", "ry"))
        return Ellipse(label, (cx, cy), (rx, ry), angle)
    x, y, width, height = (int(_number(at[name])) for name in ("left", "top", "width", "height"))
    return Bitmap(label, _decoder(at["rle"], height, width), x, y)


def _number(text: str) -> float:
    number = float(text)
    if not np.isfinite(number):
        raise ValueError(text)
    return number


def _decoder(text: str, height: int, width: int) -> Callable[[], np.ndarray]:
    def decode() -> np.ndarray:
        try:
            counts = [int(count) for count in text.split(",")]
        except ValueError as error:
            raise ValueError("run lengths that are no numbers: export it again") from error
        return decode_runs(counts, height, width, "C")

    return decode
