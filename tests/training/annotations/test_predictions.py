"""What `serving.batch` writes for annotation tools, read back: the same class for every pixel."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.batch.command import BatchConfig, main
from tests.serving.images import expected_labels, save_image
from tests.serving.toy_model import CLASSES, write_toy_model
from tests.training.annotations.sources import import_, result_of_import

TOOLS = ("labelme", "coco", "cvat", "label-studio")
NAMED = ("background", 'Licht & "Schatten"', "<müde>", "snow man")


@pytest.fixture
def toy_model(tmp_path):
    return write_toy_model(tmp_path / "models" / "toy", 1)


@pytest.fixture(params=[CLASSES, NAMED], ids=["all classes", "with background"])
def model(request, tmp_path):
    return write_toy_model(tmp_path / "models" / "toy", 1, classes=request.param)


@pytest.fixture
def photos(tmp_path):
    """Images that are easily confused, or easily lost."""
    folder = tmp_path / "my photos"
    save_image(folder / "a.png", 12, 16, seed=1)
    save_image(folder / "b" / "a.png", 12, 16, seed=2)
    save_image(folder / "a.bmp", 10, 4, seed=3)
    save_image(folder / "b" / "c + d & ü#50%.png", 6, 8, seed=4)
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(folder / "turned.jpg", 16, 24, seed=5, exif=exif, quality=100)
    for value in (0, 130):  # the first class only, and one other
        Image.new("RGB", (9, 7), (value, 9, 9)).save(folder / f"of one class {value}.png")
    save_image(folder / "thin.png", 2, 30, seed=6)
    return folder


@pytest.mark.parametrize("flags", [{}, {"polygons": 0.0}], ids=["masks", "polygons"])
@pytest.mark.parametrize("tool", TOOLS)
def test_the_same_class_for_every_pixel(model, photos, capsys, tool, flags):
    out = photos / "predictions"
    done = main(BatchConfig(model=model, input=str(photos), output=out, recursive=True, write=(tool,), **flags))
    assert (done["written"], done["failed"]) == (8, 0)
    classes = json.loads((model / "1" / "model.json").read_text())["classes"]
    result = import_(capsys, photos)
    assert result.result["format"] == tool.replace("-", "_")
    assert (result.status, result.result["skipped"]) == (0, 0), result.lines
    seen = result_of_import(result.out)
    assert len(seen) == 8
    for image, labels_HW in seen.items():
        expected = np.array(classes)[expected_labels(image)]
        np.testing.assert_array_equal(np.array(result.classes)[labels_HW], expected, err_msg=image.name)
    assert not any(result.warned(words) for words in ("left out", "clipped", "reach out"))
    assert result.warned("predictions that nobody has corrected are taken as annotation; --predictions skip leaves")


@pytest.mark.parametrize("tool", TOOLS)
def test_predictions_that_nobody_has_saved_can_be_skipped(tmp_path, toy_model, capsys, tool):
    """Of three images one is saved in the tool: written again in other words, with the same content."""
    photos = tmp_path / "photos"
    for index in range(3):
        save_image(photos / f"{index}.png", seed=index)
    main(BatchConfig(model=toy_model, input=str(photos), output=photos / "out", write=(tool,)))
    assert import_(capsys, photos, "--predictions", "skip", out=tmp_path / "none").status == 2
    saved(photos, tool, "1.png")
    result = import_(capsys, photos, "--predictions", "skip", "--val", "0", out=tmp_path / "skipped")
    assert (result.result["images"]["train"], result.status) == ({"images": 3, "labeled": 1}, 2)  # no val
    assert result.files("labels") == ["train/1.png"]
    assert not result.warned("nobody has corrected")
    result = import_(capsys, photos, "--val", "0", out=tmp_path / "used")
    assert result.result["images"]["train"] == {"images": 3, "labeled": 3}
    assert result.warned("2 files: 0.png, 2.png: predictions that nobody has corrected are taken as annotation")
    [used], [skipped] = tmp_path.glob("used/labels/train/1.png"), tmp_path.glob("skipped/labels/train/1.png")
    assert used.read_bytes() == skipped.read_bytes()


@pytest.mark.parametrize("tool", ["labelme", "coco"])
def test_a_script_may_correct_them_too(tmp_path, toy_model, capsys, tool):
    """What `json.dump` wrote is not taken for the job's own: neither skipped nor written over."""
    photos = tmp_path / "photos"
    save_image(photos / "a.png", seed=1)
    save_image(photos / "b.png", seed=2)
    config = BatchConfig(model=toy_model, input=str(photos), output=photos / "out", write=(tool,))
    main(config)
    path = photos / ("out/labelme/a.json" if tool == "labelme" else "out/coco.json")
    path.write_text(json.dumps(json.loads(path.read_text())))
    before = path.read_bytes()
    if tool == "labelme":
        main(config)
    else:
        with pytest.raises(ValueError, match="no batch job has written it: rename it"):
            main(config)
    assert path.read_bytes() == before
    result = import_(capsys, photos, "--predictions", "skip", "--val", "0")
    assert result.files("labels") == (["train/a.png"] if tool == "labelme" else ["train/a.png", "train/b.png"])


def saved(photos, tool, name):
    """What a person has saved of an image: labelme's file, or an export that has this image only."""
    if tool == "labelme":
        path = photos / "out/labelme" / f"{Path(name).stem}.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    elif tool == "cvat":
        text = (photos / "out/cvat.xml").read_text()
        entry = re.search(rf'<image [^>]*name="{name}".*?</image>', text, re.S)[0]
        (photos / "zz_export.xml").write_text(f"<annotations><version>1.1</version>{entry}</annotations>")
    elif tool == "coco":
        data = json.loads((photos / "out/coco.json").read_text())
        data["images"] = [image for image in data["images"] if image["file_name"] == name]
        wanted = data["images"][0]["id"]
        data["annotations"] = [each for each in data["annotations"] if each["image_id"] == wanted]
        (photos / "zz_export.json").write_text(json.dumps(data | {"info": {}}))
    else:
        [task] = [
            each for each in json.loads((photos / "out/label_studio.json").read_text()) if name in str(each["data"])
        ]
        task["annotations"] = [{"result": task["predictions"][0]["result"]}]
        (photos / "zz_export.json").write_text(json.dumps([task]))


@pytest.mark.parametrize("tool", TOOLS)
def test_simplified_polygons_stay_close_and_leave_no_gap(tmp_path, toy_model, capsys, tool):
    photos = tmp_path / "photos"
    photos.mkdir()
    y, x = np.mgrid[:60, :80]
    for name, turn in (("a", 0.4), ("b", 0.7)):
        waves = np.sin(x / 13 + turn) + np.cos(y / 9 - turn) + 2
        red = np.clip(waves * 64, 0, 255).astype(np.uint8)
        red[30:32, 40:42] = 255 - red[30:32, 40:42]  # a speck
        Image.fromarray(np.stack([red] * 3, axis=-1)).save(photos / f"{name}.png")
    out = photos / "predictions"
    main(BatchConfig(model=toy_model, input=str(photos), output=out, write=(tool,), polygons=1.5))
    result = import_(capsys, photos, "--rest", "ignored")
    for image, labels_HW in result_of_import(result.out).items():
        expected = expected_labels(image)
        assert not (labels_HW == 255).any()
        wrong = np.array(CLASSES)[expected] != np.array(result.classes)[labels_HW]
        assert 0 < wrong.mean() < 0.05
        near = np.zeros_like(wrong)  # within two pixels of another class
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                near |= np.roll(expected, (dy, dx), (0, 1)) != expected
        assert not (wrong & ~near).any()


def test_other_results_of_the_job_are_no_images(tmp_path, toy_model, capsys):
    photos = tmp_path / "photos"
    for name in ("a", "b/a"):
        save_image(photos / f"{name}.png", seed=len(name))
    write = ("labels", "overlay", "confidence", "coco")
    main(BatchConfig(model=toy_model, input=str(photos), output=photos / "out", write=write, recursive=True))
    result = import_(capsys, photos)
    assert result.result["images"] == {
        "train": {"images": 1, "labeled": 1},
        "val": {"images": 1, "labeled": 1},
    }


def test_a_person_corrects_what_was_predicted_in_label_studio(tmp_path, toy_model, capsys):
    """An export has both, and its annotations count; a task that nobody has opened is unlabelled."""
    photos = tmp_path / "photos"
    for index in range(3):
        save_image(photos / f"{index}.png", seed=index)
    main(BatchConfig(model=toy_model, input=str(photos), output=photos / "out", write=("label-studio",)))
    tasks = json.loads((photos / "out" / "label_studio.json").read_text())
    for task in tasks:
        task["annotations"] = []
    for task in tasks[:2]:
        [prediction] = task["predictions"]
        task["annotations"] = [{"was_cancelled": False, "result": prediction["result"][:1]}]
    (photos / "export.json").write_text(json.dumps(tasks))
    (photos / "out" / "label_studio.json").unlink()
    result = import_(capsys, photos, "--rest", "ignored")
    assert not result.warned("nobody has corrected")
    seen = result_of_import(result.out)
    assert len(seen) == 2
    for image, labels_HW in seen.items():
        np.testing.assert_array_equal(labels_HW != 255, expected_labels(image) == 0)


@pytest.mark.parametrize("tool", TOOLS)
def test_classes_keep_their_numbers_where_the_datasets_table_is_given(tmp_path, toy_model, capsys, tool):
    """Though some never occur, and readers sort the others by the alphabet."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, reds in (("a", [0, 130]), ("b", [130, 0, 0])):
        Image.fromarray(np.array([[[red, 0, 0] for red in reds]] * 4, np.uint8)).save(photos / f"{name}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    main(BatchConfig(model=toy_model, input=str(photos), output=photos / "out", write=(tool,)))
    result = import_(capsys, photos, "--classes", str(tmp_path / "classes.json"))
    assert result.classes == list(CLASSES)
    for image, labels_HW in result_of_import(result.out).items():
        np.testing.assert_array_equal(labels_HW, expected_labels(image))
