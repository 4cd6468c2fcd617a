"""`python -m training.evaluate`: what it measures, and what it answers."""

import shutil

import numpy as np
import pytest

from tests.kerasseg.data.folders import CLASSES, save, write_classes
from tests.training.commands import call, error_line, logged, train
from training import compare, evaluate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]


def test_a_run_is_evaluated_from_anywhere_on_whatever_has_the_split(eager, dataset, tmp_path, capsys, monkeypatch):
    out, only = tmp_path / "run", tmp_path / "only"
    monkeypatch.chdir(tmp_path)
    assert train(dataset.relative_to(tmp_path), out, capsys, method="supervised", steps=1)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, val, err = call(evaluate.COMMAND.run, [out], capsys)
    assert status == 0, err

    for kind in ("images", "labels"):
        shutil.copytree(dataset / kind / "val", only / kind / "test")
    write_classes(only, classes=CLASSES)
    status, test, err = call(evaluate.COMMAND.run, [out, "--dataset", only, "--split", "test"], capsys)
    assert status == 0 and test["mIoU"] == val["mIoU"] and test["protocol"]["split"] == "test", err
    status, _, err = call(evaluate.COMMAND.run, [out, "--dataset", only], capsys)
    assert status == 2 and "images/val: no such folder" in error_line(err)

    for path in (only / "labels/test").iterdir():
        save(path, np.full((24, 32), 255))
    status, test, err = call(evaluate.COMMAND.run, [out, "--dataset", only, "--split", "test"], capsys)
    assert status == 0 and "nothing is measured: all pixels of the test label maps are ignored" in err
    assert test["mIoU"] is test["mIoU_reference"] is test["pixel_accuracy"] is None

    status, _, err = call(evaluate.COMMAND.run, [out, "--dataset", only, "--split", "tset"], capsys)
    assert status == 2 and error_line(err).startswith("error: --split must be one of train, val, test; got 'tset'")

    path = only / "images/test/val_1.png"
    path.write_bytes(path.read_bytes()[:-12])
    monkeypatch.setattr(evaluate, "require_sound", lambda *args, **options: [])
    status, _, err = call(evaluate.COMMAND.run, [out, "--dataset", only, "--split", "test"], capsys)
    assert status == 2 and f"{path}: cannot be read as an image (" in error_line(err)


def test_a_training_of_which_nothing_is_measured_ends(eager, dataset, tmp_path, capsys):
    for path in (dataset / "labels/val").iterdir():
        save(path, np.full((24, 32), 255))
    out = tmp_path / "run"
    status, result, err = train(dataset, out, capsys, "--evaluate-every", "1", method="supervised", steps=2)
    assert status == 0 and result["finished"] and result["mIoU"] is None
    assert "Nothing was measured" in (out / "report.html").read_text()
    assert all("val_mIoU" not in line for line in logged(out))
    with pytest.raises(ValueError, match="has no mIoU, since nothing was measured"):
        compare.main(compare.CompareConfig((out,)))


def test_evaluate_tells_what_it_cannot_do(dataset, tmp_path, capsys):
    status, _, err = call(evaluate.COMMAND.run, [tmp_path], capsys)
    assert status == 2 and "is not a run folder: no config.json" in error_line(err)
