"""COCO: one JSON file with images, categories and annotations, or one for each split."""

from collections import defaultdict
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from kerasseg.data.rle import coco_runs, decode_coco
from serving.common.predictions import is_predicted
from training.annotations.contract import IGNORED, AnnotatedImage, Annotations, Notes, size_of
from training.annotations.raster import Bitmap, Polygon, Shape, draw_shapes
from training.annotations.source import SPLIT_FOLDERS, Source, name_of, split_in, split_of
from training.annotations.words import (
    BAD_NUMBERS,
    EMPTY_CLASS,
    MISSING,
    OTHER_JSON,
    TOO_FEW,
    UNKNOWN_CLASS,
    UNREADABLE_TEXT,
    rest_unlabeled,
)

MOST_TRIED = 20
"""JSON files that are opened to see whether the tool wrote them."""


def recognises(source: Source) -> bool:
    """Whether one of the first JSON files has COCO's three lists."""
    return any(_is_coco(source.json(file)) for file in source.ending(".json")[:MOST_TRIED])


def read(source: Source) -> Annotations:
    """Every image of every file. Larger areas lie at the bottom and smaller ones on top: COCO knows no order, and what
    lies in front is mostly smaller than what it hides. Crowds are ignored pixels.

    Classes are in the order of their ids, without those that have no annotation, such as the super-category of id 0
    that Roboflow writes.
    """
    notes = Notes()
    contents = {}
    for file in source.saved_first(".json"):
        data = source.json(file)
        if _is_coco(data):
            contents[file] = data
        else:
            notes.add(UNREADABLE_TEXT if data is None else OTHER_JSON, file)
    names, classes = _classes(contents, notes)
    images: dict[str, AnnotatedImage] = {}
    for file, data in contents.items():
        for image in _images(source, file, data, names[file], notes):
            relative = image.path.relative_to(source.root).as_posix()
            if relative in images:
                notes.add("an image that is listed twice: its first annotation counts", relative)
                if images[relative].draw is not None or image.draw is None:
                    continue
            images[relative] = image
    return Annotations(classes, [*images.values(), *rest_unlabeled(source, images)], notes)


def _is_coco(data: Any) -> bool:
    return isinstance(data, dict) and all(
        isinstance(data.get(k), list) for k in ("images", "categories", "annotations")
    )


def _classes(contents: dict[str, dict], notes: Notes) -> tuple[dict[str, dict[Any, int]], list[str]]:
    """By file, the position of each category's id in the classes; the classes. Files number categories on their own."""
    by_name: dict[str, Any] = {}
    for data in contents.values():
        used = {annotation.get("category_id") for annotation in _dicts(data["annotations"])}
        for category in _dicts(data["categories"]):
            name = str(category.get("name"))
            if category.get("id") in used:
                by_name.setdefault(name, category.get("id"))
    for data in contents.values():
        for category in _dicts(data["categories"]):
            if str(category.get("name")) not in by_name:
                notes.add(EMPTY_CLASS, category.get("name"))
    classes = sorted(by_name, key=lambda name: (str(type(by_name[name])), by_name[name]))
    positions = {
        file: {
            c.get("id"): classes.index(str(c.get("name")))
            for c in _dicts(data["categories"])
            if str(c.get("name")) in by_name
        }
        for file, data in contents.items()
    }
    return positions, classes


def _images(source: Source, file: str, data: dict, names: dict[Any, int], notes: Notes) -> list[AnnotatedImage]:
    split = _split_of_file(file)
    folder = str(PurePosixPath(file).parent)
    near = [folder if folder != "." else ""]
    near += [
        str(path.parent) for path in map(PurePosixPath, source.images) if split and split_of(path.parent.name) == split
    ]
    near = list(dict.fromkeys([*near, "images"]))
    by_image = defaultdict(list)
    for annotation in _dicts(data["annotations"]):
        by_image[annotation.get("image_id")].append(annotation)
    result = []
    predicted = is_predicted(source[file])
    for entry in _dicts(data["images"]):
        annotations = by_image.pop(entry.get("id"), [])
        said = str(entry.get("file_name"))
        image = source.find_image(said, near)
        if image is None:
            notes.add(MISSING, said)
            continue
        size = size_of(entry.get("height"), entry.get("width"))
        shapes = _shapes(annotations, names, notes, f"{said} in {file}")
        draw = draw_shapes(shapes, notes, said)
        split_here = split or split_in(image)
        result.append(AnnotatedImage(source[image], name_of(image), split_here, draw, size, predicted))
    if by_image:
        what = "annotation of image ids that the file does not list, left out: export it again"
        for _ in range(sum(map(len, by_image.values()))):
            notes.add(what, file)
    return result


def _split_of_file(file: str) -> str | None:
    """From `instances_val2017.json` or the folder."""
    words = PurePosixPath(file).stem.lower().replace("-", "_").split("_")
    known = [split for word in words if (split := split_of(word)) and word.rstrip("0123456789") in SPLIT_FOLDERS]
    return known[0] if known else split_in(file)


def _shapes(annotations: list[dict], names: dict[Any, int], notes: Notes, file: str) -> list[Shape]:
    """The shapes of one image, the largest first."""
    found: list[tuple[float, list[Shape]]] = []
    for annotation in annotations:
        if annotation.get("category_id") not in names:
            notes.add(UNKNOWN_CLASS, file)
            continue
        label = IGNORED if annotation.get("iscrowd") else names[annotation["category_id"]]
        segmentation = annotation.get("segmentation")
        shapes: list[Shape] = []
        if isinstance(segmentation, dict):
            shapes.append(Bitmap(label, partial(decode_coco, segmentation), whole=True))
        elif segmentation:
            parts = segmentation if isinstance(segmentation[0], list) else [segmentation]
            for part in parts:
                try:
                    points = np.array(part, np.float64).reshape(-1, 2)
                except (ValueError, TypeError):
                    points = np.full((3, 2), np.nan)
                if not np.isfinite(points).all():
                    notes.add(BAD_NUMBERS, file)
                elif len(points) < 3:
                    notes.add(TOO_FEW, file)
                else:
                    shapes.append(Polygon(label, points))
        else:
            notes.add("a box without outline, left out: draw a polygon, or export with segmentation", file)
        if shapes:
            found.append((_area(annotation, shapes), shapes))
    found.sort(key=lambda pair: -pair[0])  # stable: of equal areas the later one lies on top
    return [shape for _, shapes in found for shape in shapes]


def _area(annotation: dict, shapes: list[Shape]) -> float:
    """The area of the shapes themselves where it can be had: some tools write the area of the box, or 0."""
    polygons = [shape for shape in shapes if isinstance(shape, Polygon)]
    if polygons:
        total = 0.0
        for polygon in polygons:
            x, y = polygon.points.T
            total += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        return total
    try:
        counts = coco_runs(annotation["segmentation"])
    except ValueError:
        return 0.0
    return float(sum(counts[1::2]))


def _dicts(entries: list) -> list[dict]:
    return [entry for entry in entries if isinstance(entry, dict)]
