import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.annotations.sources import SIZE, drawn, image, import_, rectangle, write_json
from training.annotations.rle import decode_brush


def brush(mask_HW: np.ndarray) -> list[int]:
    """A mask as the brush of Label Studio writes it: by the format of its converter, runs of at most 2**16 values."""
    values = np.repeat(mask_HW.astype(np.uint8).ravel() * 255, 4)
    bits = f"{values.size:032b}" + f"{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value, run in itertools.groupby(values):
        length = len(list(run))
        index, size = next((i, size) for i, size in enumerate((3, 4, 8, 16)) if length <= 2**size)
        bits += f"1{index:02b}{length - 1:0{size}b}{value:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def result_of(kind: str, label: str, **value: object) -> dict:
    return {
        "type": kind,
        "value": {**value, kind: [label]},
        "original_height": SIZE[0],
        "original_width": SIZE[1],
        "image_rotation": 0,
    }


def percent(*corners: int) -> list[list[float]]:
    return [[x / SIZE[1] * 100, y / SIZE[0] * 100] for x, y in rectangle(*corners)]


def task(path: str, *results: dict, **entries: object) -> dict:
    return {
        "id": 1,
        "data": {"image": path},
        "annotations": [{"was_cancelled": False, "result": list(results)}],
        **entries,
    }


@pytest.fixture
def source(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / f"source/{name}.png")
    return tmp_path / "source"


CAT = result_of("polygonlabels", "cat", points=percent(2, 2, 8, 8), closed=True)


def test_polygons_rectangles_and_brushes_in_their_order(source, capsys):
    box = result_of("rectanglelabels", "dog", x=25, y=25, width=25, height=25, rotation=0)
    turned = result_of("rectanglelabels", "dog", x=75, y=50, width=25, height=25, rotation=90)
    mask = drawn((1, 3, 7, 13, 11), (0, 5, 8, 6, 9))
    strokes = result_of("brushlabels", "ant", format="rle", rle=brush(mask))
    write_json(
        source / "export.json", [task("/data/upload/1/0a1b2c3d-a.png", CAT, box), task("b.png", turned, strokes)]
    )
    result = import_(capsys, source)
    assert (result.status, result.classes) == (0, ["background", "ant", "cat", "dog"])
    np.testing.assert_array_equal(result.labels("a"), drawn((2, 2, 2, 8, 8), (3, 4, 3, 8, 6)))
    expected = drawn((3, 9, 6, 12, 10))  # 4x3 pixels at (12, 6), turned about that corner
    expected[mask == 1] = 1
    np.testing.assert_array_equal(result.labels("b"), expected)


def test_ellipses_are_turned_in_pixels(source, capsys):
    lying = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 100 / 12}  # percent: radii of 4 and 1 pixels
    flat = result_of("ellipselabels", "cat", rotation=0, **lying)
    upright = result_of("ellipselabels", "cat", rotation=90, **lying)
    write_json(source / "export.json", [task("a.png", flat), task("b.png", upright)])
    result = import_(capsys, source)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    np.testing.assert_array_equal(result.labels("a"), ((x - 8) / 4) ** 2 + (y - 6) ** 2 <= 1)
    np.testing.assert_array_equal(result.labels("b"), (x - 8) ** 2 + ((y - 6) / 4) ** 2 <= 1)


def test_a_brush_of_single_values_is_read():
    """By hand: 2 pixels are 8 values; a run of 4 different values, and one of 4 equal ones."""
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + "0" + "00" + f"{3:03b}"
    bits += "".join(f"{value:08b}" for value in (9, 9, 9, 0)) + "1" + "00" + f"{3:03b}" + f"{200:08b}"
    bits += "0" * (-len(bits) % 8)
    data = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    np.testing.assert_array_equal(decode_brush(data, 1, 2), [[False, True]])


def test_a_stroke_that_was_painted_in_a_browser():
    """In Label Studio 1.23.2. Its edges are smooth: 1433 pixels have some alpha, which adds up to 1291.8 whole ones."""
    stroke = json.loads(Path(__file__).with_name("label_studio_stroke.json").read_text())
    mask_HW = decode_brush(stroke["value"]["rle"], stroke["original_height"], stroke["original_width"])
    assert mask_HW.shape == (360, 480)
    assert mask_HW.sum() == 1293
    rows, columns = np.nonzero(mask_HW)
    assert (rows.min(), columns.min(), rows.max(), columns.max()) == (70, 113, 92, 249)


def test_what_a_person_painted_lies_above_what_the_model_did(source, capsys):
    """A person makes the first region larger, over one of the model's that is left as it was."""
    masks = {"sky": (1, 0, 0, 6, 6), "road": (1, 4, 4, 10, 10), "car": (1, 5, 0, 8, 3)}
    origins = {"sky": "prediction-changed", "road": "prediction", "car": "manual"}
    results = [
        result_of("brushlabels", name, format="rle", rle=brush(drawn(mask))) | {"origin": origins[name]}
        for name, mask in masks.items()
    ]
    write_json(source / "export.json", [task("a.png", *results), task("b.png", CAT)])
    result = import_(capsys, source)
    assert result.classes == ["background", "car", "cat", "road", "sky"]
    expected = drawn((3, 4, 4, 10, 10), (4, 0, 0, 6, 6), (1, 5, 0, 8, 3))
    np.testing.assert_array_equal(result.labels("a"), expected)


def test_local_files_cancelled_and_second_annotations(source, capsys):
    local = task("/data/local-files/?d=shots/a.png", CAT)
    second = {"was_cancelled": False, "result": [result_of("polygonlabels", "dog", points=percent(0, 0, 4, 4))]}
    cancelled = {"was_cancelled": True, "result": second["result"]}
    local["annotations"] = [cancelled, *local["annotations"], second]
    write_json(source / "export.json", [local, task("s3://bucket/b.png", CAT)])
    result = import_(capsys, source)
    assert result.classes == ["background", "cat"]
    assert result.warned("shots/a.png: several annotations of one image")
    np.testing.assert_array_equal(result.labels("a"), drawn((1, 2, 2, 8, 8)))


@pytest.mark.parametrize(
    ("original", "stored"),
    [
        ("my photo (1).png", "4d36f215-my_photo_1.png"),
        ("Straße ü.png", "4567acd6-Stra%C3%9Fe_%C3%BC.png"),
        ("plus+and&more#1.png", "9c04daff-plusandmore1.png"),
        ("100% sure.png", "16dac6a6-100_sure.png"),
        ("a-b.png", "5f67f7ae-a-b.png"),
    ],
)
def test_images_by_the_names_that_uploading_gave_them(tmp_path, capsys, original, stored):
    """As Label Studio 1.23.2 stored them."""
    image(tmp_path / "source" / original)
    image(tmp_path / "source/other.png")
    write_json(tmp_path / "source/export.json", [task(f"/data/upload/4/{stored}", CAT), task("other.png", CAT)])
    result = import_(capsys, tmp_path / "source")
    assert (result.status, result.result["skipped"]) == (0, 0)
    np.testing.assert_array_equal(result.labels(original.removesuffix(".png")), drawn((1, 2, 2, 8, 8)))


def test_two_images_that_uploading_calls_alike_are_not_mixed_up(source, capsys):
    for name in ("a b.png", "a_(b).png"):
        image(source / name)
    write_json(source / "export.json", [task("/data/upload/4/4d36f215-a_b.png", CAT), task("a.png", CAT)])
    assert import_(capsys, source).warned("data/upload/4/4d36f215-a_b.png: an image that is missing")


def test_the_ground_truth_counts_among_several_annotations(source, capsys):
    """Two people, as Label Studio exports them, who did not agree; an administrator starred the second."""
    starred = {
        "completed_by": 2,
        "was_cancelled": False,
        "ground_truth": True,
        "result": [result_of("polygonlabels", "dog", points=percent(0, 0, 4, 4))],
    }
    several = task("a.png", CAT)
    several["annotations"] = [{"completed_by": 1, "was_cancelled": False, "ground_truth": False, "result": [CAT]}]
    several["annotations"].append(starred)
    write_json(source / "export.json", [several, task("b.png", CAT)])
    result = import_(capsys, source)
    assert result.warned("a.png: several annotations of one image: the ground truth counts")
    assert result.classes == ["background", "cat", "dog"]
    np.testing.assert_array_equal(result.labels("a"), drawn((2, 0, 0, 4, 4)))


def test_an_image_within_its_task_is_named_as_missing(source, capsys):
    embedded = task("data:image/png;base64,iVBORw0KGgo.AAAA", CAT, id=36)
    write_json(source / "export.json", [embedded, task("a.png", CAT), task("b.png", CAT)])
    assert import_(capsys, source).warned("the image of task 36: an image that is missing")


def test_what_does_not_fit_is_named(source, capsys):
    image(source / "c.png")
    few = result_of("polygonlabels", "cat", points=percent(0, 0, 4, 4)[:2])
    points = result_of("keypointlabels", "nose", x=1, y=1)
    short = result_of("brushlabels", "cat", format="rle", rle=brush(drawn((1, 0, 0, 4, 4)))[:20])
    write_json(
        source / "export.json",
        [task("a.png", CAT, few, points), task("b.png", CAT), task("c.png", short), task("d.png", CAT)],
    )
    result = import_(capsys, source)
    assert result.classes == ["background", "cat"]
    assert result.warned("a.png: a shape of too few points")
    assert result.warned("a.png: shapes of the kind keypointlabels, which are not read")
    assert result.warned("c.png: run lengths without their end")
    assert result.warned("d.png: an image that is missing")


def test_the_export_file_can_be_named(source, capsys):
    path = write_json(source / "export.json", [task("a.png", CAT), task("b.png", CAT)])
    write_json(source / "other.json", {"images": [], "categories": [], "annotations": []})
    assert import_(capsys, source).status == 2
    result = import_(capsys, path, out=source.parent / "second")
    assert (result.status, result.result["format"]) == (0, "label_studio")
