import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.common.windows import GREY, corners, segment_by_windows, steps

SIDE = st.tuples(st.integers(1, 60), st.integers(1, 20)).flatmap(
    lambda sides: st.tuples(*map(st.just, sides), st.integers(1, sides[1]))
)


def test_the_last_window_of_a_row_and_of_a_column_is_shifted_inward():
    found = corners((7, 10), (4, 5), (3, 4))
    assert found.tolist() == [[0, 0], [0, 4], [0, 5], [3, 0], [3, 4], [3, 5]]
    assert found.dtype == np.int32


def test_one_window_where_the_image_is_no_larger():
    assert corners((4, 3), (4, 5), (2, 2)).tolist() == [[0, 0]]
    assert corners((5, 3), (4, 5), (4, 5)).tolist() == [[0, 0], [1, 0]]


@given(SIDE, SIDE)
def test_windows_cover_every_pixel_and_never_leave_the_image(down, right):
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
    with pytest.raises(ValueError, match="a stride is 1 to the window's size; got an image of"):
        corners(size, window, stride)


def logits_by_place(windows_NhwC):
    """Logits that differ with the place in the window, so that overlapping windows disagree."""
    h, w = windows_NhwC.shape[1:3]
    ramp_hw1 = np.linspace(0, 1, h)[:, None, None] + np.linspace(0, 2, w)[:, None]
    return windows_NhwC.astype(np.float32) / 64 * ramp_hw1.astype(np.float32)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1 / 3, 0.5, 2 / 3, 1.0]), st.integers(1, 5))
def test_an_image_put_together_has_the_mean_of_its_windows(height, width, stride, batch_size):
    window, classes = (9, 7), 3
    image_HW3 = np.random.default_rng(height * 50 + width).integers(0, 256, (height, width, 3), np.uint8)
    labels_HW, confidence_HW = segment_by_windows(logits_by_place, image_HW3, classes, window, stride, batch_size)

    padded = np.pad(image_HW3, [(0, max(9 - height, 0)), (0, max(7 - width, 0)), (0, 0)], constant_values=GREY)
    total, count = np.zeros((*padded.shape[:2], classes)), np.zeros((*padded.shape[:2], 1))
    for y, x in corners(padded.shape[:2], window, steps(window, stride)):
        powers = np.exp(logits_by_place(padded[None, y : y + 9, x : x + 7])[0].astype(np.float64))
        total[y : y + 9, x : x + 7] += powers / powers.sum(axis=-1, keepdims=True)
        count[y : y + 9, x : x + 7] += 1
    mean = (total / count)[:height, :width]
    np.testing.assert_allclose(confidence_HW, mean.max(axis=-1), rtol=1e-5)
    clear = np.partition(mean, -2)[..., -1] - np.partition(mean, -2)[..., -2] > 1e-5
    np.testing.assert_array_equal(labels_HW[clear], mean.argmax(axis=-1)[clear])
    assert labels_HW.dtype == np.uint8 and confidence_HW.dtype == np.float32


def test_steps_are_rounded_up_and_a_stride_leaves_no_gap():
    assert steps((321, 100), 2 / 3) == (214, 67)
    for stride in (0.0, 1.01):
        with pytest.raises(ValueError, match="--stride is a share of the window"):
            steps((4, 4), stride)
