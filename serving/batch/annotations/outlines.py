"""A label map to polygons that fit together: neighbours have the same simplified border, without gaps between them.

Borders run between pixels. Corners of pixels where three regions or more meet, and those of the image, stay where they
are; each stretch of border between two of them is simplified once (Douglas-Peucker), and both of its sides use it. A
hole is joined to its polygon by a horizontal slit, since annotation tools know no holes. So with a tolerance of 0 the
polygons have exactly the pixels of the label map.

Legend: H, W height and width in pixels; E edges, sides of pixels where another label begins; P corners of a polygon.
"""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

TOP, RIGHT, BOTTOM, LEFT = range(4)
"""Sides of a pixel; its edges go clockwise, so that the pixel is on their right hand."""


class Outline(NamedTuple):
    """The polygon of one region, filled even-odd."""

    label: int
    points: np.ndarray
    """int (P,2): x, y of its corners, pixels from the upper left corner of the image."""

    @property
    def area(self) -> float:
        """Square pixels, without the holes."""
        return abs(_doubled_area(self.points)) / 2


def outlines(labels_HW: np.ndarray, tolerance: float, leave_out: Collection[int] = ()) -> list[Outline]:
    """The polygon of each region: pixels of one label that have sides in common.

    Args:
        labels_HW: integers 0..255 (H,W).
        tolerance: pixels, 0 or more, by which a simplified border may be away from the border. Regions that are
            narrower than about that vanish, and their neighbours take their place.
        leave_out: labels without polygons.

    Returns:
        In the order of labels.
    """
    edges = _Edges(labels_HW, leave_out)
    rings = edges.rings()
    ring_of = np.zeros(len(edges.next), np.int64)
    for ring, members in enumerate(rings):
        ring_of[members] = ring
    is_hole = np.bincount(ring_of, edges.area_terms(), len(rings)) < 0
    slits = {ring: edges.slit(rings[ring]) for ring in np.flatnonzero(is_hole).tolist()}
    parents = {ring: int(ring_of[at]) for ring, (at, _) in slits.items()}
    fixed = edges.fixed | np.isin(edges.corner, edges.corner[[edge for slit in slits.values() for edge in slit]])
    kept = _simplified(edges, rings, fixed, tolerance)
    used = [len(ring) > 2 and _doubled_area(edges.points(ring)) != 0 for ring in kept]

    # A polygon is a circle of edges, of which each stands for the corner at its end. A hole comes in after `at`, with
    # copies of both ends of its slit on the way back. What a hole hangs from begins left of it.
    follow = {edge: after for ring in kept for edge, after in zip(ring, ring[1:] + ring[:1], strict=True)}
    copied: dict[int, int] = {}
    from_left = sorted(slits, key=lambda ring: int(edges.corner[slits[ring][1]]) % edges.stride)
    for ring in reversed(from_left):
        if used[ring] and is_hole[parents[ring]]:
            used[parents[ring]] = True
    for ring in filter(used.__getitem__, from_left):
        at, first = slits[ring]
        again = len(edges.next) + len(copied)
        copied |= {again: first, again + 1: at}
        last = kept[ring][kept[ring].index(first) - 1]
        follow[last], follow[again], follow[again + 1] = again, again + 1, follow[at]
        follow[at] = first
    found = []
    for ring, vertices in enumerate(kept):
        if used[ring] and not is_hole[ring]:
            path = [vertices[0]]
            while (after := follow[path[-1]]) != vertices[0]:
                path.append(after)
            found.append(Outline(edges.label(vertices[0]), edges.points([copied.get(edge, edge) for edge in path])))
    return sorted(found, key=lambda outline: outline.label)


class _Edges:
    """The edges of all regions, each with the one that follows it about its region.

    Pixels and corners are numbers in a grid with a margin of a pixel, row by row; that of a corner is the pixel on its
    lower right.

    Attributes:
        stride: pixels in a row of the grid.
        next: int (E,), the edge that follows.
        corner: int (E,), where each edge ends.
        fixed: bool (E,), whether this corner is of the image, or three borders or more meet there.
    """

    def __init__(self, labels_HW: np.ndarray, leave_out: Collection[int]):
        self._labels = labels = np.pad(labels_HW.astype(np.int16), 1, constant_values=-1).ravel()
        stride = int(labels_HW.shape[1]) + 2
        self.stride = stride
        ahead = np.array([1, stride, -1, -stride])
        outside = np.array([-stride, 1, stride, -1])
        wanted = ~np.isin(labels, [-1, *leave_out])
        borders = np.zeros((labels.size, 4), bool)
        for place, step in enumerate(outside.tolist()):
            borders[:, place] = wanted & (labels != np.roll(labels, -step))
        keys = np.flatnonzero(borders)
        self._pixel, self._side = pixel, side = keys // 4, keys % 4
        before, beyond = pixel + ahead[side], pixel + ahead[side] + outside[side]
        label = labels[pixel]
        turns = labels[before] != label  # about the same pixel
        straight = ~turns & (labels[beyond] != label)
        after = np.where(turns, 4 * pixel + (side + 1) % 4, 4 * beyond + (side - 1) % 4)
        self.next = np.searchsorted(keys, np.where(straight, 4 * before + side, after))
        self.corner = pixel + np.array([1, stride + 1, stride, 0])[side]
        around = labels[self.corner[:, None] - [stride + 1, stride, 0, 1]]
        meeting = (around != np.roll(around, 1, axis=1)).sum(axis=1)
        self.fixed = (meeting > 2) | ((around == -1).sum(axis=1) == 3)
        self._lefts = np.flatnonzero(side == LEFT)
        self._left_pixels = pixel[self._lefts]

    def label(self, edge: int) -> int:
        return int(self._labels[self._pixel[edge]])

    def points(self, edges: Sequence[int] | np.ndarray) -> np.ndarray:
        """int (P,2): x, y of the corners at the ends of edges."""
        corners = self.corner[edges]
        return np.stack([corners % self.stride, corners // self.stride], axis=1) - 1

    def area_terms(self) -> np.ndarray:
        """What each edge adds to the area of its ring, which is negative about a hole."""
        return self.corner % self.stride * (1 * (self._side == RIGHT) - 1 * (self._side == LEFT))

    def rings(self) -> list[np.ndarray]:
        """The edges of each closed border, in their order."""
        follow, seen, rings = self.next.tolist(), bytearray(len(self.next)), []
        for start in range(len(follow)):
            if not seen[start]:
                ring, edge = [], start
                while not seen[edge]:
                    seen[edge] = 1
                    ring.append(edge)
                    edge = follow[edge]
                rings.append(np.array(ring))
        return rings

    def turning(self) -> np.ndarray:
        """bool (E,): whether the edge that follows has another direction."""
        return self._side[self.next] != self._side

    def slit(self, hole: np.ndarray) -> tuple[int, int]:
        """From the left end of a hole straight left to the next border of its region: the edges that end at the far
        end and at the near end of this slit."""
        begins = np.flatnonzero(self._side[hole] == RIGHT)
        first = begins[np.argmin(self._pixel[hole[begins]] % self.stride)]
        place = np.searchsorted(self._left_pixels, self._pixel[hole[first]], side="right") - 1
        return int(self._lefts[place]), int(hole[first - 1])


def _simplified(edges: _Edges, rings: list[np.ndarray], fixed: np.ndarray, tolerance: float) -> list[list[int]]:
    """The edges of each ring whose ends are corners of the simplified one."""
    vertex = edges.turning() | fixed
    found: dict[tuple[int, int], np.ndarray] = {}
    result = []
    for ring in rings:
        ring = ring[vertex[ring]]
        cuts = np.flatnonzero(fixed[ring])
        if not len(cuts):
            cuts = np.array([np.argmin(edges.corner[ring])])  # the same one on both sides
        ring = np.roll(ring, -cuts[0])
        kept: list[int] = []
        for start, end in zip(cuts - cuts[0], [*(cuts[1:] - cuts[0]), len(ring)], strict=True):
            arc = ring[start : end + 1] if end < len(ring) else np.append(ring[start:], ring[0])
            if len(arc) == 2 or tolerance == 0:
                kept += arc[:-1].tolist()
                continue
            corners = edges.corner[arc]
            backwards = (corners[-1], corners[-2]) < (corners[0], corners[1])
            key = (int(corners[-1]), int(corners[-2])) if backwards else (int(corners[0]), int(corners[1]))
            if key not in found:
                found[key] = _douglas_peucker(edges.points(arc[::-1] if backwards else arc), tolerance)
            chosen = found[key][::-1] if backwards else found[key]
            kept += arc[:-1][chosen[:-1]].tolist()
        result.append(kept)
    return result


def _douglas_peucker(points: np.ndarray, tolerance: float) -> np.ndarray:
    """bool (P,): which points a line keeps, so that no other is farther than the tolerance from it."""
    kept = np.zeros(len(points), bool)
    kept[[0, -1]] = True
    parts = [(0, len(points) - 1)]
    while parts:
        start, end = parts.pop()
        if end - start < 2:
            continue
        inner, line = points[start + 1 : end] - points[start], points[end] - points[start]
        length = max(int(line @ line), 1)
        along = np.clip(inner @ line / length, 0, 1)
        away = ((inner - along[:, None] * line) ** 2).sum(axis=1)
        farthest = int(np.argmax(away))
        if math.sqrt(away[farthest]) > tolerance:
            middle = start + 1 + farthest
            kept[middle] = True
            parts += [(start, middle), (middle, end)]
    return kept


def _doubled_area(points: np.ndarray) -> int:
    x, y = points.T
    return int(x @ np.roll(y, -1) - y @ np.roll(x, -1))
