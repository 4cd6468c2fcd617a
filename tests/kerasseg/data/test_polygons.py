import numpy as np

from kerasseg.data.polygons import fill_polygon


def inside(points: np.ndarray, x: float, y: float) -> bool:
    """Even-odd: whether a ray from the point to the right crosses the border an odd number of times."""
    odd = False
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            odd = not odd
    return odd


def test_polygons_have_the_pixels_whose_centres_lie_inside():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(-4, 16, (rng.integers(3, 8), 2))
        filled = np.zeros((12, 11), bool)
        rows, columns, mask = fill_polygon(points, 12, 11)
        filled[rows, columns] = mask
        expected = [[inside(points, x + 0.5, y + 0.5) for x in range(11)] for y in range(12)]
        np.testing.assert_array_equal(filled, expected)


def test_neighbours_share_no_pixel_and_leave_none_out():
    slanted = [np.array([[0, 0], [5.3, 0], [8.7, 10], [0, 10]]), np.array([[5.3, 0], [12, 0], [12, 10], [8.7, 10]])]
    counts = np.zeros((10, 12), int)
    for points in slanted:
        rows, columns, mask = fill_polygon(points, 10, 12)
        counts[rows, columns] += mask
    assert (counts == 1).all()


def test_neighbours_whose_border_goes_through_centres_of_pixels_share_none_either():
    """Predictions have corners between pixels, so that slanted borders often do: rounded alike from both sides."""
    for left in range(0, 12):
        for right in range(0, 12):
            for height in range(1, 24):
                counts = np.zeros((height, 12), int)
                border = [[left, 0], [right, height]]
                for points in ([[0, 0], *border, [0, height]], [*border[::-1], [12, 0], [12, height]]):
                    rows, columns, mask = fill_polygon(np.array(points, float), height, 12)
                    counts[rows, columns] += mask
                assert (counts == 1).all(), (left, right, height)
