"""Shapes to pixels: polygons, ellipses and bitmaps, each on top of those before it.

A pixel belongs to a shape if its centre does (`kerasseg.data.polygons`).

Legend: H, W size of an image; x to the right, y down, in pixels from the corner of the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kerasseg.data.polygons import Window, fill_polygon
from training.annotations.contract import IGNORED, REST, Draw, Notes

CLIPPED = "shapes reach out of the image, and were clipped; see that it is the image on which they were drawn"
OUTSIDE = 1.5
"""Pixels by which a shape may reach out of an image before it is noted: tools round."""


@dataclass(frozen=True, slots=True)
class Polygon:
    """A polygon, filled even-odd: where it crosses itself, what is inside twice is outside."""

    label: int
    points: np.ndarray
    """(N, 2) of x and y, pixels; closed by itself."""
    relative: bool = False
    """The points are shares 0..1 of width and height."""

    def window(self, height: int, width: int) -> Window:
        return fill_polygon(self.scaled(height, width), height, width)

    def scaled(self, height: int, width: int) -> np.ndarray:
        return self.points * (width, height) if self.relative else self.points

    def with_hole(self, ring: np.ndarray) -> "Polygon":
        """The polygon less another one within it, whose points are (M, 2): joined by a slit that is walked twice, which
        has no pixel by the even-odd rule."""
        return replace(self, points=np.concatenate([self.points, self.points[:1], ring, ring[:1], self.points[:1]]))

    def reaches_out(self, height: int, width: int) -> bool:
        points = self.scaled(height, width)
        return bool((points < -OUTSIDE).any() or (points > np.array([width, height]) + OUTSIDE).any())


@dataclass(frozen=True, slots=True)
class Ellipse:
    """An ellipse with its axes turned by `angle` degrees, clockwise as one sees it."""

    label: int
    center: tuple[float, float]
    radii: tuple[float, float]
    angle: float = 0.0

    def window(self, height: int, width: int) -> Window:
        turn = np.deg2rad(self.angle)
        y, x = np.ogrid[:height, :width]
        dx, dy = x + 0.5 - self.center[0], y + 0.5 - self.center[1]
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        rx, ry = (max(radius, 1e-9) for radius in self.radii)
        return slice(0, height), slice(0, width), (along / rx) ** 2 + (across / ry) ** 2 <= 1

    def reaches_out(self, height: int, width: int) -> bool:
        longest = max(self.radii) if self.angle else None
        return any(
            c - (longest or r) < -OUTSIDE or c + (longest or r) > side + OUTSIDE
            for c, r, side in zip(self.center, self.radii, (width, height), strict=True)
        )


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A mask whose corner lies at (left, top), pixels."""

    label: int
    decode: Callable[[], np.ndarray]
    """bool (h, w). Raises ValueError where it is damaged."""
    left: int = 0
    top: int = 0
    whole: bool = False
    """The mask has the size of its image."""

    def window(self, height: int, width: int) -> Window:
        mask = self.decode()
        if self.whole and mask.shape != (height, width):
            raise ValueError(
                f"a mask is not of the size of its image ({mask.shape[1]}x{mask.shape[0]}, not {width}x{height}): "
                "give the image on which it was drawn"
            )
        top, left = max(0, -self.top), max(0, -self.left)
        mask = mask[top : max(0, height - self.top), left : max(0, width - self.left)]
        y, x = max(0, self.top), max(0, self.left)
        return slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]), mask

    def reaches_out(self, height: int, width: int) -> bool:
        if self.whole:
            return False
        rows, columns = self.decode().shape
        return min(self.left, self.top) < -OUTSIDE or (
            self.left + columns > width + OUTSIDE or self.top + rows > height + OUTSIDE
        )


Shape = Polygon | Ellipse | Bitmap


def encloses(ring: np.ndarray, points: np.ndarray) -> bool:
    """Whether all points lie inside of a polygon by the even-odd rule.

    Args:
        ring: float (N, 2) of x and y.
        points: float (M, 2).
    """
    x, y = points.T[..., np.newaxis]
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    crossed = (y0 <= y) != (y1 <= y)
    slope = (x1 - x0) / np.where(y1 == y0, 1, y1 - y0)
    to_the_right = crossed & (x < x0 + (y - y0) * slope)
    return bool((to_the_right.sum(axis=1) % 2).all())


def draw_shapes(shapes: Sequence[Shape], notes: Notes, file: str) -> Draw | None:
    """Draws shapes one on top of the other: of several labels for one pixel the last one counts. Crowds
    (`IGNORED`) lie under all others, since a person outlined those.

    Args:
        shapes: the first lies at the bottom.
        notes: gets a note about shapes that reach out of the image.
        file: what the note names.

    Returns:
        None for no shapes.
    """
    if not shapes:
        return None
    ordered = sorted(shapes, key=lambda shape: shape.label != IGNORED)

    def draw(height: int, width: int) -> np.ndarray:
        drawn_HW = np.full((height, width), REST, np.int16)
        for shape in ordered:
            rows, columns, mask = shape.window(height, width)
            drawn_HW[rows, columns][mask] = shape.label
        if any(shape.reaches_out(height, width) for shape in ordered):
            notes.add(CLIPPED, file)
        if (drawn_HW == REST).all():
            raise ValueError(
                "shapes that cover no pixel of the image: see that it is the image on which they were drawn"
            )
        return drawn_HW

    return draw


def box(left: float, top: float, right: float, bottom: float, angle: float = 0.0, around: str = "center") -> np.ndarray:
    """The four corners of a rectangle, (4, 2), turned by `angle` degrees clockwise.

    Args:
        around: "center", or "corner" for the upper left one.
    """
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)
    pivot = corners[0] if around == "corner" else corners.mean(axis=0)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return (corners - pivot) @ np.array([[cos, sin], [-sin, cos]]) + pivot
