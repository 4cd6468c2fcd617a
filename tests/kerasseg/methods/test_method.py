"""What all methods share: the loss on labels, averaged weights, where pseudo labels come from, inference."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg import losses
from kerasseg.methods import METHODS, MLMT, S4GAN, AdvSemiSeg, DualGAN, Supervised
from kerasseg.methods.averaging import averaged_copy, follow
from tests.kerasseg.methods import tiny

STILL = {"steps": 10, "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}
WEIGHTS = (1.0, 0.0, 3.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"class_weights": WEIGHTS},
        {"ohem_threshold": 0.3, "ohem_share": 0.1},
        {"dice_weight": 0.5},
        {"class_weights": WEIGHTS, "ohem_threshold": 0.2, "ohem_share": 0.4, "dice_weight": 2.0},
    ],
    ids=str,
)
def test_the_loss_on_labels_is_what_the_fields_say(fields):
    x, y = tiny.batch(np.random.default_rng(0))
    method = Supervised(tiny.segmenter(), **STILL | fields)
    method.compile()
    logits = tf.constant(method.segmenter(x["labeled"]))
    learned = y
    if "ohem_threshold" in fields:
        hard = losses.hard_pixels(y, logits, fields["ohem_threshold"], fields["ohem_share"]).numpy()
        assert 0 < hard.sum() < (y != 255).sum()
        learned = np.where(hard, y, 255)
    p = np.take_along_axis(tiny.softmax(np.asarray(logits)), np.where(learned == 255, 0, learned)[..., None], -1)[
        ..., 0
    ]
    weights = (learned != 255) * np.array(fields.get("class_weights", (1, 1, 1)))[np.where(learned == 255, 0, learned)]
    expected = -(weights * np.log(p)).sum() / weights.sum()
    if "dice_weight" in fields:
        expected += fields["dice_weight"] * float(losses.dice_loss(y, logits))
    logs = method.train_step(tiny.tensors(x, y))
    assert float(logs["L_ce"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "mlmt"])
def test_every_method_takes_the_fields_of_the_loss_on_labels(name):
    """The weight of class 1 is 0 and all pixels are of class 1: no label counts."""
    x, y = tiny.batch(np.random.default_rng(0))
    more = {"labeled_images": 2} if name == "latent" else {}
    arguments = {"ecs": [tiny.judge(tiny.K + 1, "corrector")], "latent": [None, tiny.pixel_discriminator()]}
    method = METHODS[name](
        tiny.BranchingSegmenter(), *arguments.get(name, []), **STILL | more | {"class_weights": (1.0, 0.0, 1.0)}
    )
    method.compile(run_eagerly=True)
    logs = method.train_step(tiny.tensors(x, np.ones_like(y)))
    assert float(logs["L_ce"]) == 0.0


def test_impossible_fields_of_the_loss_on_labels():
    with pytest.raises(
        ValueError, match="supervised's class_weights takes one number for each of the 3 classes, or none; got 2"
    ):
        Supervised(tiny.segmenter(), class_weights=(1.0, 2.0))
    for field, value in (("class_weights", (1, -1, 1)), ("dice_weight", -1), ("ohem_threshold", 0), ("ema_decay", 1)):
        with pytest.raises(ValueError, match=f"{field} .*got"):
            Supervised(tiny.segmenter(), **{field: value})


def test_averaged_weights_follow_all_weights_and_predict():
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0))).repeat()
    method = Supervised(tiny.segmenter(), average_weights=True, ema_decay=0.3, steps=10, learning_rate=0.1)
    method.compile()
    average = method.segmenter.get_weights()
    for step in (1, 2, 3, 4):
        method.fit(data, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)
        decay = min((1 + step) / (10 + step), 0.3)
        average = [decay * a + (1 - decay) * w for a, w in zip(average, method.segmenter.get_weights(), strict=True)]
        for ours, expected in zip(method.averaged.get_weights(), average, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    images = np.random.default_rng(1).uniform(0, 255, (2, 4, 5, 3)).astype(np.float32)
    answer = tiny.softmax(tiny.Segmenter.of(average).forward(images)[0])
    assert method.variants == ("", "student") and list(method.infer(images).variants) == [""]
    np.testing.assert_allclose(method(images), answer, rtol=1e-3)
    np.testing.assert_allclose(method.predictions(images)[""], answer, rtol=1e-3)
    assert np.abs(np.asarray(method.predictions(images)["student"]) - answer).max() > 1e-3


@pytest.mark.parametrize("name", ["supervised", "unimatch"])
def test_a_training_with_an_average_is_the_one_without(name):
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0))).repeat()
    weights = []
    for average in (False, True):
        keras.utils.set_random_seed(3)
        method = METHODS[name](tiny.BranchingSegmenter(), steps=4, learning_rate=0.1, average_weights=average)
        method.compile(run_eagerly=True)
        method.fit(data, steps_per_epoch=2, epochs=1, shuffle=False, verbose=0)
        weights.append(method.segmenter.get_weights())
    for without, with_average in zip(*weights, strict=True):
        np.testing.assert_array_equal(without, with_average)


def test_averaged_weights_have_the_statistics_of_batch_norm():
    network = tiny.classifier()
    average = averaged_copy(network)
    network.set_weights([weight + 1.0 for weight in network.get_weights()])
    before = average.get_weights()
    follow(average, network, tf.constant(0.9))
    assert len(before) == 6 and not average.trainable_variables
    for ours, old, new in zip(average.get_weights(), before, network.get_weights(), strict=True):
        np.testing.assert_allclose(ours, 0.9 * old + 0.1 * new, rtol=1e-5)


def test_mlmt_predicts_with_the_average_of_its_branch():
    method = MLMT(Supervised(tiny.segmenter(), average_weights=True, steps=1), tiny.classifier(), steps=1, gate="none")
    branch = method.segmentation
    branch.compile()
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0))).repeat()
    branch.fit(data, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)
    assert np.abs(branch.averaged.get_weights()[0] - branch.segmenter.get_weights()[0]).max() > 0
    images = np.random.default_rng(1).uniform(0, 255, (2, 4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(method(images), branch(images), rtol=1e-5)
    np.testing.assert_allclose(method.infer(images).logits_BHWK, branch.averaged(images), rtol=1e-5)
    assert method.variants == ("", "without_gate", "student")
    student = method.predictions(images)["student"]
    np.testing.assert_allclose(student, tf.nn.softmax(branch.segmenter(images)), rtol=1e-5)


@pytest.mark.parametrize("targets", ["train_mode", "inference_mode", "teacher"])
@pytest.mark.parametrize("name", ["s4gan", "advsemiseg", "dualgan"])
def test_pseudo_labels_come_from_the_pass_that_is_asked_for(name, targets):
    """The teacher is set to call everything class 1."""
    x, y = tiny.batch(np.random.default_rng(0))
    make, fields = {
        "s4gan": (lambda s, **f: S4GAN(s, tiny.discriminator(), **f), {"gamma": 0.0, "lambda_fm": 0.0}),
        "advsemiseg": (
            lambda s, **f: AdvSemiSeg(s, tiny.pixel_discriminator(), **f),
            {"T_semi": 0.0, "semi_start": 0.0, "lambda_adv": 0.0},
        ),
        "dualgan": (
            lambda s, **f: DualGAN(s, None, tiny.judge(1, "d2"), **f),
            {"use_d1": False, "threshold": "static", "T": 0.0, "semi_start": 0.0},
        ),
    }[name]
    method = make(tiny.segmenter(), **STILL | fields | {"targets": targets})
    method.compile(run_eagerly=True)
    if targets == "teacher":
        w1, w2 = method.averaged.get_weights()
        method.averaged.set_weights([np.abs(w1), np.ones_like(w2) * [0.0, 1.0, 0.0]])
    S = np.asarray(tf.nn.log_softmax(method.segmenter(x["unlabeled"])))
    chosen = np.ones(S.shape[:3], int) if targets == "teacher" else S.argmax(axis=-1)
    expected = -np.take_along_axis(S, chosen[..., None], axis=-1).mean()
    logs = method.train_step(tiny.tensors(x, y))
    term = {"s4gan": "L_st", "advsemiseg": "L_semi", "dualgan": "L_s"}[name]
    assert float(logs[term]) == pytest.approx(expected, rel=1e-4)


def test_inference_is_the_same_for_one_image_and_in_a_batch_as_a_dict():
    method = Supervised(tiny.segmenter())
    images = np.random.default_rng(1).uniform(0, 255, (2, 4, 5, 3)).astype(np.float32)
    answer = method.infer(images)
    np.testing.assert_allclose(answer.segmentation_BhwK, tf.nn.softmax(answer.logits_BHWK), rtol=1e-6)
    np.testing.assert_array_equal(answer.segmentation_BhwK, answer.probabilities_BHWK)
    assert answer.reliability_BHW is None and method.reliability(images) is None
    np.testing.assert_array_equal(method({"labeled": images}), answer.probabilities_BHWK)


def test_a_saved_method_loads_with_its_average(tmp_path):
    method = Supervised(tiny.segmenter(), average_weights=True)
    method.averaged.set_weights([weight + 0.5 for weight in method.averaged.get_weights()])
    method.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for network in ("segmenter", "averaged"):
        for ours, theirs in zip(
            getattr(loaded, network).get_weights(), getattr(method, network).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
