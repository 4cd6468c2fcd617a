"""`python -m export.run`, by its command line."""

import json
import shutil

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from PIL import Image

from export import run as export_run
from kerasseg.critics import build_pixel_discriminator
from kerasseg.data import open_dataset
from kerasseg.methods import AdvSemiSeg
from serving.batch import command as batch
from serving.common import cli
from serving.common.artifact import open_artifact
from serving.common.images import index_png, load_labels, png
from serving.model.engine import Engine
from tests.export.conftest import CLASSES, PALETTE, tiny_method, tiny_segmenter, write_run
from training.checkpoints import Checkpoints
from training.protocols import SlidingWindow


@pytest.fixture
def export(capsys):
    """Runs the command; returns exit status, last line of stdout, last line of stderr."""

    def run(*args):
        with pytest.raises(SystemExit) as exit:
            cli.run(export_run.main, export_run.ExportConfig, "", [*map(str, args)])
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        return exit.value.code, json.loads(lines[-1]) if lines else None, captured.err

    return run


@pytest.mark.parametrize("method", ["supervised", "mlmt"])
def test_run_to_artifact_that_serves(method, runs, export, tmp_path):
    run, out = runs[method], tmp_path / "models" / "scene"
    status, result, stderr = export(run, "--out", out, "--parity-images", 3)
    assert status == 0, stderr
    assert result["artifact"] == str(out / "1")
    artifact = open_artifact(out)
    info = artifact.info
    assert (info.name, info.version, info.precision) == ("scene", 1, "fp32")
    assert (info.classes, info.palette) == (CLASSES, PALETTE)
    assert info.evaluation == {"mIoU": 0.25, "protocol": {"name": "native"}}
    assert info.provenance["run"]["seed"] == 3
    assert (info.provenance["commit"], info.provenance["split_fingerprint"]) == ("abc", "def")
    assert info.provenance["versions"]["keras"] == keras.__version__
    assert info.parity["images"] == 3
    assert set(info.parity["formats"]) == {"onnx", "saved_model"}
    for report in info.parity["formats"].values():
        assert report["passed"]
        assert report["agreement_where_clear"] >= 0.999
        assert report["largest_confidence_error"] < 1e-4
        assert report["mIoU"] == pytest.approx(info.parity["mIoU"]["keras"], abs=1e-3)
    names = open_dataset("shapes").image_names("val")[:4]
    images_NHWC = np.stack([open_dataset("shapes").load_image("val", name) for name in names])
    outputs = Engine(artifact, "cpu").predict(images_NHWC)
    loaded = keras.saving.load_model(run / "model.keras")
    probabilities_NHWK = np.asarray(loaded(images_NHWC.astype(np.float32)))
    np.testing.assert_array_equal(outputs["labels"], probabilities_NHWK.argmax(-1))
    assert len(np.unique(outputs["labels"])) > 1
    assert [child.name for child in out.iterdir()] == ["1"]


def test_openvino_is_proven_as_the_others_are(runs, export, tmp_path, monkeypatch):
    out = tmp_path / "scene"
    arguments = (runs["mlmt"], "--out", out, "--parity-images", 2, "--formats", "onnx", "openvino")
    status, result, stderr = export(*arguments)
    assert status == 0, stderr
    assert result["formats"] == ["onnx", "openvino"]
    report = open_artifact(out).info.parity["formats"]["openvino"]
    assert report["passed"] and report["largest_confidence_error"] < 1e-4
    assert sorted(child.name for child in (out / "1/openvino").iterdir()) == ["model.bin", "model.xml"]
    monkeypatch.setattr(export_run, "find_spec", lambda name: None)
    status, _, stderr = export(*arguments)
    assert status == 2 and 'pip install "kerasseg[openvino]"' in stderr


def test_the_state_that_scored_best_can_be_exported(runs, export, tmp_path):
    run, out = tmp_path / "run", tmp_path / "scene"
    shutil.copytree(runs["supervised"], run)
    method = keras.saving.load_model(run / "model.keras")
    method.segmenter.set_weights([weight[..., ::-1] for weight in method.segmenter.get_weights()])
    method.compile()
    with Checkpoints(run / "checkpoints", method, "def") as checkpoints:
        checkpoints.save(3, {}, score=0.75)
    arguments = (run, "--out", out, "--parity-images", 1, "--formats", "onnx")
    status, _, err = export(*arguments, "--checkpoint", "best")
    assert status == 0 and "the best checkpoint is that of step 3" in err
    artifact = open_artifact(out)
    assert artifact.info.evaluation == {"mIoU": 0.75, "steps": 3}
    assert artifact.info.provenance["checkpoint"] == "best"
    image_HWC = open_dataset("shapes").load_image("val", open_dataset("shapes").image_names("val")[0])
    expected = np.asarray(method(image_HWC[None].astype(np.float32))).argmax(-1)
    np.testing.assert_array_equal(Engine(artifact, "cpu").predict(image_HWC[None])["labels"], expected)
    status, _, err = export(*arguments, "--checkpoint", "first")
    assert status == 2 and "--checkpoint must be one of last, best; got 'first'" in err


def test_versions_are_never_overwritten(runs, export, tmp_path):
    out = tmp_path / "scene"
    (out / "4").mkdir(parents=True)
    (out / "4" / "mine.txt").write_text("keep")
    arguments = (runs["supervised"], "--out", out, "--parity-images", 1, "--formats", "onnx")
    assert export(*arguments)[1]["artifact"] == str(out / "5")
    assert export(*arguments)[1]["artifact"] == str(out / "6")
    assert (out / "4" / "mine.txt").read_text() == "keep"
    assert sorted(child.name for child in (out / "5").iterdir()) == ["model.json", "model.onnx"]


def test_graph_that_differs_leaves_nothing_behind(runs, export, tmp_path, monkeypatch):
    predict = Engine.predict
    monkeypatch.setattr(
        Engine,
        "predict",
        lambda self, images, outputs: (out := predict(self, images, outputs)) | {"labels": (out["labels"] + 1) % 3},
    )
    status, _, stderr = export(runs["supervised"], "--out", tmp_path / "new" / "scene", "--parity-images", 1)
    assert status == 2
    assert stderr.splitlines()[-1].startswith("error: the exported graph differs from the trained model")
    assert "onnx: labels agree on" in stderr
    assert not (tmp_path / "new").exists()


def test_dataset_gone_examples_are_compared(export, tmp_path):
    run = write_run(tmp_path / "run", tiny_method("supervised"), dataset=str(tmp_path / "moved"))
    image_HWC = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    for name in ("a", "b"):
        (run / "examples" / name).mkdir(parents=True)
        (run / "examples" / name / "image.png").write_bytes(png(image_HWC))
        (run / "examples" / name / "truth.png").write_bytes(index_png(image_HWC[..., 0] // 100, PALETTE))
    status, _, stderr = export(run, "--out", tmp_path / "scene", "--formats", "onnx")
    assert status == 0, stderr
    assert "comparing on the run's 2 example images" in stderr
    assert open_artifact(tmp_path / "scene").info.parity["images"] == 2
    shutil.rmtree(run / "examples")
    status, _, stderr = export(run, "--out", tmp_path / "scene", "--formats", "onnx")
    assert status == 2
    assert "no images to compare" in stderr
    assert [child.name for child in (tmp_path / "scene").iterdir()] == ["1"]


CONFIG = {"method": "mlmt", "dataset": "shapes", "steps": 1, "classes": [], "palette": [], "split_fingerprint": ""}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing", "--out", "m"], "nothing is not a run folder"),
        (["unfinished", "--out", "m"], "not finished: continue it with kerasseg train --resume"),
        (["stopped", "--out", "m"], "stopped has no model.keras yet: continue it with kerasseg train --resume"),
        (["stopped", "--out", "m", "--precision", "fp8"], "--precision must be one of fp32, fp16, int8; got 'fp8'"),
        (["stopped", "--out", "m", "--formats", "tflite"], "must be one of onnx, openvino, saved_model; got 'tflite'"),
        (["stopped", "--out", "m", "--formats", "saved_model"], "--formats must name onnx"),
        (["stopped", "--out", "m/3"], "names a version"),
        (["stopped", "--out", "file"], "is a file"),
        (["stopped", "--out", "models"], "holds scene, which is no model version"),
        (["stopped", "--out", "m", "--parity-images", "0"], "--parity-images"),
    ],
)
def test_mistakes_are_one_line(arguments, said, export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "scene" / "1").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for name in ("unfinished", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG | {"finished": name == "stopped"}))
    (tmp_path / "stopped" / "result.json").write_text("{}")
    status, result, stderr = export(*arguments)
    assert (status, result) == (2, None)
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1
    assert said in stderr
    assert not (tmp_path / "m").exists()


def test_exported_model_segments_a_folder(runs, export, tmp_path):
    """From run folder to segmented images."""
    assert export(runs["mlmt"], "--out", tmp_path / "scene", "--formats", "onnx", "--parity-images", 1)[0] == 0
    (tmp_path / "photos").mkdir()
    image_HWC = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    (tmp_path / "photos" / "a.png").write_bytes(png(image_HWC))
    with pytest.raises(SystemExit) as exit:
        arguments = [str(tmp_path / name) for name in ("scene", "photos", "out")]
        cli.run(batch.main, batch.BatchConfig, "", [*arguments, "--provider", "cpu"])
    assert exit.value.code == 0
    loaded = keras.saving.load_model(runs["mlmt"] / "model.keras")
    with Image.open(tmp_path / "out" / "labels" / "a.png") as written:
        np.testing.assert_array_equal(
            np.asarray(written), np.asarray(loaded(image_HWC[None].astype(np.float32)))[0].argmax(-1)
        )


def test_a_critic_of_pixels_and_logits_come_along(export, tmp_path):
    keras.utils.set_random_seed(3)
    method = AdvSemiSeg(tiny_segmenter(), build_pixel_discriminator(3, channels=4))
    run = write_run(tmp_path / "run", method, method="advsemiseg")
    out = tmp_path / "scene"
    status, _, err = export(run, "--out", out, "--parity-images", 2, "--logits")
    assert status == 0, err
    artifact = open_artifact(out)
    assert [tensor.name for tensor in artifact.info.outputs] == ["labels", "confidence", "reliability", "logits"]
    images_NHW3 = np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3), np.uint8)
    outputs = Engine(artifact, "cpu").predict(images_NHW3)
    reliability = method.reliability(images_NHW3.astype(np.float32))
    np.testing.assert_allclose(outputs["reliability"], reliability, atol=1e-5)
    assert np.ptp(outputs["reliability"]) > 1e-4

    # By windows, through the command.
    (tmp_path / "photo.png").write_bytes(png(images_NHW3[0]))
    arguments = [str(tmp_path / name) for name in ("scene", "photo.png", "out")]
    with pytest.raises(SystemExit) as exit:
        cli.run(batch.main, batch.BatchConfig, "", [*arguments, "--provider", "cpu", "--window", "24", "24"])
    assert exit.value.code == 0
    expected = Engine(artifact, "cpu").predict_large(images_NHW3[0], (24, 24))["labels"]
    assert (expected != outputs["labels"][0]).any()
    np.testing.assert_array_equal(load_labels(tmp_path / "out" / "labels" / "photo.png"), expected)
    np.testing.assert_allclose(outputs["logits"], method.segmenter(images_NHW3.astype(np.float32)), atol=1e-3)
    for result in artifact.info.parity["formats"].values():
        assert result["largest_reliability_error"] < 1e-4 and result["largest_logits_error"] < 1e-4


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_proven_or_refused(precision, runs, export, tmp_path):
    out = tmp_path / "scene"
    flags = ["--precision", precision, "--parity-images", 2, "--calibration-images", 3]
    status, result, err = export(runs["supervised"], "--out", out, *flags, "--max-miou-loss", 100)
    assert status == 0, err
    artifact = open_artifact(out)
    assert artifact.info.precision == precision and artifact.info.parity["formats"].keys() == {"onnx"}
    report = artifact.info.parity["formats"]["onnx"]
    assert report["largest_confidence_error"] > 1e-6  # else nothing was converted
    assert artifact.info.parity["limits"]["miou_loss"] == 1.0
    assert result["bytes"] == artifact.graph.stat().st_size

    status, _, err = export(runs["supervised"], "--out", out, *flags, "--formats", "onnx", "saved_model")
    assert status == 2 and f"give --formats onnx with --precision {precision}" in err


def test_a_precision_that_loses_too_much_leaves_nothing_behind(runs, export, tmp_path, monkeypatch):
    monkeypatch.setattr(export_run, "to_fp16", lambda model, kept: broken(model))

    def broken(model):
        for weight in model.graph.initializer:
            if len(weight.dims) == 4:
                weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
        return model

    out = tmp_path / "scene"
    status, _, err = export(runs["supervised"], "--out", out, "--precision", "fp16", "--parity-images", 2)
    assert status == 2 and "nothing is written" in err and "--max-miou-loss allows more, fp32 loses nothing" in err
    assert not out.exists()


def test_int8_needs_the_training_images(runs, export, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs["supervised"], run)
    config = json.loads((run / "config.json").read_text()) | {"dataset": str(tmp_path / "gone")}
    (run / "config.json").write_text(json.dumps(config))
    example = run / "examples/a"
    example.mkdir(parents=True)
    (example / "image.png").write_bytes(png(np.zeros((20, 30, 3), np.uint8)))
    (example / "truth.png").write_bytes(index_png(np.zeros((20, 30), np.uint8), PALETTE))
    status, _, err = export(run, "--out", tmp_path / "scene", "--precision", "int8")
    assert status == 2 and "int8 is calibrated on the run's training images, which are missing" in err


def test_flags_that_cannot_be_met_are_told_first(runs, export, tmp_path):
    for flags, message in (
        (["--max-miou-loss", "-1"], "--max-miou-loss is in points of mIoU, 0 to 100; got -1"),
        (["--calibration-images", "0"], "--calibration-images must be at least 1, got 0"),
    ):
        status, _, err = export(runs["supervised"], "--out", tmp_path / "scene", *flags)
        assert status == 2 and message in err


@pytest.mark.parametrize("name", ["supervised", "mlmt"])
def test_large_images_come_out_as_the_protocol_of_windows_has_them(name, runs, export, tmp_path):
    out = tmp_path / "scene"
    assert export(runs[name], "--out", out, "--parity-images", 1, "--formats", "onnx", "--logits")[0] == 0
    image_HW3 = np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)
    engine = Engine(open_artifact(out), "cpu")
    outputs = engine.predict_large(image_HW3, window=(32, 40), stride=0.5, batch_size=3)
    method = keras.saving.load_model(runs[name] / "model.keras")
    protocol = SlidingWindow(window=(32, 40), stride=0.5)
    S_HWK = protocol.segment(method.class_probabilities, tf.constant(image_HW3[None], tf.float32))[0].numpy()
    np.testing.assert_array_equal(outputs["labels"], S_HWK.argmax(-1))
    np.testing.assert_allclose(outputs["confidence"], S_HWK.max(-1), atol=1e-5)

    export(runs[name], "--out", out, "--parity-images", 1, "--formats", "onnx")
    with pytest.raises(ValueError, match="gives no logits.*export it with kerasseg export --logits"):
        Engine(open_artifact(out), "cpu").predict_large(image_HW3, window=(32, 40))
