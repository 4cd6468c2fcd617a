"""Segmentations in the form in which Label Studio keeps brush masks. Needs NumPy only.

Shapes: H, W height and width in pixels.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from serving.common.brush_rle import encode_brush


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
