"""Annotation that is images: Pascal VOC, colour masks, Cityscapes, one mask per class, masks named as their images."""

import numpy as np
import pytest
from PIL import Image

from kerasseg.visualize import voc_palette
from serving.common.images import index_png
from tests.kerasseg.data.folders import save
from tests.training.annotations.sources import drawn, image, import_, write_json, write_text

ROAD, CAR = (128, 64, 128), (64, 0, 128)
LABELS = drawn((1, 2, 2, 9, 9), (2, 4, 4, 6, 6))


def colored(labels_HW: np.ndarray, *colors: tuple[int, int, int]) -> np.ndarray:
    return np.array(colors)[labels_HW]


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


def voc(root, name: str, labels_HW: np.ndarray = LABELS):
    image(root / f"JPEGImages/{name}.jpg")
    path = root / f"SegmentationClass/{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(index_png(labels_HW, voc_palette(21)))


def test_voc_with_its_palette_lists_and_borders(source, capsys):
    voc(source, "a", np.where(LABELS == 2, 255, LABELS))
    voc(source, "b")
    image(source / "JPEGImages/c.jpg")
    save(source / "SegmentationObject/b.png", LABELS)
    write_text(source / "ImageSets/Segmentation/train.txt", "a")
    write_text(source / "ImageSets/Segmentation/val.txt", "b")
    write_text(source / "ImageSets/Segmentation/trainval.txt", "a", "b")
    result = import_(capsys, source)
    assert (result.status, result.result["format"], len(result.classes)) == (0, "voc", 21)
    assert result.classes[:3] == ["background", "aeroplane", "bicycle"]
    assert result.files() == ["train/a.jpg", "train/c.jpg", "val/b.jpg"]
    np.testing.assert_array_equal(result.labels("a"), np.where(LABELS == 2, 255, LABELS))


def test_voc_in_rgb_with_its_own_colours(source, capsys):
    for name in ("a", "b"):
        voc(source, name)
        colors_HWC = colored(LABELS, *voc_palette(21))
        colors_HWC[0, 0] = 224, 224, 192  # VOC's border between objects
        save(source / f"SegmentationClass/{name}.png", colors_HWC)
    expected = LABELS.copy()
    expected[0, 0] = 255
    result = import_(capsys, source)
    np.testing.assert_array_equal(result.labels("a"), expected)
    assert not any("colours without a class" in line for line in result.lines)


def test_voc_of_cvat_with_a_labelmap(source, capsys):
    for name in ("a", "b"):
        voc(source, name)
        save(source / f"SegmentationClass/{name}.png", colored(LABELS, (0, 0, 0), ROAD, CAR))
    write_text(
        source / "labelmap.txt",
        "# label:color_rgb:parts:actions",
        "background:0,0,0::",
        "car:64,0,128::",
        "road:128,64,128::",
    )
    result = import_(capsys, source)
    assert result.classes == ["background", "car", "road"]
    np.testing.assert_array_equal(result.labels("a"), np.array([0, 2, 1])[LABELS])


def test_voc_of_labelme_with_names_and_a_mask_without_image(source, capsys):
    for name in ("a", "b"):
        voc(source, name)
    save(source / "SegmentationClass/c.png", LABELS)
    write_text(source / "class_names.txt", "__ignore__", "_background_", "cat", "dog")
    result = import_(capsys, source)
    assert result.classes == ["background", "cat", "dog"]
    np.testing.assert_array_equal(result.labels("a"), LABELS)
    assert result.warned("SegmentationClass/c.png: a mask without an image")


TABLES = {
    "label_colors.txt": "0 0 0\tVoid\n128 64 128\tRoad\n64 0 128\tCar\n",
    "labelmap.txt": "Void:0,0,0::\nRoad:128,64,128::\nCar:64,0,128::\n",
    "class_dict.csv": "name, r, g, b\nVoid, 0, 0, 0\nRoad, 128, 64, 128\nCar, 64, 0, 128\n",
    "classes.json": '{"classes": ["Void", "Road", "Car"], "palette": [[0, 0, 0], [128, 64, 128], [64, 0, 128]]}',
}


@pytest.mark.parametrize("table", TABLES)
def test_colours_by_a_table(source, capsys, table):
    for split in ("train", "val"):
        image(source / f"{split}/{split}_1.png")
        save(source / f"{split}_labels/{split}_1_L.png", colored(LABELS, (0, 0, 0), ROAD, CAR))
    write_text(source / table, TABLES[table])
    result = import_(capsys, source)
    assert (result.status, result.result["format"], result.classes) == (0, "color_masks", ["Road", "Car"])
    assert result.files() == ["train/train_1.png", "val/val_1.png"]
    np.testing.assert_array_equal(result.labels("train_1"), np.array([255, 0, 1])[LABELS])
    assert f'"palette": [{list(ROAD)}, {list(CAR)}]' in (result.out / "classes.json").read_text()


def test_colours_outside_of_the_table_are_ignored_and_named(source, capsys):
    for name in ("a", "b", "c"):
        image(source / f"images/{name}.png")
        colors = ((1, 2, 3), (4, 5, 6), (7, 8, 9)) if name == "c" else ((0, 0, 0), ROAD, (9, 9, 9))
        save(source / f"masks/{name}.png", colored(LABELS, *colors))
    write_text(source / "label_colors.txt", "0 0 0 ground", "128 64 128 road")
    result = import_(capsys, source)
    np.testing.assert_array_equal(result.labels("a"), np.array([0, 1, 255])[LABELS])
    assert any("add them to the table ((9, 9, 9))" in line for line in result.lines)
    assert result.warned("c.png: a mask with no colour of the table")


def test_a_damaged_table_and_colours_without_one(source, capsys):
    for name in ("a", "b"):
        image(source / f"images/{name}.png")
        save(source / f"masks/{name}.png", colored(LABELS, (0, 0, 0), ROAD, CAR))
    result = import_(capsys, source)
    assert (result.status, "label_colors.txt with a line for each class" in result.lines[-1]) == (2, True)
    write_text(source / "label_colors.txt", "0 0 road")
    result = import_(capsys, source)
    assert (result.status, "is not a table of colours" in result.lines[-1]) == (2, True)


def test_cityscapes(source, capsys):
    for split, city in (("train", "aachen"), ("val", "ulm")):
        image(source / f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png")
        for kind, values in (("labelIds", np.array([0, 7, 26])[LABELS]), ("instanceIds", LABELS), ("color", LABELS)):
            save(source / f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_{kind}.png", values)
    image(source / "leftImg8bit/train/aachen/aachen_000001_000019_leftImg8bit.png")
    result = import_(capsys, source)
    assert (result.status, result.result["format"]) == (0, "cityscapes")
    assert (result.classes[0], result.classes[13], len(result.classes)) == ("road", "car", 19)
    assert [file.split("/")[0] for file in result.files()] == ["train", "train", "val"]
    np.testing.assert_array_equal(result.labels("aachen_000000_000019_leftImg8bit"), np.array([255, 0, 13])[LABELS])


@pytest.mark.parametrize("place", ["masks/{0}/{1}.png", "masks/{0}_{1}.png", "{0}_{1}.png"])
def test_one_mask_per_class_smaller_ones_on_top(source, capsys, place):
    for name in ("one", "two"):
        image(source / f"{name}.jpg")
        save(source / place.format(name, "dog"), drawn((255, 1, 1, 9, 9)))
        save(source / place.format(name, "ant"), drawn((255, 4, 4, 6, 6)))
        save(source / place.format(name, "zoo"), drawn((255, 5, 5, 12, 12)))
    result = import_(capsys, source)
    assert (result.result["format"], result.classes) == ("class_masks", ["background", "ant", "dog", "zoo"])
    expected = drawn((2, 1, 1, 9, 9), (3, 5, 5, 12, 12), (1, 4, 4, 6, 6))
    np.testing.assert_array_equal(result.labels("one"), expected)


@pytest.mark.parametrize(
    "place",
    ["{0}_mask.png", "{0}.jpg.png", "{0}_gt.png", "{0}_L.png", "masks/{0}.png", "Labels/{0}_label.png"],
)
def test_masks_named_as_their_images(source, capsys, place):
    for name in ("one", "two"):
        image(source / f"{name}.jpg")
        save(source / place.format(name), LABELS)
    image(source / "three.jpg")
    result = import_(capsys, source)
    assert (result.status, result.result["format"]) == (0, "masks")
    assert result.classes == ["background", "class_1", "class_2"]
    assert len(result.files("labels")) == 2
    assert "train/three.jpg" in result.files()
    np.testing.assert_array_equal(result.labels("one"), LABELS)


@pytest.mark.parametrize("value", [1, 255])
def test_masks_of_an_object(source, capsys, value):
    for name in ("one", "two"):
        image(source / f"images/{name}.jpg")
        save(source / f"masks/{name}.png", drawn((value, 2, 2, 9, 9)))
    result = import_(capsys, source)
    assert (result.status, result.classes) == (0, ["background", "object"])
    np.testing.assert_array_equal(result.labels("one"), drawn((1, 2, 2, 9, 9)))


def test_names_from_a_file_and_values_without_a_class(source, capsys):
    for name in ("one", "two"):
        image(source / f"images/{name}.jpg")
        save(source / f"masks/{name}.png", np.where(LABELS == 2, 7, LABELS))
    write_text(source / "classes.txt", "ground", "cat")
    result = import_(capsys, source)
    assert result.classes == ["ground", "cat"]
    np.testing.assert_array_equal(result.labels("one"), np.array([0, 1, 255])[LABELS])
    assert any("values without a class (7)" in line for line in result.lines)


def test_masks_of_another_size_damaged_ones_and_those_without_image(source, capsys):
    for name in ("one", "two", "big", "cut"):
        image(source / f"images/{name}.jpg")
        save(source / f"masks/{name}.png", np.kron(LABELS, np.ones((2, 2))) if name == "big" else LABELS)
    (source / "masks/cut.png").write_bytes((source / "masks/cut.png").read_bytes()[:50])
    save(source / "masks/lost.png", LABELS)
    result = import_(capsys, source)
    assert (result.status, result.result["skipped"]) == (0, 2)
    assert result.warned("big.jpg: annotation of another size than its image")
    assert result.warned("cut.jpg: a mask that cannot be read")
    assert result.warned("masks/lost.png: a mask without an image")


def test_a_palette_mask_keeps_its_numbers(source, capsys):
    for name in ("one", "two"):
        image(source / f"images/{name}.jpg")
        mask = Image.fromarray(LABELS.astype(np.uint8))
        mask.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
        (source / "masks").mkdir(exist_ok=True)
        mask.save(source / f"masks/{name}.png")
    np.testing.assert_array_equal(import_(capsys, source).labels("one"), LABELS)


def test_a_folder_with_nothing_known(source, capsys):
    image(source / "a.png")
    write_json(source / "via.json", {"_via_settings": {}})
    result = import_(capsys, source)
    assert result.status == 2
    assert "no annotations recognised" in result.lines[-1]
    assert "via.json" in result.lines[-1]
