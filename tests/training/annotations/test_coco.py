import numpy as np
import pytest

from serving.common.areas import coco_rle
from tests.training.annotations.sources import SIZE, coco, drawn, flat, image, import_, polygon, write_json

TWO = [(1, "a.png"), (2, "b.png")]


@pytest.fixture
def source(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / f"source/images/{name}.png")
    return tmp_path / "source"


def test_small_areas_lie_on_large_ones_and_crowds_below_all(source, capsys):
    small = {"image_id": 1, "category_id": 7, "segmentation": [flat(4, 4, 6, 6)]}
    large = {"image_id": 1, "category_id": 3, "segmentation": [flat(2, 2, 9, 9), flat(12, 2, 14, 4)], "area": 0}
    crowd = {"image_id": 1, "category_id": 3, "iscrowd": 1, "segmentation": rle((0, 0, 16, 5))}
    other = {"image_id": 2, "category_id": 7, "segmentation": [flat(0, 0, 3, 3)]}
    coco(source / "annotations.json", TWO, [small, large, crowd, other], {7: "dog", 3: "cat"})
    result = import_(capsys, source)
    assert (result.status, result.classes) == (0, ["background", "cat", "dog"])
    expected = drawn((255, 0, 0, 16, 5), (1, 2, 2, 9, 9), (1, 12, 2, 14, 4), (2, 4, 4, 6, 6))
    np.testing.assert_array_equal(result.labels("a"), expected)
    np.testing.assert_array_equal(result.labels("b"), drawn((2, 0, 0, 3, 3)))


def rle(*boxes: tuple[int, int, int, int]) -> dict:
    """Uncompressed run lengths of rectangles."""
    return coco_rle(drawn(*((1, *box) for box in boxes)))[1]


def test_run_lengths_with_and_without_compression(source, capsys):
    counts = {"image_id": 1, "category_id": 0, "segmentation": rle((2, 1, 5, 4), (15, 11, 16, 12))}
    # What pycocotools 2.0.11 makes of 6x8 pixels: [1:4, 2:5], [5, 7] and [0, 0]; here the image has that size.
    image(source / "images/b.png", (6, 8))
    packed = {"image_id": 2, "category_id": 0, "segmentation": {"size": [6, 8], "counts": "01<2G000`0N"}}
    path = coco(source / "x.json", TWO, [counts, packed], {0: "cat"})
    path.write_text(path.read_text().replace('"file_name": "b.png", "height": 12, "width": 16', '"file_name": "b.png"'))
    result = import_(capsys, source)
    np.testing.assert_array_equal(result.labels("a"), drawn((1, 2, 1, 5, 4), (1, 15, 11, 16, 12)))
    expected = drawn((1, 2, 1, 5, 4), (1, 0, 0, 1, 1), (1, 7, 5, 8, 6), size=(6, 8))
    np.testing.assert_array_equal(result.labels("b"), expected)


def test_roboflow_splits_and_its_category_without_annotation(tmp_path, capsys):
    source = tmp_path / "source"
    names = {0: "animals", 1: "cat"}
    for split in ("train", "valid", "test"):
        image(source / f"{split}/same.png")
        one = [{"image_id": 0, "category_id": 1, "segmentation": [flat(1, 1, 5, 5)]}]
        coco(source / f"{split}/_annotations.coco.json", [(0, "same.png")], one, names)
    result = import_(capsys, source)
    assert result.classes == ["background", "cat"]
    assert result.warned("animals: a class without annotation")
    assert [split for split in result.result["images"]] == ["train", "val", "test"]
    assert len(result.files("labels")) == 3


def test_instances_files_name_their_split_and_images_may_have_folders(tmp_path, capsys):
    source = tmp_path / "source"
    for split in ("train", "val"):
        image(source / f"{split}2017/deep/{split}.png")
        one = [{"image_id": 5, "category_id": 1, "segmentation": [flat(1, 1, 5, 5)]}]
        coco(source / f"annotations/instances_{split}2017.json", [(5, f"deep/{split}.png")], one, {1: "cat"})
    result = import_(capsys, source)
    assert result.files() == ["train/train.png", "val/val.png"]


def test_what_does_not_fit_is_named(source, capsys):
    annotations = [
        {"image_id": 1, "category_id": 1, "segmentation": [flat(0, 0, 4, 4), [1, 1, 2, 2]]},
        {"image_id": 2, "category_id": 1, "segmentation": [flat(0, 0, 4, 4)]},
        {"image_id": 1, "category_id": 9, "segmentation": [flat(5, 5, 9, 9)]},
        {"image_id": 77, "category_id": 1, "segmentation": [flat(5, 5, 9, 9)]},
        {"image_id": 1, "category_id": 1, "segmentation": []},
        {"image_id": 1, "category_id": 1, "segmentation": [["x", 0, 4, 4, 4, 0]]},
    ]
    coco(source / "x.json", [*TWO, (3, "gone.png"), (4, "a.png")], annotations, {1: "cat", 2: "dog"})
    write_json(source / "y.json", {"anything": 1})
    result = import_(capsys, source)
    np.testing.assert_array_equal(result.labels("a"), drawn((1, 0, 0, 4, 4)))
    assert result.classes == ["background", "cat"]
    for words in (
        "a.png in x.json: annotation of a class that the file does not list",
        "x.json: annotation of image ids that the file does not list",
        "a.png in x.json: a box without outline",
        "a.png in x.json: a shape with coordinates that are no numbers",
        "a.png in x.json: a shape of too few points",
        "gone.png: an image that is missing",
        "images/a.png: an image that is listed twice",
        "dog: a class without annotation",
        "y.json: JSON of another tool",
    ):
        assert result.warned(words), words


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [5, 5], "counts": [0, 25]}, "a mask is not of the size of its image (5x5, not 16x12)"),
        ({"size": list(SIZE), "counts": [0, 5000]}, "run lengths of more than 12x16 pixels"),
        ({"size": list(SIZE), "counts": "~~~\u007f"}, "compressed run lengths with a wrong letter"),
        ({"size": list(SIZE), "counts": "o"}, "compressed run lengths without their end"),
        ({"counts": [0, 5]}, "a mask without its size"),
        ({"size": list(SIZE)}, "a mask without run lengths"),
    ],
)
def test_damaged_run_lengths_leave_out_the_image(source, capsys, segmentation, words):
    image(source / "images/c.png")
    good = [{"image_id": i, "category_id": 1, "segmentation": [flat(0, 0, 4, 4)]} for i in (1, 2)]
    bad = {"image_id": 3, "category_id": 1, "segmentation": segmentation}
    coco(source / "x.json", [*TWO, (3, "c.png")], [*good, bad], {1: "cat"})
    result = import_(capsys, source)
    assert result.warned(f"c.png: {words}")
    assert result.result["skipped"] == 1


def test_several_tools_in_one_folder_need_a_format(source, capsys):
    coco(source / "x.json", TWO, [{"image_id": 1, "category_id": 1, "segmentation": [flat(0, 0, 4, 4)]}], {1: "cat"})
    shapes = [polygon("dog", [[0, 0], [4, 0], [0, 4]])]
    write_json(source / "images/b.json", {"shapes": shapes, "imagePath": "b.png"})
    result = import_(capsys, source)
    assert result.status == 2
    assert result.lines[-1].endswith(
        "source has annotations of 2 formats (labelme, coco): say which with --format labelme"
    )
    assert not result.out.exists()
    assert import_(capsys, source, "--format", "coco").classes == ["background", "cat"]
