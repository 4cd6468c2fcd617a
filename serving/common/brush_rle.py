"""Brush masks of Label Studio. Needs NumPy only.

Shapes: H, W height and width in pixels.
"""

import functools

import numpy as np

SIZES = (3, 4, 8, 16)
"""Bits of a run's length; each run says which of the four it takes."""

WORD = 8
"""Bits of a value."""


def encode_brush(mask_HW: np.ndarray) -> list[int]:
    """A mask as the brush of Label Studio writes it, in the form that its converter calls RLE.

    The values are red, green, blue and alpha of each pixel, row by row, all of them 255 in the mask and 0 outside. A
    header holds their number and the `SIZES`; runs of equal values follow.

    Args:
        mask_HW: bool (H,W).

    Returns:
        Bytes, 0..255; `training.annotations.rle.decode_brush` reads them back.
    """
    values = mask_HW.ravel()
    starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    lengths = 4 * np.diff(np.append(starts, values.size))
    bits = [f"{4 * values.size:032b}{WORD - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    bits += map(_bits_of_run, values[starts].tolist(), lengths.tolist())
    joined = "".join(bits)
    joined += "0" * (-len(joined) % 8)
    return list(int(joined, 2).to_bytes(len(joined) // 8))


@functools.lru_cache(2**16)
def _bits_of_run(value: bool, length: int) -> str:
    """A run, in pieces where it is longer than a length can be. Most runs of an image have the length of another."""
    bits = ""
    while length:
        piece = min(length, 2 ** SIZES[-1])
        index = next(index for index, size in enumerate(SIZES) if piece <= 2**size)
        bits += f"1{index:02b}{piece - 1:0{SIZES[index]}b}{255 * value:0{WORD}b}"
        length -= piece
    return bits
