"""The files for annotation tools of whole jobs: shards, failures, killed jobs, and what a person has changed."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from kerasseg.data.rle import coco_counts, decode_runs
from serving.batch.annotations.job_files import TOOLS
from serving.batch.command import BatchConfig, main
from serving.common import cli
from tests.serving.images import expected_labels, manifest, save_image
from tests.serving.toy_model import CLASSES, write_toy_model

ALL = ("labelme", *TOOLS)


@pytest.fixture
def photos(tmp_path):
    for index in range(6):
        save_image(tmp_path / "photos" / f"p{index}.png", 6, 8, seed=index)
    return tmp_path / "photos"


@pytest.fixture
def segment(toy_model, photos, tmp_path):
    """Runs a job over the images; returns its result."""

    def run(*write, model=toy_model, output=tmp_path / "out", **settings):
        return main(BatchConfig(model=model, input=str(photos), output=output, write=write, provider="cpu", **settings))

    return run


def images_in(folder):
    """By tool, the images in its file, in their order."""
    with (folder / "coco.json").open() as file:
        coco = json.load(file)
    tasks = json.loads((folder / "label_studio.json").read_text())
    return {
        "coco": [image["file_name"] for image in coco["images"]],
        "cvat": [image.get("name") for image in ElementTree.parse(folder / "cvat.xml").getroot().iter("image")],
        "label-studio": [task["data"]["image"].rpartition("/")[2] for task in tasks],
    }


def labels_in(folder):
    """By image, the label map that coco.json has."""
    content = json.loads((folder / "coco.json").read_text())
    found = {}
    for image in content["images"]:
        found[image["file_name"]] = labels_HW = np.full((image["height"], image["width"]), 255)
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                counts = coco_counts(annotation["segmentation"]["counts"])
                labels_HW[decode_runs(counts, *labels_HW.shape, "F")] = annotation["category_id"]
    return found


def test_one_file_for_all_images_in_the_order_of_their_names(segment, tmp_path):
    result = segment(*ALL)
    out = tmp_path / "out"
    names = ["coco.json", "cvat.xml", "cvat_labels.json", "label_studio.json", "label_studio_config.xml"]
    assert result["annotations"] == [str(out / name) for name in names]
    assert images_in(out) == dict.fromkeys(TOOLS, [f"p{index}.png" for index in range(6)])
    assert sorted(path.name for path in (out / "labelme").iterdir()) == [f"p{index}.json" for index in range(6)]
    assert [label["name"] for label in json.loads((out / "cvat_labels.json").read_text())] == list(CLASSES)


def test_a_configuration_that_somebody_has_changed_is_kept(segment, tmp_path, capsys):
    segment("label-studio", "cvat")
    for name in ("label_studio_config.xml", "cvat_labels.json"):
        (tmp_path / "out" / name).write_text("mine")
        capsys.readouterr()
        segment("label-studio", "cvat")
        assert (tmp_path / "out" / name).read_text() == "mine"
        assert f"{name} is kept as it is: remove it to get that of this model" in capsys.readouterr().err


def test_what_is_not_as_it_was_is_done_again_and_the_files_follow(segment, photos, tmp_path):
    segment(*ALL)
    assert segment(*ALL)["written"] == 0
    save_image(photos / "p1.png", 10, 8, seed=9)
    (photos / "p4.png").unlink()
    (photos / "p5.png").write_bytes(b"broken")
    result = segment(*ALL)
    assert (result["written"], result["failed"], result["exit_status"]) == (1, 1, 1)
    found = labels_in(tmp_path / "out")
    assert list(found) == ["p0.png", "p1.png", "p2.png", "p3.png"]
    for name, labels_HW in found.items():
        np.testing.assert_array_equal(labels_HW, expected_labels(photos / name))
    (tmp_path / "out" / "coco.json").unlink()
    assert segment("coco")["written"] == 0
    assert len(labels_in(tmp_path / "out")) == 4
    (tmp_path / "out" / "pieces-coco.jsonl").unlink()
    assert segment("coco")["written"] == 4
    assert segment("coco", polygons=1.0)["written"] == 4
    assert segment("coco", polygons=1.0)["written"] == 0
    assert segment("coco", polygons=2.0)["written"] == 4


def test_the_last_shard_writes_the_file(segment, tmp_path, capsys):
    first = segment(*ALL, shard="1/2")
    assert 0 < first["images"] < 6 and "annotations" not in first
    assert f"coco.json is written when all shards are done: {6 - first['images']} images are left" in (
        capsys.readouterr().err
    )
    assert not list((tmp_path / "out").glob("*.xml")) and not (tmp_path / "out" / "coco.json").exists()
    assert len(segment(*ALL, shard="2/2")["annotations"]) == 5
    assert images_in(tmp_path / "out") == dict.fromkeys(TOOLS, [f"p{index}.png" for index in range(6)])
    # A job for all of it finds the pieces of the shards.
    (tmp_path / "out" / "coco.json").unlink()
    assert segment(*ALL)["written"] == 0
    assert len(labels_in(tmp_path / "out")) == 6


def test_images_of_another_model_are_not_mixed_in(segment, tmp_path, capsys):
    other = write_toy_model(tmp_path / "models" / "other", 1, maps=("confidence", "reliability"))
    segment("coco")
    before = (tmp_path / "out" / "coco.json").read_bytes()
    assert "annotations" not in segment("coco", model=other, shard="1/2")
    assert "images are left" in capsys.readouterr().err
    assert (tmp_path / "out" / "coco.json").read_bytes() == before
    assert "annotations" in segment("coco", model=other, shard="2/2")


def test_killed_while_the_file_is_written(segment, toy_model, photos, tmp_path):
    """There is the whole file or none, and no job leaves its half-written one for long."""
    out = tmp_path / "out"
    code = (
        "import os, signal; from serving.batch import command; from serving.common import cli\n"
        "from serving.batch.annotations import coco\n"
        "old = coco.assemble\n"
        "def assemble(*given):\n"
        "    for number, text in enumerate(old(*given)):\n"
        "        yield text * 10_000\n"
        "        if number == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "coco.assemble = assemble\n"
        "cli.run(command.main, command.BatchConfig, '')\n"
    )
    arguments = [str(toy_model), str(photos), str(out), "--provider", "cpu", "--write", "coco"]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "coco.json").exists() and len(list(out.glob(".coco.json.*.tmp"))) == 1
    result = segment("coco")
    assert (result["written"], result["skipped"]) == (0, 6)
    assert len(labels_in(out)) == 6 and not list(out.glob(".*.tmp"))


def test_a_labelme_file_that_a_person_saved_is_never_written_over(segment, photos, tmp_path):
    segment("labelme")
    path = tmp_path / "out" / "labelme" / "p2.json"
    corrected = json.dumps(json.loads(path.read_text()) | {"shapes": []}, indent=2)
    path.write_text(corrected)
    assert segment("labelme")["written"] == 0
    other = write_toy_model(tmp_path / "models" / "other", 1, maps=("confidence", "reliability"))
    assert segment("labelme", model=other)["written"] == 6
    assert path.read_text() == corrected
    assert manifest(tmp_path / "out")["p2.png"]["status"] == "ok"
    path.write_text("")  # half a copy, say
    os.utime(path, (0, 0))
    segment("labelme")
    assert path.read_text() == ""
    path.unlink()
    segment("labelme")
    assert json.loads(path.read_text())["shapes"]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_that_no_job_has_written_is_refused(segment, tmp_path, tool):
    out, file = tmp_path / "out", TOOLS[tool].FILE
    out.mkdir()
    (out / file).write_text("[]")
    with pytest.raises(ValueError, match=f"{file} cannot be read, or no batch job has written it: rename it"):
        segment(tool)
    assert [path.name for path in out.iterdir()] == [file]
    (out / file).unlink()
    segment(tool)
    segment(tool)


def test_an_image_that_cannot_be_written_fails_alone(segment, tmp_path, monkeypatch):
    piece = TOOLS["coco"].piece

    def out_of_memory(image):
        if image.name == "p3.png":
            raise MemoryError
        return piece(image)

    monkeypatch.setattr(TOOLS["coco"], "piece", out_of_memory)
    result = segment("coco")
    assert (result["written"], result["failed"]) == (5, 1)
    assert len(labels_in(tmp_path / "out")) == 5


def test_nothing_that_could_be_segmented_is_no_file(segment, photos, tmp_path):
    for path in photos.iterdir():
        path.write_bytes(b"broken")
    assert "annotations" not in segment(*ALL)
    assert not (tmp_path / "out" / "coco.json").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--polygons", "1"], "--polygons is for annotation tools: add --write labelme, coco, cvat or label-studio"),
        (["--write", "coco", "--polygons", "-1"], "--polygons is a number of pixels, 0 or more, got -1.0"),
        (["--write", "coco", "--polygons", "nan"], "--polygons is a number of pixels, 0 or more, got nan"),
        (["--write"], "--write names nothing to write: add one of labels, overlay"),
    ],
)
def test_mistakes_are_one_line(toy_model, photos, tmp_path, capsys, args, said):
    with pytest.raises(SystemExit) as end:
        cli.run(main, BatchConfig, "", [str(toy_model), str(photos), str(tmp_path / "out"), *args])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {said}")
    assert not (tmp_path / "out").exists()


def test_polygons_are_written_for_all_tools(segment, photos, tmp_path):
    Image.new("RGB", (8, 6), (70, 0, 0)).save(photos / "plain.png")
    segment(*ALL, polygons=1.0)
    out = tmp_path / "out"
    assert images_in(out) == dict.fromkeys(TOOLS, [*(f"p{index}.png" for index in range(6)), "plain.png"])
    [shape] = json.loads((out / "labelme" / "plain.json").read_text())["shapes"]
    assert (shape["label"], sorted(shape["points"])) == ("dim", [[0, 0], [0, 6], [8, 0], [8, 6]])
    assert "<PolygonLabels" in (out / "label_studio_config.xml").read_text()
    assert "<polygon" in (out / "cvat.xml").read_text() and "<mask" not in (out / "cvat.xml").read_text()
