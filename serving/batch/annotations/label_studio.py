"""Label Studio: one JSON file of tasks with predictions, and the labelling configuration that fits."""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from serving.batch.annotations.contract import Pieces, Segmented
from serving.common.artifact import ModelInfo
from serving.common.label_studio import FROM_NAME, TO_NAME, brush_results, label_config
from serving.common.predictions import BY

FILE = "label_studio.json"
CONFIG_FILE = "label_studio_config.xml"

LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio names a file below its LOCAL_FILES_DOCUMENT_ROOT."""


def piece(image: Segmented) -> dict[str, Any]:
    """The image's task."""
    if image.polygons is None:
        results = brush_results(
            image.labels_HW, image.classes, from_name=FROM_NAME, to_name=TO_NAME, leave_out=image.leave_out
        )
    else:
        height, width = image.labels_HW.shape
        results = [
            {
                "id": f"region-{number}",
                "type": "polygonlabels",
                "from_name": FROM_NAME,
                "to_name": TO_NAME,
                "original_height": height,
                "original_width": width,
                "image_rotation": 0,
                "value": {
                    "points": (outline.points * [100 / width, 100 / height]).tolist(),
                    "closed": True,
                    "polygonlabels": [image.class_name(outline.label)],
                },
            }
            for number, outline in enumerate(image.outlines)
        ]
    score = {} if image.confidence is None else {"score": image.confidence}
    prediction = {"model_version": image.model, **score, "result": results}
    return {"meta": {"made_by": BY}, "data": {TO_NAME: url(image.source, image.name)}, "predictions": [prediction]}


def url(source: str, name: str) -> str:
    """Where Label Studio finds an image if its document root is the folder that holds INPUT's folder.

    Args:
        source: the file.
        name: its path below INPUT.
    """
    below = f"{PurePosixPath(source.removesuffix(name)).name}/{name}" if source.endswith(f"/{name}") else name
    return LOCAL_FILES + quote(below.lstrip("/"), errors="surrogateescape")


def assemble(pieces: Pieces, info: ModelInfo) -> Iterator[str]:
    """The file's text."""
    yield "["
    for number, (_, task) in enumerate(pieces()):
        yield f"{',' if number else ''}\n{json.dumps(task)}"
    yield "\n]\n"


def extras(info: ModelInfo, polygons: bool) -> dict[str, str]:
    """The labelling configuration of a project for these tasks."""
    return {CONFIG_FILE: label_config(info, "PolygonLabels" if polygons else "BrushLabels")}
