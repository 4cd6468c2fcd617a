"""The losses of DualGAN in NumPy, their gradients by finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import DualGAN
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract


class TestDualGAN(MethodContract):
    name = "dualgan"
    fields = {"semi_start": 0.0}
    minimized = ("segmenter", "L_G")

    def make(self, segmenter):
        if segmenter.name == "segmenter":  # tiny.segmenter
            return DualGAN(segmenter, tiny.image_judge("d1"), tiny.judge(1, "d2"), steps=10, **self.fields)
        return super().make(segmenter)


def make(**fields):
    fields = {"steps": 10, "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, "semi_start": 0.0} | fields
    d1 = tiny.image_judge("d1") if fields.get("use_d1", True) else None
    d2 = tiny.judge(1, "d2") if fields.get("use_d2", True) else None
    method = DualGAN(tiny.segmenter(), d1, d2, **fields)
    method.compile({name: keras.optimizers.SGD(1.0) for name in method.network_names if name != "segmenter"})
    return method


def losses(x, y, G, D1, D2, targets, late=1.0, lambda_ad=0.01, lambda_s=0.1, wrong_weight=1.0, rolled=0):
    """`rolled`: by how much the class maps are moved on before D2 learns from them."""
    twin = tiny.Segmenter.of(G)
    (z_l, _), (z_u, _) = twin.forward(x["labeled"]), twin.forward(x["unlabeled"])
    G_l, G_u = tiny.softmax(z_l), tiny.softmax(z_u)
    valid_l, valid_u = y != 255, x["unlabeled_valid"]
    terms = {"L_ce": tiny.cross_entropy(y, z_l)[0], "L_ad": 0.0}
    if D1:
        D1_Y, D1_l, D1_u = (
            tiny.image_verdicts(D1, S) for S in (tiny.one_hot(y), G_l * valid_l[..., None], G_u * valid_u[..., None])
        )
        terms["L_ad"] += tiny.binary_cross_entropy(D1_l, 1) + late * tiny.binary_cross_entropy(D1_u, 1)
        terms["L_D1"] = tiny.binary_cross_entropy(D1_Y, 1) + tiny.binary_cross_entropy(D1_l, 0)
        terms |= {"D1_real": tiny.sigmoid(D1_Y).mean(), "D1_fake": tiny.sigmoid(D1_l).mean()}
        terms |= {"acc_real": (D1_Y > 0).mean(), "acc_fake": (D1_l <= 0).mean()}
    terms["L_G"] = terms["L_ce"]
    if D2:
        D2_l, D2_u = (
            tiny.judgement(D2, S, x[name])[..., 0]
            for S, name in ((G_l, "labeled"), (G_u * valid_u[..., None], "unlabeled"))
        )
        terms["L_ad"] += tiny.binary_cross_entropy(D2_l, 1, valid_l) + late * tiny.binary_cross_entropy(
            D2_u, 1, valid_u
        )
        shown_l = np.roll(G_l, rolled, axis=-1)
        right_l = np.argmax(shown_l, axis=-1) == y
        D2_l = tiny.judgement(D2, shown_l, x["labeled"])[..., 0]
        terms["L_D2"] = tiny.binary_cross_entropy(D2_l, right_l, valid_l * np.where(right_l, 1, wrong_weight))
        terms |= {"acc_right": (D2_l > 0)[right_l].mean(), "acc_wrong": (D2_l <= 0)[valid_l & ~right_l].mean()}
        terms["L_s"] = tiny.cross_entropy(targets, z_u)[0]
        terms["selected"] = (targets != 255).sum() / valid_u.sum()
        terms["L_G"] += late * lambda_s * terms["L_s"]
    terms["L_G"] += lambda_ad * terms["L_ad"]
    return terms


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lambda_ad": 2.0, "lambda_s": 3.0},
        {"threshold": "inverted", "lambda_s": 2.0},
        {"wrong_weight": 5.0},
        {"class_swap": 0.5, "lambda_ad": 2.0},
        {"threshold": "static", "T": 0.5, "lambda_s": 2.0},
        {"threshold": "static", "T": 0.5, "use_d1": False, "lambda_ad": 2.0},
        {"use_d2": False, "lambda_s": 0.0, "lambda_ad": 2.0},
        {"semi_start": 0.5, "lambda_ad": 2.0},
    ],
    ids=str,
)
def test_a_step_updates_each_network_by_its_own_loss(fields, monkeypatch):
    monkeypatch.setattr("kerasseg.methods.dualgan.swap_classes", lambda G_l, *_: tf.roll(G_l, 1, axis=-1))
    keras.utils.set_random_seed(2)
    rng = np.random.default_rng(0)
    x, y = tiny.batch(rng)
    x["unlabeled_valid"] = rng.random(y.shape) < 0.8
    method = make(**fields)
    if fields.get("use_d2", True):  # so that it trusts some pixels and not others
        method.d2.set_weights([rng.normal(scale=2, size=w.shape) for w in method.d2.get_weights()])
    G, D1, D2 = (
        tiny.float64_weights(getattr(method, name)) if name in method.network_names else None
        for name in ("segmenter", "d1", "d2")
    )
    G_u = np.asarray(method(x["unlabeled"]), np.float64)
    targets = np.full(y.shape, 255)
    if D2:
        shown = G_u * x["unlabeled_valid"][..., None]
        score = tiny.sigmoid(tiny.judgement(D2, shown, x["unlabeled"])[..., 0])
        T = fields.get("T")
        if T is None:  # D1's score of each image
            T = tiny.sigmoid(tiny.image_verdicts(D1, shown))[:, None, None]
            T = 1 - T if fields.get("threshold") == "inverted" else T
        targets = np.where((score > T) & x["unlabeled_valid"], np.argmax(G_u, axis=-1), 255)
        assert 0 < (targets != 255).sum() < x["unlabeled_valid"].sum()
    given = {name: fields[name] for name in ("lambda_ad", "lambda_s", "wrong_weight") if name in fields}
    given |= {
        "targets": targets,
        "late": float(fields.get("semi_start", 0) == 0),
        "rolled": int("class_swap" in fields),
    }
    terms = losses(x, y, G, D1, D2, **given)

    logs = method.train_step(tiny.tensors(x, y))

    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    tiny.assert_moved(method.segmenter, G, tiny.numeric_gradient(lambda w: losses(x, y, w, D1, D2, **given)["L_G"], G))
    if D1:
        tiny.assert_moved(method.d1, D1, tiny.numeric_gradient(lambda w: losses(x, y, G, w, D2, **given)["L_D1"], D1))
    if D2:
        tiny.assert_moved(method.d2, D2, tiny.numeric_gradient(lambda w: losses(x, y, G, D1, w, **given)["L_D2"], D2))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_discriminators_can_stay_as_they_are_from_then_on(frozen):
    x, y = tiny.batch(np.random.default_rng(0))
    method = DualGAN(tiny.segmenter(), steps=10, semi_start=0.2, freeze_discriminators=frozen)
    method.compile()
    for step in range(4):
        before = [w.copy() for w in method.d1.get_weights() + method.d2.get_weights()]
        method.train_step(tiny.tensors(x, y))
        after = method.d1.get_weights() + method.d2.get_weights()
        moved = any((a != b).any() for a, b in zip(after, before, strict=True))
        assert moved == (step < 2 or not frozen), step


def test_the_inverted_threshold_trusts_more_the_more_real_an_image_looks():
    x, y = tiny.batch(np.random.default_rng(0))
    selected = {}
    for threshold in ("dynamic", "inverted"):
        for verdict in (-4.0, 4.0):  # D1's, on any prediction
            keras.utils.set_random_seed(2)
            method = make(threshold=threshold)
            u, v = method.d1.get_weights()
            method.d1.set_weights([np.full_like(u, 10), np.full_like(v, verdict / len(v))])
            selected[threshold, verdict] = float(method.update(tiny.batch_of(x, y))["selected"])
    assert selected["dynamic", -4.0] == selected["inverted", 4.0] == 1
    assert selected["dynamic", 4.0] == selected["inverted", -4.0] == 0


def test_swapped_classes_come_from_a_generator_that_is_saved(monkeypatch):
    x, y = tiny.batch(np.random.default_rng(0))
    given = []
    monkeypatch.setattr(
        "kerasseg.methods.dualgan.swap_classes", lambda *arguments: given.append(arguments) or arguments[0]
    )
    method = make(class_swap=0.25)
    method.train_step(tiny.tensors(x, y))
    ((_, valid, probability, random),) = given
    np.testing.assert_array_equal(valid, y != 255)
    assert probability == 0.25 and random is method.random
    for each, has_one in ((method, True), (make(), False)):
        assert any(v.path.startswith("class_swap") for v in each.non_trainable_variables) == has_one


def test_all_ignored_labels_teach_nothing_but_what_looks_real():
    x, y = tiny.batch(np.random.default_rng(0))
    method = make(lambda_ad=0.0, threshold="static", T=1.0)
    before = method.segmenter.get_weights() + method.d2.get_weights()
    logs = method.train_step(tiny.tensors(x, np.full_like(y, 255)))
    assert [float(logs[name]) for name in ("L_G", "L_ce", "L_s", "L_D2", "selected")] == [0] * 5
    for weight, old in zip(method.segmenter.get_weights() + method.d2.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_the_fields_of_d2_reach_it():
    method = DualGAN(tiny.segmenter(), d2_input="maps_rgb", d2_structure="stride16_up2")
    layers = {layer.name: layer for layer in method.d2.layers}
    assert layers["conv1"].kernel.shape[2] == tiny.K + 3 and "decoder3" in layers


def test_the_papers_settings():
    method = DualGAN(tiny.segmenter(), head_multiplier=1.0)
    method.compile()
    optimizers = method.training_optimizers
    assert (optimizers.segmenter.momentum, optimizers.segmenter.l2) == (0.9, 1e-4)
    rates = [float(getattr(optimizers, name).learning_rate) for name in ("segmenter", "d1", "d2")]
    assert rates == pytest.approx([1e-3, 1e-4, 1e-4])


def test_scores_are_d2s_confidence_by_pixel():
    x, _ = tiny.batch(np.random.default_rng(0))
    method = make()
    S = np.asarray(method(x["labeled"]), np.float64)
    expected = tiny.sigmoid(tiny.judgement(tiny.float64_weights(method.d2), S, x["labeled"])[..., 0])
    np.testing.assert_allclose(
        method.critic_scores(tf.constant(x["labeled"]), method(x["labeled"])), expected, rtol=1e-4
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"lambda_ad": -1}, "lambda_ad .*got"),
        ({"lambda_s": -1}, "lambda_s .*got"),
        ({"semi_start": 2}, "semi_start .*got"),
        ({"T": 1.5}, "T must .*got"),
        ({"threshold": "fixed"}, "threshold .*got"),
        ({"d2_input": "rgb"}, "d2_input .*got"),
        ({"d2_structure": "stride8"}, "d2_structure .*got"),
        ({"wrong_weight": 0}, "wrong_weight .*got"),
        ({"class_swap": 1.5}, "class_swap .*got"),
        ({"use_d1": False}, "dynamic threshold .* without d1 use static"),
        ({"use_d1": False, "threshold": "inverted"}, "inverted threshold .* without d1 use static"),
        ({"use_d2": False}, "set lambda_s to 0"),
        ({"use_d1": False, "use_d2": False}, "use supervised"),
    ],
)
def test_impossible_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)
