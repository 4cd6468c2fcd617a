"""TIFFs that Pillow does not read, or reads as other pixels than they hold, and why. Needs Pillow only."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import TiffImagePlugin as tiff

REMEDY = "save it as PNG, or as a TIFF with 8 bits per channel, red, green and blue side by side"
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
PHOTOMETRICS = {WHITE_IS_ZERO: "white is zero", BLACK_IS_ZERO: "black is zero", 2: "RGB", 3: "palette", 5: "CMYK"}
FORMATS = {2: "signed", 3: "floating-point"}
ALPHA = (1, 2)
PLANES = 2

# What the TIFF 6.0 specification calls tags: number of one -> value.
Tags = Mapping[int, Any]


def require_readable(tags: Tags) -> None:
    """ValueError, with a remedy, for a TIFF that Pillow opens although it has no right answer for it."""
    channels, bits, extra = tags.get(tiff.SAMPLESPERPIXEL, 1), _bits(tags), tags.get(tiff.EXTRASAMPLES, ())
    grey = tags.get(tiff.PHOTOMETRIC_INTERPRETATION) in (WHITE_IS_ZERO, BLACK_IS_ZERO)
    if _format(tags) in FORMATS or bits > 16:
        reason = "signed, floating-point and 32-bit values have no agreed range"
    elif grey and channels - sum(each in ALPHA for each in extra) > 1:
        reason = "which of several grey channels are red, green and blue is not said"
    elif _planes(tags) and bits > 8 and tags.get(tiff.COMPRESSION, 1) == 1:
        reason = "planes of more than 8 bits are not read uncompressed"
    else:
        return
    raise ValueError(f"{reason} ({_kind(tags)}): {REMEDY}")


def why_unknown(contents: bytes) -> str:
    """What keeps Pillow from opening the TIFF in the bytes of a file, with a remedy.

    Raises:
        Exception: of any kind, where it is damaged.
    """
    file = io.BytesIO(contents)
    tags = tiff.ImageFileDirectory_v2(file.read(16 if contents[2:3] == b"+" else 8))
    file.seek(tags.next)
    tags.load(file)
    return f"a TIFF of a kind that cannot be read ({_kind(tags)}): {REMEDY}"


def high_byte(values_HW: np.ndarray, tags: Tags) -> np.ndarray:
    """uint8 (H,W), 0..255, of one grey channel of 9 to 16 bits; white is 255."""
    bits = _bits(tags)
    if tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:  # Pillow turns 8 bits round, and leaves these
        values_HW = (1 << bits) - 1 - values_HW
    return (values_HW >> (bits - 8)).astype(np.uint8)


def _kind(tags: Tags) -> str:
    """ "3 channels of 16 bits, signed, in planes, black is zero": what reading it hangs on."""
    channels, photometric = tags.get(tiff.SAMPLESPERPIXEL, 1), tags.get(tiff.PHOTOMETRIC_INTERPRETATION, -1)
    parts = [f"{channels} channel{'s' * (channels > 1)} of {_bits(tags)} bits"]
    parts += [FORMATS[_format(tags)]] if _format(tags) in FORMATS else []
    parts += ["in planes"] if _planes(tags) else []
    parts.append(PHOTOMETRICS.get(photometric) or f"photometric interpretation {photometric}")
    if (compression := tags.get(tiff.COMPRESSION, 1)) not in tiff.COMPRESSION_INFO:
        parts.append(f"compression {compression}")
    return ", ".join(parts)


def _bits(tags: Tags) -> int:
    return max(tags.get(tiff.BITSPERSAMPLE, (1,)))


def _format(tags: Tags) -> int:
    return max(tags.get(tiff.SAMPLEFORMAT, (1,)))


def _planes(tags: Tags) -> bool:
    return tags.get(tiff.PLANAR_CONFIGURATION) == PLANES and tags.get(tiff.SAMPLESPERPIXEL, 1) > 1
