"""`python -m serving.batch`, by its command line, with a model whose answers are known."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving import batch, cli, engine
from serving.artifact import open_artifact
from serving.batch import Config, Decoded, bounded_map, find_jobs, group_by_size
from serving.pictures import load_picture
from tests.serving.conftest import CLASSES, PALETTE


@pytest.fixture
def segment(toy_model, capsys):
    """Runs the command; returns exit status, last line of stdout, stderr."""

    def run(*args, model=toy_model):
        with pytest.raises(SystemExit) as exit:
            cli.run(batch.main, Config, "", [str(model), *map(str, args), "--provider", "cpu"])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        return exit.value.code, json.loads(lines[-1]) if lines else None, captured.err

    return run


def picture(path, height=6, width=8, seed=0, **options):
    """Saves random pixels, with 2 x 2 pixels alike so that JPEG keeps them nearly; returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (height // 2, width // 2, 3), np.uint8)
    image_HWC = small.repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(image_HWC).save(path, **options)
    return image_HWC


def labels_at(path):
    with Image.open(path) as stored:
        assert stored.mode == "P"
        assert stored.getpalette()[: 3 * len(PALETTE)] == [value for color in PALETTE for value in color]
        return np.asarray(stored)


def manifest(output):
    lines = (output / "manifest.jsonl").read_text().splitlines()
    return {record["input"]: record for record in map(json.loads, lines)}


def expected_labels(path):
    return load_picture(path)[..., 0] // 64


def test_a_folder_of_all_kinds(segment, toy_model, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    for index, (height, width) in enumerate([(6, 8), (10, 4), (6, 8), (6, 8), (12, 14), (10, 4), (6, 8)]):
        picture(photos / f"p{index}.jpg", height, width, seed=index, quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(photos / "rotated.JPG", 6, 8, seed=20, format="JPEG", exif=exif)
    Image.fromarray(np.full((6, 8), 130, np.uint8)).save(photos / "grey.png")
    Image.fromarray(np.full((6, 8, 4), (200, 51, 0, 9), np.uint8)).save(photos / "rgba.png")
    picture(photos / "same.jpg", seed=30)
    picture(photos / "same.png", seed=31)
    whole = (photos / "p0.jpg").read_bytes()
    (photos / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "notes.txt").write_text("no picture")
    (photos / "._p0.jpg").write_bytes(b"what macOS leaves on foreign disks")
    picture(photos / "deeper" / "p0.jpg")

    status, result, stderr = segment(photos, output)

    assert status == 1
    assert result.items() >= {"pictures": 13, "written": 12, "skipped": 0, "failed": 1, "provider": "cpu"}.items()
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


def test_overlay_is_the_picture_tinted(segment, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32), (200, 100, 40)).save(tmp_path / "photos" / "a.png")
    segment(tmp_path / "photos", tmp_path / "out")
    with Image.open(tmp_path / "out" / "overlays" / "a.jpg") as tinted:
        np.testing.assert_allclose(np.asarray(tinted), np.full((32, 32, 3), (100, 50, 84)), atol=3)


def test_second_run_does_only_what_changed(segment, tmp_path):
    photos, output = tmp_path / "photos", tmp_path / "out"
    for index in range(4):
        picture(photos / f"p{index}.png", seed=index)

    def counts(*args):
        status, result, _ = segment(photos, output, *args)
        assert status == 0
        return result["written"], result["skipped"]

    assert counts("--no-overlay") == (4, 0)
    assert not (output / "overlays").exists()
    assert counts("--no-overlay") == (0, 4)
    assert counts() == (4, 0)  # now with overlays
    assert counts() == (0, 4)
    picture(photos / "p1.png", seed=99)
    (output / "labels" / "p2.png").unlink()
    assert counts() == (2, 2)
    np.testing.assert_array_equal(labels_at(output / "labels" / "p1.png"), expected_labels(photos / "p1.png"))
    with (output / "manifest.jsonl").open("a") as file:  # a killed job's last words
        file.write('{"input": "p3.png", "status": "o')
    assert counts() == (0, 4)
    assert len((output / "manifest.jsonl").read_text().splitlines()) == 4
    (output / "manifest.jsonl").unlink()
    assert counts() == (4, 0)


def test_another_model_does_all_again(segment, tmp_path):
    picture(tmp_path / "photos" / "a.png")
    segment(tmp_path / "photos", tmp_path / "out")
    record = manifest(tmp_path / "out")["a.png"]
    (tmp_path / "out" / "manifest.jsonl").write_text(json.dumps(record | {"model_sha256": "0"}) + "\n")
    _, result, _ = segment(tmp_path / "photos", tmp_path / "out")
    assert (result["written"], result["skipped"]) == (1, 0)


def test_killed_job_goes_on_where_it_was(segment, tmp_path, monkeypatch):
    photos, output = tmp_path / "photos", tmp_path / "out"
    for index in range(12):
        picture(photos / f"p{index:02}.png", seed=index)
    write, written = batch.write, []

    def fail_at_sixth(*args):
        written.append(args)
        if len(written) == 6:
            raise OSError(28, "No space left on device")
        return write(*args)

    monkeypatch.setattr(batch, "write", fail_at_sixth)
    status, _, stderr = segment(photos, output, "--batch-size", 1)
    assert status == 2
    assert "error: [Errno 28] No space left on device" in stderr
    done = len(manifest(output))
    assert done >= 1
    monkeypatch.setattr(batch, "write", write)
    status, result, _ = segment(photos, output)
    assert (status, result["written"], result["skipped"]) == (0, 12 - done, done)


def test_recursive_keeps_subfolders_and_leaves_own_results_out(segment, tmp_path):
    photos = tmp_path / "photos"
    picture(photos / "a.png", seed=1)
    picture(photos / "b" / "a.png", seed=2)
    for _ in range(2):
        status, result, _ = segment(photos, photos, "--recursive")
        assert (status, result["pictures"]) == (0, 2)
    assert sorted(manifest(photos)) == ["a.png", "b/a.png"]
    np.testing.assert_array_equal(labels_at(photos / "labels" / "b" / "a.png"), expected_labels(photos / "b" / "a.png"))


def test_one_file_and_patterns(segment, tmp_path):
    photos = tmp_path / "photos"
    for name in ("a.png", "b.png", "c.jpg"):
        picture(photos / "x" / name)
    assert segment(photos / "x" / "a.png", tmp_path / "one")[1]["written"] == 1
    assert (tmp_path / "one" / "labels" / "a.png").exists()
    assert segment(photos / "*" / "*.png", tmp_path / "two")[1]["written"] == 2
    assert sorted(manifest(tmp_path / "two")) == ["x/a.png", "x/b.png"]


def test_picture_that_cannot_be_segmented_fails_alone(segment, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    for index in range(4):
        picture(photos / f"p{index}.png", seed=index)
    Image.new("RGB", (8, 6), (7, 7, 7)).save(photos / "p2.png")
    predict = batch.Engine.predict

    def out_of_memory(self, images_NHWC):
        if (images_NHWC == 7).all(axis=(1, 2, 3)).any():
            raise RuntimeError("Failed to allocate memory")
        return predict(self, images_NHWC)

    monkeypatch.setattr(batch.Engine, "predict", out_of_memory)
    status, result, _ = segment(photos, tmp_path / "out", "--batch-size", 4)
    assert (status, result["written"], result["failed"]) == (1, 3, 1)
    record = manifest(tmp_path / "out")["p2.png"]
    assert record["status"] == "error"
    assert "p2.png cannot be segmented: Failed to allocate memory" in record["error"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere", "out"], "nowhere does not exist"),
        (["empty", "out"], "no pictures in empty"),
        (["nested", "out"], "add --recursive"),
        (["no*.png", "out"], r"no pictures in no*.png"),
        (["nested/b/a.png", "out", "--batch-size", "0"], "--batch-size"),
        (["nested/b/a.png", "out", "--threads", "0"], "threads"),
        (["nested/b/a.png", "taken"], "taken"),
    ],
)
def test_mistakes_are_one_line(segment, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").write_text("a file where the output folder should be")
    picture(tmp_path / "nested" / "b" / "a.png")
    status, result, stderr = segment(*args)
    assert (status, result) == (2, None)
    assert stderr.splitlines()[-1].startswith("error: ")
    assert said in stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_missing_model(segment, tmp_path):
    status, _, stderr = segment(tmp_path, tmp_path / "out", model=tmp_path / "nothing")
    assert status == 2
    assert stderr.startswith("error: there is no model at")


@pytest.mark.parametrize("names", [["a.jpg", "a.png", "a.png.jpg", "b.jpg"], ["A.jpg", "a.png"], ["a", "a.jpg"]])
def test_outputs_never_collide(tmp_path, names):
    sources = [tmp_path / name for name in names]
    outputs = [job.output_name.casefold() for job in batch._name_outputs(sources, tmp_path)]
    assert len(set(outputs)) == len(names)


def test_names_stay_short_where_they_can(tmp_path):
    for name in ("x/a.jpg", "y/a.png", "b.c.jpeg"):
        picture(tmp_path / name)
    jobs = find_jobs(str(tmp_path), tmp_path / "out", recursive=True)
    assert [job.output_name for job in jobs] == ["b.c", "x/a", "y/a"]


def sized(name, height, width):
    return Decoded(batch.Job(Path(name), name, name), np.zeros((height, width, 3), np.uint8), {"input": name})


def test_groups_are_of_one_size_and_bounded():
    pictures = [sized(f"{index}", 2 + index % 3, 4) for index in range(20)]
    batches = list(group_by_size(iter(pictures), 4))
    assert sorted(picture.job.name for group in batches for picture in group) == sorted(map(str, range(20)))
    for group in batches:
        assert len({picture.image_HWC.shape for picture in group}) == 1
        assert len(group) <= 4
    assert [len(group) for group in batches] == [3, 4, 4, 4, 3, 2]


def test_pictures_of_many_sizes_do_not_pile_up():
    taken = []

    def pictures():
        for index in range(50):
            taken.append(index)
            yield sized(f"{index}", 2 + index, 4)

    groups = group_by_size(pictures(), 4)
    for done, group in enumerate(groups):
        assert len(group) == 1
        assert len(taken) - done <= 2 * 4


def test_large_pictures_go_alone(monkeypatch):
    monkeypatch.setattr(engine, "MAX_BATCH_PIXELS", 20)
    batches = group_by_size([sized(f"{index}", 4, 5) for index in range(3)], 4)
    assert [len(group) for group in batches] == [1, 1, 1]


def test_bounded_map_keeps_order_and_bound():
    begun, lock = [], threading.Lock()

    def work(item):
        with lock:
            begun.append(item)
        time.sleep(0.001 * (item % 3))
        return item * item

    with ThreadPoolExecutor(4) as pool:
        for index, result in enumerate(bounded_map(pool, work, range(40), ahead=5)):
            assert result == index * index
            assert len(begun) <= index + 5


def test_runs_without_tensorflow(toy_model, tmp_path):
    picture(tmp_path / "photos" / "a.png")
    code = (
        "import sys; from serving import batch, cli\n"
        "try: cli.run(batch.main, batch.Config, '')\n"
        "finally: print([name for name in ('tensorflow', 'keras', 'kerasseg', 'onnx')"
        " if name in sys.modules])\n"
    )
    arguments = [str(toy_model), str(tmp_path / "photos"), str(tmp_path / "out"), "--provider", "auto"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    result, modules = done.stdout.splitlines()[-2:]
    assert json.loads(result)["written"] == 1
    assert modules == "[]"
