"""How each val image was segmented, and the bootstrap over them, against a plain loop."""

import numpy as np
import pytest

from training.image_scores import FILE, ImageScores, interval, mean_iou, pixels_by_class

CLASSES = ["sky", "road", "car"]


def scores(accuracies, seed=0, pixels=100):
    """Images whose pixels are right with these probabilities."""
    random = np.random.default_rng(seed)
    counts = []
    for accuracy in accuracies:
        truth = random.integers(0, 3, pixels)
        found = np.where(random.random(pixels) < accuracy, truth, (truth + 1) % 3)
        confusion = np.zeros((3, 3), np.int64)
        np.add.at(confusion, (truth, found), 1)
        counts.append(pixels_by_class(confusion))
    return ImageScores(tuple(f"image_{index}" for index in range(len(counts))), np.stack(counts))


def test_pixels_by_class():
    confusion = np.array([[5, 1, 0], [2, 3, 0], [0, 0, 0]])
    assert pixels_by_class(confusion).tolist() == [[5, 3, 0], [6, 5, 0], [7, 4, 0]]
    assert mean_iou(pixels_by_class(confusion)[np.newaxis]) == pytest.approx([(5 / 8 + 3 / 6) / 2])
    assert np.isnan(mean_iou(np.zeros((1, 3, 3), np.int64)))


def test_written_and_read_they_are_the_same(tmp_path):
    written = scores([0.9, 0.2, 0.5])
    written.counts_N3K[1, :, 2] = 0
    written.write(tmp_path, CLASSES)
    read = ImageScores.read(tmp_path, CLASSES)
    assert read is not None and read.names == written.names
    np.testing.assert_array_equal(read.counts_N3K, written.counts_N3K)
    assert (tmp_path / FILE).read_text().count("car") == 2, "classes without a pixel are left out"
    assert ImageScores.read(tmp_path / "older", CLASSES) is None
    with pytest.raises(ValueError, match=r"val_images.jsonl: expected an image and its pixels by class, found '\{\"im"):
        ImageScores.read(tmp_path, ["sky", "car"])


def test_the_worst_images_have_the_fewest_right_pixels():
    images = scores([0.9, 0.2, 0.5, 0.4])
    images.counts_N3K[3] = 0
    assert images.worst(2) == ["image_1", "image_2"]
    assert images.worst(9) == ["image_1", "image_2", "image_0"], "an image without a counted pixel is not wrong"


def test_the_interval_is_that_of_a_loop_over_drawn_images():
    images = scores(np.linspace(0.3, 0.9, 12))
    random = np.random.default_rng(5)
    drawn = []
    for _ in range(3000):
        chosen = random.integers(0, 12, 12)
        right, truth, found = images.counts_N3K[chosen].sum(axis=0)
        drawn.append(np.mean(right / (truth + found - right)))
    assert interval(images) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.012)
    assert interval(images) == interval(images)


def test_two_runs_are_compared_on_the_same_drawn_images():
    hard = np.linspace(0.1, 0.9, 30)
    ours, theirs = scores(hard + 0.05, pixels=5000), scores(hard, seed=1, pixels=5000)
    turned = ImageScores(theirs.names[::-1], theirs.counts_N3K[::-1])
    low, high = interval(ours, theirs)
    alone = interval(ours)
    assert 0.02 < low < high < 0.09 < alone[1] - alone[0], "what all images share does not count"
    assert interval(ours, turned) == (low, high), "images are matched by their names"
    assert interval(ours, scores(hard[:-1])) is None
    assert interval(scores([0.5])) is None
    nothing = ImageScores(ours.names, np.zeros_like(ours.counts_N3K))
    assert interval(nothing) is None and interval(ours, nothing) is None
