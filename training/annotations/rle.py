"""Run lengths of masks, as COCO, CVAT and Label Studio write them, to bool arrays.

Legend: H, W size of the mask.
"""

from collections.abc import Sequence

import numpy as np


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


class _Bits:
    """Numbers of any number of bits from bytes, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, size: int) -> int:
        start, end = self._at, self._at + size
        if end > 8 * len(self._data):
            raise ValueError("run lengths without their end: export it again")
        self._at = end
        chunk = int.from_bytes(self._data[start // 8 : -(-end // 8)], "big")
        return (chunk >> (-end % 8)) & ((1 << size) - 1)


def decode_brush(data: Sequence[int], height: int, width: int) -> np.ndarray:
    """bool (H, W) from the bytes of a brush mask of Label Studio, in the form that its converter calls RLE: a header
    with the number of values, and runs of equal and of different ones. The values are red, green, blue and alpha of
    each pixel. The browser smooths the edges of a stroke, so the mask is where alpha is at least half of 255.

    Raises:
        ValueError: they are of another size, or damaged.
    """
    try:
        bits = _Bits(bytes(data))
    except (ValueError, TypeError) as error:
        raise ValueError("run lengths that are no bytes: export it again") from error
    total = bits.read(32)
    if total != 4 * height * width:
        raise ValueError(f"a brush mask of {total // 4} pixels for an image of {width}x{height}: export it again")
    word = bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint32)
    at = 0
    while at < total:
        equal = bits.read(1)
        end = at + 1 + bits.read(sizes[bits.read(2)])
        if end > total:
            raise ValueError("run lengths of more pixels than the image has: export it again")
        if equal:
            values[at:end] = bits.read(word)
        else:
            values[at:end] = [bits.read(word) for _ in range(end - at)]
        at = end
    return values.reshape(height, width, 4)[..., 3] >= 128
