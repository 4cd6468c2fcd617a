import numpy as np
import pytest

from kerasseg.metrics import ConfusionMatrix, scores


def test_scores_of_a_small_matrix_by_hand():
    # rows truth, columns prediction; class 3 occurs in neither
    confusion = [[5, 1, 0, 0], [2, 2, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]]
    result = scores(confusion)
    assert result.iou == (5 / 8, 2 / 8, 0.0, None)
    assert result.mean_iou == pytest.approx((5 / 8 + 2 / 8 + 0) / 3)  # the class without a hit counts
    assert result.pixel_accuracy == pytest.approx(7 / 13)


def test_counts_are_exact_integers_and_ignored_pixels_are_left_out():
    rng = np.random.default_rng(0)
    metric, expected = ConfusionMatrix(5), np.zeros((5, 5), np.int64)
    for _ in range(3):
        truth, prediction = rng.integers(0, 5, (2, 6, 7)), rng.integers(0, 5, (2, 6, 7))
        truth[rng.random(truth.shape) < 0.2] = 255
        metric.update_state(truth, prediction)
        for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
            if t != 255:
                expected[t, p] += 1
    np.testing.assert_array_equal(metric.matrix, expected)
    assert metric.matrix.dtype == "int64"
    assert float(metric.result()) == pytest.approx(scores(expected).mean_iou, rel=1e-6)


def test_counts_beyond_the_integers_of_float32_are_kept():
    metric = ConfusionMatrix(2)
    metric.matrix.assign([[2**24, 0], [0, 0]])
    metric.update_state(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    assert int(metric.matrix[0, 0]) == 2**24 + 1
