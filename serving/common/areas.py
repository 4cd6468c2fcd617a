"""What a label map holds, by label: areas and run lengths. Needs NumPy only.

Shapes: H, W height and width in pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def areas(labels_HW: np.ndarray, classes: Sequence[str], *, runs: bool = False) -> list[dict[str, Any]]:
    """What is in an image, by label.

    Args:
        labels_HW: integers 0..255 (H,W).
        classes: names.
        runs: give the run lengths of each label too.

    Returns:
        `[{"label": 3, "name": "cat", "pixels": 120, "share": 0.25, "rle": {...}}, ...]`: those that occur; `share`,
        0..1, is of the image, and `rle` as `coco_rle` has it.
    """
    run_lengths = coco_rle(labels_HW) if runs else {}
    return [
        {
            "label": label,
            "name": classes[label] if label < len(classes) else str(label),
            "pixels": int(count),
            "share": round(int(count) / labels_HW.size, 6),
        }
        | ({"rle": run_lengths[label]} if runs else {})
        for label, count in enumerate(np.bincount(labels_HW.ravel()))
        if count
    ]


def coco_rle(labels_HW: np.ndarray) -> dict[int, dict[str, list[int]]]:
    """Run lengths as COCO has them uncompressed, by label that occurs.

    Args:
        labels_HW: integers (H,W).

    Returns:
        `{label: {"size": [H, W], "counts": [...]}}`: lengths of runs of other pixels and of the label's in turn, down
        the columns one after the other, others first (0 of them where the first pixel is the label's).
    """
    column_by_column = labels_HW.ravel(order="F")
    starts = np.flatnonzero(np.concatenate([[True], column_by_column[1:] != column_by_column[:-1]]))
    ends = np.append(starts[1:], column_by_column.size)
    runs = column_by_column[starts]
    size = [int(length) for length in labels_HW.shape]
    found = {}
    for label in np.unique(runs):
        # Neighbouring runs of other labels are one run of "others", so only this label's borders count.
        borders = np.stack([starts[runs == label], ends[runs == label]], axis=1).ravel()
        counts = np.diff(np.concatenate([[0], borders, [column_by_column.size]]))
        found[int(label)] = {"size": size, "counts": (counts if counts[-1] else counts[:-1]).tolist()}
    return found
