"""Run lengths of Label Studio's brush masks to bool arrays. Those of COCO and CVAT: `kerasseg.data.rle`.

Legend: H, W size of the mask.
"""

from collections.abc import Sequence

import numpy as np


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
