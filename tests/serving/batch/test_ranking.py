"""In what order images should be labelled."""

import numpy as np
import pytest

from serving.batch import ranking
from serving.batch.manifest import Manifest
from serving.batch.ranking import farthest_first, write_ranking

ANSWER = {"model_sha256": "a"}


def record(name, **fields):
    return {"input": name, "status": "ok", "model_sha256": "a"} | fields


def job_of(folder, **images):
    """A finished job; for each image its mean confidence, and the angle of its features in degrees."""
    (folder / "features").mkdir()
    with Manifest(folder, (1, 1), runs=False) as manifest:
        for name, (confidence, angle) in images.items():
            turn = np.deg2rad(angle)
            np.save(folder / f"features/{name}.npy", np.array([np.cos(turn), np.sin(turn)], np.float32) * 7)
            outputs = {"features": f"features/{name}.npy"}
            manifest.append(record(name, mean_confidence=confidence, outputs=outputs))


@pytest.fixture
def folder(tmp_path):
    with Manifest(tmp_path / "out", (1, 1), runs=False):
        pass
    return tmp_path / "out"


def test_the_least_certain_first(tmp_path):
    with Manifest(tmp_path, (1, 1), runs=False) as manifest:
        manifest.append(record("sure", mean_confidence=0.9))
        manifest.append(record("doubted, by its critic", mean_confidence=0.95, mean_reliability=0.2))
        manifest.append(record("unsure", mean_confidence=0.4))
        manifest.append(record("labelled", mean_confidence=0.3))
        manifest.append(record("broken") | {"status": "error"})
        manifest.append(record("gone", mean_confidence=0.0))
        manifest.append(record("of another model", mean_confidence=0.0) | {"model_sha256": "b"})
        manifest.append(record("\udcff", mean_confidence=0.95))
    names = [
        "sure",
        "doubted, by its critic",
        "unsure",
        "labelled",
        "broken",
        "not yet done",
        "of another model",
        "\udcff",
    ]
    path = write_ranking(tmp_path, names, {"labelled"}, ANSWER, "uncertainty")
    assert path.read_text(errors="surrogateescape").splitlines() == [
        "input,uncertainty",
        '"doubted, by its critic",0.8',
        "unsure,0.6",
        "sure,0.1",
        "\udcff,0.05",
    ]


def test_neighbours_of_what_is_labelled_or_chosen_come_last(folder):
    images = {"known": (0.1, 0), "near_it": (0.4, 0), "a": (0.5, 90), "twin_of_a": (0.45, 90), "b": (0.8, 60)}
    job_of(folder, **images)
    path = write_ranking(folder, images, {"known"}, ANSWER, "diverse")
    assert path.read_text().splitlines() == [
        "input,uncertainty,distance",
        "twin_of_a,0.55,1.0",
        "b,0.2,0.133975",  # 1 - cos 30 degrees, from twin_of_a
        "near_it,0.6,0.0",
        "a,0.5,0.0",
    ]


def test_without_labelled_images_the_least_certain_is_first(folder):
    images = {"a": (0.5, 0), "b": (0.6, 10), "c": (0.9, 90)}
    job_of(folder, **images)
    lines = write_ranking(folder, images, set(), ANSWER, "diverse").read_text().splitlines()
    assert lines[1:] == ["a,0.5,1.0", "c,0.1,1.0", "b,0.4,0.015192"]


def test_many_images_are_chosen_among_the_least_certain(folder, monkeypatch):
    monkeypatch.setattr(ranking, "CANDIDATES", 3)
    monkeypatch.setattr(ranking, "MOST_CHOSEN", 1)
    monkeypatch.setattr(ranking, "CHUNK", 1)
    images = {"a": (0.5, 0), "b": (0.6, 90), "c": (0.7, 80), "d": (0.9, 45), "k": (0.0, 0), "l": (0.0, 90)}
    job_of(folder, **images)
    lines = write_ranking(folder, images, {"k", "l"}, ANSWER, "diverse").read_text().splitlines()
    # c is 10 degrees from k and l; the others follow by uncertainty, and d, which is no candidate, has no distance.
    assert lines[1:] == ["c,0.3,0.015192", "a,0.5,0.0", "b,0.4,0.0", "d,0.1,"]


def test_a_job_without_images_to_label(folder):
    job_of(folder, a=(0.5, 0))
    for names in (["a"], []):
        path = write_ranking(folder, names, {"a"}, ANSWER, "diverse")
        assert path.read_text() == "input,uncertainty,distance\n"


def test_images_without_features_are_left_out_and_counted(folder, capsys):
    """Another shard did one without them, and somebody deleted those of another."""
    images = {"a": (0.5, 0), "b": (0.6, 90), "c": (0.9, 45), "known": (0.1, 45)}
    job_of(folder, **images)
    for name in ("b", "known"):
        (folder / f"features/{name}.npy").unlink()
    with Manifest(folder, (2, 2), runs=False) as manifest:
        manifest.append(record("c", mean_confidence=0.9, outputs={"labels": "labels/c.png"}, finished=1.0))
    lines = write_ranking(folder, images, {"known"}, ANSWER, "diverse").read_text().splitlines()
    assert lines == ["input,uncertainty,distance", "a,0.5,1.0"]
    assert "2 images without features are not ranked: do them with --rank diverse" in capsys.readouterr().err


def test_greedy_centers_cover_the_set():
    """Ten neighbours of one clip and one other image: the second choice is the other one, whatever the weights say."""
    angles = np.deg2rad([*np.linspace(0, 2, 10), 80])
    features_ND = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    weights_N = np.array([*np.linspace(0.9, 0.8, 10), 0.1], np.float32)
    chosen = farthest_first(features_ND, weights_N, np.ones(11, np.float32), 11)
    assert [index for index, _ in chosen[:2]] == [0, 10]
    assert sorted(index for index, _ in chosen) == list(range(11))
    assert chosen[1][1] == pytest.approx(1 - np.cos(np.deg2rad(80)), abs=1e-6)
