"""`python -m training.run` and `training.evaluate` on a tiny folder: what they write, and what they answer."""

import errno
import json
import re
import shutil
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
from serving.common.files import locked
from tests.kerasseg.data import archives
from tests.kerasseg.data.folders import CLASSES, make_folder, save, write_classes
from tests.kerasseg.methods import tiny
from tests.training.commands import TINY, call, error_line, train
from training import callbacks, compare, evaluate, run
from training.checkpoints import Checkpoint
from training.config import defaults
from training.run_folder import ADDED_SETTINGS
from training.session import Session, assemble

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]


@pytest.fixture
def dataset(tmp_path):
    return make_folder(tmp_path / "pets", train=6, val=3)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


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

    assert [line["step"] for line in lines(out)] == [1, 2, 3, 4]
    assert {"L_S", "L_ce", "L_fm", "L_st", "L_D", "D_real", "D_fake"} <= lines(out)[1].keys()
    assert {"L_MT", "L_cls", "L_cons"} <= lines(out)[2].keys() and "L_S" not in lines(out)[2]
    assert [line["step"] for line in lines(out) if "val_mIoU" in line] == [2, 4]
    assert lines(out)[1]["grad_L_fm"] > 0 and lines(out)[3]["grad_L_cls"] > 0
    assert list((out / "tensorboard").iterdir())

    stored = json.loads((out / "result.json").read_text())
    assert stored["mIoU"] == result["mIoU"] and stored["protocol"]["images"] == 3
    assert set(stored["per_class_IoU"]) == set(CLASSES) and "without_gate" in stored
    assert stored["initial_weights"] == {"source": "none"}
    assert stored["without_gate"]["mIoU"] == lines(out)[-1]["val_mIoU_without_gate"]
    assert "<html" in (out / "report.html").read_text()

    # model.keras alone gives the same scores, through the other command and by hand
    status, again, _ = call(evaluate.cli_main, [out], capsys)
    assert status == 0 and again["mIoU"] == stored["mIoU"] and again["per_class_IoU"] == stored["per_class_IoU"]
    status, best, err = call(evaluate.cli_main, [out, "--checkpoint", "best"], capsys)
    assert status == 0 and best["mIoU"] == max(line.get("val_mIoU", 0.0) for line in lines(out)), err
    flags = ["--protocol", "sliding_window", "--window-batch-size", "3"]
    status, windows, _ = call(evaluate.cli_main, [out, *flags], capsys)
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


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(dataset, tmp_path, capsys, monkeypatch):
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
    for expected, got in zip(lines(whole), lines(broken), strict=True):
        assert got.keys() == expected.keys()
        for name in got.keys() - {"seconds", "images_per_second", "val_mIoU", "val_mIoU_without_gate"}:
            assert got[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-6), (got["step"], name)


def test_an_evaluation_that_fails_costs_no_step(eager, dataset, tmp_path, capsys, monkeypatch):
    """Within a run, and after its last step: the image is named, and the run goes on with that evaluation."""
    whole, broken, picture = tmp_path / "whole", tmp_path / "broken", dataset / "images/val/val_1.png"
    flags = ["--evaluate-every", "2", "--log-every", "2", "--checkpoint-every", "100"]
    assert train(dataset, whole, capsys, *flags, method="supervised", steps=3)[0] == 0

    measure, contents = callbacks.Evaluation.measure, picture.read_bytes()

    def damaged(self):
        picture.write_bytes(contents[:-12])  # the end of a PNG: Pillow does without it
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
        picture.write_bytes(contents)
        assert status == 2 and f"{picture}: cannot be read as an image (" in error_line(err)
        assert error_line(err).endswith("then continue with --resume")
        assert (broken / f"checkpoints/step_{step:07}.npz").exists()

    status, result, err = train(dataset, broken, capsys, *flags, "--resume", method="supervised", steps=3)
    assert status == 0 and result["finished"] and "continuing from step 3 of 3" in err
    for expected, got in zip(lines(whole), lines(broken), strict=True):
        assert got.keys() == expected.keys() and "val_mIoU" in got
        assert got["L_ce"] == pytest.approx(expected["L_ce"], rel=2e-3)
    scores = [sorted(Checkpoint.latest(run / "checkpoints").scores) for run in (whole, broken)]
    assert scores[0] == scores[1] == [2, 3]


@pytest.mark.parametrize(
    ("method", "terms", "flags"),
    [
        ("advsemiseg", {"L_adv", "L_semi", "L_D"}, ["--segmenter", "deeplab_v3plus"]),
        ("ecs", {"L_cor", "L_ecs", "L_S"}, ["--segmenter", "deeplab_v2", "--ecs.class-swap", "0.5"]),
        ("latent", {"L_latent", "L_cons"}, ["--segmenter", "deeplab_v2", "--latent.latent-classes", "5"]),
        ("dualgan", {"L_D2", "L_s"}, ["--segmenter", "deeplab_v3plus", "--dualgan.d2-input", "maps_rgb"]),
        ("dualgan", {"L_D1", "L_D2", "L_s"}, ["--dualgan.use-d1", "--dualgan.threshold", "inverted"]),
        ("unimatch", {"L_s1", "L_fp"}, ["--segmenter", "deeplab_v2"]),
        ("meanteacher", {"L_cons", "trust"}, ["--batch-size", "1", "--class-weights", "inverse_log"]),
    ],
)
def test_every_method_runs_from_the_command_line(eager, dataset, tmp_path, capsys, method, terms, flags):
    out = tmp_path / "run"
    status, result, err = train(dataset, out, capsys, *flags, method=method, steps=2)
    assert status == 0 and result["finished"], err
    assert terms <= lines(out)[1].keys() and "grad_L_ce" not in lines(out)[1]
    if method == "latent":
        model = keras.saving.load_model(out / "model.keras")
        assert model.config.labeled_images == 2 and np.sum(model.co_occurrence) > 0
    report = (out / "report.html").read_text()
    assert all(name in report for name in terms) and "Other quantities" not in report


def test_a_line_of_the_log_that_holds_both_stages_means_each_term_over_its_own_steps(tmp_path):
    class Method:
        main_optimizer = keras.optimizers.SGD(0.25)

    log = callbacks.MetricsLog(tmp_path, start_step=0, last=9, every=3, images_per_step=1)
    log.set_model(Method())
    for step, logs in enumerate(({"L_S": 1.0}, {"L_S": 2.0}, {"L_MT": 5.0})):
        log.on_train_batch_end(step, logs)
    (line,) = lines(tmp_path)
    assert (line["step"], line["L_S"], line["L_MT"], line["learning_rate"]) == (3, 1.5, 5.0, 0.25)


def test_mlmt_on_a_branch_that_needs_no_unlabelled_images(eager, dataset, tmp_path, capsys):
    """Its classifier does, and its gradients are measured on the batch that the branch's were measured on."""
    flags = ["--mlmt.branch", "supervised", "--evaluate-every", "1", "--gradient-norms"]
    status, result, err = train(dataset, tmp_path / "run", capsys, *flags, method="mlmt", steps=2)
    assert status == 0 and result["steps"] == 4, err
    measured = [set(line) & {"grad_L_ce", "grad_L_MT"} for line in lines(tmp_path / "run")]
    assert measured == 2 * [{"grad_L_ce"}] + 2 * [{"grad_L_MT"}]


def test_a_classifier_for_a_finished_run(eager, dataset, tmp_path, capsys):
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
    assert status == 2 and "is not finished: continue it with training.run --resume" in error_line(err)
    status, _, err = train(dataset, tmp_path / "other", capsys, "--branch-run", str(fused), method="s4gan")
    assert status == 2 and "only mlmt can be added to a finished run" in error_line(err)


def test_a_run_says_which_weights_it_started_from_also_when_resumed(eager, dataset, tmp_path, capsys):
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


def test_training_stops_at_the_first_loss_that_is_not_finite(eager, dataset, tmp_path, capsys):
    status, _, err = train(dataset, tmp_path / "run", capsys, "--learning-rate", "1e30", method="supervised")
    assert status == 2
    assert re.search(
        r"L_ce became nan at step [23]:", error_line(err)
    )  # weights that are no numbers follow infinite ones
    assert not (tmp_path / "run/result.json").exists()


def test_mistakes_are_answered_by_one_line(dataset, tmp_path, capsys):
    out = tmp_path / "run"
    for flags, message in (
        (["--labeled", "0"], "0"),
        (["--dataset", str(tmp_path / "nowhere")], "nowhere"),
        (
            ["--method", "s4gam"],
            f"--method must be one of {', '.join(METHODS)}, or package.module:Class for one of your own; got 's4gam'",
        ),
        (["--backbone", "vgg"], "--backbone must be one of"),
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
        (["--protocol", "resized", "--size", "0", "32"], "--size must be two positive numbers of pixels; got 0 32"),
        (["--output-stride", "4"], "--output-stride must be one of 8, 16; got '4'"),
        (["--image-labels", "1"], "s4gan does not use --image-labels"),
        (["--mlmt.no-train-branch"], "give --branch-run RUN"),
        (["--s4gan.gama", "1"], "(perhaps --s4gan.gamma?); --help lists the flags"),
    ):
        method = "s4gan" if "--image-labels" in flags else "mlmt"
        status, result, err = train(dataset, out, capsys, *flags, method=method)
        assert status == 2 and result is None and message in error_line(err), (flags, err)
    assert not (out / "model.keras").exists()


def test_a_run_stopped_before_its_first_checkpoint_goes_on_from_the_start(eager, dataset, tmp_path, capsys):
    """Also: the segmenter without a width, and weak labels, from the command line."""
    out = tmp_path / "run"
    flags = ["--segmenter", "deeplab_v2", "--image-labels", "1", "--mlmt.branch", "supervised"]
    assert train(dataset, out, capsys, *flags, "--learning-rate", "1e30", steps=2)[0] == 2
    status, _, err = train(dataset, out, capsys, *flags, "--learning-rate", "1e30", "--resume", steps=2)
    assert status == 2 and "L_ce became nan at step 2" in error_line(err)
    assert len((out / "split/weak.txt").read_text().split()) == 1


def test_a_folder_that_holds_a_run_is_not_overwritten(eager, dataset, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(dataset, out, capsys, method="supervised", steps=1)[0] == 0
    before = (out / "model.keras").read_bytes()
    status, _, err = train(dataset, out, capsys, method="supervised", steps=1)
    assert status == 2 and "holds a run already" in error_line(err)
    status, _, err = train(dataset, out, capsys, "--resume", method="supervised", steps=2)
    assert status == 2 and "was started with other settings (fields, steps)" in error_line(err)
    assert (out / "model.keras").read_bytes() == before


def test_a_run_from_before_a_setting_existed_goes_on(eager, dataset, tmp_path, capsys):
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
    assert lines(out)[-1]["val_mIoU_student"] == stored["student"]["mIoU"]
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
        session = Session(config, strategy, None, None, split, made)
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


def test_what_older_runs_are_taken_to_have_had_are_the_defaults():
    assert ADDED_SETTINGS.items() <= defaults(run.RunConfig).items()


def test_cover_is_recorded_and_shapes_the_split(eager, dataset, tmp_path, capsys):
    save(dataset / "labels/train/train_4.png", np.full((24, 32), 2))
    for index in (0, 1, 2, 3, 5):
        save(dataset / f"labels/train/train_{index}.png", np.full((24, 32), 1))
    out = tmp_path / "run"
    status, _, err = train(dataset, out, capsys, "--cover", method="supervised", steps=1)
    assert status == 0 and json.loads((out / "config.json").read_text())["cover"] is True
    assert "train_4" in (out / "split/labeled.txt").read_text().split()
    assert "the 2 labelled images: there are more classes (3) than labelled images; label more\n" in err
    assert run.RunConfig(cover=True, labeled="1/8").folder.name == "shapes_mlmt_1-8-cover_seed0"


def test_a_folder_in_use_is_left_alone(dataset, tmp_path, capsys):
    out = tmp_path / "runs/run"
    with locked(out, user="training", remedy="choose another --out"):
        status, _, err = train(dataset, out, capsys, method="supervised", steps=1)
        assert status == 2 and re.search(r"is in use by another training \(process \d+ on .+\)", error_line(err))
    assert not out.parent.exists()
    (tmp_path / "file").touch()
    status, _, err = train(dataset, tmp_path / "file/run", capsys, method="supervised", steps=1)
    assert status == 2 and "cannot be written to (Not a directory): choose another --out" in error_line(err)


def test_a_full_disk_costs_what_came_after_the_last_checkpoint(dataset, tmp_path, capsys, monkeypatch):
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
    assert [line["step"] for line in lines(out)] == [1, 2, 3]


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
    flags += ["--strategy", "mirrored", "--evaluate-every", "1"]
    status, result, err = train(dataset, out, capsys, *flags, method="supervised", steps=2)
    assert status == 0, err
    stored = json.loads((out / "result.json").read_text())
    assert stored["protocol"]["name"] == "sliding_window" and stored["protocol"]["window"] == [24, 40]
    assert stored["protocol"]["stride"] == [12, 20]
    assert "(sliding window)" in (out / "report.html").read_text()
    assert not {"protocol", "protocol_settings"} & json.loads((out / "config.json").read_text()).keys()
    watched = [line["val_mIoU"] for line in lines(out) if "val_mIoU" in line]
    status, again, _ = call(evaluate.cli_main, [out], capsys)
    assert again["protocol"] == stored["protocol"]
    status, native, _ = call(evaluate.cli_main, [out, "--protocol", "native"], capsys)  # the saved model, on one device
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
    assert "skipped_segmenter" in lines(out)[0]
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


def test_a_run_is_evaluated_from_anywhere_on_whatever_has_the_split(eager, dataset, tmp_path, capsys, monkeypatch):
    out, only = tmp_path / "run", tmp_path / "only"
    monkeypatch.chdir(tmp_path)
    assert train(dataset.relative_to(tmp_path), out, capsys, method="supervised", steps=1)[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    status, val, err = call(evaluate.cli_main, [out], capsys)
    assert status == 0, err

    for kind in ("images", "labels"):
        shutil.copytree(dataset / kind / "val", only / kind / "test")
    write_classes(only, classes=CLASSES)
    status, test, err = call(evaluate.cli_main, [out, "--dataset", only, "--split", "test"], capsys)
    assert status == 0 and test["mIoU"] == val["mIoU"] and test["protocol"]["split"] == "test", err
    status, _, err = call(evaluate.cli_main, [out, "--dataset", only], capsys)
    assert status == 2 and "images/val: no such folder" in error_line(err)

    for path in (only / "labels/test").iterdir():
        save(path, np.full((24, 32), 255))
    status, test, err = call(evaluate.cli_main, [out, "--dataset", only, "--split", "test"], capsys)
    assert status == 0 and "nothing is measured: all pixels of the test label maps are ignored" in err
    assert test["mIoU"] is test["mIoU_reference"] is test["pixel_accuracy"] is None

    status, _, err = call(evaluate.cli_main, [out, "--dataset", only, "--split", "tset"], capsys)
    assert status == 2 and error_line(err).startswith("error: --split must be one of train, val, test; got 'tset'")

    path = only / "images/test/val_1.png"
    path.write_bytes(path.read_bytes()[:-12])
    monkeypatch.setattr(evaluate, "require_sound", lambda *args, **options: [])
    status, _, err = call(evaluate.cli_main, [out, "--dataset", only, "--split", "test"], capsys)
    assert status == 2 and f"{path}: cannot be read as an image (" in error_line(err)


def test_a_training_of_which_nothing_is_measured_ends(eager, dataset, tmp_path, capsys):
    for path in (dataset / "labels/val").iterdir():
        save(path, np.full((24, 32), 255))
    out = tmp_path / "run"
    status, result, err = train(dataset, out, capsys, "--evaluate-every", "1", method="supervised", steps=2)
    assert status == 0 and result["finished"] and result["mIoU"] is None
    assert "Nothing was measured" in (out / "report.html").read_text()
    assert all("val_mIoU" not in line for line in lines(out))
    with pytest.raises(ValueError, match="has no mIoU, since nothing was measured: leave it out"):
        compare.main(compare.CompareConfig((out,)))


def test_evaluate_tells_what_it_cannot_do(dataset, tmp_path, capsys):
    status, _, err = call(evaluate.cli_main, [tmp_path], capsys)
    assert status == 2 and "is not a run folder: no config.json" in error_line(err)


def test_a_published_dataset(eager, tfds_directories, tmp_path, capsys):
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
    status, again, err = call(evaluate.cli_main, [tmp_path / "run"], capsys)
    assert status == 0 and again["mIoU"] == result["mIoU"] and "preparing" not in err


def test_a_published_dataset_that_is_not_there(tfds_directories, tmp_path, capsys):
    status, _, err = call(run.main, ["--dataset", "cityscapes", "--out", tmp_path / "run", *TINY], capsys)
    assert status == 2 and "needs leftImg8bit_trainvaltest.zip: " in error_line(err)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_what_a_training_takes_and_writes_nothing(dataset, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--dry-run", "--evaluate-every", "40", "--mlmt.steps", "30", "--mlmt.branch", "supervised"]
    arguments = ["--method", "mlmt", "--dataset", dataset, "--labeled", "2", "--out", out, *TINY, *flags]
    status, told, err = call(run.main, [*arguments, "--supervised.steps", "90"], capsys)
    assert status == 0, err
    assert not out.exists()
    assert told["parameters"].keys() == {"segmenter", "student", "teacher"} and told["evaluations"] == 3
    assert told["parameters"]["student"] == told["parameters"]["teacher"] > 0
    assert told["seconds_per_step"].keys() == {"supervised", "mlmt"} and told["peak_memory_bytes"] > 2**28
    expected = 90 * told["seconds_per_step"]["supervised"] + 30 * told["seconds_per_step"]["mlmt"]
    expected += 3 * told["seconds_per_evaluation"] + told["seconds_of_last_evaluation"]
    assert told["seconds"] == pytest.approx(expected, abs=1)
    assert "supervised   90 steps of " in err and "mlmt         30 steps of " in err

    status, _, err = call(run.main, [*arguments, "--resume"], capsys)
    assert status == 2 and "leave --resume out" in error_line(err)
