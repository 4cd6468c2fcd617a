"""What a run leaves in its folder, and who may write there."""

import json
import re

import keras
import numpy as np
import pytest
from PIL import Image

from serving.common.files import locked
from tests.kerasseg.data.folders import CLASSES
from tests.training.commands import call, error_line, logged, train
from training import evaluate, run
from training.config import defaults
from training.run_folder import ADDED_SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]


def test_a_run_leaves_everything_a_user_needs(dataset, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--gradient-norms", "--evaluate-every", "2", "--checkpoint-every", "2", "--s4gan.gamma", "0.3"]
    flags += ["--head-dropout", "0.3"]
    status, result, _ = train(dataset, out, capsys, *flags, steps=2)
    assert status == 0 and result["finished"] and result["steps"] == 4

    config = json.loads((out / "config.json").read_text())
    assert config["finished"] and config["fields"]["s4gan"]["gamma"] == 0.3
    assert config["fields"]["mlmt"]["steps"] == config["fields"]["s4gan"]["steps"] == 2 and config["steps"] == 4
    assert config["classes"] == CLASSES and len(config["split_fingerprint"]) == 64
    assert len((out / "split/labeled.txt").read_text().split()) == 2
    assert len((out / "split/unlabeled.txt").read_text().split()) == 4

    assert [line["step"] for line in logged(out)] == [1, 2, 3, 4]
    assert {"L_S", "L_ce", "L_fm", "L_st", "L_D", "D_real", "D_fake"} <= logged(out)[1].keys()
    assert {"L_MT", "L_cls", "L_cons"} <= logged(out)[2].keys() and "L_S" not in logged(out)[2]
    assert [line["step"] for line in logged(out) if "val_mIoU" in line] == [2, 4]
    assert logged(out)[1]["grad_L_fm"] > 0 and logged(out)[3]["grad_L_cls"] > 0
    assert list((out / "tensorboard").iterdir())

    stored = json.loads((out / "result.json").read_text())
    assert stored["mIoU"] == result["mIoU"] and stored["protocol"]["images"] == 3
    assert set(stored["per_class_IoU"]) == set(CLASSES) and "without_gate" in stored
    assert stored["initial_weights"] == {"source": "none"}
    assert stored["without_gate"]["mIoU"] == logged(out)[-1]["val_mIoU_without_gate"]
    assert "<html" in (out / "report.html").read_text()

    # model.keras alone gives the same scores, through the other command and by hand
    status, again, _ = call(evaluate.COMMAND.run, [out], capsys)
    assert status == 0 and again["mIoU"] == stored["mIoU"] and again["per_class_IoU"] == stored["per_class_IoU"]
    status, best, err = call(evaluate.COMMAND.run, [out, "--checkpoint", "best"], capsys)
    assert status == 0 and best["mIoU"] == max(line.get("val_mIoU", 0.0) for line in logged(out)), err
    flags = ["--protocol", "sliding_window", "--window-batch-size", "3"]
    status, windows, _ = call(evaluate.COMMAND.run, [out, *flags], capsys)
    assert status == 0 and windows["protocol"]["window"] == [24, 32] and windows["protocol"]["stride"] == [16, 22]
    assert windows["mIoU"] == again["mIoU"]  # the images are as large as the crops, so one window covers each
    model = keras.saving.load_model(out / "model.keras")
    assert model.segmenter.head.get_layer("dropout").rate == 0.3
    truth, predicted = [], []
    for name in ("val_0", "val_1", "val_2"):
        image = np.asarray(Image.open(dataset / f"images/val/{name}.png"), np.float32)
        predicted.append(np.argmax(model(image[np.newaxis])[0], axis=-1))
        truth.append(np.asarray(Image.open(dataset / f"labels/val/{name}.png")))
        shown = np.asarray(Image.open(out / f"examples/{name}/prediction.png"))
        np.testing.assert_array_equal(shown, predicted[-1])
    assert np.mean(np.equal(truth, predicted)) == pytest.approx(stored["pixel_accuracy"])


def test_a_folder_that_holds_a_run_is_not_overwritten(eager, only_scores, dataset, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(dataset, out, capsys, method="supervised", steps=1)[0] == 0
    before = (out / "model.keras").read_bytes()
    status, _, err = train(dataset, out, capsys, method="supervised", steps=1)
    assert status == 2 and "holds a run already" in error_line(err)
    assert (out / "model.keras").read_bytes() == before


def test_a_finished_run_is_made_longer_by_another_one(eager, only_scores, dataset, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(dataset, out, capsys, method="supervised", steps=2)[0] == 0
    status, _, err = train(dataset, out, capsys, "--resume", method="supervised", steps=3)
    more = ["--weights", str(out / "model.keras")]
    assert status == 2 and error_line(err).endswith(f"start from its model, with {' '.join(more)} and another --out")
    status, _, err = train(dataset, out, capsys, "--resume", method="supervised", steps=1)
    assert status == 2 and "was started with other settings (fields, steps)" in error_line(err)
    assert train(dataset, tmp_path / "longer", capsys, *more, method="supervised", steps=1)[0] == 0


def test_a_run_from_before_a_setting_existed_goes_on(eager, only_scores, dataset, tmp_path, capsys):
    out, old = tmp_path / "run", ["--rates", "6", "12", "18"]  # as they were before they followed the crop
    assert train(dataset, out, capsys, *old, method="supervised", steps=1)[0] == 0
    config = json.loads((out / "config.json").read_text())
    assert config.pop("cover") is False and config["fields"]["supervised"].pop("freeze_batch_norm") is False
    assert config.pop("untrained_taps") != {} and config.pop("rates") == [6, 12, 18]
    (out / "config.json").write_text(json.dumps(config))
    assert train(dataset, out, capsys, *old, "--resume", method="supervised", steps=1)[0] == 0
    for flags, name in ((["--cover"], "cover"), (["--supervised.freeze-batch-norm"], "fields")):
        status, _, err = train(dataset, out, capsys, *old, "--resume", *flags, method="supervised", steps=1)
        assert status == 2 and f"was started with other settings ({name})" in error_line(err)


def test_what_older_runs_are_taken_to_have_had_are_the_defaults():
    assert ADDED_SETTINGS.items() <= defaults(run.RunConfig).items()


def test_a_folder_in_use_is_left_alone(dataset, tmp_path, capsys):
    out = tmp_path / "runs/run"
    with locked(out, user="training", remedy="choose another --out"):
        status, _, err = train(dataset, out, capsys, method="supervised", steps=1)
        assert status == 2 and re.search(r"is in use by another training \(process \d+ on .+\)", error_line(err))
    assert not out.parent.exists()
    (tmp_path / "file").touch()
    status, _, err = train(dataset, tmp_path / "file/run", capsys, method="supervised", steps=1)
    assert status == 2 and "cannot be written to (Not a directory): choose another --out" in error_line(err)
