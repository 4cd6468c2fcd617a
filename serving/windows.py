"""Where to put windows that cover a picture too large to be segmented at once. NumPy alone: training needs it too."""

import numpy as np


def corners(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Upper left corners of windows that cover a picture, row by row.

    Windows follow each other by `stride`; the last of a row and of a column is shifted inward, so that it ends where
    the picture does.

    Args:
        size: height and width of the picture, pixels.
        window: height and width of a window.
        stride: steps down and to the right, 1 pixel to the window's size.

    Returns:
        int32 (N,2), (y, x). Along a side on which the picture is no longer than the window, all are 0.

    Raises:
        ValueError: a size or a stride below 1, or a stride beyond the window, which would leave gaps.
    """
    starts = []
    for length, across, step in zip(size, window, stride, strict=True):
        if length < 1 or not 1 <= step <= across:
            raise ValueError(
                f"pictures have at least 1 pixel a side, and a stride is 1 to the window's size; got a picture of "
                f"{length}, a window of {across} and a stride of {step} pixels"
            )
        room = max(length - across, 0)
        starts.append(np.minimum(np.arange(-(-room // step) + 1) * step, room))
    y, x = np.meshgrid(*starts, indexing="ij")
    return np.stack([y.ravel(), x.ravel()], axis=-1).astype(np.int32)
