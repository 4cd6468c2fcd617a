"""COCO: one JSON file with images, categories and annotations."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from serving.batch.annotations.contract import Pieces, Segmented, as_text
from serving.common.areas import coco_rle
from serving.common.artifact import ModelInfo
from serving.common.predictions import HEADS

FILE = "coco.json"


def piece(image: Segmented) -> dict[str, Any]:
    """The image's size and its annotations without ids: compressed run lengths, or a polygon for each region."""
    height, width = image.labels_HW.shape
    if image.polygons is None:
        runs = coco_rle(image.labels_HW)
        annotations = [
            _annotation(
                mask.label,
                {"size": [height, width], "counts": compressed(runs[mask.label]["counts"])},
                sum(mask.counts[1::2]),
                [mask.left, mask.top, mask.width, mask.height],
            )
            for mask in image.masks
        ]
    else:
        annotations = []
        for outline in image.outlines:
            corner, far = outline.points.min(axis=0), outline.points.max(axis=0)
            box = [*corner.tolist(), *(far - corner).tolist()]
            annotations.append(_annotation(outline.label, [outline.points.ravel().tolist()], outline.area, box))
    return {"height": height, "width": width, "annotations": annotations}


def assemble(pieces: Pieces, info: ModelInfo) -> Iterator[str]:
    """The file's text. A category's id is its class number, so 0 is the background of models that have one."""
    yield f'{HEADS["coco"]}, "version": {json.dumps(f"{info.name}/{info.version}")}}},\n"licenses": [],\n"categories": '
    categories = [{"id": label, "name": name, "supercategory": ""} for label, name in enumerate(info.classes)]
    yield f'{json.dumps(categories)},\n"images": ['
    for number, (name, found) in enumerate(pieces(), 1):
        image = {"id": number, "file_name": as_text(name), "height": found["height"], "width": found["width"]}
        yield f"{',' if number > 1 else ''}\n{json.dumps(image)}"
    yield '],\n"annotations": ['
    count = 0
    for number, (_, found) in enumerate(pieces(), 1):
        for annotation in found["annotations"]:
            count += 1
            yield f"{',' if count > 1 else ''}\n{json.dumps({'id': count, 'image_id': number} | annotation)}"
    yield "]}\n"


def extras(info: ModelInfo, polygons: bool) -> dict[str, str]:
    """Nothing else: categories are in the file."""
    return {}


def compressed(counts: list[int]) -> str:
    """Run lengths in COCO's compressed form: numbers in 5-bit groups, low ones first, from the fourth on as the
    difference to the last but one before it."""
    values = np.array(counts, np.int64)
    values[3:] -= np.array(counts[1:-2], np.int64)
    groups = []
    more = np.ones(len(values), bool)
    while more.any():
        group = values & 31
        values = values >> 5
        going_on = more & np.where(group & 16, values != -1, values != 0)
        groups.append(np.where(more, group + 32 * going_on + 48, 0))
        more = going_on
    letters = np.stack(groups, axis=1).ravel()
    return letters[letters > 0].astype(np.uint8).tobytes().decode("ascii")


def _annotation(label: int, segmentation: object, area: float, box: list[int]) -> dict[str, Any]:
    return {"category_id": label, "segmentation": segmentation, "area": area, "bbox": box, "iscrowd": 0}
