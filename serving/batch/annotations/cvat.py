"""CVAT: one XML file, "CVAT for images 1.1"."""

import json
import re
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from serving.batch.annotations.contract import Pieces, Segmented, as_text
from serving.common.artifact import ModelInfo
from serving.common.predictions import HEADS

FILE = "cvat.xml"
LABELS_FILE = "cvat_labels.json"

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def piece(image: Segmented) -> dict[str, Any]:
    """The image's size, and its masks or polygons as elements."""
    height, width = image.labels_HW.shape
    if image.polygons is None:
        shapes = [
            f'<mask label={_quoted(image.class_name(mask.label))} source="auto" occluded="0" '
            f'rle="{", ".join(map(str, mask.counts))}" left="{mask.left}" top="{mask.top}" width="{mask.width}" '
            f'height="{mask.height}" z_order="0"></mask>'
            for mask in image.masks
        ]
    else:
        shapes = [
            f'<polygon label={_quoted(image.class_name(outline.label))} source="auto" occluded="0" '
            f'points="{";".join(f"{x},{y}" for x, y in outline.points.tolist())}" z_order="0"></polygon>'
            for outline in image.outlines
        ]
    return {"height": height, "width": width, "shapes": shapes}


def assemble(pieces: Pieces, info: ModelInfo) -> Iterator[str]:
    """The file's text. CVAT finds images by their names, and takes labels only from the task."""
    yield f"{HEADS['cvat']}\n<labels>\n"
    for name, color in zip(info.classes, info.palette, strict=True):
        yield (
            f"<label><name>{escape(_allowed(name))}</name><color>{_hex(color)}</color><type>any</type>"
            "<attributes></attributes></label>\n"
        )
    yield "</labels>\n</task>\n</meta>\n"
    for number, (name, found) in enumerate(pieces()):
        yield (
            f'<image id="{number}" name={_quoted(as_text(name))} width="{found["width"]}" height="{found["height"]}">\n'
        )
        yield from (f"{shape}\n" for shape in found["shapes"])
        yield "</image>\n"
    yield "</annotations>\n"


def extras(info: ModelInfo, polygons: bool) -> dict[str, str]:
    """The labels, to paste into the field "Raw" of a new task."""
    labels = [
        {"name": name, "color": _hex(color), "type": "any", "attributes": []}
        for name, color in zip(info.classes, info.palette, strict=True)
    ]
    return {LABELS_FILE: json.dumps(labels, indent=2) + "\n"}


def _allowed(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)


def _quoted(text: str) -> str:
    return quoteattr(_allowed(text), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
