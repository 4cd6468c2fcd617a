"""Label Studio: the JSON export, one file with a list of tasks, or the predictions that were to be imported."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from serving.common.inputs import comparable
from training.annotations.contract import AnnotatedImage, Annotations, Notes, size_of
from training.annotations.raster import Bitmap, Ellipse, Polygon, Shape, box, draw_shapes
from training.annotations.rle import decode_brush
from training.annotations.source import Source, name_of, split_in
from training.annotations.words import (
    BAD_NUMBERS,
    MISSING,
    NO_AREA,
    OTHER_JSON,
    TOO_FEW,
    UNREADABLE_TEXT,
    rest_unlabeled,
)

KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")
MOST_TRIED = 20
"""JSON files that are opened to see whether the tool wrote them."""


def recognises(source: Source) -> bool:
    """Whether one of the first JSON files is a list of tasks."""
    return any(_is_export(source.json(file)) for file in source.ending(".json")[:MOST_TRIED])


def read(source: Source) -> Annotations:
    """Every task's image with the shapes of its annotation, later ones on top; classes in the order of the alphabet. Of
    several annotations the ground truth counts, or else the first that was not cancelled.

    A task without the entry `annotations`, which every export has, counts with its first prediction: it comes from a
    file such as `serving.batch` writes, which nobody has corrected.
    """
    notes = Notes()
    stored: dict[str, list[str]] = {}
    for file in source.images:
        stored.setdefault(_stored(PurePosixPath(file).name), []).append(file)
    found: dict[str, tuple[str, list[dict]]] = {}
    predicted = set()
    for file in source.saved_first(".json"):
        data = source.json(file)
        if not _is_export(data):
            notes.add(UNREADABLE_TEXT if data is None else OTHER_JSON, file)
            continue
        for task in data:
            said = _image_named(task)
            image = _find(source, stored, said)
            if image is None:
                notes.add(MISSING, said)
            elif image in found:
                notes.add("an image that is listed twice: its first annotation counts", said)
            else:
                found[image] = said, _results(task, notes, said)
                if "annotations" not in task:
                    predicted.add(image)
    names = {_label(result) for _, results in found.values() for result in results}
    classes = sorted(names, key=lambda name: (name.casefold(), name))
    images = []
    for image, (said, results) in found.items():
        shapes = [s for r in results if (s := _shape(r, classes.index(_label(r)), notes, said))]
        sizes = {(r.get("original_height"), r.get("original_width")) for r in results}
        size = size_of(*sizes.pop()) if len(sizes) == 1 else None
        draw = draw_shapes(shapes, notes, said)
        images.append(AnnotatedImage(source[image], name_of(image), split_in(image), draw, size, image in predicted))
    return Annotations(classes, images + rest_unlabeled(source, found), notes)


def _is_export(data: Any) -> bool:
    return (
        isinstance(data, list)
        and bool(data)
        and all(
            isinstance(t, dict) and isinstance(t.get("data"), dict) and ("annotations" in t or "predictions" in t)
            for t in data
        )
    )


def _image_named(task: dict) -> str:
    """The path of the image, whatever store it lies in: `/data/local-files/?d=a/b.jpg`, `s3://bucket/a/b.jpg`."""
    values = [v for v in task["data"].values() if isinstance(v, str) and not v.startswith("data:")]
    named = str(task.get("file_upload") or f"the image of task {task.get('id')}")
    paths = [value for value in values if "." in PurePosixPath(value).name] or [named]
    parts = urlsplit(paths[0])
    return (parse_qs(parts.query).get("d") or [unquote(parts.path)])[0].lstrip("/")


def _find(source: Source, stored: dict[str, list[str]], said: str) -> str | None:
    """Uploaded files get eight letters and a hyphen before their names, which change in addition (`_stored`)."""
    found = source.find_image(said)
    prefix, hyphen, original = PurePosixPath(said).name.partition("-")
    if found or not hyphen or len(prefix) != 8:
        return found
    alike = stored.get(_stored(original), [])
    return source.find_image(original) or (alike[0] if len(alike) == 1 else None)


def _stored(name: str) -> str:
    """The name of a file, comparable, as uploading changes it: spaces become _, and most other marks are left out."""
    return comparable(re.sub(r"[^-\w.]", "", unicodedata.normalize("NFC", name).strip().replace(" ", "_")))


def _results(task: dict, notes: Notes, said: str) -> list[dict]:
    key = "annotations" if "annotations" in task else "predictions"
    annotations = [a for a in task[key] or [] if isinstance(a, dict) and not a.get("was_cancelled")]
    annotations = [a for a in annotations if a.get("result")]
    annotations.sort(key=lambda annotation: not annotation.get("ground_truth"))
    if len(annotations) > 1:
        notes.add(f"several {key} of one image: the ground truth counts, or else the first", said)
    results = []
    for result in annotations[0]["result"] if annotations else []:
        value = result.get("value") if isinstance(result, dict) else None
        if not isinstance(value, dict) or result.get("type") not in KINDS:
            kind = result.get("type") if isinstance(result, dict) else result
            notes.add(NO_AREA.format(kind).replace("which have no area", "which are not read"), said)
        elif not value.get(result["type"]):
            notes.add("shapes without a class, left out: choose one in Label Studio", said)
        else:
            results.append(result)
    # What a person painted or changed lies above what was left as the model predicted it.
    return sorted(results, key=lambda result: result.get("origin") != "prediction")


def _label(result: dict) -> str:
    return str(result["value"][result["type"]][0])


def _shape(result: dict, label: int, notes: Notes, said: str) -> Shape | None:
    value = result["value"]
    try:
        if result["type"] == "brushlabels":
            height, width = int(result["original_height"]), int(result["original_width"])
            return Bitmap(label, _decoder(value["rle"], height, width), whole=True)
        if result["type"] == "ellipselabels":
            height, width = result["original_height"], result["original_width"]
            x, y, rx, ry = (float(value[k]) / 100 for k in ("x", "y", "radiusX", "radiusY"))
            turn = float(value.get("rotation") or 0)
            return Ellipse(label, (x * width, y * height), (rx * width, ry * height), turn)
        if result["type"] == "rectanglelabels":
            # Turned in pixels: percent of width and height are of different lengths.
            height, width = result["original_height"], result["original_width"]
            x, y, w, h = (float(value[k]) / 100 for k in ("x", "y", "width", "height"))
            corners = box(
                x * width,
                y * height,
                (x + w) * width,
                (y + h) * height,
                float(value.get("rotation") or 0),
                around="corner",
            )
            return Polygon(label, corners)
        points = np.array(value["points"], np.float64).reshape(-1, 2) / 100
    except (KeyError, TypeError, ValueError):
        notes.add(BAD_NUMBERS, said)
        return None
    if len(points) < 3:
        notes.add(TOO_FEW, said)
        return None
    if not np.isfinite(points).all():
        notes.add(BAD_NUMBERS, said)
        return None
    return Polygon(label, points, relative=True)


def _decoder(data: list[int], height: int, width: int) -> Callable[[], np.ndarray]:
    return lambda: decode_brush(data, height, width)
