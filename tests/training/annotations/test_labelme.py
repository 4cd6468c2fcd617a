import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.training.annotations.sources import SIZE, drawn, image, import_, labelme, labelme_json, polygon, rectangle


@pytest.fixture
def source(tmp_path):
    """Two images with a cat each."""
    for name in ("one", "two"):
        labelme(tmp_path / "source", name, polygon("cat", rectangle(2, 3, 7, 9)))
    return tmp_path / "source"


def test_polygons_rectangles_and_circles_in_the_order_of_the_file(source, capsys):
    labelme(
        source,
        "many",
        polygon("cat", rectangle(1, 1, 9, 9)),
        polygon("dog", [[12, 8], [4, 5]], "rectangle"),
        polygon("ball", [[3.5, 3.5], [3.5, 4.6]], "circle"),
        polygon("ant", [[13, 1], [15, 3], [13, 5], [11, 3]], "oriented_rectangle"),
    )
    result = import_(capsys, source)
    assert (result.status, result.classes) == (0, ["background", "ant", "ball", "cat", "dog"])
    expected = drawn((3, 1, 1, 9, 9), (4, 4, 5, 12, 8))
    expected[3, 2:5] = expected[2:5, 3] = 2  # the pixels whose centres are at most 1.1 pixels away
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    expected[(abs(x - 13) + abs(y - 3) < 2) | ((x < 13) & (abs(x - 13) + abs(y - 3) == 2))] = (
        1  # their left border counts
    )
    np.testing.assert_array_equal(result.labels("many"), expected)
    assert result.result["format"] == "labelme"
    assert result.result["images"] == {"train": {"images": 2, "labeled": 2}, "val": {"images": 1, "labeled": 1}}


def test_polygons_of_one_group_have_holes_and_islands(source, capsys):
    def ring(*corners: int, group: object = 1, label: str = "dog") -> dict:
        return polygon(label, rectangle(*corners), group_id=group)

    shapes = [
        ring(3, 3, 7, 7),  # the hole comes first
        ring(1, 1, 10, 10),
        ring(4, 4, 5, 5),  # an island in it
        ring(8, 2, 9, 4, group=2),  # inside, of another group
        ring(8, 6, 9, 8, label="cat"),  # of another label
        ring(12, 1, 14, 3),  # of the group, apart
        ring(13, 2, 15, 4),  # of the group, crossing that one
    ]
    labelme(source, "holes", *shapes)
    expected = drawn(
        (2, 1, 1, 10, 10), (0, 3, 3, 7, 7), (2, 4, 4, 5, 5), (1, 8, 6, 9, 8), (2, 12, 1, 14, 3), (2, 13, 2, 15, 4)
    )
    np.testing.assert_array_equal(import_(capsys, source).labels("holes"), expected)


def test_a_brush_mask_lies_where_its_box_is(source, capsys):
    mask = np.array([[1, 0, 1], [1, 1, 0]], bool)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    text = base64.b64encode(buffer.getvalue()).decode()
    labelme(source, "brush", polygon("dog", [[4, 2], [6, 3]], "mask", mask=text))
    expected = drawn()
    expected[2:4, 4:7][mask] = 2
    np.testing.assert_array_equal(import_(capsys, source).labels("brush"), expected)


def test_lines_and_points_are_left_out_and_leave_an_image_unlabelled(source, capsys):
    labelme(source, "line", polygon("wire", [[1, 1], [5, 5]], "line"), polygon("wire", [[1, 1]], "point"))
    result = import_(capsys, source)
    assert "train/line.png" in result.files("images")
    assert "train/line.png" not in result.files("labels")
    assert result.warned("line.json: shapes of the kind line, which have no area")
    assert result.warned("shapes of the kind point")


def test_polygons_are_clipped_and_those_of_two_points_left_out(source, capsys):
    labelme(source, "out", polygon("cat", rectangle(10, 8, 90, 90)), polygon("cat", [[1, 1], [3, 3]]))
    result = import_(capsys, source)
    np.testing.assert_array_equal(result.labels("out"), drawn((1, 10, 8, 16, 12)))
    assert result.warned("out.json: shapes reach out of the image")
    assert result.warned("out.json: a shape of too few points")


def test_self_crossing_polygons_are_filled_even_odd(source, capsys):
    around_twice = [[1, 1], [9, 1], [9, 9], [1, 9], [1, 1], [3, 3], [7, 3], [7, 7], [3, 7], [3, 3]]
    labelme(source, "ring", polygon("cat", around_twice))
    np.testing.assert_array_equal(import_(capsys, source).labels("ring"), drawn((1, 1, 1, 9, 9), (0, 3, 3, 7, 7)))


def test_rest_ignored(source, capsys):
    result = import_(capsys, source, "--rest", "ignored")
    assert result.classes == ["cat"]
    np.testing.assert_array_equal(result.labels("one"), drawn((0, 2, 3, 7, 9), rest=255))


def test_letter_case_is_merged_and_labelmes_own_names_are_known(source, capsys):
    labelme(
        source,
        "more",
        polygon("Cat", rectangle(0, 0, 2, 2)),
        polygon("_background_", rectangle(4, 4, 6, 6)),
        polygon("__ignore__", rectangle(8, 8, 10, 10)),
    )
    result = import_(capsys, source)
    assert result.classes == ["background", "Cat"]
    np.testing.assert_array_equal(result.labels("more"), drawn((1, 0, 0, 2, 2), (0, 4, 4, 6, 6), (255, 8, 8, 10, 10)))
    assert result.warned('the classes "Cat" and "cat" are one')
    assert result.warned('the pixels of the class "__ignore__" are ignored')


def test_an_image_of_a_windows_path_is_found_and_a_missing_one_named(source, capsys):
    image(source / "pictures/far.png")
    labelme_json(source / "json", "far", polygon("cat", rectangle(0, 0, 4, 4)), imagePath="..\\pictures\\far.png")
    labelme_json(source, "lost", polygon("cat", rectangle(0, 0, 4, 4)))
    result = import_(capsys, source)
    np.testing.assert_array_equal(result.labels("far"), drawn((1, 0, 0, 4, 4)))
    assert result.warned("lost.png (of lost.json): an image that is missing")


def test_other_json_damaged_json_and_a_second_annotation_are_named(source, capsys):
    (source / "b.json").write_text('{"other": 1}')
    (source / "c.json").write_text('{"shapes": [')
    labelme_json(source, "zzz", polygon("dog", rectangle(0, 0, 4, 4)), imagePath="one.png")
    result = import_(capsys, source)
    assert result.warned("b.json: JSON of another tool")
    assert result.warned("c.json: a file that cannot be read")
    assert result.warned("zzz.json: a second annotation of an image")
    assert result.classes == ["background", "cat"]


def test_annotation_of_another_size_is_left_out_with_its_image(source, capsys):
    labelme(source, "small", polygon("cat", rectangle(0, 0, 4, 4)), imageHeight=24, imageWidth=32)
    # Nothing is drawn at a size of a million by a million pixels.
    labelme(source, "huge", polygon("cat", rectangle(0, 0, 4, 4)), imageHeight=10**6, imageWidth=10**6)
    result = import_(capsys, source)
    assert (result.status, result.result["skipped"]) == (0, 2)
    assert result.warned("2 files: huge.png, small.png: annotation of another size than its image")
    assert not [file for file in result.files() if "small" in file]


def test_shapes_that_cover_no_pixel(source, capsys):
    labelme(source, "off", polygon("cat", rectangle(100, 100, 120, 120)))
    assert import_(capsys, source).warned("off.png: shapes that cover no pixel")
