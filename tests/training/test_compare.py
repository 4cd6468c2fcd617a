"""The table of several runs, from hand-written run folders."""

import csv
import json
import subprocess
import sys

import pytest

from training.compare import CompareConfig, main
from training.run_folder import ADDED_SETTINGS

PROTOCOL = {"name": "native", "split": "val", "images": 101, "description": "each at its own size"}


@pytest.fixture
def write(tmp_path):
    def write(method, seed, miou, *, split=None, gate=None, finished=True, protocol=PROTOCOL, **settings):
        folder = tmp_path / f"{method}_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        config = {
            "method": method,
            "seed": seed,
            "dataset": f"/somewhere/{folder.name}/pets",  # on whatever machine it ran
            "weights": "imagenet",
            "labeled": "12",
            "steps": 100,
            "classes": ["cat", "dog"],
            "palette": [[0, 0, 0], [1, 1, 1]],
            "split_fingerprint": split or f"{seed:x}" * 64,
            "fields": {method: {"learning_rate": 0.01}},
            "machine": f"machine {seed}",
            "command": f"python -m training.run --seed {seed}",
            "finished": finished,
        }
        (folder / "config.json").write_text(json.dumps(config | settings))
        result = {"mIoU": miou, "per_class_IoU": {}, "protocol": protocol}
        if gate is not None:
            result = result | {"without_gate": {"mIoU": gate, "per_class_IoU": {}}}
        if finished:
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write


def compare(*folders, **flags):
    return main(CompareConfig(tuple(folders), **flags))


def test_means_deviations_and_gains_paired_by_split(write, capsys):
    runs = [write("s4gan", 1, 0.45), write("supervised", 0, 0.5), write("s4gan", 0, 0.52), write("supervised", 1, 0.4)]
    result = compare(*runs)
    ours, base = result["rows"]
    assert (ours["method"], ours["seeds"], ours["mIoU"]) == ("s4gan", [0, 1], [0.52, 0.45])
    assert ours["runs"] == [str(runs[2]), str(runs[0])]
    assert ours["mean"] == pytest.approx(0.485) and ours["deviation"] == pytest.approx(0.07 / 2**0.5)
    assert ours["to_supervised"] == pytest.approx([0.02, 0.05]) and ours["mean_to_supervised"] == pytest.approx(0.035)
    assert base["to_supervised"] == [0, 0]
    assert result["protocol"] == PROTOCOL
    out, err = capsys.readouterr()
    assert "| mIoU on val, %, native | seed 0 | seed 1 | mean | deviation | to supervised, by split |" in out
    assert "| s4gan | 52.0 | 45.0 | 48.5 | 4.9 | +2.0 +5.0 (mean +3.5) |" in out
    assert err == ""


def test_a_run_alone_without_a_baseline(write, capsys):
    (row,) = compare(write("ecs", 3, 0.25))["rows"]
    assert (row["deviation"], row["to_supervised"], row["mean_to_supervised"]) == (None, None, None)
    assert "| ecs | 25.0 | 25.0 | - | - |" in capsys.readouterr().out


def test_further_predictions_have_a_row_of_their_own(write, capsys):
    runs = [write("supervised", 0, 0.4), write("mlmt", 0, 0.5, gate=0.45)]
    assert [row["method"] for row in compare(*runs)["rows"]] == ["supervised", "mlmt", "mlmt, without gate"]
    assert "| mlmt, without gate | 45.0 | 45.0 | - | +5.0 (mean +5.0) |" in capsys.readouterr().out


def test_runs_of_other_settings_are_not_averaged(write, capsys):
    runs = [write("supervised", 0, 0.4), write("s4gan", 0, 0.5)]
    runs += [write("s4gan", 0, 0.6, fields={"s4gan": {"learning_rate": 0.1}}, backbone="resnet50")]
    names = [row["method"] for row in compare(*runs)["rows"]]
    assert names[1:] == ["s4gan (backbone None, learning_rate 0.01)", "s4gan (backbone resnet50, learning_rate 0.1)"]
    assert "note: these methods were also run with different backbone" in capsys.readouterr().err


def test_runs_from_before_a_setting_existed_are_averaged_with_those_that_leave_it_off(write):
    runs = [write("s4gan", 0, 0.4), write("s4gan", 1, 0.5, **ADDED_SETTINGS)]
    (row,) = compare(*runs)["rows"]
    assert row["mean"] == pytest.approx(0.45)
    assert len(compare(*runs, write("s4gan", 1, 0.6, cover=True), mixed_splits=True)["rows"]) == 2


def test_seeds_that_share_a_split_count_as_one_split(write):
    runs = [write("supervised", seed, miou, split="f" * 64) for seed, miou in enumerate((0.3, 0.5))]
    runs += [write("s4gan", seed, miou, split="f" * 64) for seed, miou in ((0, 0.5), (7, 0.6))]
    assert compare(*runs)["rows"][1]["to_supervised"] == pytest.approx([0.15])


def test_other_splits_only_when_told_to(write):
    runs = [write("supervised", 0, 0.4), write("supervised", 1, 0.5), write("s4gan", 1, 0.6), write("s4gan", 2, 0.7)]
    with pytest.raises(ValueError, match="supervised .* splits 00000000, 11111111, s4gan on .* or --mixed-splits"):
        compare(*runs)
    rows = compare(*runs, mixed_splits=True)["rows"]
    assert rows[1]["mean"] == pytest.approx(0.65)
    assert rows[1]["to_supervised"] == pytest.approx([0.1])  # of the split that both have


def test_folders_without_a_finished_run_are_left_out_with_a_word(write, tmp_path, capsys):
    runs = [write("supervised", 0, 0.4), write("s4gan", 0, 0.5, finished=False), write("ecs", 0, None), tmp_path]
    (row,) = compare(*runs)["rows"]
    assert row["runs"] == [str(runs[0])]
    words = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in words] == ["left out"] * 3
    assert words[0].endswith("s4gan_1 is not finished: continue it with kerasseg train --resume")
    assert "ecs_2 has no mIoU" in words[1] and "is not a run folder" in words[2]
    with pytest.raises(ValueError, match="nothing to compare: the run in .* is not finished"):
        compare(*runs[1:])


def test_rows_are_named_once_by_what_differs(write):
    names = []
    for steps, digest in ((100, "a"), (200, "b")):
        fields = {"s4gan": {"steps": steps, "learning_rate": 0.01}}
        weights = {"weights": "imagenet", "initial_weights": {"source": "w.h5", "sha256": digest * 64}}
        names.append(write("s4gan", 0, 0.5, steps=steps, fields=fields, **weights))
    rows = [row["method"] for row in compare(*names)["rows"]]
    assert rows == ["s4gan (steps 100, sha256 aaaaaaaa)", "s4gan (steps 200, sha256 bbbbbbbb)"]
    files = [
        write("ecs", 0, 0.5, weights=f"/data/{name}", initial_weights={"source": name, "sha256": name[0] * 64})
        for name in ("a.h5", "b.h5")
    ]
    assert [row["method"] for row in compare(*files)["rows"]] == ["ecs (weights a.h5)", "ecs (weights b.h5)"]


def test_the_table_as_csv_and_latex(write, tmp_path, capsys):
    runs = [write("supervised", 0, 0.4), write("s4gan", 0, 0.5), write("s4gan", 0, 0.6, crop=[8, 9])]
    compare(*runs, csv=tmp_path / "table.csv", latex=tmp_path / "table.tex")
    lines = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert lines[0] == ["mIoU on val, %, native", "seed 0", "mean", "deviation", "to supervised, by split"]
    assert lines[3] == ["s4gan (crop [8, 9])", "60.0", "60.0", "-", "+20.0 (mean +20.0)"]
    source = (tmp_path / "table.tex").read_text().splitlines()
    head = r"mIoU on val, \%, native & seed 0 & mean & deviation & to supervised, by split \\"
    assert source[:3] == [r"\begin{tabular}{lrrrr}", r"\toprule", head]
    assert source[4] == r"supervised & 40.0 & 40.0 & - & +0.0 (mean +0.0) \\"


def test_what_cannot_be_compared_is_refused(write):
    base = write("supervised", 0, 0.4)
    for other, message in (
        (write("s4gan", 0, 0.5, protocol=PROTOCOL | {"name": "multiscale_flip"}), "evaluated as .*native.*multiscale"),
        (write("s4gan", 0, 0.5, classes=["cat"]), "have other classes"),
        (write("supervised", 0, 0.41), r"supervised_0 and .*supervised_3 are the same training \(supervised, seed 0\)"),
    ):
        for flags in ({}, {"mixed_splits": True}):
            with pytest.raises(ValueError, match=message):
                compare(base, other, **flags)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare()


def test_command_line(write, tmp_path):
    # A command of its own shows that no part of it needs TensorFlow.
    code = (
        "import runpy, sys; sys.argv[0] = 'training.compare'; "
        "sys.modules['tensorflow'] = sys.modules['keras'] = None; "
        "runpy.run_module('training.compare', run_name='__main__')"
    )

    def command(*arguments):
        return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)

    done = command(write("supervised", 0, 0.4), write("s4gan", 0, 0.5))
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert table[-1] == "| s4gan | 50.0 | 50.0 | - | +10.0 (mean +10.0) |"
    assert json.loads(last)["rows"][1]["mean"] == 0.5
    wrong = command(tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ") and wrong.stderr.count("\n") == 1


def test_lists_of_names_are_one_setting_by_their_length_and_the_log_is_none(write):
    lists = {seed: {"labeled": f"lists/{seed}.txt", "log_every": seed + 1, "recipe": f"r{seed}"} for seed in (0, 1)}
    runs = [write("s4gan", seed, 0.4 + seed / 10, **lists[seed]) for seed in (0, 1)]
    for run in runs:
        (run / "split").mkdir()
        (run / "split/labeled.txt").write_text("a\nb\n")
    (row,) = compare(*runs)["rows"]
    assert row["seeds"] == [0, 1] and row["mean"] == pytest.approx(0.45)
    (runs[1] / "split/labeled.txt").write_text("a\nb\nc\n")
    assert [row["method"] for row in compare(*runs, mixed_splits=True)["rows"]] == [
        "s4gan (labeled 2)",
        "s4gan (labeled 3)",
    ]


def test_two_baselines_are_refused(write):
    runs = [write("supervised", 0, 0.4), write("supervised", 0, 0.5, backbone="resnet50")]
    with pytest.raises(ValueError, match="gains are over supervised, of which there are 2: supervised .backbone None"):
        compare(*runs)


def test_class_weights_of_a_scheme_follow_from_the_split_and_split_no_row(write):
    runs = [
        write(
            "supervised",
            seed,
            0.5,
            class_weights=scheme,
            fields={"supervised": {"learning_rate": 0.01, "class_weights": [1.0 + seed, 2.0]}},
        )
        for scheme in ("inverse_log", "none")
        for seed in (0, 1)
    ]
    assert len(compare(*runs[:2])["rows"]) == 1
    with pytest.raises(ValueError, match=r"supervised \(class_weights \[1.0, 2.0\]\) was trained on the splits"):
        compare(*runs[2:])  # given ones are settings like any other
