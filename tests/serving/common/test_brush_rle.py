import numpy as np
import pytest

from serving.common.brush_rle import encode_brush
from training.annotations.rle import decode_brush


def test_bytes_of_a_small_mask():
    """Two pixels of four, so runs of 4, 8 and 4 values: written out by the format."""
    bits = f"{16:032b}" + "00111" + "0010001101111111"
    bits += "10001100000000" + "10011111111111" + "10001100000000"
    bits += "0" * (-len(bits) % 8)
    expected = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert encode_brush(np.array([[0, 1], [1, 0]], bool)) == expected


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_masks_come_back(share):
    mask_HW = np.random.default_rng(3).random((120, 333)) < share  # the runs of an empty one are longer than 2**16
    np.testing.assert_array_equal(decode_brush(encode_brush(mask_HW), 120, 333), mask_HW)
