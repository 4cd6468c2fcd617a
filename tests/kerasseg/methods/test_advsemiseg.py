"""Equations 1 to 5 of Hung et al. 2018 in NumPy, their gradients by finite differences."""

import keras
import numpy as np
import pytest

import tests.backbone  # noqa: F401
from kerasseg.critics import build_pixel_discriminator
from kerasseg.methods import AdvSemiSeg
from kerasseg.methods.gradient_norms import gradient_norms
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract


class TestAdvSemiSeg(MethodContract):
    name = "advsemiseg"
    fields = {"adv_unlabeled_start": 0.0, "semi_start": 0.0}

    def make(self, segmenter):
        if segmenter.name == "segmenter":  # tiny.segmenter
            return AdvSemiSeg(segmenter, tiny.pixel_discriminator(), steps=10, **self.fields)
        return super().make(segmenter)


def make(**fields):
    method = AdvSemiSeg(
        tiny.segmenter(),
        tiny.pixel_discriminator(),
        **{"steps": 10, "learning_rate": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0} | fields,
    )
    # SGD of rate 1: its own Adam hides the gradient's size.
    method.compile({"discriminator": keras.optimizers.SGD(1.0)})
    return method


def losses(x, y, S, D, targets, *, lambda_adv, lambda_adv_unlabeled, lambda_semi, sees_unlabeled, shown_Y=None):
    """The terms; `targets` are the pseudo labels, `shown_Y` what stands in for the masks."""
    twin = tiny.Segmenter.of(S)
    logits = {name: twin.forward(image)[0] for name, image in x.items() if name != "unlabeled_valid"}
    valid_l, valid_u = y != 255, x["unlabeled_valid"]
    D_l = tiny.pixel_verdicts(D, tiny.softmax(logits["labeled"]) * valid_l[..., None])
    D_u = tiny.pixel_verdicts(D, tiny.softmax(logits["unlabeled"]) * valid_u[..., None])
    D_Y = tiny.pixel_verdicts(D, tiny.one_hot(y) if shown_Y is None else shown_Y)
    terms = {
        "L_ce": tiny.cross_entropy(y, logits["labeled"])[0],
        "L_adv": tiny.binary_cross_entropy(D_l, 1, valid_l),
        "L_adv_u": tiny.binary_cross_entropy(D_u, 1, valid_u),
        "L_semi": tiny.cross_entropy(targets, logits["unlabeled"])[0],
        "D_real": tiny.sigmoid(D_Y)[valid_l].mean(),
        **({"selected": (targets != 255).sum() / valid_u.sum()} if lambda_semi else {}),
    }
    terms["L_S"] = (
        terms["L_ce"]
        + lambda_adv * terms["L_adv"]
        + lambda_adv_unlabeled * terms["L_adv_u"]
        + lambda_semi * terms["L_semi"]
    )
    fake, where = D_l, valid_l
    if sees_unlabeled:
        fake, where = np.concatenate([D_l, D_u]), np.concatenate([valid_l, valid_u])
    terms["L_D"] = (tiny.binary_cross_entropy(fake, 0, where) + tiny.binary_cross_entropy(D_Y, 1, valid_l)) / 2
    terms["D_fake"] = tiny.sigmoid(fake)[where].mean()
    terms |= {"acc_real": (D_Y > 0)[valid_l].mean(), "acc_fake": (fake <= 0)[where].mean()}
    return terms


DEFAULT = {"lambda_adv": 0.01, "lambda_adv_unlabeled": 0.001, "lambda_semi": 0.1}


@pytest.mark.parametrize("T_semi", ["between", 0.0, 1.0])
@pytest.mark.parametrize("sees_unlabeled", [False, True])
@pytest.mark.parametrize(
    "weights", [{}, {"lambda_adv": 3.0}, {"lambda_adv_unlabeled": 4.0}, {"lambda_semi": 0.0}], ids=str
)
def test_a_step_updates_each_network_by_its_own_loss(weights, sees_unlabeled, T_semi):
    rng = np.random.default_rng(0)
    x, y = tiny.batch(rng)
    x["unlabeled_valid"] = rng.random(y.shape) < 0.8
    method = make(**weights, discriminator_sees_unlabeled=sees_unlabeled, adv_unlabeled_start=0.0, semi_start=0.0)
    shown_u = method(x["unlabeled"]) * x["unlabeled_valid"][..., None]
    score = np.asarray(method.critic_scores(x["unlabeled"], shown_u))
    threshold = float(np.median(score)) if T_semi == "between" else T_semi
    before = [w.astype(np.float64) for w in method.segmenter.get_weights()]
    before_D = [w.astype(np.float64) for w in method.discriminator.get_weights()]
    fields = method.get_config() | {"T_semi": threshold}
    again = make(**{name: fields[name] for name in fields if name not in ("name", "segmenter", "discriminator")})
    again.set_weights(method.get_weights())
    trusted = (score > threshold) & x["unlabeled_valid"]
    targets = np.where(trusted, np.argmax(method(x["unlabeled"]), axis=-1), 255)
    given = {"targets": targets, "sees_unlabeled": sees_unlabeled} | DEFAULT | weights
    terms = losses(x, y, before, before_D, **given)

    logs = again.train_step(tiny.tensors(x, y))

    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    gradients = tiny.numeric_gradient(lambda S: losses(x, y, S, before_D, **given)["L_S"], before)
    for weight, old, gradient in zip(again.segmenter.get_weights(), before, gradients, strict=True):
        np.testing.assert_allclose(weight, old - gradient, rtol=1e-4, atol=1e-5)
    gradients = tiny.numeric_gradient(lambda D: losses(x, y, before, D, **given)["L_D"], before_D)
    for weight, old, gradient in zip(again.discriminator.get_weights(), before_D, gradients, strict=True):
        np.testing.assert_allclose(weight, old - gradient, rtol=1e-4, atol=1e-5)


def test_the_discriminator_is_shown_soft_masks():
    """Luc's "Scale": it learns from them, and the segmenter learns nothing through them."""
    x, y = tiny.batch(np.random.default_rng(0))
    x["unlabeled_valid"] = np.ones(y.shape, bool)
    weights = {"lambda_adv": 3.0, "lambda_adv_unlabeled": 0.0, "lambda_semi": 0.0}
    method = make(**weights, mask_peak=0.6)
    S, D = tiny.float64_weights(method.segmenter), tiny.float64_weights(method.discriminator)
    S_l = tiny.softmax(tiny.Segmenter.of(S).forward(x["labeled"])[0])
    truth = tiny.one_hot(y)
    p = (S_l * truth).sum(axis=-1, keepdims=True)
    peak = np.maximum(p, 0.6)
    soft = np.where(truth > 0, peak, S_l * (1 - peak) / (1 - p)) * (y != 255)[..., None]
    given = {"targets": np.full(y.shape, 255), "sees_unlabeled": False, "shown_Y": soft} | weights
    terms = losses(x, y, S, D, **given)

    logs = method.train_step(tiny.tensors(x, y))

    for name in ("L_S", "L_adv", "L_D", "D_real"):
        assert float(logs[name]) == pytest.approx(terms[name], rel=1e-4), name
    tiny.assert_moved(method.segmenter, S, tiny.numeric_gradient(lambda w: losses(x, y, w, D, **given)["L_S"], S))
    tiny.assert_moved(method.discriminator, D, tiny.numeric_gradient(lambda w: losses(x, y, S, w, **given)["L_D"], D))


def test_a_deeplab_may_judge_the_pixels():
    method = AdvSemiSeg(tiny.segmenter(), discriminator_backbone="tiny", steps=10)
    method.compile(run_eagerly=True)
    before = method.discriminator.get_layer("decoder").get_layer("logits").kernel.numpy()
    x, y = tiny.batch(np.random.default_rng(0), height=33, width=20)
    logs = method.train_step(tiny.tensors(x, y))
    assert np.isfinite([float(value) for value in logs.values()]).all()
    assert (method.discriminator.get_layer("decoder").get_layer("logits").kernel.numpy() != before).any()
    assert method.critic_scores(x["labeled"], method(x["labeled"])).shape == (2, 33, 20)
    with pytest.raises(ValueError, match="leave out convolutional or discriminator_backbone"):
        make(convolutional=False, discriminator_backbone="tiny")
    with pytest.raises(ValueError, match="unknown backbone 'resnet1'"):
        AdvSemiSeg(tiny.segmenter(), discriminator_backbone="resnet1")


@pytest.mark.parametrize(
    "field, term, factor", [("adv_unlabeled_start", "L_adv_u", 5.0), ("semi_start", "L_semi", 7.0)]
)
def test_terms_set_in_when_told(field, term, factor):
    x, y = tiny.batch(np.random.default_rng(0))
    weights = {"lambda_adv": 0.0, "lambda_adv_unlabeled": 0.0, "lambda_semi": 0.0, "T_semi": 0.0}
    weights["lambda_semi" if term == "L_semi" else "lambda_adv_unlabeled"] = factor
    method = make(**weights, **{field: 0.3}, learning_rate=0.01)
    for step in range(5):
        logs = method.train_step(tiny.tensors(x, y))
        expected = logs["L_ce"] + (factor * logs[term] if step >= 3 else 0)
        assert float(logs["L_S"]) == pytest.approx(float(expected), rel=1e-5), step


def test_gradient_norms_of_weak_terms_survive_float16():
    norms = {}
    for precision in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(precision)
        keras.utils.set_random_seed(0)
        method = make(lambda_adv=1e-6, adv_unlabeled_start=0.0)
        method.compile()
        norms[precision] = float(gradient_norms(method, tiny.tensors(*tiny.batch(np.random.default_rng(0))))["L_adv"])
    assert norms["mixed_float16"] == pytest.approx(norms["float32"], rel=0.03)


def test_all_ignored_labels_and_no_trusted_pixel_change_nothing():
    x, y = tiny.batch(np.random.default_rng(0))
    method = make(T_semi=1.0, lambda_adv_unlabeled=0.0, semi_start=0.0)
    before = method.get_weights()
    logs = method.train_step(tiny.tensors(x, np.full_like(y, 255)))
    assert {name: float(value) for name, value in logs.items() if name != "L_adv_u"} == dict.fromkeys(
        ("L_S", "L_ce", "L_adv", "L_semi", "L_D", "D_real", "D_fake", "acc_real", "acc_fake", "selected"), 0.0
    )
    for weight, old in zip(method.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_the_papers_settings():
    method = AdvSemiSeg(tiny.segmenter(), head_multiplier=1.0, steps=100)
    method.compile()
    segmenter, discriminator = method.training_optimizers.segmenter, method.training_optimizers.discriminator
    assert (segmenter.momentum, segmenter.nesterov, segmenter.l2) == (0.9, True, 1e-4)
    assert (discriminator.beta_1, discriminator.beta_2) == (0.9, 0.99)
    assert float(discriminator.learning_rate) == pytest.approx(1e-4)
    assert [w.shape for w in method.discriminator.get_weights()] == [
        w.shape for w in build_pixel_discriminator(tiny.K).get_weights()
    ]


def test_the_discriminator_that_is_not_convolutional_gives_one_verdict():
    method = AdvSemiSeg(tiny.segmenter(), convolutional=False, steps=10)
    x, _ = tiny.batch(np.random.default_rng(0), height=40, width=33)
    scores = np.asarray(method.critic_scores(x["labeled"], method(x["labeled"])))
    assert scores.shape == (2, 40, 33) and (scores == scores[:, :1, :1]).all()


@pytest.mark.parametrize(
    "field, value",
    [
        ("lambda_adv", -1),
        ("lambda_adv_unlabeled", -1),
        ("lambda_semi", -1),
        ("T_semi", 1.5),
        ("adv_unlabeled_start", -0.1),
        ("semi_start", 2),
        ("mask_peak", 1.5),
        ("discriminator_learning_rate", 0),
        ("discriminator_channels", 0),
    ],
)
def test_impossible_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} .*got"):
        make(**{field: value})


def test_what_is_selected_is_said_only_where_it_is_learned():
    x, y = tiny.batch(np.random.default_rng(3))
    for weight in (0.0, 0.1):
        assert ("selected" in make(lambda_semi=weight).train_step(tiny.tensors(x, y))) == bool(weight)
