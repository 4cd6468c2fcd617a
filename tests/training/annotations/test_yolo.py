from pathlib import PurePosixPath

import numpy as np
import pytest

from tests.training.annotations.sources import drawn, image, import_, write_text


def line(number: int, *corners: int) -> str:
    """A rectangle as shares of 16x12 pixels."""
    left, top, right, bottom = corners
    points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return " ".join([str(number), *(f"{x / 16:.6f} {y / 12:.6f}" for x, y in points)])


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    for split in ("train", "val"):
        image(root / f"images/{split}/{split}.png")
        write_text(root / f"labels/{split}/{split}.txt", line(2, 1, 1, 9, 9), line(0, 4, 4, 6, 6))
    return root


@pytest.mark.parametrize("names", ["[cat, bird, dog]", "{0: cat, 1: bird, 2: dog}", "\n  0: cat\n  2: dog"])
def test_polygons_and_names_as_list_or_numbered(source, capsys, names):
    write_text(source / "data.yaml", "path: .", "nc: 3", f"names: {names}")
    result = import_(capsys, source)
    assert (result.status, result.classes) == (0, ["background", "cat", "dog"])
    assert result.files() == ["train/train.png", "val/val.png"]
    np.testing.assert_array_equal(result.labels("train"), drawn((2, 1, 1, 9, 9), (1, 4, 4, 6, 6)))


@pytest.mark.parametrize(
    ("entries", "files"),
    [
        (["train: train.txt", "val: lists/val.txt"], ["train/a.png", "train/c.png", "val/b.png"]),
        (
            ["path: /data/elsewhere", "train: [images/x, images/y]", "val: images/z"],
            ["train/a.png", "train/b.png", "val/c.png"],
        ),
    ],
)
def test_data_yaml_names_the_splits(tmp_path, capsys, entries, files):
    root = tmp_path / "source"
    for folder, name in zip("xyz", "abc", strict=True):
        image(root / f"images/{folder}/{name}.png")
        write_text(root / f"labels/{folder}/{name}.txt", line(0, 1, 1, 4, 4))
    write_text(root / "train.txt", "./images/x/a.png", "/data/elsewhere/images/z/c.png")
    write_text(root / "lists/val.txt", "images/y/b.png")
    write_text(root / "data.yaml", *entries, "names: [cat]")
    assert [PurePosixPath(file).parts[0] + "/" + file[-5:] for file in import_(capsys, root).files()] == files


def test_split_folders_above_images_and_equal_names(tmp_path, capsys):
    root = tmp_path / "source"
    for split, number in (("train", 0), ("valid", 1)):
        image(root / f"{split}/images/same.png")
        write_text(root / f"{split}/labels/same.txt", line(number, 1, 1, 4, 4))
    write_text(root / "data.yaml", "names: [cat, dog]")
    result = import_(capsys, root)
    (train,), (val,) = result.out.glob("labels/train/*.png"), result.out.glob("labels/val/*.png")
    assert train.name != val.name
    np.testing.assert_array_equal(result.labels(train.stem), drawn((1, 1, 1, 4, 4)))
    np.testing.assert_array_equal(result.labels(val.stem), drawn((2, 1, 1, 4, 4)))


def test_without_names_boxes_and_bad_lines(source, capsys):
    image(source / "images/train/box.png")
    write_text(source / "labels/train/box.txt", "0 0.5 0.5 0.2 0.2")
    image(source / "images/train/bad.png")
    write_text(source / "labels/train/bad.txt", line(0, 1, 1, 4, 4), "0 0.1 0.2 x 0.3 0.4 0.5", "0 0.1 0.2 0.3 0.4 0.5")
    write_text(source / "labels/train/lost.txt", line(0, 1, 1, 4, 4))
    result = import_(capsys, source)
    assert result.classes == ["background", "class_0", "class_2"]
    assert result.warned("no names of classes")
    assert result.warned("labels/train/box.txt: boxes without outline")
    assert result.warned("labels/train/bad.txt: a shape with coordinates that are no numbers")
    assert result.warned("labels/train/lost.txt: labels without an image")
    assert "train/box.png" in result.files()
    assert "train/box.png" not in result.files("labels")


def test_a_class_without_a_name_and_names_that_are_none(source, capsys):
    write_text(source / "data.yaml", "names: [cat]")
    result = import_(capsys, source)
    assert result.classes == ["background", "cat"]
    assert result.warned("2 files: labels/train/train.txt, labels/val/val.txt: annotation of a class")
    write_text(source / "data.yaml", "names: 3")
    result = import_(capsys, source, out=source.parent / "second")
    assert (result.status, '"names" must be a list of names' in result.lines[-1]) == (2, True)
