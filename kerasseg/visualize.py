"""Images of segmentations in plain NumPy, for TensorBoard and notebooks.

H, W: height and width of one image; K classes.
"""

from collections.abc import Sequence

import numpy as np

from serving.common.images import IGNORE_COLOR

Palette = Sequence[Sequence[int]]

_GAP = 4  # white pixels between the parts of a panel
_GAUGE = 12  # pixels: width of the bar that shows a score of the whole image


def voc_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """The PASCAL VOC colour map: `num_classes` distinct (r, g, b) in 0..255, the first one black.

    The bits of a class number, three at a time, become the high bits of red, green and blue.

    Raises:
        ValueError: `num_classes` is not in 1..256.
    """
    if not 1 <= num_classes <= 256:
        raise ValueError(f"num_classes must lie in 1..256, because label maps are uint8; got {num_classes}")
    classes = np.arange(num_classes)
    colors = np.zeros((num_classes, 3), np.int64)
    for level in range(3):
        for channel in range(3):
            colors[:, channel] |= (classes >> (3 * level + channel) & 1) << (7 - level)
    return tuple((int(r), int(g), int(b)) for r, g, b in colors)


def panel(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    palette: Palette,
    score: float | np.ndarray | None = None,
) -> np.ndarray:
    """One image: image | truth | prediction [| score], side by side with white gaps.

    Args:
        image: (H, W, 3) RGB, uint8 or float in 0..255.
        truth: (H, W) integer label map; values without a colour in `palette` (255, ignored) are drawn in cream.
        prediction: (H, W) integer label map.
        palette: (r, g, b) in 0..255 for each class.
        score: a critic's score in 0..1. One number is drawn as a gauge, filled from below up to the score; an (H, W)
            map is drawn in grey, white for 1.

    Returns:
        uint8 (H, W', 3).

    Raises:
        ValueError: the sizes differ.
    """
    height, width = image.shape[:2]
    for name, part in (("truth", truth), ("prediction", prediction)):
        if part.shape != (height, width):
            raise ValueError(f"{name} must have the image's size {(height, width)}, got {part.shape}")

    colors = np.full((256, 3), IGNORE_COLOR, np.uint8)
    colors[: len(palette)] = palette
    parts = [np.clip(image, 0, 255).astype(np.uint8), colors[truth], colors[prediction]]
    if score is not None:
        parts.append(_score_image(score, height, width))
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (gap, part)][1:], axis=1)


def _score_image(score: float | np.ndarray, height: int, width: int) -> np.ndarray:
    score_HW = np.clip(np.asarray(score, np.float64), 0, 1)
    if score_HW.ndim == 0:
        # The filled part counts whole rows from the bottom; a score of 0.5 fills the lower half.
        filled = np.arange(height)[::-1] < round(float(score_HW) * height)
        score_HW = np.repeat(filled[:, None], _GAUGE, axis=1).astype(np.float64)
    elif score_HW.shape != (height, width):
        raise ValueError(f"score must be a number or have the image's size {(height, width)}, got {score_HW.shape}")
    return np.repeat(np.rint(score_HW * 255).astype(np.uint8)[..., None], 3, axis=2)
