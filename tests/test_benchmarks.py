"""benchmarks.camvid without its trainings: what is trained when, and what the table says."""

import dataclasses
import json
import subprocess

import pytest

from benchmarks import camvid
from kerasseg.methods.method import SegmenterConfig
from training.config import RunConfig

MIOU = {"supervised": (0.50, 0.40), "s4gan": (0.51, 0.43), "mlmt": (0.52, 0.44)}


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """(configuration, the runs that were trained), with a training that only writes what a finished run leaves."""
    trained = []

    def training(command, **_):
        given = dict(zip(command[3::2], command[4::2], strict=True))
        method, seed = given["--method"], int(given["--seed"])
        trained.append((method, seed))
        folder = camvid.folder(config, method, seed)
        if method == "mlmt":
            assert (camvid.folder(config, "s4gan", seed) / "model.keras").exists()
            assert given["--branch-run"] == str(camvid.folder(config, "s4gan", seed))
        folder.mkdir(parents=True)
        settings = dataclasses.asdict(RunConfig(method=method, dataset="camvid", steps=2))
        branch = "supervised" if method == "supervised" else "s4gan"
        settings |= {"classes": [], "palette": [], "fields": {branch: dataclasses.asdict(SegmenterConfig())}}
        settings |= {"split_fingerprint": "f", "commit": "c", "machine": "m", "versions": {}, "finished": True}
        settings |= {"command": f"python -m training.run --dataset {config.dataset}"}
        result = {"mIoU": MIOU[method][seed], "without_gate": {"mIoU": MIOU["s4gan"][seed]}, "seconds": 9.0}
        (folder / "config.json").write_text(json.dumps(settings, default=str))
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "model.keras").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(camvid.subprocess, "run", training)
    results = tmp_path / "camvid.md"
    results.write_text("before\n<!-- table -->\nan earlier table\n<!-- end of table -->\nafter\n")
    config = camvid.CamVidConfig(
        dataset=tmp_path / "camvid", weights=tmp_path / "w.h5", runs=tmp_path / "runs", results=results, seeds=(0, 1)
    )
    return config, trained


def test_the_table_compares_with_supervised_by_seed(benchmark):
    config, _ = benchmark
    assert camvid.main(config)["s4gan"] == pytest.approx(0.47)
    text = config.results.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "earlier" not in text
    assert "| s4gan | 51.0 | 43.0 | 47.0 | 5.7 | +1.0 +3.0 (mean +2.0) | 9 |" in text
    assert "| mlmt (gate on) | 52.0 | 44.0 | 48.0 | 5.7 | +2.0 +4.0 (mean +3.0) | 9 |" in text
    assert str(config.dataset) not in text


def test_kept_scores_stand_for_runs_that_are_gone(benchmark):
    config, trained = benchmark
    camvid.main(config)
    assert sorted(trained) == sorted((method, seed) for method in camvid.METHODS for seed in (0, 1))
    kept = camvid.kept(config, "supervised", 1).read_text()
    assert json.loads(kept)["result"]["mIoU"] == 0.40 and str(config.dataset) not in kept

    config.runs.rename(config.runs.with_name("gone"))
    trained.clear()
    camvid.main(config)
    assert trained == []

    # The classifier of mlmt needs the segmenter of s4gan, not only its score.
    camvid.kept(config, "mlmt", 1).unlink()
    camvid.main(config)
    assert trained == [("s4gan", 1), ("mlmt", 1)]


@pytest.mark.parametrize("name", ["backbone", "learning_rate"])
def test_scores_of_methods_with_other_segmenters_are_refused(benchmark, name):
    config, _ = benchmark
    camvid.main(config)
    for seed in config.seeds:
        path = camvid.kept(config, "supervised", seed)
        kept = json.loads(path.read_text())
        (kept["settings"] if name == "backbone" else kept["settings"]["fields"]["supervised"])[name] = "another"
        path.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=f"supervised and s4gan differ in {name}: delete"):
        camvid.main(config)


def test_scores_of_other_settings_are_refused(benchmark):
    config, _ = benchmark
    camvid.main(config)
    path = camvid.kept(config, "s4gan", 1)
    path.write_text(path.read_text().replace('"steps": 2,', '"steps": 3,'))
    with pytest.raises(ValueError, match="s4gan with seeds 0 and 1 differ in steps: delete"):
        camvid.main(config)


def test_a_run_that_was_stopped_is_resumed(benchmark, monkeypatch):
    config, _ = benchmark
    folder = camvid.folder(config, "supervised", 0)
    folder.mkdir(parents=True)
    settings = {"method": "", "dataset": "", "steps": 2, "classes": [], "palette": [], "split_fingerprint": ""}
    (folder / "config.json").write_text(json.dumps(settings))
    commands = []

    def stopped(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 130)

    monkeypatch.setattr(camvid.subprocess, "run", stopped)
    with pytest.raises(ValueError, match="exit status 130"):
        camvid.train(config, "supervised", 0, [0])
    assert commands[0][-1] == "--resume"


def test_methods_come_in_their_order():
    with pytest.raises(ValueError, match="--methods must be supervised, then"):
        camvid.CamVidConfig(dataset=".", weights=".", methods=("supervised", "mlmt"))
