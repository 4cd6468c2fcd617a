"""Polygons of a label map: exact without tolerance, and fitting together with one."""

import numpy as np
import pytest

from kerasseg.data.polygons import fill_polygon
from serving.batch.annotations.outlines import outlines


def filled(found, shape):
    """How often each pixel is covered, and by which label last; -1 for none."""
    times, labels_HW = np.zeros(shape, int), np.full(shape, -1)
    for outline in found:
        rows, columns, mask = fill_polygon(outline.points.astype(float), *shape)
        times[rows, columns] += mask
        labels_HW[rows, columns][mask] = outline.label
    return times, labels_HW


def waves(height=90, width=120):
    y, x = np.mgrid[:height, :width]
    return np.clip(np.sin(x / 13) * 1.4 + np.cos(y / 9) + 2, 0, 3).astype(np.uint8)


@pytest.mark.parametrize("classes", [1, 2, 3, 5])
def test_without_tolerance_every_pixel_is_covered_once_by_its_label(classes):
    random = np.random.default_rng(classes)
    for _ in range(60):
        labels_HW = random.integers(0, classes, random.integers(1, 15, 2))
        exact = outlines(labels_HW, 0)
        times, found = filled(exact, labels_HW.shape)
        assert (times == 1).all()
        areas = np.bincount([outline.label for outline in exact], [outline.area for outline in exact], classes)
        np.testing.assert_array_equal(areas, np.bincount(labels_HW.ravel(), minlength=classes))
        np.testing.assert_array_equal(found, labels_HW)
        times, found = filled(outlines(labels_HW, 0, {0}), labels_HW.shape)
        np.testing.assert_array_equal(times, labels_HW != 0)


def test_a_hole_is_joined_by_a_slit():
    labels_HW = np.ones((5, 5), int)
    labels_HW[2, 2:4] = 0
    background, ring = outlines(labels_HW, 0)
    np.testing.assert_array_equal(background.points, [[2, 2], [4, 2], [4, 3], [2, 3]])
    assert (background.area, ring.area) == (2, 23)
    corners = [tuple(point) for point in ring.points.tolist()]
    slit = corners.index((0, 2))  # from the left border straight to the hole, around it, and back
    around = [(0, 2), (2, 2), (2, 3), (4, 3), (4, 2), (2, 2), (0, 2)]
    assert (corners + corners)[slit : slit + 7] == around
    assert sorted(set(corners) - set(around)) == [(0, 0), (0, 5), (5, 0), (5, 5)]


def test_pixels_that_touch_at_a_corner_are_two_regions():
    found = outlines(np.eye(2, dtype=int), 0, {0})
    assert [sorted(outline.points.tolist()) for outline in found] == [
        [[0, 0], [0, 1], [1, 0], [1, 1]],
        [[1, 1], [1, 2], [2, 1], [2, 2]],
    ]


@pytest.mark.parametrize("tolerance", [0.6, 1, 2, 4])
def test_simplified_neighbours_share_their_border(tolerance):
    labels_HW = waves()
    exact, found = outlines(labels_HW, 0), outlines(labels_HW, tolerance)
    times, drawn_HW = filled(found, labels_HW.shape)
    assert (times == 1).all()
    assert sum(len(outline.points) for outline in found) < 0.7 * sum(len(outline.points) for outline in exact)
    y, x = np.nonzero(drawn_HW != labels_HW)
    reach = int(np.ceil(tolerance)) + 1
    padded = np.pad(labels_HW, reach, mode="edge")
    for row, column in zip(y, x, strict=True):  # only near the border of the label that it was given
        assert (padded[row : row + 2 * reach + 1, column : column + 2 * reach + 1] == drawn_HW[row, column]).any()


def test_any_tolerance_leaves_the_image_filled():
    """The corners of the image stay, whatever the number."""
    found = outlines(waves(), 1e200)
    times, _ = filled(found, waves().shape)
    assert (times == 1).all()


def test_what_is_smaller_than_the_tolerance_vanishes_into_its_surroundings():
    labels_HW = np.zeros((30, 40), int)
    labels_HW[:, 20:] = 1
    labels_HW[5, 5:7] = 2  # within a region
    labels_HW[15:17, 20] = 2  # at the border of two
    labels_HW[20:28, 5:15] = 2
    times, drawn_HW = filled(outlines(labels_HW, 2), labels_HW.shape)
    assert (times == 1).all()
    labels_HW[5, 5:7], labels_HW[15:17, 20] = 0, 1
    np.testing.assert_array_equal(drawn_HW, labels_HW)
    assert len(outlines(labels_HW, 2)) == 3


def test_many_holes_in_a_row():
    """Each hangs from the one left of it: deeper than Python's stack."""
    labels_HW = np.ones((3, 4001), int)
    labels_HW[1, 1::2] = 0
    times, drawn_HW = filled(outlines(labels_HW, 0, {0}), labels_HW.shape)
    np.testing.assert_array_equal(times, labels_HW)
