"""Polygons to pixels.

A pixel belongs to a polygon if its centre does. So two polygons with a common border share no pixel. Pillow's
`ImageDraw.polygon` cuts coordinates to whole pixels and fills the border on both sides: neighbours would overlap, and
every polygon would be a pixel too large.

Legend: x to the right, y down, in pixels from the corner of the image.
"""

import numpy as np

Window = tuple[slice, slice, np.ndarray]
"""Rows, columns, and a bool mask of that size: the pixels of a shape."""


def fill_polygon(points: np.ndarray, height: int, width: int) -> Window:
    """The pixels whose centres lie inside of a polygon by the even-odd rule.

    Args:
        points: float (N, 2) of x and y, pixels, which may lie outside of the image.
        height: of the image.
        width: of the image.
    """
    before, after = points, np.roll(points, -1, axis=0)
    # From top to bottom: the common border of two polygons is then rounded alike in both, though they go about it in
    # opposite directions.
    rises = (before[:, 1] > after[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(rises, after, before).T, np.where(rises, before, after).T
    # The rows whose centres each edge crosses, the upper end included and the lower one not: each corner counts once.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(int)
    counts = last - first
    if not counts.any():
        return slice(0, 0), slice(0, 0), np.zeros((0, 0), bool)
    edge = np.repeat(np.arange(len(counts)), counts)
    rows = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    columns = np.clip(np.ceil(x0[edge] + (rows + 0.5 - y0[edge]) * slope - 0.5), 0, width).astype(int)
    top, left = rows.min(), columns.min()
    shape = (rows.max() + 1 - top, columns.max() + 1 - left)
    crossings = np.bincount((rows - top) * shape[1] + columns - left, minlength=shape[0] * shape[1]).reshape(shape)
    inside = (np.cumsum(crossings, axis=1) % 2).astype(bool)[:, :-1]  # nothing is inside right of the last crossing
    return slice(top, top + shape[0]), slice(left, left + shape[1] - 1), inside
