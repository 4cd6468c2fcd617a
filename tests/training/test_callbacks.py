"""What happens around the steps of a training: log, evaluation, checkpoints, stopping."""

import errno
import json
import re
import signal

import keras
import numpy as np
import pytest

from tests.training.commands import error_line, logged, train
from training import callbacks
from training.checkpoints import Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(eager, dataset, tmp_path, capsys, monkeypatch):
    """mlmt with two steps of each stage: stopped in the first, between them, in the second."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(dataset, whole, capsys, steps=2)[0] == 0

    after_step = callbacks.MetricsLog.after_step
    for stop in (1, 2, 3):

        def interrupt(self, logs, stop=stop):
            after_step(self, logs)
            if self.step == stop:
                signal.raise_signal(signal.SIGINT)

        resume = ["--resume"] if broken.exists() else []
        with monkeypatch.context() as patch:
            patch.setattr(callbacks.MetricsLog, "after_step", interrupt)
            status, result, err = train(dataset, broken, capsys, *resume, steps=2)
        assert status == 128 + signal.SIGINT and result["finished"] is False and result["steps"] == stop
        assert "continue with --resume" in err
        assert (broken / "report.html").exists() and (broken / "model.keras").exists()
        assert not json.loads((broken / "config.json").read_text())["finished"]

    assert train(dataset, broken, capsys, "--resume", steps=2)[0] == 0
    for expected, got in zip(logged(whole), logged(broken), strict=True):
        assert got.keys() == expected.keys()
        for name in got.keys() - {"seconds", "images_per_second", "val_mIoU", "val_mIoU_without_gate"}:
            assert got[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-6), (got["step"], name)


def test_an_evaluation_that_fails_costs_no_step(eager, only_scores, dataset, tmp_path, capsys, monkeypatch):
    """Within a run, and after its last step: the image is named, and the run goes on with that evaluation."""
    whole, broken, image = tmp_path / "whole", tmp_path / "broken", dataset / "images/val/val_1.png"
    flags = ["--evaluate-every", "2", "--log-every", "2", "--checkpoint-every", "100"]
    assert train(dataset, whole, capsys, *flags, method="supervised", steps=3)[0] == 0

    measure, contents = callbacks.Evaluation.measure, image.read_bytes()

    def damaged(self):
        image.write_bytes(contents[:-12])  # the end of a PNG: Pillow does without it
        measure(self)

    for step in (2, 3):
        resume = ["--resume"] if broken.exists() else []
        with monkeypatch.context() as patch:
            if step == 2:
                patch.setattr(callbacks.Evaluation, "measure", damaged)
            else:  # first the one of step 2
                again = iter([measure, damaged])
                patch.setattr(callbacks.Evaluation, "measure", lambda self, again=again: next(again)(self))
            status, _, err = train(dataset, broken, capsys, *flags, *resume, method="supervised", steps=3)
        image.write_bytes(contents)
        assert status == 2 and f"{image}: cannot be read as an image (" in error_line(err)
        assert error_line(err).endswith("then continue with --resume")
        assert (broken / f"checkpoints/step_{step:07}.npz").exists()

    status, result, err = train(dataset, broken, capsys, *flags, "--resume", method="supervised", steps=3)
    assert status == 0 and result["finished"] and "continuing from step 3 of 3" in err
    for expected, got in zip(logged(whole), logged(broken), strict=True):
        assert got.keys() == expected.keys() and "val_mIoU" in got
        assert got["L_ce"] == pytest.approx(expected["L_ce"], rel=2e-3)
    scores = [sorted(Checkpoint.latest(run / "checkpoints").scores) for run in (whole, broken)]
    assert scores[0] == scores[1] == [2, 3]


def test_a_line_of_the_log_that_holds_both_stages_means_each_term_over_its_own_steps(tmp_path):
    class Method:
        main_optimizer = keras.optimizers.SGD(0.25)

    log = callbacks.MetricsLog(tmp_path, start_step=0, last=9, every=3, images_per_step=1)
    log.set_model(Method())
    for step, logs in enumerate(({"L_S": 1.0}, {"L_S": 2.0}, {"L_MT": 5.0})):
        log.on_train_batch_end(step, logs)
    (line,) = logged(tmp_path)
    assert (line["step"], line["L_S"], line["L_MT"], line["learning_rate"]) == (3, 1.5, 5.0, 0.25)


def test_training_stops_at_the_first_loss_that_is_not_finite(eager, dataset, tmp_path, capsys):
    status, _, err = train(dataset, tmp_path / "run", capsys, "--learning-rate", "1e30", method="supervised")
    assert status == 2
    assert re.search(
        r"L_ce became nan at step [23]:", error_line(err)
    )  # weights that are no numbers follow infinite ones
    assert not (tmp_path / "run/result.json").exists()


def test_a_run_stopped_before_its_first_checkpoint_goes_on_from_the_start(eager, dataset, tmp_path, capsys):
    """Also: the segmenter without a width, and image-level labels, from the command line."""
    out = tmp_path / "run"
    flags = ["--segmenter", "deeplab_v2", "--image-labels", "1", "--mlmt.branch", "supervised"]
    assert train(dataset, out, capsys, *flags, "--learning-rate", "1e30", steps=2)[0] == 2
    status, _, err = train(dataset, out, capsys, *flags, "--learning-rate", "1e30", "--resume", steps=2)
    assert status == 2 and "L_ce became nan at step 2" in error_line(err)
    assert len((out / "split/weak.txt").read_text().split()) == 1


def test_a_full_disk_costs_what_came_after_the_last_checkpoint(
    eager, only_scores, dataset, tmp_path, capsys, monkeypatch
):
    out, flags = tmp_path / "run", ["--checkpoint-every", "1"]
    savez = np.savez

    def full(file, **arrays):
        if arrays["segmenter_optimizer/0"] == 2:  # its count of steps
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        status, _, err = train(dataset, out, capsys, *flags, method="supervised", steps=3)
    assert status == 2 and re.search(r"the disk is full \(.*step_0000002.npz.\): make room", error_line(err))
    assert [file.name for file in (out / "checkpoints").iterdir()] == ["step_0000001.npz"]
    status, result, err = train(dataset, out, capsys, *flags, "--resume", method="supervised", steps=3)
    assert status == 0 and result["steps"] == 3 and "continuing from step 1 of 3" in err
    assert [line["step"] for line in logged(out)] == [1, 2, 3]
