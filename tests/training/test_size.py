"""Runs at a working size: trained, measured, resumed, exported and served; what is said of it."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from PIL import Image

from export import run as export_run
from kerasseg.methods import MLMT
from serving.common.artifact import open_artifact
from serving.model.engine import Engine
from tests.kerasseg.data.folders import make_folder, save
from tests.training.commands import TINY, call, error_line, train
from training import check_data, evaluate, run

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")


@pytest.fixture
def photographs(tmp_path):
    return make_folder(tmp_path / "photographs", train=4, val=2, size=(120, 160))


def test_from_photographs_to_answers_at_their_own_size(eager, photographs, tmp_path, capsys):
    """Crops of 24x32: auto chooses 64, and all that follows uses it."""
    folder, models = tmp_path / "run", tmp_path / "models" / "mine"
    status, result, err = train(photographs, folder, capsys, method="meanteacher", steps=2)
    assert status == 0 and result["finished"]
    assert "working size: 64 pixels; 100% of the training images are larger and are shrunk to it" in err
    config = json.loads((folder / "config.json").read_text())
    assert (config["size"], config["fields"]["meanteacher"]["working_size"]) == ("auto", 64)
    protocol = json.loads((folder / "result.json").read_text())["protocol"]
    assert (protocol["name"], protocol["working_size"]) == ("native", 64)
    assert "larger images shrunk to a longer side of 64 pixels" in protocol["description"]
    with Image.open(folder / "examples/val_0/prediction.png") as prediction:
        assert prediction.size == (160, 120)
    assert "64 pixels" in (folder / "report.html").read_text()

    assert evaluate.main(evaluate.EvaluateConfig(run=folder))["mIoU"] == pytest.approx(result["mIoU"])

    export = export_run.ExportConfig(run=folder, out=models, formats=("onnx", "saved_model", "openvino"))
    assert export_run.main(export)["agreement"] > 0.999
    artifact = open_artifact(models)
    assert artifact.info.working_size == 64
    for name in export.formats:
        sizes = [case["size"] for case in artifact.info.parity["formats"][name]["cases"]]
        assert [123, 165] in sizes and [33, 47] in sizes
    method = keras.models.load_model(folder / "model.keras")
    image = np.asarray(Image.open(photographs / "images/val/val_1.png"))[None]
    answer = Engine(artifact, "cpu").predict(image)
    labels, confidence = method.infer(image.astype(np.float32)).label_map()
    np.testing.assert_array_equal(answer["labels"], labels)
    np.testing.assert_allclose(answer["confidence"], confidence, atol=1e-3)

    needs_no = "shrinks larger images to 64 pixels by itself, so it needs no logits"
    with pytest.raises(ValueError, match=needs_no):
        export_run.main(dataclasses.replace(export, logits=True))
    with pytest.raises(ValueError, match="mine shrinks larger images to 64 pixels by itself"):
        Engine(artifact, "cpu").predict_large(image[0], (32, 32))


def test_a_resumed_run_and_a_classifier_need_the_same_size(eager, photographs, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(photographs, folder, capsys, "--size", "80", method="supervised", steps=1)[0] == 0
    status, _, err = train(photographs, folder, capsys, "--size", "90", "--resume", method="supervised", steps=1)
    assert status == 2 and "size" in error_line(err)

    branch = ["--branch-run", folder]
    status, _, err = train(photographs, tmp_path / "gated", capsys, *branch, steps=1)
    assert status == 2 and error_line(err) == (
        f"error: {folder} was trained at 80 pixels, and this run is at 64 pixels: give --size 80"
    )
    assert train(photographs, tmp_path / "gated", capsys, *branch, "--size", "80", steps=1)[0] == 0
    assert keras.models.load_model(tmp_path / "gated" / "model.keras").config.working_size == 80


def test_check_data_says_the_size(photographs, capsys):
    make_folder(photographs, train=4, val=2, size=(750, 1000))
    config = check_data.CheckDataConfig(str(photographs))
    assert check_data.main(config)["working_size"] == 480
    err = capsys.readouterr().err
    assert "with --size auto, working size: 480 pixels; 100% of the training images are larger" in err
    assert "pixels wide" not in err

    label = np.zeros((750, 1000))
    label[:, 500:502] = 2
    for index in range(4):
        save(photographs / f"labels/train/train_{index}.png", label)
    check_data.main(config)
    said = "with --size auto, dog would be about 1.0 pixels wide: --size native keeps its own width"
    assert said in capsys.readouterr().err


def test_all_label_maps_are_used_by_default(eager, photographs, tmp_path, capsys):
    (photographs / "labels/train/train_1.png").unlink()
    flags = ["--method", "supervised", "--dataset", photographs, "--steps", "1", *TINY, "--out", tmp_path / "run"]
    status, _, err = call(run.main, flags, capsys)
    assert status == 0 and "images: 3 with a label map\n" in err
    assert (tmp_path / "run/split/labeled.txt").read_text().split() == ["train_0", "train_2", "train_3"]


def test_own_size_on_request(eager, photographs, tmp_path, capsys):
    flags = ["--method", "supervised", "--dataset", photographs, "--labeled", "2", "--steps", "1", *TINY]
    status, _, err = call(run.main, [*flags, "--size", "native", "--out", tmp_path / "run"], capsys)
    assert status == 0
    assert "working size: none, though the median image has a longer side of 160 pixels, 5 times that of a" in err
    assert keras.models.load_model(tmp_path / "run" / "model.keras").config.working_size is None
    status, _, err = call(run.main, [*flags, "--size", "12", "--out", tmp_path / "other"], capsys)
    assert status == 2 and "--size must be auto, native, or the longer side" in error_line(err)
    assert MLMT.make_config({}).working_size is None
