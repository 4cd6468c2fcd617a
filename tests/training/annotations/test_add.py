"""`training.import_data SOURCE OUT --add`: more label maps and images for a dataset folder."""

import hashlib
import json

import numpy as np
import pytest

from serving.batch.command import BatchConfig, main
from tests.kerasseg.data.folders import save, write_classes
from tests.serving.images import expected_labels, save_image
from tests.serving.toy_model import CLASSES, write_toy_model
from tests.training.annotations.sources import drawn, image, import_, labelme, labelme_json, polygon, rectangle

CAT = polygon("cat", rectangle(2, 3, 7, 9))


def contents(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "contact_sheet.png"
    }


@pytest.fixture
def dataset(tmp_path):
    """Two images for training, of which `old` has a label map, and one for validation."""
    root = tmp_path / "dataset"
    for name in ("train/old", "train/new", "val/val"):
        image(root / f"images/{name}.png")
    for name in ("train/old", "val/val"):
        save(root / f"labels/{name}.png", drawn((1, 0, 0, 4, 4), (2, 4, 4, 9, 9)))
    write_classes(root, classes=["background", "dog", "cat"])
    return root


def test_what_was_corrected_joins_what_there_was(tmp_path, capsys):
    """The loop: predicted, saved in labelme, added; the images stay in the dataset, the job's output is elsewhere."""
    root = tmp_path / "my photos"
    for index, split in enumerate(("train", "train", "train", "val")):
        save_image(root / f"images/{split}/{index}.jpg", seed=index)
    for name in ("train/0", "val/3"):
        save(root / f"labels/{name}.png", np.arange(48).reshape(6, 8) % 4)
    write_classes(root, classes=list(CLASSES))
    model, output = write_toy_model(tmp_path / "models" / "toy", 1), tmp_path / "ranked"
    main(BatchConfig(model=model, input=str(root / "images/train"), output=output, write=("labelme",)))
    path = output / "labelme/1.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    before = contents(root)
    result = import_(capsys, output, "--add", "--predictions", "skip", out=root)
    assert (result.status, result.result["skipped"]) == (0, 0), result.lines
    assert set(contents(root)) - set(before) == {"labels/train/1.png"}
    assert before.items() <= contents(root).items()
    np.testing.assert_array_equal(result.labels("1"), expected_labels(root / "images/train/1.jpg"))
    assert result.result["images"]["train"] == {"images": 3, "labeled": 2}


def test_other_images_are_added_and_those_of_the_same_name_are_not(tmp_path, dataset, capsys):
    source = tmp_path / "source"
    labelme(source, "NEW", CAT)
    labelme(source, "more", CAT)
    image(source / "without.png")
    before = contents(dataset)
    result = import_(capsys, source, "--add", out=dataset)
    assert result.status == 0
    assert set(contents(dataset)) - set(before) == {
        "labels/train/new.png",
        "images/train/more.png",
        "labels/train/more.png",
        "images/train/without.png",
    }
    assert before.items() <= contents(dataset).items()
    for name in ("new", "more"):
        np.testing.assert_array_equal(result.labels(name), drawn((2, 2, 3, 7, 9)))
    assert (dataset / "contact_sheet.png").is_file()
    assert not list(tmp_path.glob(".*"))


def test_what_somebody_marks_as_ignored_is_no_class(tmp_path, dataset, capsys):
    labelme(tmp_path / "source", "new", CAT, polygon("__ignore__", rectangle(3, 4, 5, 6)))
    result = import_(capsys, tmp_path / "source", "--add", out=dataset)
    assert result.status == 0
    np.testing.assert_array_equal(result.labels("new"), drawn((2, 2, 3, 7, 9), (255, 3, 4, 5, 6)))


def test_a_label_map_that_is_there_is_kept(tmp_path, dataset, capsys):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("old", "new"):
        labelme_json(source, name, CAT, imagePath=f"../dataset/images/train/{name}.png")
    before = contents(dataset)
    result = import_(capsys, source, "--add", out=dataset)
    assert result.warned("old: an image that has a label map already, which is kept: remove it, to take the new one")
    assert set(contents(dataset)) - set(before) == {"labels/train/new.png"}
    assert before.items() <= contents(dataset).items()


def test_another_table_of_classes_is_refused(tmp_path, dataset, capsys):
    """Its numbers would be wrong in this dataset."""
    labelme(tmp_path / "source", "new", CAT)
    (tmp_path / "other").mkdir()
    write_classes(tmp_path / "other", classes=["cat"])
    before = contents(dataset)
    result = import_(
        capsys, tmp_path / "source", "--add", "--classes", str(tmp_path / "other/classes.json"), out=dataset
    )
    assert result.status == 2 and "leave out --classes" in result.lines[-1]
    write_classes(dataset, classes=["background", "dog", "cat"], ignore_label=9)
    result = import_(capsys, tmp_path / "source", "--add", out=dataset)
    assert result.status == 2 and "has another ignore_label than 255, which --add writes" in result.lines[-1]
    assert set(contents(dataset)) == set(before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "classes.json").unlink(), "--add needs a dataset folder with classes.json; "),
        (lambda root: write_classes(root, classes=["background", "dog"]), 'the class "cat" is not in the file'),
    ],
)
def test_a_failure_changes_nothing(tmp_path, dataset, capsys, change, said):
    labelme(tmp_path / "source", "new", CAT)
    change(dataset)
    before = contents(dataset)
    result = import_(capsys, tmp_path / "source", "--add", out=dataset)
    assert result.status == 2 and said in result.lines[-1]
    assert contents(dataset) == before
    assert not list(tmp_path.glob(".*"))
