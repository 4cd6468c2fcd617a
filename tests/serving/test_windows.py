import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.windows import corners

SIDE = st.tuples(st.integers(1, 60), st.integers(1, 20)).flatmap(
    lambda sides: st.tuples(*map(st.just, sides), st.integers(1, sides[1]))
)


def test_the_last_window_of_a_row_and_of_a_column_is_shifted_inward():
    found = corners((7, 10), (4, 5), (3, 4))
    assert found.tolist() == [[0, 0], [0, 4], [0, 5], [3, 0], [3, 4], [3, 5]]
    assert found.dtype == np.int32


def test_one_window_where_the_picture_is_no_larger():
    assert corners((4, 3), (4, 5), (2, 2)).tolist() == [[0, 0]]
    assert corners((5, 3), (4, 5), (4, 5)).tolist() == [[0, 0], [1, 0]]


@given(SIDE, SIDE)
def test_windows_cover_every_pixel_and_never_leave_the_picture(down, right):
    size, window, stride = zip(down, right, strict=True)
    found = corners(size, window, stride)
    covered = np.zeros(size, int)
    for y, x in found:
        assert y == x == 0 or (y + window[0] <= max(size[0], window[0]) and x + window[1] <= max(size[1], window[1]))
        covered[y : y + window[0], x : x + window[1]] += 1
    assert covered.min() > 0
    assert len({tuple(corner) for corner in found}) == len(found)
    for axis in (0, 1):  # no more windows than needed at this stride
        starts = np.unique(found[:, axis])
        assert (np.diff(starts) <= stride[axis]).all()
        assert (np.diff(starts)[:-1] == stride[axis]).all()


@pytest.mark.parametrize(
    "size, window, stride", [((0, 4), (2, 2), (1, 1)), ((4, 4), (2, 2), (3, 2)), ((4, 4), (2, 2), (1, 0))]
)
def test_windows_that_leave_gaps_are_refused(size, window, stride):
    with pytest.raises(ValueError, match="a stride is 1 to the window's size; got a picture of"):
        corners(size, window, stride)
