"""Equations 1 to 5 of Mittal et al. 2019, against gradients written out by hand on two-layer networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import S4GAN
from kerasseg.methods.gradient_norms import gradient_norms
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract


class TestS4GAN(MethodContract):
    name = "s4gan"

    def make(self, segmenter):
        if segmenter.name == "segmenter":  # tiny.segmenter
            return S4GAN(segmenter, tiny.discriminator(), steps=10)
        return super().make(segmenter)


RATE = 0.3


def make(**fields):
    return S4GAN(
        tiny.segmenter(),
        tiny.discriminator(),
        **{"steps": 10, "learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0, "gamma": 0.0} | fields,
    )


def by_hand(
    method, x, y, lambda_fm=0.1, lambda_st=1.0, gamma=0.0, adversarial="feature_matching", norm="l1", hide=False
):
    """(terms, gradients of the segmenter's weights, gradients of the discriminator's)."""
    twin = tiny.Segmenter(method.segmenter)
    u, v = (np.asarray(w, np.float64) for w in method.discriminator.get_weights())
    logits_l, cache_l = twin.forward(x["labeled"])
    logits_u, cache_u = twin.forward(x["unlabeled"])
    S_u = tiny.softmax(logits_u)
    Y_l = np.where((y == 255)[..., None], 0, np.eye(tiny.K)[np.where(y == 255, 0, y)])

    def judge(segmentation, image):
        joined = np.concatenate([segmentation, image.astype(np.float64) / 255], axis=-1)
        features = (joined @ u).mean(axis=(1, 2))
        return joined, features, (features @ v)[:, 0]

    joined_real, real, z_real = judge(Y_l, x["labeled"])
    valid = x.get("unlabeled_valid", np.ones(y.shape, bool))
    shown = (valid & (y != 255 if hide else True))[..., None]
    joined_fake, fake, z_fake = judge(S_u * shown, x["unlabeled"])
    B, pixels = len(y), y[0].size

    L_ce, d_logits_l = tiny.cross_entropy(y, logits_l)
    difference = real.mean(axis=0) - fake.mean(axis=0)
    if adversarial == "gan":
        L_fm = -np.log(tiny.sigmoid(z_fake)).mean()
        d_fake = ((tiny.sigmoid(z_fake) - 1) / B)[:, None] * v[:, 0]
    elif norm == "l1":
        L_fm = np.abs(difference).mean()
        d_fake = np.tile(-np.sign(difference) / difference.size / B, (B, 1))
    else:
        L_fm = np.sqrt((difference**2).sum())
        d_fake = np.tile(-difference / L_fm / B, (B, 1))
    d_S_u = np.broadcast_to((d_fake @ u[: tiny.K].T)[:, None, None] / pixels, S_u.shape)
    trusted = (tiny.sigmoid(z_fake) >= gamma).astype(np.float64)
    L_st, d_st = tiny.cross_entropy(np.where(valid, np.argmax(logits_u, axis=-1), 255), logits_u, trusted)
    d_logits_u = lambda_fm * tiny.through_softmax(S_u, d_S_u * shown) + lambda_st * d_st
    d_segmenter = [
        a + b for a, b in zip(twin.backward(cache_l, d_logits_l), twin.backward(cache_u, d_logits_u), strict=True)
    ]

    L_D = (-np.log(tiny.sigmoid(z_real)).mean() - np.log(1 - tiny.sigmoid(z_fake)).mean()) / 2
    d_z = {"real": (tiny.sigmoid(z_real) - 1) / B / 2, "fake": tiny.sigmoid(z_fake) / B / 2}
    d_v = real.T @ d_z["real"] + fake.T @ d_z["fake"]
    d_u = sum(
        np.einsum("bhwi,b,j->ij", joined, d, v[:, 0]) / pixels
        for joined, d in ((joined_real, d_z["real"]), (joined_fake, d_z["fake"]))
    )
    terms = {
        "L_ce": L_ce,
        "L_fm": L_fm,
        "L_st": L_st,
        "L_D": L_D,
        "L_S": L_ce + lambda_fm * L_fm + lambda_st * L_st,
        "D_real": tiny.sigmoid(z_real).mean(),
        "D_fake": tiny.sigmoid(z_fake).mean(),
        "acc_real": (z_real > 0).mean(),
        "acc_fake": (z_fake <= 0).mean(),
        **({"selected": trusted.mean()} if lambda_st else {}),
    }
    return terms, d_segmenter, [d_u, d_v[:, None]]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lambda_fm": 0.0, "lambda_st": 0.0},
        {"lambda_st": 0.0, "lambda_fm": 3.0},
        {"adversarial": "gan", "lambda_fm": 2.0, "lambda_st": 0.0},
        {"fm_norm": "l2", "lambda_fm": 5.0},
        {"gamma": 1.0},
        {"hide_ignored": True, "lambda_fm": 4.0},
        {"gamma": "between"},
    ],
    ids=str,
)
def test_a_step_updates_each_network_by_its_own_loss(fields):
    x, y = tiny.batch(np.random.default_rng(0))
    method = make(**fields | ({"gamma": 0.0} if fields.get("gamma") == "between" else {}))
    if fields.get("gamma") == "between":  # so that one image of the two is trusted
        scores = np.sort(method.critic_scores(tf.constant(x["unlabeled"]), method(x["unlabeled"])))
        fields = {"gamma": float(scores.mean())}
        weights = method.get_weights()
        method = make(**fields)
        method.set_weights(weights)
    method.compile({"discriminator": keras.optimizers.SGD(1.0)})  # its own Adam hides the gradient's size
    reference = {{"fm_norm": "norm", "hide_ignored": "hide"}.get(key, key): value for key, value in fields.items()}
    terms, d_segmenter, d_discriminator = by_hand(method, x, y, **reference)
    before_S, before_D = method.segmenter.get_weights(), method.discriminator.get_weights()

    logs = method.train_step(tiny.tensors(x, y))

    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    for weight, old, gradient in zip(method.segmenter.get_weights(), before_S, d_segmenter, strict=True):
        np.testing.assert_allclose(weight, old - RATE * gradient, rtol=1e-4, atol=1e-6)
    for weight, old, gradient in zip(method.discriminator.get_weights(), before_D, d_discriminator, strict=True):
        np.testing.assert_allclose(weight, old - gradient, rtol=1e-4, atol=1e-6)


def test_each_term_pulls_as_hard_as_its_weighted_gradient():
    method = make(lambda_fm=0.3, lambda_st=2.0)
    method.compile()
    x, y = tiny.batch(np.random.default_rng(0))
    norms = gradient_norms(method, tiny.tensors(x, y))

    def norm(*terms):
        """Of the gradient of the segmenter, or of what the weights of `terms` add to it."""
        _, with_terms, _ = by_hand(method, x, y, **{"lambda_fm": 0.0, "lambda_st": 0.0} | dict(terms))
        _, without, _ = by_hand(method, x, y, lambda_fm=0.0, lambda_st=0.0)
        gradients = [a - b for a, b in zip(with_terms, without, strict=True)] if len(terms) == 1 else with_terms
        return np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))

    assert norms.keys() == {"L_S", "L_ce", "L_fm", "L_st", "L_D"}
    expected = {
        "L_ce": norm(),
        "L_fm": norm(("lambda_fm", 0.3)),
        "L_st": norm(("lambda_st", 2.0)),
        "L_S": norm(("lambda_fm", 0.3), ("lambda_st", 2.0)),
    }
    assert {name: float(norms[name]) for name in expected} == pytest.approx(expected, rel=1e-4)


def test_padding_of_unlabelled_images_is_neither_judged_nor_learned():
    rng = np.random.default_rng(0)
    x, y = tiny.batch(rng)
    x["unlabeled_valid"] = rng.random(y.shape) < 0.7
    method = make(lambda_fm=4.0)
    method.compile({"discriminator": keras.optimizers.SGD(1.0)})
    terms, d_segmenter, d_discriminator = by_hand(method, x, y, lambda_fm=4.0)
    before_S, before_D = tiny.float64_weights(method.segmenter), tiny.float64_weights(method.discriminator)
    logs = method.train_step(tiny.tensors(x, y))
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    tiny.assert_moved(method.segmenter, before_S, d_segmenter, RATE)
    tiny.assert_moved(method.discriminator, before_D, d_discriminator)


def test_self_training_sets_in_when_told():
    x, y = tiny.batch(np.random.default_rng(0))
    method = make(steps=10, self_training_start=0.3, lambda_fm=0.0)
    method.compile()
    for step in range(5):
        logs = method.train_step(tiny.tensors(x, y))
        assert logs["L_st"] > 0
        expected = logs["L_ce"] + (logs["L_st"] if step >= 3 else 0)
        assert float(logs["L_S"]) == pytest.approx(float(expected), rel=1e-5), step


@pytest.mark.parametrize("joint", [True, False])
def test_batch_norm_sees_the_batches_together_or_apart(joint):
    image = keras.Input((None, None, 3))
    norm = keras.layers.BatchNormalization(momentum=0.0, name="norm")
    logits = keras.layers.Dense(tiny.K)(norm(keras.layers.Rescaling(1 / 255)(image)))
    segmenter = keras.Model(image, logits)
    method = S4GAN(segmenter, tiny.discriminator(), steps=10, joint_batch_norm=joint)
    method.compile()
    x, y = tiny.batch(np.random.default_rng(0))
    method.train_step(tiny.tensors(x, y))
    seen = np.concatenate([x["labeled"], x["unlabeled"]]) if joint else x["unlabeled"]  # the last pass, at momentum 0
    np.testing.assert_allclose(norm.moving_mean, seen.mean(axis=(0, 1, 2)) / 255, rtol=1e-4)


def test_the_papers_optimizers():
    method = make(learning_rate=2.5e-4, momentum=0.9, weight_decay=5e-4, head_multiplier=1.0, steps=100)
    method.compile()
    segmenter, discriminator = method.training_optimizers.segmenter, method.training_optimizers.discriminator
    assert (segmenter.momentum, segmenter.l2) == (0.9, 5e-4)
    assert (discriminator.beta_1, discriminator.beta_2) == (0.9, 0.99)
    for optimizer, rate in ((segmenter, 2.5e-4), (discriminator, 1e-4)):
        optimizer.iterations.assign(40)
        assert float(optimizer.learning_rate) == pytest.approx(rate * 0.6**0.9, rel=1e-5)


def test_fields_of_the_discriminator_reach_it():
    method = S4GAN(tiny.segmenter(), discriminator_shrink=2, discriminator_dropout=0.3, dropout_after_last=False)
    layers = {layer.name: layer for layer in method.discriminator.layers}
    assert layers["shrink"].pool_size == (2, 2)
    assert layers["dropout3"].rate == 0.3 and "dropout4" not in layers


def test_a_batch_without_unlabelled_images_is_refused():
    x, y = tiny.batch(np.random.default_rng(0))
    method = make()
    method.compile()
    with pytest.raises(ValueError, match="learns from unlabelled images too"):
        method.train_step(tiny.tensors({"labeled": x["labeled"]}, y))


def test_all_ignored_labels_leave_the_supervised_term_at_0():
    x, y = tiny.batch(np.random.default_rng(0))
    method = make(gamma=1.0, lambda_fm=0.0)
    method.compile()
    before = method.segmenter.get_weights()
    logs = method.train_step(tiny.tensors(x, np.full_like(y, 255)))
    assert float(logs["L_ce"]) == 0 and float(logs["L_S"]) == 0
    for weight, old in zip(method.segmenter.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize(
    "field, value",
    [
        ("gamma", 1.5),
        ("lambda_fm", -1),
        ("lambda_st", -1),
        ("adversarial", "wgan"),
        ("fm_norm", "l3"),
        ("discriminator_learning_rate", 0),
        ("discriminator_dropout", 1.0),
        ("discriminator_shrink", 0),
        ("self_training_start", 2),
    ],
)
def test_impossible_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} .*got"):
        make(**{field: value})


def test_what_is_selected_is_said_only_where_it_is_learned():
    """Else a report would say that nothing ever was, and how to mend it."""
    x, y = tiny.batch(np.random.default_rng(3))
    for weight in (0.0, 1.0):
        method = make(lambda_st=weight)
        method.compile()
        assert ("selected" in method.train_step(tiny.tensors(x, y))) == bool(weight)
