import numpy as np
import pytest

from kerasseg.visualize import panel, voc_palette
from serving.common.images import IGNORE_COLOR

PALETTE = [(10, 20, 30), (200, 100, 50)]
GAP = 4


@pytest.fixture
def scene():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    truth = np.array([[0, 1, 255], [1, 1, 0]], np.int32)
    prediction = np.array([[0, 0, 1], [1, 0, 0]], np.uint8)
    return image, truth, prediction


def test_voc_palette_is_the_colour_map_of_its_development_kit():
    # From the VOC development kit: background, aeroplane, bicycle, bird, ..., potted plant, ..., tv monitor.
    palette, palette_of_256 = voc_palette(21), voc_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[15] == (192, 128, 128)
    assert (palette[8], palette[16], palette[20]) == ((64, 0, 0), (0, 64, 0), (0, 64, 128))
    assert palette_of_256[255] == IGNORE_COLOR
    assert len(set(palette_of_256)) == 256


@pytest.mark.parametrize("num_classes", [0, 257])
def test_voc_palette_tells_the_range(num_classes):
    with pytest.raises(ValueError, match=rf"1\.\.256.*got {num_classes}"):
        voc_palette(num_classes)


def test_panel_shows_image_truth_and_prediction(scene):
    image, truth, prediction = scene
    drawn = panel(image, truth, prediction, PALETTE)

    white = np.full((2, GAP, 3), 255)
    first, second, third = drawn[:, :3], drawn[:, 3 + GAP : 6 + GAP], drawn[:, 6 + 2 * GAP :]
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(first, image)
    np.testing.assert_array_equal(drawn[:, 3 : 3 + GAP], white)
    a, b, ignored = PALETTE[0], PALETTE[1], IGNORE_COLOR
    np.testing.assert_array_equal(second, [[a, b, ignored], [b, b, a]])
    np.testing.assert_array_equal(third, [[a, a, b], [b, a, a]])


def test_panel_clips_float_images(scene):
    image, truth, prediction = scene
    drawn = panel(image.astype(np.float32) - 3.5, truth, prediction, PALETTE)
    np.testing.assert_array_equal(drawn[0, 0], [0, 0, 0])
    np.testing.assert_array_equal(drawn[1, 0], [5, 6, 7])


def test_panel_draws_one_score_as_a_gauge_filled_from_below():
    labels = np.zeros((8, 8), np.uint8)
    drawn = panel(np.zeros((8, 8, 3), np.uint8), labels, labels, PALETTE, score=0.25)
    gauge = drawn[:, 3 * (8 + GAP) :]
    np.testing.assert_array_equal(gauge[:, 0, 0], [0, 0, 0, 0, 0, 0, 255, 255])
    assert (gauge == gauge[:, :1, :1]).all()


def test_panel_draws_a_map_of_scores_in_grey(scene):
    image, truth, prediction = scene
    score = np.array([[0.0, 1.0, 0.5], [2.0, -1.0, 0.2]])
    grey = panel(image, truth, prediction, PALETTE, score=score)[:, 3 * (3 + GAP) :]
    np.testing.assert_array_equal(grey[..., 0], [[0, 255, 128], [255, 0, 51]])
    np.testing.assert_array_equal(grey[..., 1], grey[..., 2])


@pytest.mark.parametrize("part", ["truth", "prediction", "score"])
def test_panel_names_the_part_of_another_size(scene, part):
    parts = dict(zip(("image", "truth", "prediction"), scene, strict=True))
    parts[part] = np.zeros((2, 4))
    with pytest.raises(ValueError, match=rf"{part} must .*\(2, 3\), got \(2, 4\)"):
        panel(**parts, palette=PALETTE)
