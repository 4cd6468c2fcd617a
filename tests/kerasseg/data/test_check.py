"""Every message of check_dataset: a sound folder is broken in one way, and exactly that must be named."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerasseg.data import FolderDataset, Split
from kerasseg.data.check import KINDS, check_dataset, inspect_folder, require_sound
from kerasseg.data.shapes import ShapesDataset
from serving.common.images import SUFFIXES_SHOWN
from serving.common.inputs import contents_of
from tests.kerasseg.data.folders import CLASSES, make_folder, save, write_classes

CAMVID = Path(__file__).parents[3] / "../shared/data/camvid"
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
        "error: images/train: the folder has no image file; put the training images there",
        "error: images/val: the folder has no image file, so there is nothing to "
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
        "error: 2 files in images/train (train_0.png, train_1.png): cannot be read as an image ("
    )
    assert lines[0].endswith("; " + fix("unreadable image"))
    assert lines[1] == (
        "error: labels/train/train_2.png: an empty file under the name of a PNG; copy the file again from its source"
    )
    file = save(folder / "labels/train/train_2.png", np.random.default_rng(0).integers(0, 3, (24, 32)))
    file.write_bytes(file.read_bytes()[:80])
    assert told(folder)[1].startswith("error: labels/train/train_2.png: cannot be read as an image (")
    assert told(folder)[1].endswith("; " + fix("unreadable label"))


def test_a_truncated_jpeg(folder):
    file = save(folder / "images/train/photo.jpg", np.random.default_rng(0).integers(0, 255, (64, 64, 3)))
    file.write_bytes(file.read_bytes()[:-500])
    assert only(folder).startswith("error: images/train/photo.jpg: cannot be read as an image (image file is truncated")


def test_another_format_under_the_name_of_a_jpeg(folder):
    save(folder / "images/train/other.jpg", IMAGE, format="WEBP")  # which is read all the same
    (folder / "images/train/photo.jpg").write_bytes(b"8BPS" + bytes(100))
    assert only(folder) == (
        "error: images/train/photo.jpg: Photoshop data under the name of an image; " + fix("image format")
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
    assert not told(folder)
    save(folder / "labels/train/a.png", LABEL.T)  # drawn on the upright image
    assert not told(folder)
    save(folder / "labels/train/a.png", LABEL)
    assert only(folder) == (
        "warning: images/train/a.jpg: it carries a rotation tag (EXIF orientation 6), which is not applied: its label "
        "map has the size of the image as it is stored; " + fix("drawn as stored")
    )
    save(folder / "labels/train/a.png", LABEL[:12, :16])
    assert only(folder) == (
        "error: labels/train/a.png: the label map is not of the size of its image (16x12 for 24x32); " + fix("size")
    )
    save(folder / "images/train/a.jpg", IMAGE, exif=exif(3))
    save(folder / "labels/train/a.png", LABEL)
    assert only(folder) == (
        "warning: images/train/a.jpg: it carries a rotation tag (EXIF orientation 3), which is applied to the image, "
        "and never to its label map; " + fix("turned")
    )


def test_label_maps_with_every_pixel_ignored(folder):
    save(folder / "labels/val/val_0.png", np.full((24, 32), 255))
    assert only(folder) == (
        "warning: labels/val/val_0.png: every pixel is ignored, so nothing is learned from the label map or "
        "measured with it; " + fix("all ignored")
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
        "error: 4 files in labels/train (train_0.png, train_1.png, train_2.png and 1 more): a label map of 0 and "
        "255, but 255 means "
        "ignore: the object would never be learned; " + fix("mask of 0 and 255"),
        "error: 2 files in labels/val (val_0.png, val_1.png): a label map of 0 and 255, but 255 means "
        "ignore: the object would never be learned; " + fix("mask of 0 and 255"),
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
    label[:3, :15] = np.repeat([3, 7, 200, 201, 255], 3)
    save(folder / "labels/val/val_1.png", label)
    assert only(folder) == (
        "error: labels/val/val_1.png: label values 3, 7, 200 and 1 more outside of the 3 classes (0..2); "
        "write pixels of no class as 255, or add the missing names to classes.json"
    )


def test_classes_numbered_from_1(folder):
    for label in folder.glob("labels/*/*.png"):
        save(label, LABEL + 1)
    lines = told(folder)
    assert lines[0] == (
        "error: 4 files in labels/train (train_0.png, train_1.png, train_2.png and 1 more): label values 3 "
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
    assert only(folder).startswith("error: classes.json: not JSON that can be read (Expecting value")


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
    for name in ("a.tga", "b.tga", "c.jxl"):
        (folder / f"images/train/{name}").write_bytes(b"1")
    save(folder / "labels/train/a.jpg", LABEL)
    (folder / "images/train/deeper").mkdir()
    (folder / "images/train/notes.txt").write_text("not an image, and none of our business")
    assert told(folder) == [
        "error: labels/train/a.jpg: not read: a label map is a .png (.jpg found); JPEG would change the "
        "class numbers; " + fix("other label type"),
        f"warning: 3 files in images/train (a.tga, b.tga, c.jxl): not read: an image here ends in {SUFFIXES_SHOWN} "
        "(.tga, .jxl found); " + fix("other image type"),
        "warning: images/train/deeper: a folder inside of a split is not read; " + fix("folder inside"),
    ]


def test_many_files_are_one_line(folder):
    for index in range(20):
        save(folder / f"images/train/more_{index:02}.png", IMAGE)
        save(folder / f"labels/train/more_{index:02}.png", IMAGE)
    assert only(folder) == (
        "error: 20 files in labels/train (more_00.png, more_01.png, more_02.png and 17 more): "
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
    assert "there are more classes (10) than labelled images" in few
    assert read == ["train_0030"]


def test_labelled_images_without_label_maps(folder):
    assert told(folder, Split(("train_0", "gone")))[0] == (
        "error: labels/train/gone.png: labelled in the split, but there is no label map that can be read; "
        "add the label map, or make the split again"
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
        f"{fix('colour label')} (the first of 2 problems); `kerasseg check {folder}` "
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


def test_images_are_decoded_as_training_decodes_them(folder):
    """Pillow reads a PNG whose end is missing, TensorFlow does not."""
    for split in ("train", "val"):
        file = folder / f"images/{split}/{split}_0.png"
        file.write_bytes(file.read_bytes()[:-12])
    lines = told(folder)
    assert lines == [
        f"error: images/{split}/{split}_0.png: cannot be read as an image (its end is missing); copy the file again "
        "from its source, or write again what can be read: Image.open(f).save(f)"
        for split in ("train", "val")
    ]


def test_files_that_are_no_images_are_named_for_what_they_are(folder):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (folder / "images/train/train_0.png").write_bytes(pointer)
    (folder / "images/train/train_1.png").write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    (folder / "images/train/photo.jpg").write_bytes(heic)
    (folder / "labels/train/train_2.png").write_bytes(pointer)
    lines = told(folder)
    assert [line.split(": ", 2)[1:] for line in lines] == [
        [
            "images/train/photo.jpg",
            f"HEIC data under the name of an image; {contents_of(heic).remedy_as('JPEG or PNG')}",
        ],
        [
            "images/train/train_0.png",
            "a Git LFS pointer under the name of an image; fetch the file that it stands for: git lfs pull",
        ],
        [
            "images/train/train_1.png",
            "a web page under the name of an image; download the file itself: the server sent a page in its place "
            "(a log-in, an error)",
        ],
        [
            "labels/train/train_2.png",
            "a Git LFS pointer under the name of a PNG; fetch the file that it stands for: git lfs pull",
        ],
    ]


def test_jpeg_data_under_the_name_of_a_label_map(folder):
    save(folder / "labels/train/train_1.png", LABEL, format="JPEG")
    assert only(folder) == (
        "error: labels/train/train_1.png: JPEG data under the name of a PNG; " + fix("label format")
    )
    with pytest.raises(ValueError, match="labels/train/train_1.png: JPEG data under the name of a PNG; save the label"):
        FolderDataset(folder).load_label("train", "train_1")


@pytest.mark.parametrize(("format", "what"), [("PPM", "PPM data"), ("WEBP", "WEBP data")])
def test_other_formats_under_the_names_of_pngs(folder, format, what):
    """Images may have them; label maps are numbers, and PNGs only."""
    for kind, array in (("images", np.zeros((24, 32, 3))), ("labels", LABEL)):
        save(folder / kind / "train/train_1.png", array, format=format)
    assert only(folder) == f"error: labels/train/train_1.png: {what} under the name of a PNG; " + fix("label format")


def test_no_label_map_should_become_a_jpeg(folder):
    remedies = {
        b"\0\0\0\x18ftypheic": "HEIC data under the name of a PNG; save it as PNG",
        b"\x1aE\xdf\xa3": "a video under the name of a PNG; save its frames as PNG: ffmpeg -i VIDEO frame_%06d.png",
        b"\x93NUMPY": "a NumPy array under the name of a PNG; save it as PNG: Image.fromarray(np.load(f)).save(name + "
        "'.png')",
        b"gimp xcf": "GIMP data under the name of a PNG; open it in a program that knows it, and export it as PNG",
        b"P2 8 8 255": "PPM data under the name of a PNG; " + fix("label format"),
    }
    for contents, remedy in remedies.items():
        (folder / "labels/train/train_1.png").write_bytes(contents + bytes(100))
        assert only(folder) == f"error: labels/train/train_1.png: {remedy}"


def test_images_that_pillow_does_not_open(folder):
    (folder / "images/train/train_1.png").write_bytes(b"gimp xcf" + bytes(100))
    assert only(folder) == (
        "error: images/train/train_1.png: GIMP data under the name of an image; open it in a program that knows "
        "it, and export it as JPEG or PNG"
    )


def test_a_file_larger_than_any_image(folder):
    with (folder / "images/train/train_1.png").open("wb") as file:
        file.truncate(2**35)
    assert only(folder) == (
        "error: images/train/train_1.png: has 34359738368 bytes, at most 1448432976 are read; " + fix("too large")
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "not JSON that can be read ("),
        ('{"classes": ["a", "b"], "ignore_label": 1' + "0" * 5000 + "}", "not JSON that can be read ("),
        ('{"classes": ["a", "\\ud800"]}', "\"classes\" has names with half a letter of UTF-16 in them: ['\\ud800']"),
    ],
)
def test_class_tables_that_json_or_others_could_not_hold(folder, text, said):
    (folder / "classes.json").write_text(text)
    assert told(folder)[0].startswith(f"error: classes.json: {said}")
    with pytest.raises(ValueError, match=r"classes.json: (not JSON that can be read|\"classes\" has names)"):
        FolderDataset(folder)


def test_a_class_table_that_never_ends(folder):
    (folder / "classes.json").unlink()
    os.mkfifo(folder / "classes.json")
    assert told(folder)[0].startswith("error: classes.json: is a pipe with nothing in it: give a file; a file that")
    with pytest.raises(ValueError, match=r"classes.json is a pipe with nothing in it"):
        FolderDataset(folder)
    (folder / "classes.json").unlink()
    (folder / "classes.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"classes.json is a pipe or a device: give a file"):
        FolderDataset(folder)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_images_beyond_the_limit_of_the_decoders(folder):
    for file in ("images/train/train_0.png", "labels/train/train_0.png"):
        (folder / file).write_bytes(png(20000, 9600, 8, b""))
    # With the size, where a library has lifted Pillow's own limit, which comes first.
    lines = [line.replace(" (20000x9600)", "") for line in told(folder)]
    assert [line.partition(": ")[2].split(" (")[0] for line in lines] == [
        "images/train/train_0.png: larger than 178956970 pixels; " + fix("too large"),
        "labels/train/train_0.png: larger than 178956970 pixels; " + fix("too large"),
    ]


def test_grey_of_4_bits(folder):
    (folder / "labels/train/train_0.png").write_bytes(png(32, 24, 4, (b"\0" + b"\x12" * 16) * 24))
    assert only(folder) == (
        "error: labels/train/train_0.png: grey of 2 or 4 bits, whose numbers some programs multiply (here by 17); "
        + fix("low-bit label")
    )


def test_one_class(folder):
    write_classes(folder, classes=["cat"])
    for label in folder.glob("labels/*/*.png"):
        save(label, np.zeros((24, 32)))
    line = only(folder)
    assert line == (
        "error: classes.json: one class (cat): the background counts too, so there are at least 2; name both: "
        '{"classes": ["background", "cat"]}, whose numbers in the label maps are 0 and 1'
    )
    with pytest.raises(ValueError) as error:
        require_sound(FolderDataset(folder))
    assert f"error: {error.value}".startswith(line)


@pytest.mark.parametrize("with_classes", [True, False])
def test_black_masks(folder, with_classes):
    if not with_classes:
        (folder / "classes.json").unlink()
    for label in folder.glob("labels/*/*.png"):
        save(label, np.zeros((24, 32)))
    assert told(folder) == [
        "error: labels/train: all 4 label maps are black, 0 everywhere: there is only background to learn; export the "
        "label maps again, with the objects in them as 1, 2, ...",
        "warning: labels/val: all 2 label maps are black, 0 everywhere: there is only background to measure; export "
        "the label maps again, with the objects in them as 1, 2, ...",
    ]


def with_palette(path: Path, label, colors) -> None:
    image = Image.fromarray(np.asarray(label, np.uint8))
    image.putpalette(sum(map(list, colors), []))
    image.save(path)


BLACK, RED, GREEN, BLUE = (0, 0, 0), (200, 30, 30), (30, 200, 30), (30, 30, 200)


def test_palettes_that_contradict_each_other(folder):
    for index in range(4):
        swapped = (BLACK, BLUE, GREEN) if index == 3 else (BLACK, GREEN, BLUE)
        with_palette(folder / f"labels/train/train_{index}.png", LABEL, swapped)
    assert only(folder) == (
        "error: labels/: the palettes of the label maps contradict each other: value 1 has the colour (30, 200, 30) in "
        "3 (labels/train/train_0.png), (30, 30, 200) in 1 (labels/train/train_3.png), and 1 more values; write the "
        "same number for the same colour in all of them: the number is the class, and programs that make a palette "
        "for each image may give one colour several numbers"
    )
    with_palette(folder / "labels/train/train_3.png", LABEL, (BLACK, GREEN, RED))
    line = only(folder)
    assert line.startswith("warning: labels/: the palettes of the label maps contradict each other: value 2 has the")
    assert line.endswith("; if the numbers mean the same in all of them, leave it")
    with_palette(folder / "labels/train/train_3.png", LABEL, (BLACK, GREEN, BLACK))  # black is what has no name
    assert only(folder).startswith("warning: labels/: the palettes of the label maps contradict each other: value 2")


def test_palettes_that_agree(folder):
    """Grey ones say nothing, nor do colours of values that do not occur; 255 is ignored in any colour."""
    with_palette(folder / "labels/train/train_0.png", LABEL, (BLACK, GREEN, BLUE, RED))
    with_palette(folder / "labels/train/train_1.png", LABEL, (BLACK, GREEN, BLUE, BLUE))
    with_palette(folder / "labels/train/train_2.png", LABEL, [(k, k, k) for k in range(256)])
    ignored = np.where(LABEL == 2, 255, LABEL)
    with_palette(folder / "labels/train/train_3.png", ignored, [BLACK, GREEN, *[BLUE] * 254])
    with_palette(folder / "labels/val/val_0.png", ignored, [BLACK, GREEN, *[RED] * 254])
    assert told(folder) == []


def test_a_palette_in_classes_json_in_another_order(folder):
    for label in folder.glob("labels/*/*.png"):
        with_palette(label, LABEL, (BLACK, GREEN, BLUE))
    write_classes(folder, classes=CLASSES, palette=[BLACK, BLUE, GREEN])
    assert only(folder) == (
        "warning: classes.json: its palette gives (30, 200, 30) to 'dog', whose number is 2; in the palettes of the "
        "label maps it is the colour of 1; bring names and colours into the order of the numbers in the label maps"
    )
    write_classes(folder, classes=CLASSES, palette=[BLACK, GREEN, RED])
    assert told(folder) == []


def discs(*values: int) -> np.ndarray:
    """A label map of 96x128 with a disc of each value on 0, for edges in all directions."""
    row, column = np.mgrid[:96, :128]
    label = np.zeros((96, 128), np.uint8)
    for index, value in enumerate(values):
        label[(row - 48) ** 2 + (column - 20 - 29 * index) ** 2 < 18**2] = value
    return label


def smooth(label: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(label).resize((160, 120), Image.BILINEAR).resize((128, 96), Image.BILINEAR))


def as_jpeg(label: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(label).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("blend", [smooth, as_jpeg])
@pytest.mark.parametrize(
    ("values", "classes", "binary"),
    [
        ((255, 255), ["ground", "cat"], True),
        ((255, 255), None, True),
        ((60, 120, 180), ["ground", "cat"], False),
        ((20, 40, 60), None, False),
    ],
)
def test_blended_edges_are_no_classes(tmp_path, blend, values, classes, binary):
    for split in ("train", "val"):
        save(tmp_path / f"images/{split}/a.png", np.zeros((96, 128, 3)))
        save(tmp_path / f"labels/{split}/a.png", blend(discs(*values)))
    if classes:
        write_classes(tmp_path, classes=classes)
    lines = told(tmp_path)
    assert len(lines) == (2 if classes else 1)
    for line in lines:
        assert (
            line.startswith("error: labels/") and "the edges were blended, by anti-aliasing, resizing or JPEG" in line
        )
        assert ("write the object as 1" in line) == binary


def test_a_value_outside_of_the_classes_on_single_pixels_comes_from_blended_edges(folder):
    """So few are left where JPEG has changed masks of few classes."""
    label = LABEL.copy()
    label[::5, 10] = 3
    save(folder / "labels/train/train_0.png", label)
    assert only(folder).startswith(
        "error: labels/train/train_0.png: label values 3 outside of the 3 classes (0..2); the e"
    )


@pytest.mark.parametrize("blend", [smooth, as_jpeg])
def test_blended_edges_among_the_classes_are_told(tmp_path, blend):
    write_classes(tmp_path, classes=[f"c{k}" for k in range(9)])
    for split in ("train", "val"):
        save(tmp_path / f"images/{split}/a.png", np.zeros((96, 128, 3)))
        save(tmp_path / f"labels/{split}/a.png", discs(2, 5, 8))
    assert [line.split("; ")[0] for line in told(tmp_path)] == [
        "warning: labels/: no pixel of c1, c3, c4 and 2 more in any label map"
    ]
    for split in ("train", "val"):
        save(tmp_path / f"labels/{split}/a.png", np.minimum(blend(discs(2, 5, 8)), 8))
    (line,) = [line for line in told(tmp_path) if "no pixel of" not in line]
    assert (
        line.startswith("warning: labels/: at ")
        and "% of the edges between two label values lies a third value" in line
    )


def test_gaps_and_thin_classes_are_no_blended_edges(tmp_path):
    """Polygons leave gaps of background between them, and a pole stands in front of two classes."""
    write_classes(tmp_path, classes=[f"c{k}" for k in range(9)])
    label = np.repeat(np.tile(np.arange(1, 9, dtype=np.uint8), 2), 8)[None].repeat(96, axis=0).copy()
    label[:, 7::8] = 0
    label[:, 3::16] = 8
    for split in ("train", "val"):
        save(tmp_path / f"images/{split}/a.png", np.zeros((*label.shape, 3)))
        save(tmp_path / f"labels/{split}/a.png", label)
    assert told(tmp_path) == []


def test_names_in_other_forms_belong_together(folder):
    for image, label in (("K\u00f6ln", "Ko\u0308ln"), ("IMG_1", "img_1")):
        save(folder / f"images/train/{image}.png", IMAGE)
        save(folder / f"labels/train/{label}.png", LABEL)
    inspection = inspect_folder(folder)
    assert inspection.problems == []
    assert inspection.images["train"] == {"images": 6, "labeled": 6}


def test_several_files_of_one_name(folder):
    save(folder / "labels/train/train_0.PNG", LABEL)
    assert only(folder) == (
        "error: labels/train/train_0.PNG: several label maps of one name (train_0.PNG and train_0.png), and an image "
        "can have one only; " + fix("two labels")
    )
    (folder / "labels/train/train_0.PNG").unlink()
    for name in ("K\u00f6ln", "Ko\u0308ln"):
        save(folder / f"images/train/{name}.png", IMAGE)
    assert only(folder).startswith("error: images/train/Ko\u0308ln.png: several images of one name")


def test_names_that_lists_cannot_hold(folder):
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        save(folder / "images/train" / os.fsdecode(name), IMAGE)
    assert only(folder) == (
        "error: 2 files in images/train (caf\\xe9.png, two\\nlines.png): its name is not UTF-8, or has line breaks, "
        "so lists of names cannot hold it; " + fix("name")
    )
    assert len(FolderDataset(folder).image_names("train")) == 4
    other = folder.rename(folder.with_name(os.fsdecode(b"caf\xe9")))
    assert only(other).startswith(f"error: {folder.with_name('caf')}\\xe9: its name is not UTF-8")
    with pytest.raises(ValueError, match=r"caf\\xe9: its name is not UTF-8, .*; rename it"):
        FolderDataset(other)


def test_what_is_no_file(folder):
    (folder / "images/train/gone.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "labels/train/pipe.png")
    assert told(folder) == [
        "error: images/train/gone.png: a link to nothing, or no file that can be read; " + fix("no file"),
        "error: labels/train/pipe.png: a link to nothing, or no file that can be read; " + fix("no file"),
    ]


def test_a_folder_with_the_name_of_a_built_in_dataset(folder):
    assert only(folder.rename(folder.with_name("shapes"))).startswith(
        f"warning: {folder.with_name('shapes')}: a folder with the name of the built-in dataset 'shapes'"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_classes_file_in_any_encoding(folder, encoding):
    (folder / "classes.json").write_text('{"classes": ["gro\u00df", "cat", "dog"]}', encoding)
    if encoding == "cp1252":
        assert only(folder).startswith(
            "error: classes.json: is not in UTF-8 (byte 0xdf in line 1) but in another encodi"
        )
    else:
        inspection = inspect_folder(folder)
        assert (inspection.problems, inspection.classes) == ([], ("gro\u00df", "cat", "dog"))


def test_every_kind_of_finding_has_a_test():
    text = Path(__file__).read_text()
    assert [kind for kind in KINDS if f'fix("{kind}")' not in text and f"fix('{kind}')" not in text] == []
