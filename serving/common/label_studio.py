"""Predictions as Label Studio takes them. Needs NumPy only.

Shapes: H, W height and width in pixels.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from serving.common.brush_rle import encode_brush


def brush_results(
    labels_HW: np.ndarray,
    classes: Sequence[str],
    *,
    from_name: str,
    to_name: str,
    leave_out: Collection[int] = (),
) -> list[dict[str, Any]]:
    """The results of a prediction: a brush mask for each label that occurs.

    Args:
        labels_HW: integers 0..255 (H,W).
        classes: names.
        from_name, to_name: the names of the tags BrushLabels and Image in the project's labelling configuration.
        leave_out: labels without a mask, such as that of the background.
    """
    height, width = labels_HW.shape
    return [
        {
            "id": f"class-{label}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_height": height,
            "original_width": width,
            "image_rotation": 0,
            "value": {
                "format": "rle",
                "rle": encode_brush(labels_HW == label),
                "brushlabels": [classes[label] if label < len(classes) else str(label)],
            },
        }
        for label in np.flatnonzero(np.bincount(labels_HW.ravel())).tolist()
        if label not in leave_out
    ]
