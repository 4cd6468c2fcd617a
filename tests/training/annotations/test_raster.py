import numpy as np

from training.annotations.contract import IGNORED, REST, Notes
from training.annotations.raster import Bitmap, Polygon, draw_shapes


def test_the_last_shape_lies_on_top_and_crowds_below_all():
    def square(label, size):
        return Polygon(label, np.array([[0, 0], [size, 0], [size, size], [0, size]], float))

    draw = draw_shapes([square(0, 3), square(1, 2), square(IGNORED, 4)], Notes(), "")
    expected = np.full((5, 5), REST)
    expected[:4, :4], expected[:3, :3], expected[:2, :2] = IGNORED, 0, 1
    np.testing.assert_array_equal(draw(5, 5), expected)


def test_a_bitmap_is_clipped_on_all_sides():
    mask = np.arange(36).reshape(6, 6) % 2 == 0
    for left, top in ((-2, -3), (3, 2), (-1, 2)):
        notes = Notes()
        drawn = draw_shapes([Bitmap(0, lambda: mask, left, top)], notes, "file")(5, 5)
        expected = np.full((17, 17), REST)
        expected[6 + top : 12 + top, 6 + left : 12 + left][mask] = 0
        np.testing.assert_array_equal(drawn, expected[6:11, 6:11])
        assert list(notes)
