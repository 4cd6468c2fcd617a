"""Segmentations in the form in which Label Studio keeps brush masks. Needs NumPy only.

Shapes: H, W height and width in pixels.
"""

from collections.abc import Collection, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from serving.common.artifact import ModelInfo
from serving.common.brush_rle import encode_brush

FROM_NAME, TO_NAME = "label", "image"
"""The names of the tags in `label_config`."""


def label_config(info: ModelInfo, kind: str = "BrushLabels") -> str:
    """A label configuration for a model's classes, to paste into a project's labeling interface.

    Args:
        info: the model.
        kind: the tag of the labels, "BrushLabels" or "PolygonLabels".
    """
    labels = [
        f'    <Label value={quoteattr(name)} background="#{red:02x}{green:02x}{blue:02x}"/>'
        for name, (red, green, blue) in zip(info.classes, info.palette, strict=True)
    ]
    lines = [
        "<View>",
        f'  <Image name="{TO_NAME}" value="${TO_NAME}" zoom="true" zoomControl="true"/>',
        f'  <{kind} name="{FROM_NAME}" toName="{TO_NAME}">',
        *labels,
        f"  </{kind}>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"


def brush_results(
    labels_HW: np.ndarray, classes: Sequence[str], *, from_name: str, to_name: str, leave_out: Collection[int] = ()
) -> list[dict[str, Any]]:
    """The label map as results of Label Studio: a brush mask for each class that occurs.

    Args:
        labels_HW: integers 0..255 (H,W).
        classes: names, as the project's labels have them. Labels beyond them, such as 255 (ignored), are left out.
        from_name: name of the project's tag BrushLabels.
        to_name: name of its tag Image.
        leave_out: labels of which no mask is wanted.

    Returns:
        What `result` of a prediction or an annotation holds, in the order of the labels.
    """
    height, width = labels_HW.shape
    return [
        {
            "id": f"class-{label}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_brush(labels_HW == label),
                "brushlabels": [classes[label]],
            },
        }
        for label in np.flatnonzero(np.bincount(labels_HW.ravel())).tolist()
        if label < len(classes) and label not in leave_out
    ]
