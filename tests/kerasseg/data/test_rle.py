import numpy as np
import pytest

from kerasseg.data.rle import coco_counts, coco_runs, decode_coco, decode_runs


def test_long_runs_of_compressed_lengths():
    wanted = np.zeros((300, 200), bool)
    wanted[10:290, 20:180] = True
    text = "jk5h8d" + "0" * 318 + "Vk5"  # by pycocotools 2.0.11
    np.testing.assert_array_equal(decode_runs(coco_counts(text), 300, 200, "F"), wanted)


@pytest.mark.parametrize("counts", [[7, 3, 30, 8], "01<2"])
def test_masks_of_coco_run_down_the_columns(counts):
    mask = decode_coco({"size": [6, 8], "counts": counts})
    assert mask.shape == (6, 8)
    runs = coco_runs({"counts": counts})
    expected = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    np.testing.assert_array_equal(mask.ravel(order="F")[: len(expected)], expected)
    assert not mask.ravel(order="F")[len(expected) :].any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": [1, 2]}, "a mask without its size"),
        ({"size": [2, "2"], "counts": [1, 2]}, "a mask without its size"),
        ({"size": [2, 2]}, "a mask without run lengths"),
        ({"size": [2, 2], "counts": [1, 9]}, "run lengths of more than 2x2 pixels"),
    ],
)
def test_what_is_missing_or_wrong_in_a_mask_is_named(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_coco(segmentation)
