"""labelme: one JSON file for each image, with its shapes."""

import base64
import json
import os
from pathlib import Path
from typing import Any

from serving.batch.annotations.contract import Segmented, as_text
from serving.common.images import png
from serving.common.predictions import HEADS, begins_as


def contents(image: Segmented, path: Path) -> bytes:
    """The file's contents: masks, or a polygon for each region.

    Args:
        path: where the file will be. The image's path in it starts there.
    """
    height, width = image.labels_HW.shape
    if image.polygons is None:
        shapes = []
        for mask in image.masks:
            top, left, bottom, right = mask.top, mask.left, mask.top + mask.height, mask.left + mask.width
            pixels = image.labels_HW[top:bottom, left:right] == mask.label
            corners = [[left, top], [right - 1, bottom - 1]]  # of both corners' pixels
            shape = _shape(image.class_name(mask.label), "mask", corners)
            shapes.append(shape | {"mask": base64.b64encode(png(pixels)).decode("ascii")})
    else:
        shapes = [_shape(image.class_name(o.label), "polygon", o.points.tolist()) for o in image.outlines]
    folder, name = os.path.split(image.source)
    relative = os.path.relpath(os.path.join(os.path.realpath(folder), name), os.path.realpath(path.parent))
    entries = {"imagePath": as_text(relative), "imageData": None, "imageHeight": height, "imageWidth": width}
    listed = ", ".join(map(json.dumps, shapes))
    return f"{HEADS['labelme']}{listed}], {json.dumps(entries)[1:]}\n".encode()


def is_edited(path: Path) -> bool:
    """Whether a person has saved the file: it is there, and not as this module writes it."""
    return path.is_file() and not begins_as(path, HEADS["labelme"])


def _shape(label: str, kind: str, points: list[list[int]]) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
    }
