"""Images too large to be segmented at once: where to put windows, and how to put together what they show.

Needs NumPy only: training uses it too. H, W size of the image; h, w of a window; N windows; K classes.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np

GREY = 128
"""What surrounds an image that is smaller than the window: about the mean, as around training crops."""


def steps(window: tuple[int, int], stride: float) -> tuple[int, int]:
    """The pixels from one window to the next, rounded up.

    Args:
        window: height and width, pixels.
        stride: a share of the window, in 0..1 (above 0).

    Raises:
        ValueError: another stride.
    """
    if not 0 < stride <= 1:
        raise ValueError(f"--stride is a share of the window, in 0..1 (above 0); got {stride}")
    down, right = (math.ceil(round(side * stride, 6)) for side in window)
    return down, right


def corners(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Upper left corners of windows that cover an image, row by row.

    Windows follow each other by `stride`; the last of a row and of a column is shifted inward, so that it ends where
    the image does.

    Args:
        size: height and width of the image, pixels.
        window: height and width of a window.
        stride: steps down and to the right, 1 pixel to the window's size.

    Returns:
        int32 (N,2), (y, x). Along a side on which the image is no longer than the window, all are 0.

    Raises:
        ValueError: a size or a stride below 1, or a stride beyond the window, which would leave gaps.
    """
    starts = []
    for length, across, step in zip(size, window, stride, strict=True):
        if length < 1 or not 1 <= step <= across:
            raise ValueError(
                f"images have at least 1 pixel a side, and a stride is 1 to the window's size; got an image of "
                f"{length}, a window of {across} and a stride of {step} pixels"
            )
        room = max(length - across, 0)
        starts.append(np.minimum(np.arange(-(-room // step) + 1) * step, room))
    y, x = np.meshgrid(*starts, indexing="ij")
    return np.stack([y.ravel(), x.ravel()], axis=-1).astype(np.int32)


def segment_by_windows(
    logits_of: Callable[[np.ndarray], np.ndarray],
    image_HW3: np.ndarray,
    num_classes: int,
    window: tuple[int, int],
    stride: float = 2 / 3,
    batch_size: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Segments an image of any size, window by window: the mean of the softmax probabilities where windows overlap.

    That is what the evaluation protocol `sliding_window` does, of which a third overlaps by default. In
    memory there is one row of windows at a time: h x W x K numbers, however high the image is.

    Args:
        logits_of: windows uint8 (N,h,w,3) to logits (N,h,w,K).
        image_HW3: uint8, RGB.
        num_classes: K.
        window: h and w, pixels.
        stride: step from one window to the next, as a share of the window.
        batch_size: windows segmented at once, which changes nothing but the speed.

    Returns:
        Labels uint8 (H,W), and their probability float32 (H,W), 0..1.

    Raises:
        ValueError: an impossible window, stride or batch size.
    """
    height, width = image_HW3.shape[:2]
    h, w = window
    if min(h, w, batch_size) < 1:
        raise ValueError(f"window and batch size must be at least 1; got a window of {h} {w}, batches of {batch_size}")
    missing = [(0, max(h - height, 0)), (0, max(w - width, 0)), (0, 0)]
    image_HW3 = np.pad(image_HW3, missing, constant_values=GREY) if np.any(missing) else image_HW3
    labels_HW = np.empty(image_HW3.shape[:2], np.uint8)
    confidence_HW = np.empty(image_HW3.shape[:2], np.float32)
    # For the rows from `top` on: the sum over windows, and how many windows show each pixel.
    total_hWK = np.zeros((h, image_HW3.shape[1], num_classes), np.float32)
    count_hW1 = np.zeros((h, image_HW3.shape[1], 1), np.float32)
    top = 0

    def finish(rows: int) -> None:
        """The first rows are complete: no window to come shows them."""
        mean_hWK = total_hWK[:rows] / count_hW1[:rows]
        labels_HW[top : top + rows] = mean_hWK.argmax(axis=-1)
        confidence_HW[top : top + rows] = mean_hWK.max(axis=-1)
        for each in (total_hWK, count_hW1):
            each[: h - rows] = each[rows:]
            each[h - rows :] = 0.0

    places = corners(image_HW3.shape[:2], window, steps(window, stride))
    for y, row in itertools.groupby(places.tolist(), key=lambda place: place[0]):
        if y > top:
            finish(y - top)
            top = y
        for part in _batched([x for _, x in row], batch_size):
            logits_NhwK = logits_of(np.stack([image_HW3[y : y + h, x : x + w] for x in part]))
            S_NhwK = softmax(logits_NhwK)
            for x, S_hwK in zip(part, S_NhwK, strict=True):
                total_hWK[:, x : x + w] += S_hwK
                count_hW1[:, x : x + w] += 1.0
    finish(h)
    return labels_HW[:height, :width], confidence_HW[:height, :width]


def _batched(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
