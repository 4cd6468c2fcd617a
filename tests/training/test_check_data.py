import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from serving.common import cli
from tests.kerasseg.data import archives
from tests.kerasseg.data.folders import make_folder, save
from training.check_data import CheckDataConfig, main


def check(capsys, *args: str) -> tuple[int, dict, list[str]]:
    """Exit status, the JSON of the last line of stdout, the lines of stderr."""
    with pytest.raises(SystemExit) as end:
        cli.run(main, CheckDataConfig, "", args=list(args))
    output = capsys.readouterr()
    result = json.loads(output.out.splitlines()[-1]) if output.out else {}
    return end.value.code, result, output.err.splitlines()


def test_a_sound_folder(tmp_path, capsys):
    status, result, lines = check(capsys, str(make_folder(tmp_path)))
    assert (status, lines) == (0, [])
    assert result == {
        "errors": 0,
        "warnings": 0,
        "images": {"train": {"images": 4, "labeled": 4}, "val": {"images": 2, "labeled": 2}},
        "classes": {"ground": 0.34375, "cat": 0.34375, "dog": 0.3125},
        "ignored": 0.0,
        "working_size": 32,
    }


def test_problems_end_with_one_error_line_and_status_2(tmp_path, capsys):
    make_folder(tmp_path)
    save(tmp_path / "labels/train/train_0.png", [[[0, 0, 0]] * 32] * 24)
    save(tmp_path / "labels/train/train_9.png", [[0]])
    save(tmp_path / "images/train/a.tga", [[[0, 0, 0]]])
    status, result, lines = check(capsys, str(tmp_path))
    assert status == 2
    assert (result["errors"], result["warnings"]) == (2, 1)
    assert [line.split(":")[:2] for line in lines[:-1]] == [
        ["error", " labels/train/train_0.png"],
        ["error", " labels/train/train_9.png"],
        ["warning", " images/train/a.tga"],
    ]
    assert lines[-1] == f"error: 2 problems in {tmp_path}"


@pytest.mark.parametrize("file", ["images/train/a.json", "annotations.xml", "labels/train/train_0.txt"])
def test_a_folder_of_an_annotation_tool_is_named_with_the_command(tmp_path, capsys, file):
    save(tmp_path / "images/train/train_0.png", [[[0, 0, 0]]])
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("text")
    status, _, lines = check(capsys, str(tmp_path))
    assert status == 2
    assert any(f"`kerasseg import {tmp_path} NEW_FOLDER`" in line for line in lines)


def test_colours_in_label_maps_name_the_command(tmp_path, capsys):
    make_folder(tmp_path)
    save(tmp_path / "labels/train/train_0.png", [[[9, 0, 0]] * 32] * 24)
    _, _, lines = check(capsys, str(tmp_path))
    assert "`kerasseg import FOLDER NEW_FOLDER`" in lines[0]


def test_warnings_alone_are_no_failure(tmp_path, capsys):
    make_folder(tmp_path)
    save(tmp_path / "images/train/a.tga", [[[0, 0, 0]]])
    status, result, lines = check(capsys, str(tmp_path))
    assert (status, result["errors"], result["warnings"], len(lines)) == (0, 0, 1, 1)


def test_a_split_is_checked_too(tmp_path, capsys):
    make_folder(tmp_path, train=8)
    for index in range(7):
        save(tmp_path / f"labels/train/train_{index}.png", [[0] * 32] * 24)
    names = tmp_path / "names.txt"
    names.write_text("train_0\ntrain_1\n")
    status, result, lines = check(capsys, str(tmp_path), "--labeled", str(names))
    assert status == 0
    assert lines == [
        "warning: the 2 labelled images: no pixel of cat, dog to learn from; "
        "`--labeled 2 --cover` looks for images that show it",
        "warning: the 2 labelled images: there are more classes (3) than labelled images; "
        "label more, or spread the classes over them with --cover",
    ]
    status, _, lines = check(capsys, str(tmp_path), "--labeled", "2", "--cover")
    assert (status, [line.split(": ")[2] for line in lines]) == (
        0,
        ["there are more classes (3) than labelled images; label more"],
    )
    status, _, lines = check(capsys, str(tmp_path), "--labeled", str(names), "--cover")
    assert status == 2
    assert lines[-1].startswith("error: --cover chooses the labelled images, and --labeled ")
    status, _, lines = check(capsys, str(tmp_path), "--labeled", "0")
    assert status == 2
    assert lines[-1].startswith("error: --labeled 0 means 0 of the 8 labelled train images")


def test_warnings_of_the_library_that_reads_images_are_not_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)  # above it Pillow warns of a bomb
    status, _, lines = check(capsys, str(make_folder(tmp_path)))
    assert (status, lines) == (0, [])


def test_a_folder_with_the_name_of_a_built_in_dataset(tmp_path, capsys, monkeypatch):
    make_folder(tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    status, result, lines = check(capsys, "./shapes")
    assert (status, result["images"]["train"]["images"], len(lines)) == (0, 4, 1)
    assert lines[0].startswith("warning: shapes: a folder with the name of the built-in dataset 'shapes'")


def test_cover_wants_to_know_how_many(tmp_path):
    make_folder(tmp_path / "pets")
    with pytest.raises(ValueError, match="give --labeled too"):
        main(CheckDataConfig(tmp_path / "pets", cover=True))


def test_from_the_shell(tmp_path):
    """Without a folder, as the user types it."""
    command = [sys.executable, "-m", "training.check_data", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 2
    assert json.loads(done.stdout.splitlines()[-1])["errors"] == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"error: {tmp_path}/nowhere: expected a dataset folder, found nothing; check the path",
        f"error: 1 problem in {tmp_path}/nowhere",
    ]


def test_a_known_dataset(tfds_directories, capsys):
    archives.voc2012(tfds_directories[0])
    status, result, lines = check(capsys, "voc2012", "--labeled", "1")
    assert (status, result["errors"], result["warnings"]) == (0, 0, 1)
    assert "there are more classes (21) than labelled images" in lines[-1]
    assert result["images"] == {s: {"images": n, "labeled": n} for s, n in archives.VOC2012_COUNTS.items()}
    train = [archives.voc_label(n) for n in archives.VOC_TRAIN] + [
        archives.sbd_label(f"2008_00000{n}") for n in (2, 3, 7)
    ]
    labels = np.array(train + [archives.voc_label(n) for n in archives.VOC_VAL])
    assert result["classes"]["tvmonitor"] == round((labels == 20).sum() / (labels < 255).sum(), 5)
    assert result["ignored"] == round((labels == 255).mean(), 5)
    assert lines[0].startswith("preparing voc2012 in ")
