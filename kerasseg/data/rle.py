"""Run lengths of masks, as COCO, CVAT and others write them, to bool arrays.

Legend: H, W size of the mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def decode_coco(segmentation: Mapping[str, Any]) -> np.ndarray:
    """bool (H, W) from a mask of a COCO file: {"size": [H, W], "counts": run lengths, plain or compressed}.

    Raises:
        ValueError: no size, or damaged run lengths.
    """
    size = segmentation.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise ValueError("a mask without its size: export it again")
    return decode_runs(coco_runs(segmentation), size[0], size[1], "F")


def coco_runs(segmentation: Mapping[str, Any]) -> list[int]:
    """The run lengths of a mask of a COCO file: of pixels outside and inside of it in turn, outside first.

    Raises:
        ValueError: it has none, or damaged ones.
    """
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        return coco_counts(counts)
    if isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        return counts
    raise ValueError("a mask without run lengths: export it again")


def decode_runs(counts: Sequence[int], height: int, width: int, order: str) -> np.ndarray:
    """bool (H, W) from the lengths of runs outside and inside of the mask in turn, outside first.

    Args:
        order: "F" down the columns (COCO), "C" along the rows (CVAT).

    Raises:
        ValueError: the lengths do not add up to the pixels.
    """
    lengths = np.asarray(counts, np.int64)
    if (lengths < 0).any() or lengths.sum() > height * width:
        raise ValueError(f"run lengths of more than {height}x{width} pixels: export it again")
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    whole = np.zeros(height * width, bool)  # CVAT leaves out the last run of others
    whole[: len(values)] = values
    return whole.reshape((height, width), order=order)  # type: ignore[call-overload]


def coco_counts(text: str) -> list[int]:
    """The run lengths in COCO's compressed form: numbers in 5-bit groups, low ones first, from the third on as the
    difference to the last but one before it.

    Raises:
        ValueError: a letter that does not occur in it, or its end is missing.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode("utf-8"):
        group = letter - 48
        if not 0 <= group < 64:
            raise ValueError("compressed run lengths with a wrong letter in them: export it again")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths without their end: export it again")
    return counts
