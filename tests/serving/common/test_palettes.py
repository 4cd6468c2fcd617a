"""Colours of classes, against CIELAB values from the literature and by what known palettes lack."""

import numpy as np
import pytest

from kerasseg.visualize import voc_palette
from serving.common.images import IGNORE_COLOR
from serving.common.palettes import default_palette, least_distance, readable_palette, seen

CITYSCAPES_CARS = [(128, 64, 128), (0, 0, 142), (0, 0, 70)]


def test_cielab_of_known_colours():
    red, green, white, grey = seen(np.array([(255, 0, 0), (0, 255, 0), (255, 255, 255), (119, 119, 119)]))[0]
    assert red == pytest.approx((53.24, 80.09, 67.20), abs=0.05)
    assert green == pytest.approx((87.73, -86.18, 83.18), abs=0.05)
    assert white == pytest.approx((100, 0, 0), abs=0.01)
    assert grey == pytest.approx((50.03, 0, 0), abs=0.02)


def test_readers_without_red_or_green_see_grey_and_blue_as_they_are():
    colors = seen(np.array([(90, 90, 90), (255, 0, 0), (0, 160, 0)]))
    np.testing.assert_allclose(colors[1:, 0], np.stack([colors[0, 0]] * 2), atol=0.2)
    red_to_green = np.linalg.norm(colors[:, 1] - colors[:, 2], axis=-1)
    assert red_to_green[0] > 130 and max(red_to_green[1:]) < 60


def test_default_colours_can_be_told_apart():
    palette = default_palette(256)
    assert palette[:3] == ((0, 0, 0), (230, 159, 0), (86, 180, 233)) and len(set(palette)) == 256
    assert IGNORE_COLOR not in palette and default_palette(4) == palette[:4]
    assert default_palette(255, background=False) == palette[1:] and (0, 0, 0) not in palette[1:]
    for classes, least in ((8, 17), (21, 14), (60, 7)):
        assert least_distance(palette[:classes]) > least, classes
        assert least_distance(voc_palette(classes)) < 4, classes
    for wrong in (0, 257):
        with pytest.raises(ValueError, match=rf"1\.\.256.*got {wrong}"):
            default_palette(wrong)


@pytest.mark.parametrize(
    "palette, classes, stays",
    [
        ([(0, 0, 0), (230, 60, 60), (60, 90, 230)], ["background", "cat", "dog"], True),
        ([(0, 0, 0), (230, 60, 60), (60, 90, 230)], ["night", "cat", "dog"], False),
        ([(0, 0, 0), (128, 0, 0), (0, 96, 0)], ["background", "cat", "dog"], False),
        ([(0, 0, 0), (128, 0, 0), (128, 4, 0)], ["background", "cat", "dog"], False),
        (CITYSCAPES_CARS, ["road", "car", "truck"], False),
        ([(0, 0, 0)], ["background"], True),
    ],
)
def test_a_palette_that_cannot_be_read_on_a_photo_is_replaced(palette, classes, stays):
    assert readable_palette(palette, classes) == (
        palette if stays else default_palette(len(classes), background=classes[0] == "background")
    )
