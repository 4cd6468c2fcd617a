"""`python -m serving.batch`, by its command line, with a model whose answers are known."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from serving.batch import command, pipeline
from serving.batch.command import BatchConfig
from serving.common import cli
from serving.common.areas import coco_rle
from serving.common.artifact import open_artifact
from serving.common.images import MAX_PIXELS
from serving.model.engine import Engine
from tests.serving.images import expected_labels, labels_at, manifest, save_image
from tests.serving.toy_model import CLASSES, write_toy_model


@pytest.fixture(autouse=True)
def pillows_limit(monkeypatch):
    """A batch job has its own in its place."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture
def segment(toy_model, capsys):
    """Runs the command; returns exit status, last line of stdout, stderr."""

    def run(*args, model=toy_model):
        provider = [] if "--provider" in args else ["--provider", "cpu"]
        with pytest.raises(SystemExit) as exit:
            cli.run(command.main, BatchConfig, "", [str(model), *map(str, args), *provider])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        return exit.value.code, json.loads(lines[-1]) if lines else None, captured.err

    return run


def test_a_folder_of_all_kinds(segment, toy_model, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    for index, (height, width) in enumerate([(6, 8), (10, 4), (6, 8), (6, 8), (12, 14), (10, 4), (6, 8)]):
        save_image(photos / f"p{index}.jpg", height, width, seed=index, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(photos / "rotated.JPG", 6, 8, seed=20, format="JPEG", exif=exif)
    Image.fromarray(np.full((6, 8), 130, np.uint8)).save(photos / "grey.png")
    Image.fromarray(np.full((6, 8, 4), (200, 51, 0, 9), np.uint8)).save(photos / "rgba.png")
    save_image(photos / "same.jpg", seed=30)
    save_image(photos / "same.png", seed=31)
    whole = (photos / "p0.jpg").read_bytes()
    (photos / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "notes.txt").write_text("no image")
    (photos / "._p0.jpg").write_bytes(b"what macOS leaves on foreign disks")
    save_image(photos / "deeper" / "p0.jpg")

    status, result, stderr = segment(photos, output)

    assert status == 1
    assert result.items() >= {"images": 13, "written": 12, "skipped": 0, "failed": 1, "provider": "cpu"}.items()
    assert "broken.jpg" in stderr
    records = manifest(output)
    assert list(records) == sorted(records)
    assert len(records) == 13
    for name, record in records.items():
        assert record["model_sha256"] == open_artifact(toy_model).info.sha256
        if name == "broken.jpg":
            assert record["status"] == "error"
            assert "broken.jpg cannot be read" in record["error"]
            continue
        expected = expected_labels(photos / name)
        np.testing.assert_array_equal(labels_at(output / record["outputs"]["labels"]), expected)
        with Image.open(output / record["outputs"]["overlay"]) as tinted:
            assert (tinted.height, tinted.width) == expected.shape == (record["height"], record["width"])
        shares = {CLASSES[label]: np.mean(expected == label) for label in np.unique(expected)}
        assert record["classes"] == pytest.approx(shares, abs=1e-5)
        assert (record["status"], record["provider"], record["model"]) == ("ok", "cpu", "toy/1")
        assert record["seconds"] > 0
    assert (records["rotated.JPG"]["height"], records["rotated.JPG"]["width"]) == (8, 6)
    assert records["rgba.png"]["mean_confidence"] == pytest.approx(51 / 255)
    assert records["rgba.png"]["outputs"] == {"labels": "labels/rgba.png", "overlay": "overlays/rgba.jpg"}
    assert records["same.jpg"]["outputs"]["labels"] == "labels/same.jpg.png"
    assert records["same.png"]["outputs"]["labels"] == "labels/same.png.png"
    assert not list(output.rglob("*.tmp"))


def test_overlay_is_the_image_tinted(segment, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32), (200, 100, 40)).save(tmp_path / "photos" / "a.png")
    segment(tmp_path / "photos", tmp_path / "out")
    with Image.open(tmp_path / "out" / "overlays" / "a.jpg") as tinted:
        np.testing.assert_allclose(np.asarray(tinted), np.full((32, 32, 3), (100, 50, 84)), atol=3)


def test_second_run_does_only_what_changed(segment, toy_model, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    for index in range(4):
        save_image(photos / f"p{index}.png", seed=index)

    def counts(*args):
        status, result, _ = segment(photos, output, *args)
        assert status == 0
        return result["written"], result["skipped"]

    assert counts("--write", "labels") == (4, 0)
    assert not (output / "overlays").exists()
    assert counts("--write", "labels") == (0, 4)
    assert counts() == (4, 0)  # now with overlays
    assert counts() == (0, 4)
    save_image(photos / "p1.png", seed=99)
    (output / "labels" / "p2.png").unlink()
    assert counts() == (2, 2)
    np.testing.assert_array_equal(labels_at(output / "labels" / "p1.png"), expected_labels(photos / "p1.png"))
    with (output / "manifest.jsonl").open("a") as file:  # a killed job's last words
        file.write('{"input": "p3.png", "status": "o')
    assert counts() == (0, 4)
    assert len((output / "manifest.jsonl").read_text().splitlines()) == 4
    assert counts("--write", "labels") == (0, 4)  # less than is there
    (output / "labels" / "p0.png").write_bytes((output / "labels" / "p3.png").read_bytes())
    assert counts() == (1, 3)
    info = json.loads((toy_model / "1" / "model.json").read_text())
    info["palette"][0] = [1, 2, 3]
    (toy_model / "1" / "model.json").write_text(json.dumps(info))
    assert counts("--write", "overlay") == (4, 0)


@pytest.mark.parametrize("folder", ["labels", "overlays", "confidence", "reliability"])
def test_what_no_job_has_written_is_left_alone(segment, tmp_path, folder):
    """A dataset keeps its label maps where a job would write its own."""
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / folder).mkdir()
    status, _, stderr = segment(tmp_path / "images", tmp_path)
    assert status == 2 and "no batch job has made it: choose another OUTPUT" in stderr
    assert {path.name for path in tmp_path.iterdir()} == {"images", "models", folder}
    assert not list((tmp_path / folder).iterdir())


def test_names_that_two_jobs_share_are_no_reason_to_skip(segment, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    for seed, name in enumerate(["a.png", "a.bmp"]):
        save_image(photos / name, seed=seed)
    for pattern in ("*.png", "*.bmp", "*.png"):
        assert segment(photos / pattern, output, "--write", "labels")[1]["written"] == 1
    np.testing.assert_array_equal(labels_at(output / "labels" / "a.png"), expected_labels(photos / "a.png"))


def test_an_image_whose_result_has_no_place_fails_alone(segment, tmp_path):
    photos = tmp_path / "photos"
    save_image(photos / "a.png")
    save_image(photos / ("u" * 251 + ".png"), seed=1)  # 255 bytes, with room for a name beside it all the same
    Image.new("RGB", (66000, 1)).save(photos / "wide.png")  # more than a JPEG can be
    status, result, stderr = segment(photos, tmp_path / "out")
    assert (status, result["written"], result["failed"]) == (1, 2, 1)
    assert "wide.png cannot be written as an image" in stderr
    assert not (tmp_path / "out" / "labels" / "wide.png").exists()


def test_another_model_or_window_does_all_again(segment, toy_model, tmp_path):
    """A model's maps make its graph another one."""
    save_image(tmp_path / "photos" / "a.png", 6, 8)
    write_toy_model(toy_model, 2, maps=("confidence", "reliability"))
    write_toy_model(toy_model, 3, maps=("confidence",))

    def written(version, *args):
        return segment(tmp_path / "photos", tmp_path / "out", *args, model=toy_model / version)[1]["written"]

    assert written("1") == 1
    assert written("2") == 1
    assert written("2") == 0
    assert written("1", "--write", "labels") == 1
    assert written("3", "--write", "labels") == 0  # the same graph by another number
    # The overlay that is there is the other model's.
    assert written("2", "--write", "labels") == 1
    assert written("1", "--write", "labels", "overlay") == 1


def test_what_can_be_written(segment, tmp_path):
    model = write_toy_model(tmp_path / "models" / "maps", 1, maps=("confidence", "reliability"))
    image_HWC = save_image(tmp_path / "photos" / "a.png", 6, 8, seed=3)
    kinds = ("labels", "confidence", "reliability", "rle")
    status, _, _ = segment(tmp_path / "photos", tmp_path / "out", "--write", *kinds, model=model)
    assert status == 0
    outputs = manifest(tmp_path / "out")["a.png"]["outputs"]
    assert list(outputs) == list(kinds)
    for name in ("confidence", "reliability"):
        with Image.open(tmp_path / "out" / outputs[name]) as grey:
            np.testing.assert_array_equal(np.asarray(grey), image_HWC[..., 1])
    [line] = (tmp_path / "out" / outputs["rle"]).read_text().splitlines()
    runs = json.loads(line)
    labels_HW = image_HWC[..., 0] // 64
    assert (runs["input"], runs["height"], runs["width"]) == ("a.png", 6, 8)
    assert {each["label"]: each["rle"] for each in runs["classes"]} == coco_rle(labels_HW)
    assert [each["name"] for each in runs["classes"]] == [CLASSES[label] for label in np.unique(labels_HW)]
    assert not (tmp_path / "out" / "overlays").exists()


def test_run_lengths_have_a_line_an_image_whatever_is_redone(segment, tmp_path):
    photos, runs = tmp_path / "photos", tmp_path / "out" / "rle.jsonl"

    def lines():
        return {line["input"]: line for line in map(json.loads, runs.read_text().splitlines())}

    def written():
        return segment(photos, tmp_path / "out", "--write", "rle")[1]["written"]

    for index in range(3):
        save_image(photos / f"p{index}.png", seed=index)
    assert written() == 3
    before = lines()
    save_image(photos / "p1.png", seed=9)
    assert written() == 1
    after = lines()
    assert len(runs.read_text().splitlines()) == 3
    assert [before[name] == after[name] for name in sorted(after)] == [True, False, True]
    runs.unlink()
    save_image(photos / "p0.png", seed=8)
    assert written() == 3
    assert written() == 0


def test_shards_share_the_work_and_the_ranking(segment, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for index in range(5):
        Image.new("RGB", (4, 4), (0, 50 * index, 0)).save(photos / f"p{index}.png")
    (photos / "p5.png").write_bytes(b"broken")

    def job(shard):
        flags = ["--shard", f"{shard}/2", "--rank", "uncertainty", "--write", "labels", "rle"]
        return segment(photos, output, *flags)[1]

    first = job(1)
    assert 0 < first["images"] < 6
    assert len((output / "ranking.csv").read_text().splitlines()) == 1 + first["written"]
    second = job(2)
    assert [first[count] + second[count] for count in ("images", "written", "failed")] == [6, 5, 1]
    assert job(2)["written"] == 0
    with (output / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["input"] for row in rows] == ["p0.png", "p1.png", "p2.png", "p3.png", "p4.png"]
    assert [float(row["uncertainty"]) for row in rows] == pytest.approx([1 - 50 * i / 255 for i in range(5)], abs=2e-6)
    assert {path.name for path in output.glob("*.jsonl")} == {
        f"{stem}-{index}-of-2.jsonl" for stem in ("manifest", "rle") for index in (1, 2)
    }
    # A job for all of it knows what shards have done; run lengths are in files that are not its own.
    result = segment(photos, output, "--write", "labels")[1]
    assert (result["written"], result["skipped"], result["failed"]) == (0, 5, 1)
    assert segment(photos, output, "--write", "labels", "rle")[1]["written"] == 5


def test_ranking_alone(segment, tmp_path):
    save_image(tmp_path / "photos" / "a.png")
    status, result, _ = segment(tmp_path / "photos", tmp_path / "out", "--write", "--rank", "uncertainty")
    assert (status, result["written"]) == (0, 1)
    assert result["ranking"] == str(tmp_path / "out" / "ranking.csv")
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    status, _, stderr = segment(tmp_path / "photos", tmp_path / "out", "--write")
    assert status == 2 and "--write names nothing" in stderr


def test_images_that_differ_from_those_with_a_label_map_come_first(segment, tmp_path):
    """Of a dataset folder: red ones are labelled; of the others the blue one, then a red one."""
    model = write_toy_model(tmp_path / "models" / "with_features", 1, features=True)
    data, output = tmp_path / "data", tmp_path / "out"
    colors = {"red": (200, 9, 0), "red_too": (210, 9, 0), "blue": (0, 30, 200), "blue_too": (0, 40, 210)}
    for name, color in colors.items():
        path = data / "images/train" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), color).save(path, quality=95)
    (data / "labels/train").mkdir(parents=True)
    (data / "labels/train/red.png").touch()
    (data / "labels/train/of_no_image.png").touch()

    def ranked(*flags):
        status, result, _ = segment(data / "images/train", output, *flags, model=model)
        assert status == 0
        with (output / "ranking.csv").open(newline="") as file:
            return result, list(csv.DictReader(file))

    assert ranked("--rank", "uncertainty")[0]["written"] == 4
    result, rows = ranked("--rank", "diverse")
    assert (result["written"], result["labeled"]) == (4, 1)  # again, for their features
    assert [row["input"] for row in rows] == ["blue.jpg", "blue_too.jpg", "red_too.jpg"]
    assert float(rows[0]["distance"]) > 0.8 > 0.01 > float(rows[2]["distance"])
    assert np.load(output / "features/blue.npy") == pytest.approx(np.array([0, 30, 200]), abs=3)
    result, rows = ranked("--rank", "diverse", "--write")
    assert (result["skipped"], [row["input"] for row in rows]) == (4, ["blue.jpg", "blue_too.jpg", "red_too.jpg"])
    (data / "mine").mkdir()
    for name in ("blue", "blue_too"):
        (data / "mine" / f"{name}.png").touch()
    _, rows = ranked("--rank", "diverse", "--label-maps", data / "mine")
    assert [row["input"] for row in rows] == ["red.jpg", "red_too.jpg"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--rank", "diverse"], "toy/1 gives no features, which say what images look like: export its run again"),
        (["--write", "features"], "toy/1 gives no features"),
        (["--label-maps", "."], "--label-maps says what is labelled already, for --rank: add --rank diverse"),
        (["--rank", "uncertainty", "--label-maps", "gone"], "--label-maps gone is no folder: give the one with"),
    ],
)
def test_ranking_that_cannot_be_had(segment, tmp_path, flags, said):
    save_image(tmp_path / "photos" / "a.png")
    status, _, stderr = segment(tmp_path / "photos", tmp_path / "out", *flags)
    assert status == 2 and said in stderr
    assert not (tmp_path / "out").exists()


def test_large_images_by_windows(segment, tmp_path, monkeypatch):
    model = write_toy_model(tmp_path / "models" / "logits", 1, maps=("confidence", "logits"))
    save_image(tmp_path / "photos" / "large.png", 8, 6, seed=1)
    save_image(tmp_path / "photos" / "small.png", 6, 6, seed=2)
    asked = []

    def predict_large(self, image_HW3, window, stride, batch_size, features):
        asked.append((image_HW3.shape, window, stride))
        return {"labels": image_HW3[..., 0] // 64, "confidence": np.full(image_HW3.shape[:2], 0.5, np.float32)}

    monkeypatch.setattr(Engine, "predict_large", predict_large)
    flags = ["--window", 6, 7, "--stride", 0.5, "--max-pixels", 48]
    status, _, _ = segment(tmp_path / "photos", tmp_path / "out", *flags, model=model)
    assert status == 0
    assert asked == [((8, 6, 3), (6, 7), 0.5)]
    assert manifest(tmp_path / "out")["large.png"]["mean_confidence"] == 0.5
    for name in ("large.png", "small.png"):
        found = labels_at(tmp_path / "out" / "labels" / name)
        np.testing.assert_array_equal(found, expected_labels(tmp_path / "photos" / name))
    flags[4] = 0.75
    assert segment(tmp_path / "photos", tmp_path / "out", *flags, model=model)[1]["written"] == 2
    flags[-1] = 47
    status, result, stderr = segment(tmp_path / "photos", tmp_path / "new", *flags, model=model)
    assert (status, result["failed"], result["written"]) == (1, 1, 1)
    assert "large.png cannot be read: larger than 47 pixels (6x8)" in stderr


def test_more_pixels_than_pillow_expects(segment, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    save_image(tmp_path / "photos" / "a.png", 6, 8)
    assert segment(tmp_path / "photos", tmp_path / "out")[1]["written"] == 1


def test_what_a_list_names_and_is_not_there_fails_alone(segment, tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    status, result, stderr = segment(tmp_path / "list.txt", tmp_path / "out")
    assert (status, result["written"], result["failed"]) == (1, 1, 1)
    assert "No such file" in stderr and "b.png" in stderr
    save_image(tmp_path / "b.png")
    status, result, _ = segment(tmp_path / "list.txt", tmp_path / "out")
    assert (status, result["written"], result["skipped"]) == (0, 1, 1)


def test_killed_at_any_moment(segment, toy_model, tmp_path):
    """The real command, killed three times: what is recorded is written in full, and not done again."""
    photos, output = tmp_path / "photos", tmp_path / "out"
    for index in range(300):
        save_image(photos / f"p{index:03}.png", 60, 80, seed=index)
    flags = [str(photos), str(output), "--provider", "cpu", "--write", "labels", "rle", "coco", "--batch-size", "1"]
    command = [sys.executable, "-m", "serving.batch", str(toy_model), *flags]
    lines, done = output / "manifest.jsonl", 0
    for _ in range(3):
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not lines.exists() or lines.read_bytes().count(b"\n") < done + 20:
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        recorded = [json.loads(line) for line in lines.read_bytes().split(b"\n")[:-1]]
        done = len(recorded)
        for record in recorded:
            labels_at(output / record["outputs"]["labels"])
    status, result, _ = segment(*flags[:2], *flags[4:])
    assert (status, result["written"], result["skipped"]) == (0, 300 - done, done)
    runs = [json.loads(line) for line in (output / "rle.jsonl").read_text().splitlines()]
    assert [line["input"] for line in runs] == [f"p{index:03}.png" for index in range(300)]
    for line in runs:
        labels_HW = expected_labels(photos / line["input"])
        np.testing.assert_array_equal(labels_at(output / "labels" / line["input"]), labels_HW)
        assert {each["label"]: each["rle"] for each in line["classes"]} == coco_rle(labels_HW)
    assert len(list((output / "labels").glob("*.png"))) == 300
    coco = json.loads((output / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [line["input"] for line in runs]
    areas = [(each["image_id"], each["category_id"], each["area"]) for each in coco["annotations"]]
    expected = [(number, c["label"], c["pixels"]) for number, line in enumerate(runs, 1) for c in line["classes"]]
    assert areas == expected


def test_killed_job_goes_on_where_it_was(segment, tmp_path, monkeypatch):
    photos, output = tmp_path / "photos", tmp_path / "out"
    for index in range(12):
        save_image(photos / f"p{index:02}.png", seed=index)
    write, written = pipeline.write, []

    def fail_at_sixth(*args):
        written.append(args)
        if len(written) == 6:
            raise OSError(28, "No space left on device")
        return write(*args)

    monkeypatch.setattr(pipeline, "write", fail_at_sixth)
    status, _, stderr = segment(photos, output, "--batch-size", 1)
    assert status == 2
    assert "error: [Errno 28] No space left on device" in stderr
    done = len(manifest(output))
    assert done == len(list((output / "labels").iterdir())) >= 5  # others were being written at the same time
    monkeypatch.setattr(pipeline, "write", write)
    status, result, _ = segment(photos, output)
    assert (status, result["written"], result["skipped"]) == (0, 12 - done, done)


def test_what_is_no_file_of_an_image_fails_alone(segment, tmp_path):
    """Larger than any image may be, or without an end: what would have filled the memory, or held up the job."""
    save_image(tmp_path / "a.png", seed=1)
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(30 * 2**30)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    names = ["pipe.png", "sparse.png", "/dev/zero", "folder.png", "nothing.png", "a.png"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    status, result, stderr = segment(tmp_path / "list.txt", tmp_path / "out")
    assert (status, result["written"], result["failed"]) == (1, 1, 5)
    assert "Traceback" not in stderr
    errors = {name: record.get("error", "") for name, record in manifest(tmp_path / "out").items()}
    most = 8 * MAX_PIXELS + 2**24
    assert f"sparse.png has {30 * 2**30} bytes, at most {most} are read" in errors["sparse.png"]
    assert "pipe.png is a pipe or a device" in errors["pipe.png"] and "a pipe or a device" in errors["dev/zero"]
    assert "Is a directory" in errors["folder.png"] and "No such file" in errors["nothing.png"]
    np.testing.assert_array_equal(labels_at(tmp_path / "out" / "labels" / "a.png"), expected_labels(tmp_path / "a.png"))


def test_too_little_memory_for_an_image_fails_alone(segment, tmp_path, monkeypatch):
    for index in range(3):
        save_image(tmp_path / "photos" / f"{index}.png", seed=index)
    read = pipeline.read_file

    def out_of_memory(path, max_pixels):
        if path.endswith("1.png"):
            raise MemoryError
        return read(path, max_pixels)

    monkeypatch.setattr(pipeline, "read_file", out_of_memory)
    status, result, _ = segment(tmp_path / "photos", tmp_path / "out")
    assert (status, result["written"], result["failed"]) == (1, 2, 1)
    assert manifest(tmp_path / "out")["1.png"]["error"].endswith("1.png cannot be read: out of memory")


def test_a_killed_job_leaves_nothing_behind_for_long(toy_model, segment, tmp_path):
    """Killed as hard as can be, in the middle of writing a file; the next job of that output tidies up."""
    save_image(tmp_path / "photos" / "deep" / "a.png")
    out = tmp_path / "out"
    code = (
        "import os, pathlib, signal; from serving.batch import command; from serving.common import cli\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.run(command.main, command.BatchConfig, '')\n"
    )
    arguments = [str(toy_model), str(tmp_path / "photos"), str(out), "--recursive", "--provider", "cpu"]
    killed = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path.parent for path in out.rglob("*.tmp")] == [out / "labels" / "deep"]
    (out / ".manifest.jsonl.17-4.tmp").write_text("half")
    (out / ".of_a_user.tmp").write_text("kept")
    assert segment(tmp_path / "photos", out, "--recursive")[0] == 0
    assert [path.name for path in out.rglob("*.tmp")] == [".of_a_user.tmp"]
    assert (out / "labels" / "deep" / "a.png").exists()


def test_recursive_keeps_subfolders_and_leaves_own_results_out(segment, tmp_path):
    photos = tmp_path / "photos"
    save_image(photos / "a.png", seed=1)
    save_image(photos / "b" / "a.png", seed=2)
    for _ in range(2):
        status, result, _ = segment(photos, photos, "--recursive")
        assert (status, result["images"]) == (0, 2)
    assert sorted(manifest(photos)) == ["a.png", "b/a.png"]
    np.testing.assert_array_equal(labels_at(photos / "labels" / "b" / "a.png"), expected_labels(photos / "b" / "a.png"))


def test_one_file_and_patterns(segment, tmp_path):
    photos = tmp_path / "photos"
    for name in ("a.png", "b.png", "c.jpg"):
        save_image(photos / "x" / name)
    assert segment(photos / "x" / "a.png", tmp_path / "one")[1]["written"] == 1
    assert (tmp_path / "one" / "labels" / "a.png").exists()
    assert segment(photos / "*" / "*.png", tmp_path / "two")[1]["written"] == 2
    assert sorted(manifest(tmp_path / "two")) == ["x/a.png", "x/b.png"]


def test_image_that_cannot_be_segmented_fails_alone(segment, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    for index in range(4):
        save_image(photos / f"p{index}.png", seed=index)
    Image.new("RGB", (8, 6), (7, 7, 7)).save(photos / "p2.png")
    predict = Engine.predict

    def out_of_memory(self, images_NHWC, outputs):
        if (images_NHWC == 7).all(axis=(1, 2, 3)).any():
            raise RuntimeError("Failed to allocate memory")
        return predict(self, images_NHWC, outputs)

    monkeypatch.setattr(Engine, "predict", out_of_memory)
    status, result, _ = segment(photos, tmp_path / "out", "--batch-size", 4)
    assert (status, result["written"], result["failed"]) == (1, 3, 1)
    record = manifest(tmp_path / "out")["p2.png"]
    assert record["status"] == "error"
    assert "p2.png cannot be segmented: Failed to allocate memory" in record["error"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere", "out"], "nowhere does not exist"),
        (["empty", "out"], "no images in empty"),
        (["nested", "out"], "add --recursive"),
        (["no*.png", "out"], r"no images in no*.png"),
        (["nested/b/a.png", "out", "--batch-size", "0"], "--batch-size"),
        (["nested/b/a.png", "out", "--threads", "0"], "--threads must be at least 1"),
        (["nested/b/a.png", "out", "--max-pixels", "0"], "--max-pixels must be at least 1"),
        (["nested/b/a.png", "out", "--ray-actors", "-1"], "--ray-actors must be at least 1"),
        (["nested/b/a.png", "taken"], "taken cannot be written to"),
        (["nested/b/a.png", "out", "--shard", "0/2"], "--shard is i/n"),
        (["nested/b/a.png", "out", "--write", "reliability"], "its run has no critic for it"),
        (["nested/b/a.png", "out", "--window", "0", "8"], "--window"),
        (["nested/b/a.png", "out", "--window", "8", "8", "--stride", "2"], "--stride"),
        (
            ["nested/b/a.png", "out", "--window", "8", "8"],
            "export it with kerasseg export --logits",
        ),
        (["nested/b/a.png", "out", "--provider", "cuda"], "CUDA was asked for"),
    ],
)
def test_mistakes_are_one_line(segment, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").write_text("a file where the output folder should be")
    save_image(tmp_path / "nested" / "b" / "a.png")
    status, result, stderr = segment(*args)
    assert (status, result) == (2, None)
    assert stderr.splitlines()[-1].startswith("error: ")
    assert said in stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_missing_model(segment, tmp_path):
    status, _, stderr = segment(tmp_path, tmp_path / "out", model=tmp_path / "nothing")
    assert status == 2
    assert stderr.startswith("error: there is no model at")


def test_runs_without_tensorflow(toy_model, tmp_path):
    save_image(tmp_path / "photos" / "a.png")
    code = (
        "import sys; from serving.batch import command; from serving.common import cli\n"
        "try: cli.run(command.main, command.BatchConfig, '')\n"
        "finally: print([name for name in ('tensorflow', 'keras', 'kerasseg', 'onnx')"
        " if name in sys.modules])\n"
    )
    arguments = [str(toy_model), str(tmp_path / "photos"), str(tmp_path / "out"), "--provider", "auto"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    result, modules = done.stdout.splitlines()[-2:]
    assert json.loads(result)["written"] == 1
    assert modules == "[]"
