import numpy as np

from serving.common.label_studio import brush_results
from training.annotations.rle import decode_brush

LABELS_HW = np.array([[0, 0, 2], [1, 255, 2]], np.uint8)
CLASSES = ["sky", "road", "car"]


def masks(results):
    return {
        result["value"]["brushlabels"][0]: decode_brush(
            result["value"]["rle"], result["original_height"], result["original_width"]
        ).tolist()
        for result in results
    }


def test_a_mask_for_each_class_that_occurs():
    results = brush_results(LABELS_HW, CLASSES, from_name="tag", to_name="image")
    assert masks(results) == {
        "sky": [[True, True, False], [False, False, False]],
        "road": [[False, False, False], [True, False, False]],
        "car": [[False, False, True], [False, False, True]],
    }
    for result in results:
        assert result | {"id": 0, "value": 0} == {
            "id": 0,
            "type": "brushlabels",
            "from_name": "tag",
            "to_name": "image",
            "original_width": 3,
            "original_height": 2,
            "image_rotation": 0,
            "value": 0,
        }
        assert result["value"].keys() == {"format", "rle", "brushlabels"}
        assert result["value"]["format"] == "rle"
    assert len({result["id"] for result in results}) == 3


def test_what_is_left_out():
    assert masks(brush_results(LABELS_HW, CLASSES, from_name="a", to_name="b", leave_out={0, 2})).keys() == {"road"}
    assert masks(brush_results(LABELS_HW, CLASSES[:1], from_name="a", to_name="b")).keys() == {"sky"}
