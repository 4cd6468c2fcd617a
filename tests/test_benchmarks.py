"""The comparisons without their trainings: what is trained when, and what the tables say; and what is timed."""

import asyncio
import dataclasses
import itertools
import json
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tyro

from benchmarks import (
    comparison,
    comparison_plot,
    comparison_runs,
    comparison_tables,
    families,
    gpu,
    health,
    input_pipeline,
    load,
    serving,
    step_profile,
    train_step,
)
from benchmarks.comparison import ComparisonConfig
from benchmarks.comparison_runs import Comparison, Training, of_method, settings_now, trainings
from kerasseg.methods import TrainingData
from kerasseg.segmenters import SEGMENTERS
from serving.common.gpus import has_gpu
from training.run import configuration

MIOU = {
    "supervised": (0.50, 0.40),
    "s4gan": (0.51, 0.43),
    "mlmt": (0.52, 0.44),
    "unimatch": (0.55, 0.41),
    "ecs": (0.54, 0.42),
}
METHODS = ("supervised", "s4gan", "mlmt", "unimatch")
TWICE = 4
"""Steps of the control with as many updates again."""


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """(configuration, the runs that were trained), with a training that only writes what a finished run leaves."""
    trained = []

    class Process:
        """Of training.run, ended at once."""

        def __init__(self, command, **_):
            given = {flag: value for flag, value in itertools.pairwise(command) if flag.startswith("--")}
            out = Path(given["--out"])
            run = Training(given["--method"], given["--labeled"], int(given["--seed"]), int(given["--steps"]))
            run = run._replace(variant=out.name.partition("@")[2].partition("_")[0])
            trained.append(run)
            write_run(dataclasses.replace(config, backbone=given.get("--backbone")), run, out, command)

        def wait(self, timeout=None):
            return 0

    monkeypatch.setattr(comparison.subprocess, "Popen", Process)
    monkeypatch.setattr(comparison_tables, "svg", lambda figure: b"")  # takes a second
    config = Comparison(
        dataset=str(tmp_path / "camvid"),
        weights=tmp_path / "w.h5",
        train_images=367,
        labeled="12",
        more_labels=("all",),
        cover=True,
        steps=2,
        classifier_steps=1,
        seeds=(0, 1),
        methods=METHODS,
        runs=tmp_path / "runs",
        results=tmp_path / "results",
    )
    return config, trained


def write_run(config, run, folder, command):
    """The folder of a finished run."""
    if run.method == "mlmt":
        assert Path(command[command.index("--branch-run") + 1], "model.keras").exists()
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_now(config, run) | {"classes": [], "palette": [], "dataset": config.dataset}
    settings |= {"split_fingerprint": f"f{run.seed}", "commit": "c", "machine": "m", "versions": {}, "finished": True}
    settings |= {"command": f"python -m training.run --dataset {config.dataset}"}
    score = MIOU[run.method][run.seed % 10] + (0.1 if run.labeled == "all" else 0) + (0.02 if run.variant else 0)
    other = {"without_gate": {"mIoU": MIOU["s4gan"][run.seed % 10]}} if run.method == "mlmt" else {}
    if run.method == "supervised":
        assert "--average-weights" in command
        other = {"student": {"mIoU": score + (0.03 if run.steps == TWICE else 0)}}
        score += 0.01
    costs = {"steps": run.steps, "seconds": 1.5 * run.steps, "peak_memory_bytes": (1 + run.seed % 10) * 2**30}
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    (folder / "result.json").write_text(json.dumps({"mIoU": score} | other | costs))
    found = {"error_detection_auc": 0.75 + 0.125 * (run.seed % 10), "expected_calibration_error": 0.1, "bins": []}
    confidence = {"softmax": found} | ({"critic": found} if run.method == "s4gan" else {})
    (folder / "diagnostics.json").write_text(json.dumps({"confidence": confidence}))
    (folder / "model.keras").touch()


def change_kept(config, training, change):
    """Rewrites what is kept of a run with what `change` does to it."""
    path = training.kept(config)
    kept = json.loads(path.read_text())
    change(kept)
    path.write_text(json.dumps(kept))


def of(config, method, seed, labeled="12"):
    return of_method(config, method, seed)._replace(labeled=labeled)


def test_the_tables_compare_with_supervised_by_seed_and_with_more_labels(benchmark):
    config, _ = benchmark
    config.results.mkdir()
    config.table.write_text("before\n<!-- table -->\nan earlier table\n<!-- end of table -->\nafter\n")
    assert comparison.compare(config)["mIoU"]["s4gan"] == pytest.approx(47)
    text = config.table.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "earlier" not in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    # s4gan gains 1 and 3 points: their standard error is 1; all labels gain 10.
    assert table[2:8] == [
        "| supervised | 50.0 | 40.0 | 45.0 | +0.0 +0.0 (mean +0.0 ± 0.0) | - | 1.50 | 2.0 |",
        "| supervised, averaged weights | 51.0 | 41.0 | 46.0 | +1.0 +1.0 (mean +1.0 ± 0.0) | 10 % | 1.50 | 2.0 |",
        "| supervised, twice the updates | 53.0 | 43.0 | 48.0 | +3.0 +3.0 (mean +3.0 ± 0.0) | 30 % | 1.50 | 2.0 |",
        "| mlmt | 52.0 | 44.0 | 48.0 | +2.0 +4.0 (mean +3.0 ± 1.0) | 30 % | 2.25 | 2.0 |",
        "| unimatch | 55.0 | 41.0 | 48.0 | +5.0 +1.0 (mean +3.0 ± 2.0) | 30 % | 1.50 | 2.0 |",
        "| s4gan | 51.0 | 43.0 | 47.0 | +1.0 +3.0 (mean +2.0 ± 1.0) | 20 % | 1.50 | 2.0 |",
    ]
    assert "| 12 images | 50.0 | 40.0 | 45.0 |" in table and "| 367 images | 60.0 | 50.0 | 55.0 |" in table
    assert "| gate off | 51.0 | 43.0 | 47.0 |" in table and "| difference | +1.0 | +1.0 | +1.0 ± 0.0 |" in table
    assert "| s4gan | 0.750, 0.750 | 0.875, 0.875 |" in table
    assert text.count("0.750") == 2, "of the others there is no critic"
    assert config.dataset not in text
    assert "python -m benchmarks.comparison DATASET --labeled 12 --cover" in text
    assert "--dataset DATASET --weights WEIGHTS" in text and "(camvid.svg)" in text


def test_the_plot_names_what_it_draws(benchmark):
    config, _ = benchmark
    few, full = {0: 50.0, 1: 40.0}, {0: 60.0}
    figure = comparison_plot.labels_figure(config, {"12": few, "all": full}, {"supervised": few, "unimatch": full})
    drawn = comparison_plot.svg(figure).decode()
    for word in ("unimatch", "labelled images (all but supervised: 12, side by side)", "367"):
        assert f"<!-- {word} -->" in drawn  # so matplotlib notes a text that it draws as paths
    methods = {f"method {number}": few for number in range(11)}
    points = comparison_plot.labels_figure(config, {"12": few}, methods).axes[0].containers
    assert len({each.lines[0].get_marker() for each in points}) == len(methods) + 1, "two methods look alike"


def test_the_tables_say_which_runs_are_to_come(benchmark):
    config, _ = benchmark
    comparison.compare(config)
    for training in (of(config, "s4gan", 1), of(config, "unimatch", 0), of(config, "supervised", 0, "all")):
        training.kept(config).unlink()
    for seed in config.seeds:
        of(config, "mlmt", seed).kept(config).unlink()
    assert comparison_tables.write_results(config).keys() >= {"supervised", "s4gan", "unimatch"}
    text = config.table.read_text()
    assert "| s4gan | 0.750, 0.750 | - |" in text
    assert "| s4gan | 51.0 | - | 51.0 | +1.0 (mean +1.0) | - | 1.50 | 1.0 |" in text
    assert "| unimatch | - | 41.0 | 41.0 | +1.0 (mean +1.0) | 10 % | 1.50 | 2.0 |" in text
    assert "| mlmt" not in text


def test_the_tables_show_all_that_is_kept_whatever_was_asked_for_last(benchmark):
    config, _ = benchmark
    comparison.compare(config)
    text = config.table.read_text()
    comparison.compare(dataclasses.replace(config, methods=("supervised",), seeds=(0,)))
    assert config.table.read_text() == text


def test_the_share_that_is_closed_counts_the_seeds_that_all_have():
    few, full = {0: 40.0, 1: 50.0, 2: 30.0}, {0: 60.0, 1: 60.0}
    assert comparison_tables.closed_share({1: 55.0, 0: 56.0, 2: 90.0}, few, full) == pytest.approx(21 / 30)
    assert comparison_tables.closed_share({2: 55.0}, few, full) is None
    assert comparison_tables.closed_share({0: 55.0}, few, {0: 39.0}) is None, "more labels are worth nothing"


def test_mean_and_standard_error():
    assert comparison_tables.mean_and_error([1.0, 2.0, 6.0]) == "+3.0 ± 1.5"  # 7 / 3 under the root
    assert comparison_tables.mean_and_error([-1.0]) == "-1.0" and comparison_tables.mean_and_error([]) == "-"


def test_a_table_is_useful_early(benchmark):
    config, trained = benchmark
    config = dataclasses.replace(config, more_labels=("6", "all"))
    comparison.compare(config)
    first = [(method, labeled, 0) for method, labeled in [("supervised", "12"), ("supervised", "all")]]
    first += [(method, "12", 0) for method in ("s4gan", "mlmt", "unimatch")]
    second = [(method, labeled, 1) for method, labeled, _ in first]
    assert [run[:3] for run in trained[:10]] == first + second
    assert [(run.labeled, run.seed, run.steps) for run in trained[10:]] == [
        *(("6", 0, 2), ("12", 0, TWICE)),
        *(("6", 1, 2), ("12", 1, TWICE)),
    ]


def test_no_worker_waits_for_the_segmenter_of_mlmt(benchmark):
    config, _ = benchmark
    queue = comparison.Queue(dataclasses.replace(config, methods=("s4gan", "mlmt", "unimatch"), seeds=(0,)))
    s4gan = queue.take()
    assert s4gan.method == "s4gan"
    assert queue.take().method == "unimatch", "mlmt cannot start yet"
    assert queue.take() is None
    queue.done(s4gan)
    assert queue.take().method == "mlmt"


def test_several_workers_train_everything_once(benchmark):
    config, trained = benchmark
    assert comparison.compare(config, jobs=2)["runs_to_come"] == 0
    assert sorted(trained) == sorted(trainings(config))


def test_kept_scores_stand_for_runs_that_are_gone(benchmark):
    config, trained = benchmark
    comparison.compare(config)
    assert len(trained) == 2 * (len(METHODS) + 2)
    kept = of(config, "supervised", 1).kept(config).read_text()
    assert json.loads(kept)["result"]["student"]["mIoU"] == 0.40 and config.dataset not in kept

    config.runs.rename(config.runs.with_name("gone"))
    trained.clear()
    comparison.compare(config)
    assert trained == []

    # The classifier of mlmt needs the segmenter of s4gan, not only its score.
    of(config, "mlmt", 1).kept(config).unlink()
    comparison.compare(config)
    assert [run[:3] for run in trained] == [("s4gan", "12", 1), ("mlmt", "12", 1)]


@pytest.mark.parametrize("name", ["initial_weights", "split_fingerprint", "updates"])
def test_scores_of_methods_with_other_segmenters_are_refused(benchmark, name):
    config, _ = benchmark
    config = dataclasses.replace(config, methods=("supervised", "ecs"), more_labels=("all",))
    comparison.compare(config)
    runs = {m: {s: json.loads(of(config, m, s).kept(config).read_text()) for s in (0, 1)} for m in config.methods}
    for run in runs["ecs"].values():
        if name == "updates":  # of a time when it always made two
            del run["settings"]["fields"]["ecs"]["joint_update"]
        else:
            run["settings"][name] = "another"
    words = f"supervised and ecs differ in {name}: delete"
    with pytest.raises(ValueError, match="supervised had 2 updates, that of ecs 4" if name == "updates" else words):
        comparison_runs.require_alike(runs)


@pytest.mark.parametrize("dataset", ["shapes", "photographs"])
def test_the_recipe_trains_all_methods_so_that_they_can_be_compared(benchmark, dataset):
    config = dataclasses.replace(benchmark[0], dataset=dataset)
    runs = {}
    for method in comparison_runs.METHODS:
        now = settings_now(config, of_method(config, method, 0))
        runs[method] = {0: {"settings": now | {"split_fingerprint": "f"}}}
    comparison_runs.require_alike(runs)


def test_scores_of_other_seeds_settings_are_refused(benchmark):
    config, _ = benchmark
    comparison.compare(config)
    change_kept(config, of(config, "s4gan", 1), lambda kept: kept["settings"]["fields"]["s4gan"].update(gamma=0.5))
    with pytest.raises(ValueError, match="s4gan with seeds 0 and 1 differ in gamma: delete"):
        comparison_tables.write_results(config)


@pytest.mark.parametrize("name", ["cover", "backbone", "learning_rate", "average_weights", "a_field_no_longer_there"])
def test_scores_of_settings_that_are_not_those_of_today_are_refused(benchmark, name):
    config, trained = benchmark
    comparison.compare(config)
    trained.clear()

    def change(kept):
        settings = kept["settings"]
        if name == "cover":  # from before there was such a thing
            del settings["cover"]
        elif name == "average_weights":
            del kept["result"]["student"]
        else:
            (settings if name == "backbone" else settings["fields"]["supervised"])[name] = "another"

    for seed in config.seeds:
        change_kept(config, of(config, "supervised", seed), change)
    with pytest.raises(ValueError, match=rf"seed0.json was run with other settings .* \({name}\)"):
        comparison.compare(config)
    assert not trained


def test_settings_that_came_later_with_a_default_that_changes_nothing(benchmark):
    config, _ = benchmark
    comparison.compare(config)
    text = config.table.read_text()

    def older(kept):
        del kept["settings"]["accumulate"], kept["settings"]["fields"]["supervised"]["freeze_batch_norm"]

    for seed in config.seeds:
        change_kept(config, of(config, "supervised", seed), older)
    comparison_tables.write_results(config)
    assert config.table.read_text() == text


@pytest.mark.parametrize("method", ["supervised", "latent", "unimatch", "s4gan", "ecs"])
@pytest.mark.parametrize("dataset", ["shapes", "photographs"])
def test_the_settings_of_now_are_those_of_the_command_line(benchmark, method, dataset):
    config, _ = benchmark
    config = dataclasses.replace(config, dataset=dataset)
    training = Training(method, "12", 0, 7)
    flags = [*training.flags(config), "--dataset", dataset]
    default = configuration(flags)
    run = tyro.cli(type(default), args=flags, default=default)
    fields = comparison_runs.METHODS[method].with_data(run.method_fields, TrainingData(12, run.crop))
    recorded = {
        name: getattr(run, name) for name in ("crop", "backbone", "labeled", "batch_size", "cover", "average_weights")
    }
    recorded = json.loads(json.dumps(recorded | {"fields": fields}))
    now = settings_now(config, training)
    assert recorded == {name: now[name] for name in recorded}


def test_a_run_that_failed_stops_no_other_and_is_reported(benchmark, monkeypatch):
    config, trained = benchmark
    working = comparison.subprocess.Popen

    class Failing(working):
        def __init__(self, command, **others):
            if "s4gan" not in command:
                super().__init__(command, **others)
            self.status = 2 if "s4gan" in command else 0

        def wait(self, timeout=None):
            return self.status

    monkeypatch.setattr(comparison.subprocess, "Popen", Failing)
    with pytest.raises(
        ValueError, match="2 runs failed, the first: s4gan_12_2steps_seed0 ended with exit status 2: see"
    ):
        comparison.compare(config)
    assert {run.method for run in trained} == {"supervised", "unimatch"}, "mlmt has no segmenter to go on with"


class Long:
    """A run that goes on until it is stopped, and then ends as training.run does."""

    def __init__(self, command, **_):
        Long.commands.append(command)
        self.status = None

    def wait(self, timeout=None):
        if self.status is None:
            raise subprocess.TimeoutExpired("", timeout)
        return self.status

    def send_signal(self, number):
        self.status = 128 + number


def test_after_the_time_a_run_is_stopped_and_none_starts(benchmark, monkeypatch):
    config, trained = benchmark
    monkeypatch.setattr(Long, "commands", [], raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(comparison.subprocess, "Popen", Long)
        ended = comparison.compare(config, max_hours=0.1 / 3600)
    assert ended["runs_to_come"] == 12 and "exit_status" not in ended
    assert len(Long.commands) == 1 and "--resume" not in Long.commands[0]
    assert comparison.compare(config, max_hours=1)["runs_to_come"] == 0, "the next call trains them"


def test_a_run_that_was_stopped_is_resumed(benchmark, monkeypatch):
    config, _ = benchmark
    folder = of(config, "supervised", 0).folder(config)
    folder.mkdir(parents=True)
    settings = {"method": "", "dataset": "", "steps": 2, "classes": [], "palette": [], "split_fingerprint": ""}
    (folder / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(Long, "commands", [], raising=False)
    monkeypatch.setattr(comparison.subprocess, "Popen", Long)
    comparison.compare(config, max_hours=0.1 / 3600)
    assert [command[-1] for command in Long.commands] == ["--resume"]


def test_a_signal_stops_the_runs_and_is_the_exit_status(benchmark, monkeypatch):
    config, _ = benchmark

    class Interrupted(Long):
        def __init__(self, command, **others):
            super().__init__(command, **others)
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # to the thread that does not handle it

    monkeypatch.setattr(Long, "commands", [], raising=False)
    monkeypatch.setattr(comparison.subprocess, "Popen", Interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert comparison.compare(config)["exit_status"] == 128 + signal.SIGTERM
    assert len(Long.commands) == 1 and signal.getsignal(signal.SIGTERM) == before


def test_variants_are_compared_with_the_plain_run_of_their_seed(benchmark):
    config, trained = benchmark
    plain = dataclasses.replace(config, seeds=(10, 11), methods=("supervised", "unimatch"))
    comparison.compare(plain)
    assert len(trained) == 4, "no other labels on seeds for tuning"
    low = dataclasses.replace(plain, methods=("unimatch",), variant="low", extra="--learning-rate 5e-4")
    comparison.compare(low)
    assert [run.variant for run in trained[4:]] == ["low", "low"]
    kept = config.results / "camvid" / "tuning"
    assert (kept / "unimatch@low_12_2steps_seed10.json").exists() and not config.table.exists()
    table = kept.with_suffix(".md").read_text()
    gained = "+2.0 +2.0 (mean +2.0 ± 0.0) | +7.0 +3.0 (mean +5.0 ± 2.0)"
    assert f"| unimatch@low | `--learning-rate 5e-4` | 57.0 | 43.0 | 50.0 | {gained} |" in table
    assert "| supervised | as in the recipe | 50.0 | 40.0 | 45.0 | - |" in table
    with pytest.raises(ValueError, match="was run with --learning-rate 5e-4: choose another --variant"):
        comparison.compare(dataclasses.replace(low, extra="--learning-rate 1e-4"))


def test_another_backbone_has_tables_of_its_own(benchmark):
    config, trained = benchmark
    comparison.compare(config)
    count = len(trained)
    other = dataclasses.replace(config, backbone="efficientnet_lite0", methods=("supervised", "unimatch"), seeds=(0,))
    comparison.compare(other)
    assert [run.method for run in trained[count:]] == ["supervised", "supervised", "unimatch", "supervised"]
    kept = json.loads((config.results / "camvid_efficientnet_lite0" / "unimatch_12_2steps_seed0.json").read_text())
    assert kept["settings"]["backbone"] == "efficientnet_lite0"
    table = (config.results / "camvid_efficientnet_lite0.md").read_text()
    assert table.count("--backbone efficientnet_lite0") == 3, "in each command"
    assert "--backbone" not in config.table.read_text()
    head = comparison_tables.write_summary(config.results).read_text().splitlines()[3]
    assert "[camvid_efficientnet_lite0](comparison/camvid_efficientnet_lite0.md), 12 of 367 labels" in head


def test_one_table_of_all_datasets(benchmark):
    config, _ = benchmark
    with pytest.raises(ValueError, match="no scores of supervised yet"):
        comparison_tables.write_summary(config.results)
    comparison.compare(config)
    comparison.compare(dataclasses.replace(config, dataset="msrc21", methods=("supervised", "unimatch"), seeds=(1,)))
    about = config.results.with_suffix(".md")
    about.write_text("A word.\n<!-- table -->\n<!-- end of table -->\n")
    assert comparison.main(ComparisonConfig(summary=True, results=config.results)) == {"table": str(about)}
    assert about.read_text().startswith("A word.\n")
    rows = [line for line in about.read_text().splitlines() if line.startswith("| ")]
    assert "[msrc21](comparison/msrc21.md), 12 of 367 labels | [camvid](comparison/camvid.md)" in rows[0]
    assert rows[2:] == [
        "| supervised | mIoU 40.0 % | mIoU 45.0 % | 1.50 | 2.0 |",
        "| supervised, averaged weights | +1.0 | +1.0 ± 0.0 | 1.50 | 2.0 |",
        "| supervised, twice the updates | +3.0 | +3.0 ± 0.0 | 1.50 | 2.0 |",
        "| `mlmt` | - | **+3.0 ± 1.0** | - | - |",
        "| `unimatch` | **+1.0** | **+3.0 ± 2.0** | 1.50 | 2.0 |",
        "| `s4gan` | - | +2.0 ± 1.0 | - | - |",
        "| supervised, all labels | +10.0 | +10.0 ± 0.0 | - | - |",
    ]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"methods": ("supervised", "cutmix")}, "--methods must be of supervised, .*; got cutmix"),
        ({"more_labels": ("12",)}, "further ones than the 12"),
        ({"variant": "low", "extra": "--steps 3"}, "not reported: --seeds 10 or above"),
        ({"variant": "low", "seeds": (10,)}, "goes with the flags"),
        ({"variant": "a/b", "extra": "--steps 3", "seeds": (10,)}, "names a file"),
        ({"seeds": (1, 10)}, "give one kind"),
        ({"seeds": ()}, "one value at least"),
    ],
)
def test_impossible_requests(benchmark, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(benchmark[0], **fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"labeled": 0}, "--labeled must be at least 1"),
        ({"more_labels": ("half",)}, "numbers of images, and all; got half"),
        ({"dataset": "elsewhere"}, "--labeled N; only msrc21, neu_seg, camvid, shapes have a default"),
        ({}, "which dataset"),
    ],
)
def test_impossible_flags(fields, message):
    with pytest.raises(ValueError, match=message):
        comparison.comparison(ComparisonConfig(**fields))


def test_what_a_dataset_comes_to():
    shapes = comparison.comparison(ComparisonConfig(dataset="shapes"))
    assert shapes.data_flags == {"--dataset": "shapes"}
    assert shapes.count(shapes.labeled) / shapes.count("all") == 1 / 20  # the recipe's
    assert shapes.more_labels == ("10", "40", "80", "all")
    photographs = comparison.comparison(ComparisonConfig(dataset="a/msrc21"), train_images=150)
    assert (photographs.labeled, photographs.more_labels) == ("42", ("21", "84", "all"))
    assert (photographs.steps, photographs.classifier_steps, photographs.cover) == (1500, 750, True)
    assert comparison.comparison(ComparisonConfig(dataset="msrc21", steps=100), 150).classifier_steps == 50


def test_both_input_pipelines_give_the_same_kind_of_batch(tmp_path):
    """As far as it goes without PyTorch: its side of the work is Pillow's and NumPy's."""
    kilobytes = input_pipeline.make_images(tmp_path / "images", 3)
    assert 70 < kilobytes < 120
    images, labels = next(input_pipeline.kerasseg_batches(tmp_path / "images", 3, 0))
    input_pipeline.check(np.asarray(images), np.asarray(labels), 3)
    theirs = input_pipeline.TorchImages(tmp_path / "images", seed=0)
    images_BCHW, labels = (np.stack(parts) for parts in zip(*(theirs[i] for i in range(len(theirs))), strict=True))
    images = images_BCHW.transpose(0, 2, 3, 1)
    input_pipeline.check(images, labels, 3)
    with pytest.raises(ValueError, match="do not do the same: range of images"):
        input_pipeline.check(images / 255, labels, 3)


@pytest.mark.parametrize("name", train_step.PASSES)
def test_the_floor_has_the_passes_of_the_step(name, eager):
    import tensorflow as tf

    from kerasseg.methods import METHODS
    from tests.kerasseg.methods import tiny

    critics = {
        "advsemiseg": lambda: tiny.pixel_discriminator(),
        "s4gan": lambda: tiny.discriminator(),
        "ecs": lambda: tiny.judge(tiny.K + 1, "corrector"),
    }
    method = METHODS[name](tiny.segmenter(), *(critic() for key, critic in critics.items() if key == name))
    method.compile()
    config = train_step.TrainStep(methods=(name,), crop=(8, 9), labeled=2, unlabeled=3, classes=tiny.K)
    x, y = train_step.make_batch(config)
    sizes: dict[str, list[int]] = {network: [] for network in method.network_names}
    for network in method.network_names:
        call = getattr(method, network).call

        def counted(inputs, *args, call=call, counts=sizes[network], **kwargs):
            counts.append(len(tf.nest.flatten(inputs)[0]))
            return call(inputs, *args, **kwargs)

        getattr(method, network).call = counted
    method.update(tiny.batch_of(x, y))

    count = {"labeled": 2, "unlabeled": 3}
    passes = train_step.PASSES[name]
    assert sizes == {network: [sum(map(count.get, each.batches)) for each in passes[network]] for network in passes}


def test_the_floor_runs_forward_and_both_ways_back():
    from tests.kerasseg.methods import tiny

    network = tiny.judge(tiny.K + 1, "corrector")
    config = train_step.TrainStep(crop=(4, 5), classes=tiny.K)
    x, _ = train_step.make_batch(config)
    both = train_step.Pass(("labeled", "unlabeled"), weights=True, segmentation=True)
    forward, by_weights, by_segmentation, forward_alone = train_step.network_passes(
        network, x, [both, train_step.Pass(("labeled",))]
    )()
    assert forward[0].shape == (4, 4, 5, tiny.K + 1) and forward_alone[0].shape == (2, 4, 5, tiny.K + 1)
    assert [gradient.shape for gradient in by_weights] == [weight.shape for weight in network.trainable_variables]
    assert by_segmentation.shape == (4, 4, 5, tiny.K) and np.abs(by_segmentation).min() > 0


def test_sides_that_do_not_do_the_same_are_refused():
    side = {"parameters": {"segmenter": 7}, "shape": [1, 2], "losses": {"L_ce": 3.0, "L_ecs": 0.1}}
    train_step.check(side, side | {"losses": {"L_ce": 4.0, "L_ecs": 2.0}})
    for change, message in (
        ({"parameters": {"segmenter": 8}}, "do the same: parameters"),
        ({"shape": [1, 3]}, "do the same: shape"),
        ({"losses": {"L_ce": 3.0}}, "not have the same losses"),
        ({"losses": {"L_ce": 9.0, "L_ecs": 0.1}}, "begin with different losses: L_ce is 3 and 9"),
        ({"losses": {"L_ce": 3.0, "L_ecs": float("nan")}}, "begin with different losses: L_ecs"),
    ):
        with pytest.raises(ValueError, match=message):
            train_step.check(side, side | change)
    with pytest.raises(ValueError, match="--methods must be of supervised, .*; got mlmt"):
        train_step.TrainStep(methods=("mlmt",))


def test_what_a_backbone_costs_stands_beside_mobilenet_v2(tmp_path, monkeypatch):
    seconds = {"mobilenet_v2": (0.25, 0.5), "mit_b0": (0.5, 0.75)}
    facts = {"parameters": 3_719_445, "peak": 1536, "bytes": 15_000_000}

    def measured(commands, repeats):
        names = {side: command[-1] for side, command in commands.items()}
        turns = {
            side: [{"step": each, "processor": 2 * each, "image": each / 10} for each in seconds[name]]
            for side, name in names.items()
        }
        return dict.fromkeys(commands, facts), turns

    monkeypatch.setattr(families, "measure", measured)
    monkeypatch.setattr(families, "require_cores", lambda cores: None)
    config = families.Families(results=tmp_path / "families.md")
    for name in ("mit_b0", "mobilenet_v2"):
        families.main(dataclasses.replace(config, names=(name,)))
    rows = [line for line in config.results.read_text().splitlines() if line.startswith("| m")]
    assert rows == [
        "| mobilenet_v2 | deeplab_v3plus | 3.7 | 0.38 (0.25 to 0.50) | 1.00 | 0.75 (0.50 to 1.00) | 1.5 | 15 | "
        "37.5 (25.0 to 50.0) | 1.00 |",
        "| mit_b0 | segformer | 3.7 | 0.62 (0.50 to 0.75) | 1.75 | 1.25 (1.00 to 1.50) | 1.5 | 15 | "
        "62.5 (50.0 to 75.0) | 1.75 |",
    ]
    with pytest.raises(ValueError, match="--names must be of mobilenet_v2, .*; got resnet51"):
        families.Families(names=("resnet51",))


def test_the_measured_heads_fit_their_backbones():
    for name, head in families.MEMBERS.items():
        SEGMENTERS[head].stride_on(name, 16)  # refuses a backbone that it does not fit


NO_TORCH = "PyTorch, of the extra `bench`, is not installed"


def test_the_discriminators_of_both_sides_have_as_many_parameters():
    pytest.importorskip("torch", reason=NO_TORCH)
    from benchmarks.pytorch_networks import ImageDiscriminator, PixelDiscriminator
    from kerasseg.critics import build_image_discriminator, build_pixel_discriminator

    for build, theirs in (
        (build_pixel_discriminator, PixelDiscriminator),
        (build_image_discriminator, ImageDiscriminator),
    ):
        count = sum(parameter.numel() for parameter in theirs(5, channels=4).parameters())
        assert build(5, channels=4).count_params() == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "network, method", [("deeplab_v3plus-mobilenet_v2", "s4gan"), ("deeplab_v2-resnet50", "ecs")], ids=str
)
def test_both_sides_of_a_training_step_do_the_same(network, method, eager):
    pytest.importorskip("torch", reason=NO_TORCH)
    config = train_step.TrainStep(networks=(network,), methods=(method,), crop=(33, 49), cores=1)
    sides = []
    for make in (train_step.kerasseg_run, train_step.pytorch_run):
        facts, run = make(config)
        sides.append(facts | {"losses": run(1)})
    train_step.check(*sides)


def test_answers_before_and_after_a_turn_are_not_counted():
    """With many requests at a time those under way at its ends would make a server look faster than it is."""

    async def answer(reader, writer):
        for delay in (0.0, 1.5, 1.5):
            if not await reader.readline():
                break
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(delay)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def replies(seconds):
        port = serving.free_port()
        async with await asyncio.start_server(answer, "127.0.0.1", port):
            counted = await load.closed_loop(port, [load.post("/", b"")], concurrency=8, seconds=seconds, lead=0.75)
            await asyncio.sleep(0.2)  # until both ends are closed
            return counted

    # Each client is answered at 0, at 1.5 and at 3 s; the turn is from 0.75 to 2.25 s.
    assert [reply.status for reply in asyncio.run(replies(1.5))] == [200] * 8
    assert len(asyncio.run(replies(0.1))) == 1


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_the_benchmark_of_a_gpu_says_that_there_is_none(tmp_path):
    with pytest.raises(ValueError, match="an NVIDIA GPU, and none can be used here"):
        gpu.main(gpu.Gpu(models=tmp_path))


def test_the_profile_counts_the_operations_of_tensorflow(tmp_path):
    multiply = tf.function(lambda x: x @ x)
    multiply(tf.ones((256, 256)))
    with tf.profiler.experimental.Profile(str(tmp_path)):
        for _ in range(3):
            multiply(tf.ones((256, 256)))
    milliseconds = [taken for kind, taken in step_profile.operations(tmp_path) if kind in ("MatMul", "_MklMatMul")]
    assert len(milliseconds) == 3
    assert 0 < min(milliseconds) <= max(milliseconds) < 1000


@pytest.mark.slow
def test_health_is_asked_beside_each_kind_of_request(tmp_path):
    rows = health.main(health.Health(seconds=0.5, results=tmp_path / "health.md"))
    assert all(0 < row["median"] <= row["99 %"] <= row["most"] and row["asked"] >= 1 for row in rows.values())
    assert rows["nothing"]["answered"] == 0
    assert all(row["answered"] >= 3 for what, row in rows.items() if what != "nothing")
    assert "| JSON with 30,000 keys | " in (tmp_path / "health.md").read_text()
