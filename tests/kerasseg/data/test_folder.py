import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasseg.data import FolderDataset, default_palette
from kerasseg.data.folder import parse_classes, read_label
from kerasseg.data.unreadable import first_unreadable
from tests.kerasseg.data.folders import CLASSES, make_folder, save, write_classes

RNG = np.random.default_rng(1)


def test_a_label_map_that_cannot_be_used_is_named(tmp_path):
    folder = make_folder(tmp_path / "pets", train=2, val=1)
    label = save(folder / "labels/train/train_1.png", np.zeros((24, 32)))
    label.write_bytes(label.read_bytes()[:45])
    assert first_unreadable(FolderDataset(folder)).startswith(f"{label}: cannot be read as an image (")
    save(folder / "labels/train/train_1.png", np.zeros((5, 7)))
    assert first_unreadable(FolderDataset(folder)).startswith(
        f"the label map of {folder}/images/train/train_1.png: the label map is not of the size of its image (7x5 for "
        "32x24)"
    )


def test_names_are_sorted_and_without_extension(tmp_path):
    make_folder(tmp_path)
    save(tmp_path / "images/train/a.b.JPG", np.zeros((24, 32, 3)))
    (tmp_path / "images/train/.hidden.png").write_text("")
    dataset = FolderDataset(tmp_path)
    assert dataset.name == tmp_path.name
    assert dataset.splits == ("train", "val")
    assert dataset.image_names("train") == ("a.b", "train_0", "train_1", "train_2", "train_3")
    assert dataset.label_names("train") == ("train_0", "train_1", "train_2", "train_3")
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        dataset.image_names("test")
    with pytest.raises(ValueError, match="no file named 'a.b' in .*labels/train"):
        dataset.load_label("train", "a.b")


def test_a_palette_png_keeps_its_numbers(tmp_path):
    make_folder(tmp_path)
    label = RNG.integers(0, 3, (24, 32)).astype(np.uint8)
    image = Image.fromarray(label)
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.save(tmp_path / "labels/train/train_0.png")
    with Image.open(tmp_path / "labels/train/train_0.png") as written:
        assert written.mode == "P"
    dataset = FolderDataset(tmp_path)
    np.testing.assert_array_equal(dataset.load_label("train", "train_0"), label)
    np.testing.assert_array_equal(dataset.tf_label("train", tf.constant("train_0")), label)


def test_another_ignore_label_is_read_as_255(tmp_path):
    make_folder(tmp_path)
    write_classes(tmp_path, classes=CLASSES[:2], ignore_label=2)
    dataset = FolderDataset(tmp_path)
    assert dataset.ignore_label == 255
    assert np.unique(dataset.load_label("train", "train_0")).tolist() == [0, 1, 255]


@pytest.mark.parametrize(
    ("suffix", "array", "expected"),
    [
        ("png", RNG.integers(0, 256, (24, 32, 3)), lambda a: a),
        ("png", RNG.integers(0, 256, (24, 32, 4)), lambda a: a[..., :3]),
        ("png", RNG.integers(0, 256, (24, 32)), lambda a: a[..., None].repeat(3, -1)),
        (
            "png",
            RNG.integers(0, 65536, (24, 32)).astype(np.uint16),
            lambda a: (a >> 8)[..., None].repeat(3, -1),
        ),
        ("jpg", RNG.integers(0, 256, (24, 32, 3)), None),
        ("jpg", RNG.integers(0, 256, (24, 32)), None),
    ],
    ids=["rgb", "rgba", "grey", "16-bit", "jpeg", "grey jpeg"],
)
def test_every_kind_of_image_becomes_rgb(tmp_path, suffix, array, expected):
    save(tmp_path / f"images/train/a.{suffix}", array)
    dataset = FolderDataset(tmp_path)
    image = dataset.load_image("train", "a")
    assert image.dtype == np.uint8 and image.shape == (24, 32, 3)
    np.testing.assert_array_equal(dataset.tf_image("train", tf.constant("a")), image)
    if expected:
        np.testing.assert_array_equal(image, expected(array))


def test_classes_are_inferred_from_the_label_values(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.json").unlink()
    label = np.zeros((24, 32))
    label[0] = 255
    label[1] = 4
    save(tmp_path / "labels/val/val_1.png", label)
    dataset = FolderDataset(tmp_path)
    assert dataset.inferred
    assert dataset.classes == ("class_0", "class_1", "class_2", "class_3", "class_4")
    assert dataset.palette == default_palette(5, background=False)


def test_classes_are_read(tmp_path):
    make_folder(tmp_path)
    write_classes(tmp_path, classes=CLASSES, palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]], ignore_label=255)
    dataset = FolderDataset(tmp_path)
    assert not dataset.inferred
    assert dataset.num_classes == 3
    assert dataset.classes == ("ground", "cat", "dog")
    assert dataset.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no images in .*images/train/NAME.jpg.*kerasseg check"):
        FolderDataset(tmp_path)


def test_a_folder_that_was_not_imported_is_refused_with_the_command(tmp_path):
    save(tmp_path / "a.png", [[[0, 0, 0]]])
    with pytest.raises(ValueError, match="kerasseg check"):
        FolderDataset(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"`kerasseg import {tmp_path} NEW_FOLDER`"):
        FolderDataset(tmp_path)


def test_a_broken_classes_file_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(ValueError, match=r"classes.json: not JSON"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], 'expected an object {"classes": [...]}, found a list'),
        ({"classes": ["a"], "colours": []}, "unknown keys colours; known are classes, palette, ignore_label"),
        ({}, '"classes" must be a list of names, one per label value, found None'),
        ({"classes": "cat"}, "\"classes\" must be a list of names, one per label value, found 'cat'"),
        ({"classes": ["a", 1]}, "\"classes\" must be a list of names, one per label value, found ['a', 1]"),
        ({"classes": [str(i) for i in range(256)]}, '"classes" has 256 names; a label map has room for 255'),
        ({"classes": ["a", "b", "a"]}, '"classes" names a more than once'),
        (
            {"classes": ["a"], "palette": [[0, 0]]},
            '"palette" must be a list of [r, g, b] with whole numbers 0..255',
        ),
        (
            {"classes": ["a"], "palette": [[0, 0, 256]]},
            '"palette" must be a list of [r, g, b] with whole numbers 0..255',
        ),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, '"palette" has 1 colours for 2 classes'),
        ({"classes": ["a"], "ignore_label": 256}, '"ignore_label" must be a whole number 0..255, found 256'),
        (
            {"classes": ["void", "a"], "ignore_label": 0},
            "\"ignore_label\" 0 is also the value of class 'void'; classes are numbered from 0, the "
            "label value to "
            "ignore lies outside of them",
        ),
    ],
)
def test_what_is_wrong_with_a_classes_file(content, message):
    assert parse_classes(json.dumps(content)) == (None, [message])


def test_everything_wrong_with_a_classes_file_is_told_at_once():
    _, problems = parse_classes('{"classes": ["a", "a"], "palette": [[0, 0, 0]], "ignore": 0}')
    assert len(problems) == 3


def test_colours_and_16_bit_numbers_are_no_label_map(tmp_path):
    with pytest.raises(ValueError, match=r"colours \(RGB\) instead of one class number per pixel"):
        read_label(save(tmp_path / "a.png", np.zeros((8, 8, 3))).read_bytes())
    with pytest.raises(ValueError, match=r"16-bit values above 255 \(up to 300\)"):
        read_label(save(tmp_path / "b.png", np.full((8, 8), 300, np.uint16)).read_bytes())
    assert (read_label(save(tmp_path / "c.png", np.full((8, 8), 7, np.uint16)).read_bytes()) == 7).all()


def test_images_outside_of_the_graph_are_decoded_as_inside_of_it(tmp_path):
    """Pillow reads a PNG whose end is missing, TensorFlow does not."""
    make_folder(tmp_path)
    file = tmp_path / "images/train/train_0.png"
    file.write_bytes(file.read_bytes()[:-12])
    dataset = FolderDataset(tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError):
        dataset.tf_image("train", tf.constant("train_0"))
    with pytest.raises(ValueError, match=r"train_0.png: cannot be read as an image \(its end is missing\); copy"):
        dataset.load_image("train", "train_0")


def test_label_maps_belong_to_images_whose_names_look_the_same(tmp_path):
    make_folder(tmp_path)
    for image, label, value in (("K\u00f6ln", "Ko\u0308ln", 1), ("IMG_1", "img_1", 2), ("a", "a", 0), ("A", "A", 1)):
        save(tmp_path / f"images/train/{image}.jpg", np.zeros((24, 32, 3)))
        save(tmp_path / f"labels/train/{label}.png", np.full((24, 32), value))
    dataset = FolderDataset(tmp_path)
    assert dataset.label_names("train")[:4] == ("A", "IMG_1", "K\u00f6ln", "a")
    assert [dataset.load_label("train", name)[0, 0] for name in ("A", "IMG_1", "K\u00f6ln", "a")] == [1, 2, 1, 0]
    assert dataset.load_image("train", "K\u00f6ln").shape == (24, 32, 3)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_classes_file_from_another_editor(tmp_path, encoding):
    make_folder(tmp_path)
    (tmp_path / "classes.json").write_text('{"classes": ["Himmel", "Stra\u00dfe"]}', encoding)
    assert FolderDataset(tmp_path).classes == ("Himmel", "Stra\u00dfe")


def test_a_classes_file_in_an_older_encoding_is_refused(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "classes.json").write_text('{"classes": ["Himmel",\n"Stra\u00dfe"]}', "cp1252")
    with pytest.raises(ValueError, match=r"classes.json is not in UTF-8 \(byte 0xdf in line 2\) .*save it as UTF-8"):
        FolderDataset(tmp_path)
