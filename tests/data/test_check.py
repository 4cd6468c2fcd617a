"""Every message of check_dataset: a sound folder is broken in one way, and exactly that must be told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerasseg.data import FolderDataset, Split
from kerasseg.data.check import KINDS, check_dataset, inspect_folder, require_sound
from kerasseg.data.shapes import ShapesDataset
from tests.data.folders import CLASSES, make_folder, save, write_classes

CAMVID = Path(__file__).parents[2] / "../shared/data/camvid"
LABEL = np.arange(32) * 3 // 32 * np.ones((24, 1))
IMAGE = np.zeros((24, 32, 3))


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "pets")


def told(folder, split=None) -> list[str]:
    return [str(problem) for problem in check_dataset(folder, split)]


def only(folder, split=None) -> str:
    (line,) = told(folder, split)
    return line


def fix(kind: str) -> str:
    return KINDS[kind][2]


def test_a_sound_folder_has_no_problems(folder):
    save(folder / "images/train/unlabelled.jpg", IMAGE)
    save(folder / "images/test/to_predict.jpg", IMAGE)
    inspection = inspect_folder(folder)
    assert inspection.problems == []
    assert inspection.images == {
        "train": {"images": 5, "labeled": 4},
        "val": {"images": 2, "labeled": 2},
        "test": {"images": 1, "labeled": 0},
    }
    assert inspection.pixels[:4].tolist() == [6 * 24 * 11, 6 * 24 * 11, 6 * 24 * 10, 0]
    assert inspection.classes == ("ground", "cat", "dog")


def test_no_folder(tmp_path):
    missing = tmp_path / "nowhere"
    assert only(missing) == f"error: {missing}: expected a dataset folder, found nothing; check the path"
    missing.write_text("")
    assert only(missing) == f"error: {missing}: expected a dataset folder, found a file; check the path"


def test_an_empty_folder(tmp_path):
    assert told(tmp_path) == [
        "error: images/: no such folder; put the files into images/train and images/val",
        "error: labels/: no such folder; put the files into labels/train and labels/val",
    ]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("images", "Images", "error: images/: no such folder; did you mean Images/? Rename it to images"),
        ("images", "JPEGImages", "error: images/: no such folder; did you mean JPEGImages/? Rename it to "
        "images"),
        ("labels", "masks", "error: labels/: no such folder; did you mean masks/? Rename it to labels"),
        ("labels", "labesl", "error: labels/: no such folder; did you mean labesl/? Rename it to labels"),
        ("images/train", "images/training",
         "error: images/train: no such folder; did you mean training/? Rename it to train"),
        ("labels/train", "labels/trian",
         "error: labels/train: no such folder; did you mean trian/? Rename it to train"),
        ("labels/val", "labels/validation",
         "error: labels/val: no such folder, so there is nothing to compare predictions with; "
         "did you mean validation/? Rename it to val"),
        ("images/val", "images/dev",
         "error: images/val: no such folder, so there is nothing to evaluate on; "
         "did you mean dev/? Rename it to val"),
    ],
)  # fmt: skip
def test_folders_under_other_names(folder, old, new, line):
    (folder / old).rename(folder / new)
    assert line in told(folder)


def test_files_beside_the_split_folders(folder):
    for file in (folder / "images/train").iterdir():
        file.rename(folder / "images" / file.name)
    (folder / "images/train").rmdir()
    assert "error: images/train: no such folder; did you mean images/train for the 4 files in images/?" in told(folder)


def test_split_and_kind_the_other_way_round(folder):
    for split in ("train", "val"):
        (folder / split).mkdir()
        for kind in ("images", "labels"):
            (folder / kind / split).rename(folder / split / kind)
    for kind in ("images", "labels"):
        (folder / kind).rmdir()
    assert told(folder)[:2] == [
        "error: images/: no such folder; move train/images to images/train",
        "error: labels/: no such folder; move train/labels to labels/train",
    ]


def test_empty_split_folders(folder):
    for path in (*folder.glob("*/train/*"), *folder.glob("*/val/*")):
        path.unlink()
    assert told(folder) == [
        "error: images/train: the folder has no .jpg or .jpeg or .png file; put the training images there",
        "error: images/val: the folder has no .jpg or .jpeg or .png file, so there is nothing to "
        "evaluate on; "
        "put some images aside for validation there",
        "error: labels/train: the folder has no .png file; put the training labels there",
    ]


def test_val_without_label_maps(folder):
    for path in folder.glob("labels/val/*"):
        path.unlink()
    assert only(folder) == (
        "error: labels/val: the folder has no .png file, so there is nothing to compare predictions with; "
        "put some labels aside for validation there"
    )


def test_unreadable_files(folder):
    for name in ("train_0", "train_1"):
        file = folder / f"images/train/{name}.png"
        file.write_bytes(file.read_bytes()[:200])
    (folder / "labels/train/train_2.png").write_bytes(b"")
    lines = told(folder)
    assert len(lines) == 2
    assert lines[0].startswith(
        "error: 2 files in images/train (train_0.png, train_1.png): cannot be read as a picture ("
    )
    assert lines[0].endswith("; " + fix("unreadable image"))
    assert lines[1] == (
        "error: labels/train/train_2.png: cannot be read as a picture (cannot identify image file); "
        + fix("unreadable label")
    )


def test_a_truncated_jpeg(folder):
    file = save(folder / "images/train/photo.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
    file.write_bytes(file.read_bytes()[:-500])
    assert only(folder).startswith(
        "error: images/train/photo.jpg: cannot be read as a picture (image file is truncated"
    )


def test_another_format_under_the_name_of_a_jpeg(folder):
    save(folder / "images/train/photo.jpg", IMAGE, format="WEBP")
    assert only(folder) == (
        "error: images/train/photo.jpg: WEBP data under the name of a JPEG or PNG; " + fix("image format")
    )


@pytest.mark.parametrize(("channels", "mode"), [(3, "RGB"), (4, "RGBA"), (2, "LA")])
def test_colour_masks(folder, channels, mode):
    save(folder / "labels/train/train_1.png", np.zeros((24, 32, channels)))
    assert only(folder) == (
        f"error: labels/train/train_1.png: colours ({mode}) instead of one class number per pixel; "
        + fix("colour label")
    )


def test_16_bit_masks(folder):
    save(folder / "labels/train/train_1.png", np.full((24, 32), 1000, np.uint16))
    assert only(folder) == (
        "error: labels/train/train_1.png: 16-bit values above 255 (up to 1000); " + fix("16-bit label")
    )
    save(folder / "labels/train/train_1.png", LABEL.astype(np.uint16))  # harmless
    assert told(folder) == []


def test_sizes_that_differ(folder):
    for name in ("train_0", "train_3"):
        save(folder / f"labels/train/{name}.png", LABEL[:12, :16])
    assert only(folder) == (
        "error: 2 files in labels/train (train_0.png, train_3.png): "
        "the label map is not of the size of its image (16x12 for 32x24); " + fix("size")
    )


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_rotated_photographs(folder):
    save(folder / "images/train/a.jpg", IMAGE, exif=exif(6))
    save(folder / "images/train/b.jpg", IMAGE, exif=exif(1))
    assert only(folder) == (
        "warning: images/train/a.jpg: it carries a rotation tag (EXIF orientation 6), which is not applied: "
        "it is used as stored; " + fix("rotated")
    )
    save(folder / "labels/train/a.png", LABEL.T)
    assert only(folder) == (
        "error: images/train/a.jpg: it carries a rotation tag (EXIF orientation 6), and its label map "
        "fits only the "
        "upright picture; " + fix("rotated size")
    )


def test_label_maps_with_every_pixel_ignored(folder):
    save(folder / "labels/val/val_0.png", np.full((24, 32), 255))
    assert only(folder) == (
        "warning: labels/val/val_0.png: every pixel is ignored, so the label map teaches and measures "
        "nothing; " + fix("all ignored")
    )


@pytest.mark.parametrize("with_classes", [True, False])
def test_masks_of_0_and_255(folder, with_classes):
    for label in folder.glob("labels/*/*.png"):
        save(label, (LABEL == 1) * 255)
    if with_classes:
        write_classes(folder, classes=["background", "object"])
    else:
        (folder / "classes.json").unlink()
    lines = [line for line in told(folder) if "255" in line]
    assert lines == [
        "error: 4 files in labels/train (train_0.png, train_1.png, train_2.png, ...): a mask of 0 and "
        "255, but 255 means "
        "ignore: the object would never be learnt; " + fix("mask of 0 and 255"),
        "error: 2 files in labels/val (val_0.png, val_1.png): a mask of 0 and 255, but 255 means "
        "ignore: the object would never be learnt; " + fix("mask of 0 and 255"),
    ]


def test_masks_of_0_and_255_among_others(folder):
    write_classes(folder, classes=["background", "object"])
    for label in folder.glob("labels/*/*.png"):
        save(label, LABEL == 1)
    assert told(folder) == []
    save(folder / "labels/train/train_2.png", (LABEL == 1) * 255)
    assert only(folder) == (
        "warning: labels/train/train_2.png: only the values 0 and 255, and 255 means ignore; "
        + fix("perhaps a mask of 0 and 255")
    )


def test_label_values_outside_of_the_classes(folder):
    label = LABEL.copy()
    label[0, :5] = [3, 7, 200, 201, 255]
    save(folder / "labels/val/val_1.png", label)
    assert only(folder) == (
        "error: labels/val/val_1.png: label values 3, 7, 200, ... outside of the 3 classes (0..2); "
        "write pixels of no class as 255, or add the missing names to classes.json"
    )


def test_classes_numbered_from_1(folder):
    for label in folder.glob("labels/*/*.png"):
        save(label, LABEL + 1)
    lines = told(folder)
    assert lines[0] == (
        "error: 4 files in labels/train (train_0.png, train_1.png, train_2.png, ...): label values 3 "
        "outside of the "
        "3 classes (0..2); the classes seem to be numbered from 1: subtract 1 from every value but 255"
    )
    assert lines[1].startswith("error: 2 files in labels/val (val_0.png, val_1.png): label values 3 outside")
    assert lines[2].startswith("warning: labels/: no pixel of ground in any label map")


def test_classes_that_never_occur(folder):
    write_classes(folder, classes=[*CLASSES, "bird", "fish"])
    assert only(folder) == (
        "warning: labels/: no pixel of bird, fish in any label map; "
        "check the order of the names in classes.json, or leave the classes out"
    )


def test_another_ignore_label(folder):
    write_classes(folder, classes=CLASSES[:2], ignore_label=2)
    inspection = inspect_folder(folder)
    assert inspection.problems == []
    assert inspection.pixels[255] == 6 * 24 * 10 and inspection.pixels[2] == 0


def test_no_classes_file(folder):
    (folder / "classes.json").unlink()
    assert only(folder) == (
        "warning: classes.json: not there; 3 classes are inferred from the label values 0..2; "
        'name the classes in it: {"classes": ["class_0", "class_1", "class_2"]}'
    )
    save(folder / "labels/val/val_1.png", LABEL + 2)
    assert told(folder)[1:] == []
    save(folder / "labels/val/val_1.png", LABEL * 3)
    assert told(folder)[1] == (
        "warning: labels/: no pixel of class_4, class_5 in any label map; "
        "check that the label values are class numbers, not grey values"
    )


def test_a_broken_classes_file(folder):
    (folder / "classes.json").write_text('{"classes": ["a", "a"], "color": 1}')
    assert told(folder) == [
        "error: classes.json: unknown keys color; known are classes, palette, ignore_label; "
        'a file that works: {"classes": ["background", "cat"]}',
        'error: classes.json: "classes" names a more than once; a file that works: {"classes": ["background", "cat"]}',
    ]
    (folder / "classes.json").write_text("classes: a, b")
    assert only(folder).startswith("error: classes.json: not JSON (Expecting value")


def test_label_maps_and_images_without_each_other(folder):
    (folder / "images/train/train_0.png").unlink()
    (folder / "labels/val/val_0.png").unlink()
    assert told(folder) == [
        "error: labels/train/train_0.png: a label map without an image of the same name; " + fix("no image"),
        "warning: images/val/val_0.png: an image without a label map, so it is not evaluated; " + fix("no label"),
    ]


def test_several_images_of_one_name(folder):
    save(folder / "images/train/train_0.jpg", IMAGE)
    assert only(folder) == (
        "error: images/train/train_0.jpg: several images of one name (train_0.jpg and train_0.png), "
        "and a label map can belong to one only; " + fix("two images")
    )


def test_files_of_other_types(folder):
    for name in ("a.bmp", "b.bmp", "c.tif"):
        save(folder / f"images/train/{name}", IMAGE)
    save(folder / "labels/train/a.jpg", LABEL)
    (folder / "images/train/deeper").mkdir()
    (folder / "images/train/notes.txt").write_text("not a picture, and none of our business")
    assert told(folder) == [
        "error: labels/train/a.jpg: not read: a label map is a .png (.jpg found); JPEG would change the "
        "class numbers; " + fix("other label type"),
        "warning: 3 files in images/train (a.bmp, b.bmp, c.tif): not read: a picture here is a .jpg, "
        ".jpeg or .png "
        "(.bmp, .tif found); " + fix("other image type"),
        "warning: images/train/deeper: a folder inside of a split is not read; " + fix("folder inside"),
    ]


def test_many_files_are_one_line(folder):
    for index in range(20):
        save(folder / f"images/train/more_{index:02}.png", IMAGE)
        save(folder / f"labels/train/more_{index:02}.png", IMAGE)
    assert only(folder) == (
        "error: 20 files in labels/train (more_00.png, more_01.png, more_02.png, ...): "
        "colours (RGB) instead of one class number per pixel; " + fix("colour label")
    )


def test_classes_absent_from_the_labelled_images(folder):
    for name in ("train_0", "train_1"):
        save(folder / f"labels/train/{name}.png", LABEL == 1)
    three = ("train_0", "train_1", "train_2")
    assert told(folder, Split(three)) == []
    save(folder / "labels/train/train_2.png", LABEL == 1)
    assert only(folder, Split(three)) == (
        "warning: the 3 labelled images: no pixel of dog to learn from; "
        "`--labeled 3 --cover` looks for images that show it"
    )
    (line,) = map(str, check_dataset(folder, Split(three), cover=True))
    assert line == "warning: the 3 labelled images: no pixel of dog to learn from; choose more images"
    save(folder / "labels/train/train_3.png", LABEL == 1)
    assert only(folder, Split(three)) == (
        "warning: the 3 labelled images: no pixel of dog to learn from, nor in any other label map of train; "
        "label images that show it"
    )


def test_the_first_of_many_absent_classes_are_named_and_the_others_counted(folder):
    write_classes(folder, classes=["ground", *(f"c{k}" for k in range(1, 7))])
    save(folder / "labels/train/train_0.png", np.zeros((24, 32)))
    save(folder / "labels/train/train_1.png", np.arange(32) * 7 // 32 * np.ones((24, 1)))
    first, second = told(folder, Split(("train_0",), (), ("train_1",)))
    assert first == (
        "warning: the labelled image: no pixel of c1, c2, c3 and 3 more to learn from; "
        "`--labeled 1 --cover` looks for images that show it"
    )
    assert second == (
        "warning: the labelled image: there are more classes (7) than labelled images; "
        "label more, or spread the classes over them with --cover"
    )


def test_fewer_labelled_images_than_classes(folder):
    assert only(folder, Split(("train_0", "train_1"))) == (
        "warning: the 2 labelled images: there are more classes (3) than labelled images; label more"
    )


def test_a_split_of_the_built_in_dataset_is_looked_at_too(monkeypatch):
    """Only the label maps of its labelled images are read."""
    dataset, read = ShapesDataset(), []
    load_label = dataset.load_label
    monkeypatch.setattr(dataset, "load_label", lambda split, name: read.append(name) or load_label(split, name))
    (absent, few) = map(str, require_sound(dataset, Split(("train_0030",), (), ("train_0000",))))
    shown = np.unique(load_label("train", "train_0030"))
    names = [name for k, name in enumerate(dataset.classes) if k not in shown]
    assert absent.startswith(f"warning: the labelled image: no pixel of {', '.join(names[:3])}") and "--cover" in absent
    assert "there are more classes (7) than labelled images" in few
    assert read == ["train_0030"]


def test_labelled_images_without_label_maps(folder):
    assert told(folder, Split(("train_0", "gone")))[0] == (
        "error: labels/train/gone.png: labelled in the split, but there is no label map that can be read; "
        "add the label map, or make the split anew"
    )


def test_training_refuses_an_unsound_folder(folder):
    write_classes(folder, classes=[*CLASSES, "bird"])
    (warning,) = require_sound(FolderDataset(folder))
    assert "no pixel of bird" in str(warning)
    save(folder / "labels/train/train_1.png", IMAGE)
    save(folder / "labels/train/train_0.png", LABEL + 3)
    with pytest.raises(ValueError) as error:
        require_sound(FolderDataset(folder))
    assert str(error.value) == (
        "labels/train/train_1.png: colours (RGB) instead of one class number per pixel; "
        f"{fix('colour label')} (the first of 2 problems); `python -m training.check_data {folder}` "
        f"checks the folder again"
    )


def test_training_refuses_colour_masks_without_classes_file(folder):
    """Inferring the classes must not get in the way of the message."""
    (folder / "classes.json").unlink()
    save(folder / "labels/train/train_1.png", IMAGE)
    with pytest.raises(ValueError, match="colours"):
        require_sound(FolderDataset(folder))


def test_built_in_datasets_are_sound():
    assert require_sound(ShapesDataset(train=1, val=1)) == []


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not here")
def test_camvid_is_sound():
    inspection = inspect_folder(CAMVID)
    assert inspection.problems == []
    assert inspection.images == {
        "train": {"images": 367, "labeled": 367},
        "val": {"images": 101, "labeled": 101},
    }


def test_every_kind_of_finding_has_a_test():
    text = Path(__file__).read_text()
    assert [kind for kind in KINDS if f'fix("{kind}")' not in text and f"fix('{kind}')" not in text] == []
