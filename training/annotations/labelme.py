"""labelme: one JSON file for each image, with its shapes."""

import base64
import binascii
import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from serving.common.predictions import is_predicted
from training.annotations.contract import AnnotatedImage, Annotations, Notes, size_of
from training.annotations.raster import Bitmap, Ellipse, Polygon, Shape, box, draw_shapes, encloses
from training.annotations.source import Source, name_of, split_in
from training.annotations.words import MISSING, NO_AREA, OTHER_JSON, TOO_FEW, UNREADABLE_TEXT, rest_unlabeled

MOST_TRIED = 20
"""JSON files that are opened to see whether the tool wrote them."""


def recognises(source: Source) -> bool:
    """Whether one of the first JSON files has labelme's entries."""
    return any(_is_labelme(source.json(file)) for file in source.ending(".json")[:MOST_TRIED])


def read(source: Source) -> Annotations:
    """Every image with its shapes, those later in the file on top; classes in the order of the alphabet.

    The file's `imagePath` says which image it is, seen from the JSON file, or else the name of the JSON file.
    """
    notes = Notes()
    found: dict[str, tuple[str, list[dict], tuple[int, int] | None]] = {}
    for file in tqdm(source.saved_first(".json"), "labelme", leave=False, disable=None):
        data = source.json(file)
        if not _is_labelme(data):
            notes.add(UNREADABLE_TEXT if data is None else OTHER_JSON, file)
            continue
        folder = str(PurePosixPath(file).parent)
        near = ["" if folder == "." else folder]
        image = source.find_image(str(data.get("imagePath") or ""), near)
        image = image or next(
            (each for s in (".jpg", ".jpeg", ".png") if (each := source.find_image(file[:-5] + s))), None
        )
        if image is None:
            notes.add(MISSING, f"{data.get('imagePath') or file} (of {file})")
        elif image in found:
            notes.add("a second annotation of an image, left out: only the first counts; remove one of them", file)
        else:
            found[image] = (
                file,
                [shape for shape in data["shapes"] if isinstance(shape, dict)],
                size_of(data.get("imageHeight"), data.get("imageWidth")),
            )
    names = {str(shape.get("label")) for _, shapes, _ in found.values() for shape in shapes}
    classes = sorted(names, key=lambda name: (name.casefold(), name))
    images = []
    for image, (file, entries, size) in found.items():
        draw = draw_shapes(_shapes(entries, classes, notes, file), notes, file)
        predicted = is_predicted(source[file])
        images.append(AnnotatedImage(source[image], name_of(image), split_in(image), draw, size, predicted))
    return Annotations(classes, images + rest_unlabeled(source, found), notes)


def _is_labelme(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data


def _shapes(entries: list[dict], classes: list[str], notes: Notes, file: str) -> list[Shape]:
    """The shapes of a file. A polygon inside of another one of its label and group is a hole in that one, or an island
    in such a hole: drawn as a part of it, it would change nothing."""
    shapes: dict[int, Shape] = {}
    groups = defaultdict(list)
    for number, entry in enumerate(entries):
        shape = _shape(entry, classes.index(str(entry.get("label"))), notes, file)
        if shape:
            shapes[number] = shape
            if isinstance(shape, Polygon) and entry.get("group_id") is not None:
                groups[shape.label, str(entry["group_id"])].append((number, shape.points))
    for group in groups.values():
        around = {n: [m for m, ring in group if m != n and encloses(ring, points)] for n, points in group}
        for number, points in group:
            for outermost in (m for m in around[number] if not around[m]):
                outer = shapes[outermost]
                assert isinstance(outer, Polygon)
                shapes[outermost] = outer.with_hole(points)
                shapes.pop(number, None)
    return list(shapes.values())


def _shape(entry: dict, label: int, notes: Notes, file: str) -> Shape | None:
    kind = entry.get("shape_type") or "polygon"
    try:
        points = np.array(entry.get("points"), np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        points = np.zeros((0, 2))
    if not np.isfinite(points).all():
        points = np.zeros((0, 2))
    needed = {"polygon": 3, "oriented_rectangle": 4, "rectangle": 2, "circle": 2, "mask": 2}.get(kind)
    if needed is None:
        notes.add(NO_AREA.format(kind), file)
    elif len(points) < needed:
        notes.add(TOO_FEW, file)
    elif kind in ("polygon", "oriented_rectangle"):
        return Polygon(label, points)
    elif kind == "rectangle":
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return Polygon(label, box(left, top, right, bottom))
    elif kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        return Ellipse(label, tuple(points[0]), (radius, radius))
    else:
        return Bitmap(label, _decoder(entry.get("mask")), int(points[:, 0].min()), int(points[:, 1].min()))
    return None


def _decoder(text: object) -> Callable[[], np.ndarray]:
    def decode() -> np.ndarray:
        try:
            with Image.open(io.BytesIO(base64.b64decode(str(text), validate=True)), formats=("PNG",)) as image:
                return np.asarray(image.convert("L")) > 0
        except (OSError, ValueError, SyntaxError, binascii.Error) as error:
            raise ValueError("a brush mask that is no PNG: save the file again in labelme") from error

    return decode
