"""What holds for every format: the folder that is written, what is left out, and failures that leave nothing."""

import hashlib
import json
import os
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from kerasseg.data.folder import FolderDataset
from tests.kerasseg.data.folders import save
from tests.training.annotations.sources import (
    coco,
    drawn,
    flat,
    image,
    import_,
    labelme,
    labelme_json,
    polygon,
    rectangle,
)
from training.annotations.formats import FORMATS
from training.import_data import Format

CAT = polygon("cat", rectangle(2, 3, 7, 9))


@pytest.fixture
def source(tmp_path):
    for name in ("one", "two", "three"):
        labelme(tmp_path / "source", name, CAT)
    return tmp_path / "source"


def contents(folder) -> dict[str, str]:
    return {str(path): hashlib.md5(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_a_sound_import(source, capsys):
    before = contents(source)
    result = import_(capsys, source)
    assert contents(source) == before
    assert result.result == {
        "format": "labelme",
        "images": {"train": {"images": 2, "labeled": 2}, "val": {"images": 1, "labeled": 1}},
        "classes": ["background", "cat"],
        "pixels": {"background": 3 * (192 - 30), "cat": 90},
        "skipped": 0,
        "errors": 0,
        "warnings": 0,
    }
    assert [line.split() for line in result.lines[-4:-1]] == [
        ["class", "name", "pixels", "images"],
        ["0", "background", "486", "3"],
        ["1", "cat", "90", "3"],
    ]
    assert result.lines[-1].endswith(
        "train 2 (2 labelled), val 1 (1 labelled); look at " + str(result.out / "contact_sheet.png")
    )
    assert FolderDataset(result.out).classes == ("background", "cat")
    assert sorted(path.name for path in result.out.iterdir()) == [
        "classes.json",
        "contact_sheet.png",
        "images",
        "labels",
    ]
    assert not list(source.parent.glob(".*"))


def test_the_contact_sheet_shows_the_overlay_and_the_classes(source, capsys):
    result = import_(capsys, source)
    sheet = np.asarray(Image.open(result.out / "contact_sheet.png"))
    palette = json.loads((result.out / "classes.json").read_text())["palette"]
    half = np.array(palette[1]) // 2  # the images are black
    assert (sheet == half).all(axis=-1).sum() == 3 * 30
    assert (sheet == palette[1]).all(axis=-1).sum() > 100


def test_an_upright_image_keeps_its_tag_and_its_label_map_is_upright(source, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(source / "turned.jpg", np.zeros((16, 12, 3)), exif=exif)  # 16x12 as it is stored, 12x16 upright
    labelme_json(source, "turned", CAT, imagePath="turned.jpg", imageHeight=12, imageWidth=16)
    save(source / "stored.jpg", np.zeros((16, 12, 3)), exif=exif)
    labelme_json(source, "stored", CAT, imagePath="stored.jpg", imageHeight=16, imageWidth=12)
    result = import_(capsys, source)
    np.testing.assert_array_equal(result.labels("turned"), drawn((1, 2, 3, 7, 9)))
    np.testing.assert_array_equal(result.labels("stored"), drawn((1, 2, 3, 7, 9), size=(16, 12)))
    (path,) = result.out.glob("images/*/turned.jpg")
    with Image.open(path) as written:
        assert written.getexif()[0x0112] == 6
    dataset = FolderDataset(result.out)
    for name in ("turned", "stored"):
        split = next(s for s in dataset.splits if name in dataset.image_names(s))
        assert dataset.load_image(split, name).shape[:2] == dataset.load_label(split, name).shape


def test_background_of_the_tool_comes_first_in_any_letter_case(source, capsys):
    labelme(source, "more", polygon("ant", rectangle(0, 0, 2, 2)), polygon("Background", rectangle(4, 4, 6, 6)))
    result = import_(capsys, source)
    assert result.classes == ["Background", "ant", "cat"]
    np.testing.assert_array_equal(result.labels("more"), drawn((1, 0, 0, 2, 2)))


@pytest.mark.parametrize("link", ["copy", "hard", "symbolic"])
def test_links(source, capsys, link):
    result = import_(capsys, source, "--link", link)
    (path,) = result.out.glob("images/*/one.png")
    assert path.is_symlink() == (link == "symbolic")
    assert path.samefile(source / "one.png") == (link != "copy")
    assert FolderDataset(result.out).splits == ("train", "val")


def test_names_with_spaces_and_letters_of_all_kinds_and_equal_ones(source, capsys):
    labelme(source, "Straße 1", CAT)
    for folder in ("a", "b"):
        labelme(source / folder, "same", CAT)
    result = import_(capsys, source)
    assert sorted(file.partition("/")[2] for file in result.files()) == sorted(
        ["one.png", "two.png", "three.png", "Straße 1.png", "a-same.png", "b-same.png"]
    )


def test_images_without_annotation_are_unlabelled(source, capsys):
    image(source / "bare.png")
    result = import_(capsys, source)
    assert "train/bare.png" in result.files()
    assert sum(counts["labeled"] for counts in result.result["images"].values()) == 3


def test_masks_that_a_tool_wrote_in_addition_are_no_images(source, capsys):
    image(source / "masks/one.png")
    image(source / "SegmentationObject/one.png")
    assert len(import_(capsys, source).files()) == 3


def test_names_that_are_not_utf8_are_named(source, capsys):
    os.rename(source / "one.png", os.fsencode(source) + b"/\xe9.png")
    result = import_(capsys, source)
    assert result.warned("\\xe9.png: names that are not UTF-8")
    assert len(result.files()) == 2


def test_a_link_to_a_folder_above_ends(source, capsys):
    (source / "again").symlink_to(source)
    assert len(import_(capsys, source).files()) == 3


def test_every_format_is_a_choice():
    assert list(get_args(Format)) == ["auto", *FORMATS]


def test_images_that_cannot_be_read_are_named_together(source, capsys):
    for name in ("x", "y"):
        labelme(source, name, CAT)
        (source / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    result = import_(capsys, source)
    assert (result.status, result.result["skipped"]) == (0, 2)
    assert result.warned("2 files: x.png, y.png: cannot be read as an image")
    assert result.warned("left out: copy the file again")


def test_what_makes_an_import_impossible_leaves_nothing(source, capsys, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "empty").mkdir()
    labelme(tmp_path / "lines", "a", polygon("wire", [[1, 1], [5, 5]], "line"))
    labelme_json(tmp_path / "bare", "a", CAT)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"no image")
    labelme_json(tmp_path / "broken", "a", CAT)
    for given, out, words in (
        (source, "there", "exists: choose another OUT"),
        (source, "source/new", "choose an OUT outside of it"),
        (tmp_path / "nowhere", "new", "nothing found at"),
        (tmp_path / "empty", "new", "no annotations recognised"),
        (tmp_path / "lines", "new", "belongs to an image: a.json: shapes of the kind line"),
        (tmp_path / "bare", "new", "no images in"),
        (tmp_path / "broken", "new", "can be used: a.png: "),
    ):
        result = import_(capsys, given, out=tmp_path / out)
        assert (result.status, result.result) == (2, {}), words
        assert words in result.lines[-1]
        assert result.lines[-1].startswith("error: ")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_failure_while_writing_leaves_nothing(source, capsys, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "labels")

    monkeypatch.setattr("training.annotations.writing.shutil.copyfile", full)
    result = import_(capsys, source)
    assert (result.status, "make room on the disk" in result.lines[-1]) == (2, True)
    assert sorted(path.name for path in source.parent.iterdir()) == ["source"]


@pytest.mark.parametrize(
    "flags",
    [("--val", "1"), ("--val", "-0.1"), ("--val", "nan"), ("--val", "0.6", "--test", "0.5"), ("--rest", "void")],
)
def test_wrong_flags(source, capsys, flags):
    result = import_(capsys, source, *flags)
    assert result.status == 2
    assert flags[0].strip("-") in result.lines[-1]


def test_without_validation_the_folder_is_written_and_the_status_says_so(source, capsys):
    result = import_(capsys, source, "--val", "0")
    assert (result.status, result.result["errors"]) == (2, 1)
    assert len(result.files()) == 3
    assert "is written, but has 1 problem" in result.lines[-1]


# The command, which ends with the most memory that it held, KiB. What the system says of a child counts its parent too.
WITH_PEAK = """
import atexit, runpy, sys
peak = lambda: [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
atexit.register(lambda: print(peak(), file=sys.stderr))
runpy.run_module("training.import_data", run_name="__main__")
"""


@pytest.mark.slow
def test_many_annotations_take_no_more_memory_than_one_image(tmp_path):
    """20,000 masks of 512x512 pixels would be 5.2 GB."""
    source, images, annotations = tmp_path / "source", 40, []
    for n in range(images):
        image(source / f"{n}.png", (512, 512))
    for n in range(20_000):
        corner = n // images % 200
        annotations.append(
            {"image_id": n % images, "category_id": 1, "segmentation": [flat(corner, corner, corner + 20, corner + 20)]}
        )
    path = coco(source / "x.json", [(n, f"{n}.png") for n in range(images)], annotations, {1: "cat"})
    path.write_text(path.read_text().replace('"height": 12, "width": 16', '"height": 512, "width": 512'))
    command = [sys.executable, "-c", WITH_PEAK, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.splitlines()[-1]) < 2.5 * 2**20  # KiB, most of it TensorFlow's
    assert json.loads(done.stdout.splitlines()[-1])["images"]["train"]["labeled"] == 32


def test_classes_of_a_dataset_keep_their_numbers(source, tmp_path, capsys):
    table = {"classes": ["Background", "dog", "cat", "void"], "palette": [[0, 0, 0], [9, 9, 9], [1, 2, 3], [7, 7, 7]]}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    labelme(source, "more", polygon("__background__", rectangle(0, 0, 2, 2)), polygon("Void", rectangle(4, 4, 6, 6)))
    result = import_(capsys, source, "--classes", str(tmp_path / "classes.json"))
    assert result.status == 0
    assert json.loads((result.out / "classes.json").read_text()) == table
    np.testing.assert_array_equal(result.labels("one"), drawn((2, 2, 3, 7, 9)))
    np.testing.assert_array_equal(result.labels("more"), drawn((3, 4, 4, 6, 6)))


def test_without_a_background_in_the_dataset_the_rest_is_ignored(source, tmp_path, capsys):
    (tmp_path / "classes.json").write_text('{"classes": ["road", "cat"]}')
    result = import_(capsys, source, "--classes", str(tmp_path / "classes.json"))
    assert result.classes == ["road", "cat"]
    np.testing.assert_array_equal(result.labels("one"), drawn((1, 2, 3, 7, 9), rest=255))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "classes.json is not there: name a dataset folder's classes.json"),
        ('{"classes": ["dog"]}', 'the class "cat" is not in the file of --classes: add it there, or rename it'),
        ("[]", 'expected an object {"classes": [...]}'),
        ('{"classes": ["cat", "Cat"]}', "two names that differ in letter case only"),
    ],
)
def test_mistakes_about_the_classes_of_a_dataset(source, tmp_path, capsys, content, said):
    if content:
        (tmp_path / "classes.json").write_text(content)
    result = import_(capsys, source, "--classes", str(tmp_path / "classes.json"))
    assert result.status == 2 and said in result.lines[-1]
    assert not result.out.exists()
