import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving.common.areas import coco_rle


@settings(deadline=None)
@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)))
def test_coco_rle_says_where_each_label_is(labels_HW):
    runs = coco_rle(labels_HW)
    assert list(runs) == np.unique(labels_HW).tolist()
    for label, run in runs.items():
        assert run["size"] == list(labels_HW.shape)
        counts = run["counts"]
        assert all(count > 0 for count in counts[1:])
        values = np.repeat(np.arange(len(counts)) % 2, counts)  # others and the label in turn, others first
        np.testing.assert_array_equal(values.reshape(labels_HW.shape, order="F"), labels_HW == label)


def test_coco_rle_by_hand():
    assert coco_rle(np.array([[1, 1, 0], [1, 0, 0]])) == {
        0: {"size": [2, 3], "counts": [3, 3]},
        1: {"size": [2, 3], "counts": [0, 3, 3]},
    }
