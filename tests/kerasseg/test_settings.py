"""The settings that recipes and flags share."""

from typing import get_args

import pytest

from kerasseg.segmenters import SEGMENTERS, SegmenterName
from kerasseg.settings import ProtocolName, TrainingSettings
from training.protocols import PROTOCOLS


@pytest.mark.parametrize("names, choices", [(SEGMENTERS, SegmenterName), (PROTOCOLS, ProtocolName)])
def test_the_choices_of_a_setting_are_what_there_is(names, choices):
    assert tuple(names) == get_args(choices)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("backbone", "vgg", "unknown backbone 'vgg'; the nearest names are vgg19, vgg16, and .*kerasseg backbones"),
        ("output_stride", 4, "output_stride must be one of 8, 16; got 4"),
        ("protocol", "sliding", "protocol must be one of native, multiscale_flip, sliding_window, resized"),
    ],
)
def test_another_choice_is_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**{name: value})
