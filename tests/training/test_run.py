"""`python -m training.run` and `training.evaluate` on a tiny folder: what they write, and what they answer."""

import json
import signal
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tyro
from PIL import Image

from kerasseg.data import make_split, open_dataset
from kerasseg.methods import METHODS
from kerasseg.segmenters import build_segmenter
from tests.kerasseg.data import archives
from tests.kerasseg.data.folders import save
from tests.kerasseg.methods import tiny
from tests.training.commands import TINY, call, error_line, logged, train
from training import callbacks, evaluate, run
from training.session import Session, assemble

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]


@pytest.mark.parametrize(
    ("method", "terms", "flags"),
    [
        ("advsemiseg", {"L_adv", "L_semi", "L_D"}, ["--segmenter", "deeplab_v3plus"]),
        ("ecs", {"L_cor", "L_ecs", "L_S"}, ["--segmenter", "deeplab_v2", "--ecs.class-swap", "0.5"]),
        ("latent", {"L_latent", "L_cons"}, ["--segmenter", "deeplab_v2", "--latent.latent-classes", "5"]),
        ("dualgan", {"L_D2", "L_s"}, ["--segmenter", "deeplab_v3plus", "--dualgan.d2-input", "maps_rgb"]),
        ("dualgan", {"L_D1", "L_D2", "L_s"}, ["--dualgan.use-d1", "--dualgan.threshold", "inverted"]),
        ("unimatch", {"L_s1", "L_fp"}, ["--segmenter", "deeplab_v2"]),
        ("unimatch_v2", {"L_s1", "selected"}, ["--batch-size", "1"]),
        ("meanteacher", {"L_cons", "trust"}, ["--batch-size", "1", "--class-weights", "inverse_log"]),
    ],
)
def test_every_method_runs_from_the_command_line(eager, dataset, tmp_path, capsys, method, terms, flags):
    out = tmp_path / "run"
    status, result, err = train(dataset, out, capsys, *flags, method=method, steps=2)
    assert status == 0 and result["finished"], err
    assert terms <= logged(out)[1].keys() and "grad_L_ce" not in logged(out)[1]
    if method == "latent":
        model = keras.saving.load_model(out / "model.keras")
        assert model.config.labeled_images == 2 and np.sum(model.co_occurrence) > 0
    report = (out / "report.html").read_text()
    assert all(name in report for name in terms) and "Other quantities" not in report


def test_mlmt_on_a_branch_that_needs_no_unlabelled_images(eager, only_scores, dataset, tmp_path, capsys):
    """Its classifier does, and its gradients are measured on the batch that the branch's were measured on."""
    flags = ["--mlmt.branch", "supervised", "--evaluate-every", "1", "--gradient-norms"]
    status, result, err = train(dataset, tmp_path / "run", capsys, *flags, method="mlmt", steps=2)
    assert status == 0 and result["steps"] == 4, err
    measured = [set(line) & {"grad_L_ce", "grad_L_MT"} for line in logged(tmp_path / "run")]
    assert measured == 2 * [{"grad_L_ce"}] + 2 * [{"grad_L_MT"}]


def test_a_classifier_for_a_finished_run(eager, only_scores, dataset, tmp_path, capsys):
    branch, fused = tmp_path / "branch", tmp_path / "fused"
    assert train(dataset, branch, capsys, method="supervised")[0] == 0
    status, result, _ = train(dataset, fused, capsys, "--branch-run", str(branch))
    assert status == 0
    before, after = (json.loads((run / "result.json").read_text()) for run in (branch, fused))
    assert result["without_gate"]["mIoU"] == after["without_gate"]["mIoU"] == before["mIoU"]

    status, _, err = train(dataset, tmp_path / "other", capsys, "--branch-run", str(branch), "--seed", "1")
    assert status == 2 and "was trained on another split" in error_line(err)
    for flags in (["--average-weights"], ["--class-weights", "inverse_log"], ["--rates", "1", "1", "1"]):
        status, _, err = train(dataset, tmp_path / "other", capsys, "--branch-run", str(branch), *flags)
        assert status == 2 and "give these flags to its own run" in error_line(err)
    again, *_ = train(dataset, tmp_path / "again", capsys, "--branch-run", str(fused))
    assert again == 0, "an mlmt run gets a new classifier"
    (branch / "result.json").unlink()
    status, _, err = train(dataset, tmp_path / "other", capsys, "--branch-run", str(branch))
    assert status == 2 and "is not finished: continue it with kerasseg train --resume" in error_line(err)
    status, _, err = train(dataset, tmp_path / "other", capsys, "--branch-run", str(fused), method="s4gan")
    assert status == 2 and "only mlmt can be added to a finished run" in error_line(err)


def test_a_run_says_which_weights_it_started_from_also_when_resumed(eager, only_scores, dataset, tmp_path, capsys):
    file, out = tmp_path / "model.keras", tmp_path / "run"
    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=3, head_channels=8)
    METHODS["supervised"](segmenter, steps=1).save(file)
    flags = ["--weights", str(file), "--segmenter", "deeplab_v2", "--evaluate-every", "1"]
    after_step = callbacks.MetricsLog.after_step

    def interrupt(self, logs):
        after_step(self, logs)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.MetricsLog, "after_step", interrupt)
        _, result, err = train(dataset, out, capsys, *flags, method="supervised", steps=2)
    assert result["steps"] == 1
    assert "weights: 4 layers from model.keras, 4 reinitialised, 20 of the file skipped\n" in err
    assert f"  all of them: {out / 'weights.txt'}\n" in err
    assert "/decoder/logits 1x1x8x3 3\n" in (out / "weights.txt").read_text()

    file.unlink()  # the checkpoint brings its own
    status, _, err = train(dataset, out, capsys, *flags, "--resume", method="supervised", steps=2)
    assert status == 0 and "weights:" not in err
    started = json.loads((out / "result.json").read_text())["initial_weights"]
    assert started["source"] == "model.keras" and len(started["sha256"]) == 64 and started["by"] == "name"
    assert [started[name] for name in ("loaded", "reinitialised", "skipped")] == [4, 4, 20]
    assert json.loads((out / "config.json").read_text())["initial_weights"] == started


def test_mistakes_are_answered_by_one_line(dataset, tmp_path, capsys):
    out = tmp_path / "run"
    for flags, message in (
        (["--labeled", "0"], "0"),
        (["--dataset", str(tmp_path / "nowhere")], "nowhere"),
        (
            ["--method", "s4gam"],
            f"--method must be one of {', '.join(METHODS)}, or package.module:Class for one of your own; got 's4gam'",
        ),
        (["--backbone", "vgg"], "unknown backbone 'vgg'; the nearest names are vgg19"),
        (["--recipe", "voc"], "there is no recipe 'voc': auto, or one that --list-recipes shows"),
        (["--labeled", "names.txt", "--cover"], "--labeled names.txt: expected a fraction"),
        (["--rare-class-temperature", "-1"], "--rare-class-temperature must be above 0; got -1"),
        (
            ["--class-weights", "1,-1,1"],
            "--class-weights must be none, inverse_log, effective_number, or numbers 0 or more",
        ),
        (["--copy-paste", "2"], "--copy-paste must be a probability 0..1; got 2"),
        (["--mlmt.tau", "1.5"], "tau is a probability"),
        (["--weights", str(tmp_path / "none.h5")], "weights must be 'imagenet', 'none' or an existing file"),
        (["--resume"], "holds no run to resume"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--protocol", "sliding"], "--protocol must be one of native, multiscale_flip, sliding_window, resized"),
        (["--window", "24", "32"], "--window is a setting of --protocol sliding_window, not of native: leave it out"),
        (
            ["--protocol", "resized", "--resized-to", "0", "32"],
            "--resized-to must be two positive numbers of pixels; got 0 32",
        ),
        (["--output-stride", "4"], "--output-stride must be one of 8, 16; got '4'"),
        (["--image-labels", "1"], "s4gan does not use --image-labels"),
        (["--mlmt.no-train-branch"], "give --branch-run RUN"),
        (["--s4gan.gama", "1"], "(perhaps --s4gan.gamma?); --help-all lists the flags"),
    ):
        method = "s4gan" if "--image-labels" in flags else "mlmt"
        status, result, err = train(dataset, out, capsys, *flags, method=method)
        assert status == 2 and result is None and message in error_line(err), (flags, err)
    assert not (out / "model.keras").exists()


def test_averaged_weights_are_evaluated_and_shown_beside_the_last_ones(eager, dataset, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--average-weights", "--supervised.ema-decay", "0.9", "--learning-rate", "0.1"]
    status, result, _ = train(dataset, out, capsys, *flags, method="supervised", steps=3)
    assert status == 0 and set(result) >= {"mIoU", "student"}
    stored = json.loads((out / "result.json").read_text())
    assert stored["student"]["pixel_accuracy"] != stored["pixel_accuracy"]
    method = keras.saving.load_model(out / "model.keras")
    image = np.asarray(Image.open(next((dataset / "images/val").iterdir())))[None].astype(np.float32)
    np.testing.assert_array_equal(method(image), tf.nn.softmax(method.averaged(image)))
    assert logged(out)[-1]["val_mIoU_student"] == stored["student"]["mIoU"]
    assert "mIoU of the averaged weights" in (out / "report.html").read_text()


def test_taps_that_never_learn_are_said_at_the_start_and_in_the_report(eager, dataset, tmp_path, capsys):
    out = tmp_path / "run"
    status, _, err = train(dataset, out, capsys, "--rates", "1", "2", "6", method="supervised", steps=1)
    assert status == 0
    assert (
        "warning: the outer taps of segmenter/aspp_rate18_conv, 6 positions apart, never learn from crops of 24x32"
        in err
    )
    assert (
        "The outer taps of segmenter/aspp_rate12_conv, segmenter/aspp_rate18_conv never learned"
        in (out / "report.html").read_text()
    )
    assert json.loads((out / "config.json").read_text())["rates"] == [1, 2, 6]
    status, _, err = train(dataset, tmp_path / "fitting", capsys, method="supervised", steps=1)
    assert status == 0 and "warning: the outer taps" not in err
    assert json.loads((tmp_path / "fitting/config.json").read_text())["rates"] == [1, 1, 1]


def test_each_device_has_what_a_method_takes_of_unlabelled_images(dataset):
    """unimatch learns from every other unlabelled image; meanteacher pastes parts of one into another."""

    split = make_split(open_dataset(dataset), 2)

    def unlabeled(method, flags, devices=1):
        arguments = ["--method", method, "--dataset", str(dataset), *flags]
        default = run.configuration(arguments)
        config = tyro.cli(type(default), args=arguments, default=default)
        made = METHODS[method](tiny.BranchingSegmenter(), **config.method_fields[method])
        strategy = types.SimpleNamespace(num_replicas_in_sync=devices)
        session = Session(config, strategy, None, None, None, split, made)
        return list(session.warnings()), session.unlabeled

    assert unlabeled("meanteacher", ["--batch-size", "1"]) == ([], 2)
    assert unlabeled("meanteacher", ["--batch-size", "2"], devices=2)[1] == 4
    assert unlabeled("meanteacher", ["--unlabeled-batch-size", "1", "--meanteacher.mixing", "none"])[1] == 1
    (warning,), count = unlabeled("meanteacher", ["--unlabeled-batch-size", "5"])
    assert count == 5 and warning.startswith("a step takes 5 unlabelled images, and there are 4: images repeat")
    assert unlabeled("unimatch", ["--batch-size", "2"])[1] == 4
    with pytest.raises(ValueError, match="unimatch takes 2 unlabelled images for each .* multiple of that; got 5"):
        unlabeled("unimatch", ["--unlabeled-batch-size", "5"], devices=2)


@pytest.mark.parametrize("start_step", [0, 1, 3])
def test_the_classifier_of_mlmt_learns_from_whole_images(dataset, start_step):
    """Two steps on crops of a quarter of the image, then whole images squeezed to that size."""
    save(dataset / "images/train/train_0.png", np.arange(24 * 32 * 3).reshape(24, 32, 3) % 251)
    flags = ["--method", "mlmt", "--dataset", str(dataset), "--labeled", "all", "--steps", "2", *TINY]
    flags += ["--scale", "1", "1", "--no-flip", "--crop", "12", "16", "--batch-size", "6"]
    default = run.configuration(flags)
    config = tyro.cli(type(default), args=flags, default=default)
    session = assemble(config, tf.distribute.get_strategy())
    squeezed = {
        name: tf.image.resize(np.asarray(Image.open(dataset / f"images/train/{name}.png")), (12, 16), antialias=True)
        for name in session.split.labeled
    }
    stage = session.stages[start_step >= 2]
    batches = iter(session.whole_batches(stage, start_step))
    for step in range(start_step, stage.end):
        x, _ = next(batches)
        whole = [any(np.allclose(image, each, atol=1.0) for each in squeezed.values()) for image in x["labeled"]]
        assert all(whole) if step >= 2 else not all(whole), step


def test_every_image_may_be_labelled_and_rare_classes_drawn(eager, dataset, tmp_path, capsys):
    flags = ["--labeled", "all", "--rare-class-temperature", "0.01", "--copy-paste", "0.5"]
    status, result, _ = train(dataset, tmp_path / "run", capsys, *flags, method="s4gan", steps=2)
    assert status == 0 and result["finished"]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["rare_class_temperature"], config["copy_paste"]) == (0.01, 0.5)
    assert (tmp_path / "run/split/unlabeled.txt").read_text() == ""
    assert len((tmp_path / "run/split/labeled.txt").read_text().split()) == 6


def test_cover_is_recorded_and_shapes_the_split(eager, only_scores, dataset, tmp_path, capsys):
    save(dataset / "labels/train/train_4.png", np.full((24, 32), 2))
    for index in (0, 1, 2, 3, 5):
        save(dataset / f"labels/train/train_{index}.png", np.full((24, 32), 1))
    out = tmp_path / "run"
    status, _, err = train(dataset, out, capsys, "--cover", method="supervised", steps=1)
    assert status == 0 and json.loads((out / "config.json").read_text())["cover"] is True
    assert "train_4" in (out / "split/labeled.txt").read_text().split()
    assert "the 2 labelled images: there are more classes (3) than labelled images; label more\n" in err
    assert run.RunConfig(cover=True, labeled="1/8").folder.name == "shapes_mlmt_1-8-cover_seed0"


def test_masks_with_255_as_the_object_are_refused_before_the_first_step(dataset, tmp_path, capsys):
    for path in (dataset / "labels/train").iterdir():
        save(path, (np.asarray(Image.open(path)) > 0) * 255)
    status, _, err = train(dataset, tmp_path / "run", capsys)
    assert status == 2 and "255" in error_line(err)


def test_the_end_of_a_run_is_measured_by_the_protocol_asked_for(dataset, tmp_path, capsys, monkeypatch, two_replicas):
    """On two devices, whose evaluations while training stay native."""
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", {("/device:CPU:0", "/device:CPU:1"): two_replicas}.get)
    out = tmp_path / "run"
    flags = ["--protocol", "sliding_window", "--window", "24", "40", "--stride", "0.5"]
    flags += ["--strategy", "mirrored", "--evaluate-every", "1", "--segmenter", "deeplab_v2"]
    status, result, err = train(dataset, out, capsys, *flags, method="supervised", steps=2)
    assert status == 0, err
    stored = json.loads((out / "result.json").read_text())
    assert stored["protocol"]["name"] == "sliding_window" and stored["protocol"]["window"] == [24, 40]
    assert stored["protocol"]["stride"] == [12, 20]
    assert "(sliding window)" in (out / "report.html").read_text()
    assert not {"protocol", "protocol_settings"} & json.loads((out / "config.json").read_text()).keys()
    watched = [line["val_mIoU"] for line in logged(out) if "val_mIoU" in line]
    status, again, _ = call(evaluate.COMMAND.run, [out], capsys)
    assert again["protocol"] == stored["protocol"]
    status, native, _ = call(
        evaluate.COMMAND.run, [out, "--protocol", "native"], capsys
    )  # the saved model, on one device
    assert native["protocol"]["name"] == "native"
    assert len(watched) == 2 and watched[-1] == native["mIoU"]


def test_two_devices_in_float16_with_accumulated_gradients(dataset, tmp_path, capsys, monkeypatch, two_replicas):
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda devices: two_replicas)
    out = tmp_path / "run"
    flags = ["--strategy", "mirrored", "--precision", "mixed_float16", "--accumulate", "2", "--sync-batch-norm"]
    flags += ["--segmenter", "deeplab_v2"]
    status, _, err = train(dataset, out, capsys, *flags, "--batch-size", "6", method="supervised", steps=1)
    assert status == 2 and "--batch-size is shared by 2 devices" in error_line(err) and "multiple of 4" in err
    status, result, err = train(dataset, out, capsys, *flags, "--batch-size", "4", method="supervised", steps=1)
    assert status == 0 and result["finished"], err
    assert "skipped_segmenter" in logged(out)[0]
    config = json.loads((out / "config.json").read_text())
    assert (config["precision"], config["accumulate"], config["sync_batch_norm"]) == ("mixed_float16", 2, True)


def test_what_deterministic_asks_of_tensorflow(monkeypatch):
    asked = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append("ops"))
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", lambda n: asked.append(n))
    run.prepare_backend(run.RunConfig())
    assert not asked and keras.config.dtype_policy().name == "float32"
    run.prepare_backend(run.RunConfig(deterministic=True, precision="mixed_bfloat16"))
    assert asked == ["ops", 1] and keras.config.dtype_policy().name == "mixed_bfloat16"


def test_a_published_dataset(eager, only_scores, tfds_directories, tmp_path, capsys):
    archives.voc2012(tfds_directories[0])
    listed = tmp_path / "1_4.txt"
    listed.write_text("".join(f"JPEGImages/{n}.jpg SegmentationClassAug/{n}.png\n" for n in archives.VOC_TRAIN))
    flags = ["--dataset", "voc2012", "--labeled", listed, "--out", tmp_path / "run", "--steps", "2", *TINY]
    status, result, err = call(run.main, ["--method", "supervised", *flags], capsys)
    assert status == 0 and result["finished"], err
    assert "preparing voc2012 in " in err
    assert (tmp_path / "run/split/labeled.txt").read_text().split() == list(archives.VOC_TRAIN)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["dataset"] == "voc2012" and config["classes"][20] == "tvmonitor"
    status, again, err = call(evaluate.COMMAND.run, [tmp_path / "run"], capsys)
    assert status == 0 and again["mIoU"] == result["mIoU"] and "preparing" not in err


def test_a_published_dataset_that_is_not_there(tfds_directories, tmp_path, capsys):
    status, _, err = call(run.main, ["--dataset", "cityscapes", "--out", tmp_path / "run", *TINY], capsys)
    assert status == 2 and "needs leftImg8bit_trainvaltest.zip: " in error_line(err)
    assert not (tmp_path / "run").exists()
