"""Colours of classes: which can be distinguished on a photo, also by readers who do not see red or green.

Legend: K classes. Colours are (r, g, b) in 0..255 of sRGB.
"""

import functools
from collections.abc import Sequence

import numpy as np

from serving.common.images import IGNORE_COLOR, Palette

LEAST_DISTANCE = 5.0
"""Two colours of a readable palette are at least so far apart in CIELAB."""
LEAST_LIGHTNESS = 15.0
"""L*, 0..100: a darker colour than this does not tint a photo."""
# Black, then the colours of Okabe and Ito (2008, "Color Universal Design").
FIRST = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115),
    (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
# How linear RGB looks without the cones for red, and without those for green (Machado et al. 2009, severity 1).
WITHOUT_RED = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
WITHOUT_GREEN = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
EYES = np.array([np.eye(3), WITHOUT_RED, WITHOUT_GREEN])
# From linear RGB to XYZ, each relative to white (IEC 61966-2-1, D65).
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
TO_XYZ /= TO_XYZ.sum(axis=1, keepdims=True)


def default_palette(num_classes: int, background: bool = True) -> tuple[tuple[int, int, int], ...]:
    """`num_classes` distinct colours (r, g, b) that readers with and without red-green blindness can distinguish as far
    as that is possible: each further one is the farthest from all before it.

    Args:
        background: whether the first class is the background, which is black.

    Raises:
        ValueError: `num_classes` is not in 1..256.
    """
    if not 1 <= num_classes <= 256:
        raise ValueError(f"num_classes must lie in 1..256, because label maps are uint8; got {num_classes}")
    return _all_defaults()[:num_classes] if background else _all_defaults()[1 : num_classes + 1]


@functools.cache
def _all_defaults() -> tuple[tuple[int, int, int], ...]:
    levels = np.rint(np.linspace(0, 255, 10))
    candidates_N3 = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lightness_N = seen(candidates_N3)[0, :, 0]
    candidates_N3 = candidates_N3[(lightness_N > 35) & (lightness_N < 85)]  # neither near black nor near white
    seen_VN3 = seen(candidates_N3)
    chosen = list(FIRST)
    nearest_N = np.full(len(candidates_N3), np.inf)
    for color in (*FIRST, IGNORE_COLOR):
        nearest_N = np.minimum(nearest_N, _distance(seen_VN3, seen(np.array([color]))))
    while len(chosen) < 257:
        farthest = int(nearest_N.argmax())
        red, green, blue = candidates_N3[farthest].astype(int).tolist()
        chosen.append((red, green, blue))
        nearest_N = np.minimum(nearest_N, _distance(seen_VN3, seen_VN3[:, farthest : farthest + 1]))
    return tuple(chosen)


def seen(colors_N3: np.ndarray) -> np.ndarray:
    """CIELAB (3,N,3) of colours: as they are, and as readers without red or green see them."""
    share_N3 = np.asarray(colors_N3, np.float64) / 255
    linear_N3 = np.where(share_N3 <= 0.04045, share_N3 / 12.92, ((share_N3 + 0.055) / 1.055) ** 2.4)
    xyz_VN3 = np.clip(linear_N3 @ EYES.transpose(0, 2, 1), 0, 1) @ TO_XYZ.T
    x, y, z = np.moveaxis(
        np.where(xyz_VN3 > (6 / 29) ** 3, np.cbrt(xyz_VN3), xyz_VN3 * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _distance(ours_VN3: np.ndarray, theirs_VN3: np.ndarray) -> np.ndarray:
    """The smallest distance in CIELAB (N) over all eyes (CIE 1976)."""
    return np.linalg.norm(ours_VN3 - theirs_VN3, axis=-1).min(axis=0)


def least_distance(palette: Palette) -> float:
    """That of the two most similar colours, in CIELAB, over all eyes."""
    seen_VK3 = seen(np.array(palette))
    pairs = np.triu_indices(len(palette), 1)
    if not len(pairs[0]):
        return float("inf")
    return float(_distance(seen_VK3[:, pairs[0]], seen_VK3[:, pairs[1]]).min())


def readable_palette(palette: Palette, classes: Sequence[str]) -> Palette:
    """The palette, or `default_palette` where it cannot be read on a photo: two colours are nearly the same to some
    reader, or the colour of a class other than "background" is nearly black.

    Args:
        palette: a colour for each class.
        classes: their names.
    """
    lightness_K = seen(np.array(palette))[0, :, 0]
    dark = any(
        value < LEAST_LIGHTNESS for value, name in zip(lightness_K, classes, strict=True) if name != "background"
    )
    distance, other = least_distance(palette), default_palette(len(palette), classes[0] == "background")
    return other if dark or distance < min(LEAST_DISTANCE, least_distance(other)) else palette
