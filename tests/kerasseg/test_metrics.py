import numpy as np
import pytest

from kerasseg.metrics import ConfusionMatrix, Reliability, roc, scores


def test_scores_of_a_small_matrix_by_hand():
    # rows truth, columns prediction; class 3 occurs in neither
    confusion = [[5, 1, 0, 0], [2, 2, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]]
    result = scores(confusion)
    assert result.iou == (5 / 8, 2 / 8, 0.0, None)
    assert result.mean_iou == pytest.approx((5 / 8 + 2 / 8 + 0) / 3)  # the class without a hit counts
    assert result.pixel_accuracy == pytest.approx(7 / 13)


def test_the_mean_of_published_code_leaves_out_classes_without_a_hit():
    confusion = [[5, 1, 0, 0], [2, 2, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]]
    assert scores(confusion).mean_iou_reference == pytest.approx((5 / 8 + 2 / 8) / 2)
    assert scores([[3, 1], [1, 3]]).mean_iou_reference == scores([[3, 1], [1, 3]]).mean_iou == 3 / 5
    assert scores([[0, 1], [1, 0]]).mean_iou_reference == 0


def test_where_nothing_was_counted_there_is_no_mean():
    nothing = scores(np.zeros((2, 2)))
    assert (nothing.mean_iou, nothing.mean_iou_reference, nothing.pixel_accuracy) == (None, None, None)


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


def test_reliability_against_all_pairs_of_pixels():
    rng = np.random.default_rng(0)
    confidence = rng.beta(4, 1, 600).astype(np.float32)
    right = rng.random(600) < confidence**2  # surer than right
    reliability = Reliability()
    for part in np.array_split(np.arange(600), 3):
        reliability.add(confidence[part], right[part])
    summary = reliability.summary()

    assert summary["pixels"] == 600 and summary["accuracy"] == pytest.approx(right.mean())
    pairs = confidence[right][:, None] - confidence[~right][None]
    assert summary["error_detection_auc"] == pytest.approx(np.mean((pairs > 0) + (pairs == 0) / 2), abs=2e-3)
    step = np.minimum((confidence * 20).astype(int), 19)
    error = sum(abs(confidence[step == i].sum(dtype=np.float64) - right[step == i].sum()) for i in range(20)) / 600
    assert summary["expected_calibration_error"] == pytest.approx(error) and error > 0.05
    for row in summary["thresholds"]:
        chosen = step >= 2 * round(10 * row["threshold"])
        assert row["selected"] == pytest.approx(chosen.mean())
        assert row["accuracy"] == pytest.approx(right[chosen].mean())
    for entry, index in zip(summary["bins"], range(20), strict=True):
        assert (entry["from"], entry["right"]) == (index / 20, right[step == index].sum())
        assert entry["right"] + entry["wrong"] == (step == index).sum()


def test_reliability_ranks_probabilities_that_are_all_but_1():
    reliability = Reliability()
    nearly = np.array([1 - 1e-6, 1 - 1e-4, 1 - 1e-5, 1.0, 0.0], np.float32)
    reliability.add(nearly, np.array([True, False, True, True, False]))
    assert reliability.summary()["error_detection_auc"] == 1.0


def test_reliability_of_nothing_or_of_right_pixels_alone():
    reliability = Reliability()
    assert reliability.summary()["error_detection_auc"] is None
    assert reliability.summary()["bins"][3] == {"from": 0.15, "right": 0, "wrong": 0, "confidence": None}
    reliability.add(np.array([0.7, 0.7]), np.array([True, True]))
    summary = reliability.summary()
    assert summary["error_detection_auc"] is None and summary["accuracy"] == 1
    assert summary["expected_calibration_error"] == pytest.approx(0.3)
    assert summary["thresholds"][8] == {"threshold": 0.8, "selected": 0.0, "accuracy": None}


def test_roc_against_all_pairs():
    rng = np.random.default_rng(0)
    positive = rng.random(300) < 0.4
    scored = (rng.normal(size=300) + positive).round(1)  # with equal values
    curve = roc(scored, positive, points=20)
    pairs = scored[positive][:, None] - scored[~positive][None]
    assert curve["auc"] == pytest.approx(np.mean((pairs > 0) + (pairs == 0) / 2))
    rates = np.array([curve["false_positive_rate"], curve["true_positive_rate"]])
    assert rates.shape[1] <= 20 and (np.diff(rates) >= 0).all()
    np.testing.assert_array_equal(rates[:, [0, -1]], [[0, 1], [0, 1]])
    possible = {((~positive & (scored >= t)).sum() / (~positive).sum(), (scored[positive] >= t).mean()) for t in scored}
    assert all(any(np.allclose(pair, other) for other in possible) for pair in rates.T[1:])


def test_roc_where_nothing_can_be_told_apart():
    assert roc(np.array([0.1, 0.4]), np.array([True, True]))["auc"] is None
    assert roc(np.array([0.5, 0.5]), np.array([True, False]))["auc"] == 0.5
