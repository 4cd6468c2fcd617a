"""Equations 1 to 12 of Sawatzky et al. 2020 in NumPy, their gradients by finite differences."""

import keras
import numpy as np
import pytest

from kerasseg.methods import Latent
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract
from training.checkpoints import training_variables

L = 4
CATEGORIES = (0, 1, 0)


class TestLatent(MethodContract):
    name = "latent"
    minimized = ("discriminator", "L_D")
    fields = {"labeled_images": 16, "latent_classes": L, "cons_start": 0.0, "lambda_cons": 1.0}

    def make(self, segmenter):
        if segmenter.name == "segmenter":  # tiny.segmenter
            discriminator = tiny.pixel_discriminator()
            return Latent(tiny.BranchingSegmenter(), discriminator=discriminator, steps=10, **self.fields)
        return super().make(segmenter)


def make(**fields):
    fields = {
        "steps": 10,
        "learning_rate": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "head_multiplier": 1.0,
        "cons_start": 0.0,
        "labeled_images": 8,
        "latent_classes": L,
    } | fields
    method = Latent(tiny.BranchingSegmenter(), discriminator=tiny.pixel_discriminator(), **fields)
    method.compile({"discriminator": keras.optimizers.SGD(1.0)})
    return method


def together(S_l, Y):
    return np.einsum("bhwc,bhwl->cl", Y, S_l)


def losses(x, y, S, H, D, fixed, config):
    """The terms for weights S, H, D; `fixed` has the predictions of the weights before and the co-occurrence M, none of
    which the gradient reaches."""
    head = tiny.Segmenter.of([S[0], H[0]])
    z_l, z_u = (tiny.Segmenter.of(S).forward(x[name])[0] for name in ("labeled", "unlabeled"))
    h_l, h_u = (head.forward(x[name])[0] for name in ("labeled", "unlabeled"))
    S_l, S_u, latent_l, latent_u = (tiny.softmax(z) for z in (z_l, z_u, h_l, h_u))
    valid_l, valid_u, Y = y != 255, x["unlabeled_valid"], tiny.one_hot(y)
    branch = config["branch"]
    shown_l, shown_u, where_l, where_u = S_l, S_u, valid_l, valid_u
    each = 2 if branch == "symmetric_kl" else 1  # two branches with the weight of one each; the terms are means
    if branch == "symmetric_kl":
        shown_l, shown_u = np.concatenate([S_l, latent_l]), np.concatenate([S_u, latent_u])
        where_l, where_u = np.concatenate([valid_l] * 2), np.concatenate([valid_u] * 2)
    shown = shown_l * where_l[..., None], shown_u * where_u[..., None], Y
    D_l, D_u, D_Y = (tiny.pixel_verdicts(D, segmentation) for segmentation in shown)

    terms = {"L_ce": tiny.cross_entropy(y, z_l)[0]}
    if branch == "latent":
        P = together(latent_l, Y) / Y.sum()
        conditional = P / P.sum(axis=0, keepdims=True)
        terms["L_latent"] = -(P * np.log(np.where(P > 0, conditional, 1))).sum()
    else:
        labels = y
        if branch == "super_categories":
            labels = np.where(y == 255, 255, np.array(CATEGORIES)[np.where(y == 255, 0, y)])
        terms["L_latent"] = tiny.cross_entropy(labels, h_l)[0]
    if branch == "symmetric_kl":
        P, Q = S_u, latent_u
        loss = ((P - Q) * (np.log(P) - np.log(Q))).sum(axis=-1)
    else:
        target, implied = latent_u, S_u @ fixed["P_lc"]
        if config["consistency_grad"] == "semantic":
            target = fixed["latent_u"]
        if config["consistency_grad"] == "latent":
            implied = fixed["S_u"] @ fixed["P_lc"]
        loss = -(target * np.log(implied)).sum(axis=-1)
    terms["L_cons"] = loss[valid_u].mean()
    terms["L_adv"] = tiny.binary_cross_entropy(D_l, 1, where_l)
    terms["L_adv_u"] = tiny.binary_cross_entropy(D_u, 1, where_u)
    terms["L_S"] = (
        terms["L_ce"]
        + config["lambda_latent"] * terms["L_latent"]
        + each * config["lambda_adv"] * terms["L_adv"]
        + each * config["lambda_adv_unlabeled"] * terms["L_adv_u"]
        + config["lambda_cons"] * terms["L_cons"]
    )
    fake, where = np.concatenate([D_l, D_u]), np.concatenate([where_l, where_u])
    terms["L_D"] = (tiny.binary_cross_entropy(D_Y, 1, valid_l) + tiny.binary_cross_entropy(fake, 0, where)) / 2
    terms |= {"D_real": tiny.sigmoid(D_Y)[valid_l].mean(), "D_fake": tiny.sigmoid(fake)[where].mean()}
    terms |= {"acc_real": (D_Y > 0)[valid_l].mean(), "acc_fake": (fake <= 0)[where].mean()}
    return terms


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lambda_adv": 2.0, "lambda_adv_unlabeled": 3.0},
        {"lambda_latent": 0.0, "lambda_cons": 5.0},
        {"lambda_cons": 5.0, "consistency_grad": "latent"},
        {"lambda_cons": 5.0, "consistency_grad": "both"},
        {"lambda_cons": 5.0, "branch": "super_categories", "super_categories": CATEGORIES},
        {"lambda_cons": 5.0, "branch": "classes"},
        {"lambda_cons": 5.0, "branch": "symmetric_kl", "lambda_adv": 2.0},
    ],
    ids=str,
)
def test_a_step_updates_each_network_by_its_own_loss(fields):
    keras.utils.set_random_seed(4)
    rng = np.random.default_rng(0)
    x, y = tiny.batch(rng)
    x["unlabeled_valid"] = rng.random(y.shape) < 0.8
    method = make(**fields)
    config = vars(method.config)
    S, H, D = (tiny.float64_weights(getattr(method, name)) for name in method.network_names)
    M = rng.random(method.co_occurrence.shape)
    method.co_occurrence.assign(M)
    head = tiny.Segmenter.of([S[0], H[0]])
    latent_l, latent_u = (tiny.softmax(head.forward(x[name])[0]) for name in ("labeled", "unlabeled"))
    M = M * (1 - 2 / 8) + together(latent_l, tiny.one_hot(y)) * 2 / 8  # two of eight labelled images in the batch
    fixed = {"P_lc": M / M.sum(axis=1, keepdims=True), "latent_u": latent_u}
    fixed["S_u"] = tiny.softmax(tiny.Segmenter.of(S).forward(x["unlabeled"])[0])
    terms = losses(x, y, S, H, D, fixed, config)

    logs = method.train_step(tiny.tensors(x, y))

    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    for network, weights, total in ((method.segmenter, S, "L_S"), (method.latent_head, H, "L_S")):
        is_head = network is method.latent_head
        gradients = tiny.numeric_gradient(
            lambda w, is_head=is_head, total=total: losses(
                x, y, S if is_head else w, w if is_head else H, D, fixed, config
            )[total],
            weights,
        )
        tiny.assert_moved(network, weights, gradients)
    gradients = tiny.numeric_gradient(lambda w: losses(x, y, S, H, w, fixed, config)["L_D"], D)
    tiny.assert_moved(method.discriminator, D, gradients)
    if config["branch"] != "symmetric_kl":
        np.testing.assert_allclose(method.co_occurrence, M, rtol=1e-4)


def test_consistency_sets_in_when_told():
    x, y = tiny.batch(np.random.default_rng(0))
    method = make(cons_start=0.3, lambda_cons=7.0, lambda_latent=0.0, lambda_adv=0.0, lambda_adv_unlabeled=0.0)
    for step in range(5):
        logs = method.train_step(tiny.tensors(x, y))
        expected = logs["L_ce"] + (7.0 * logs["L_cons"] if step >= 3 else 0)
        assert float(logs["L_S"]) == pytest.approx(float(expected), rel=1e-5), step


def test_the_co_occurrence_is_saved_with_the_training_and_the_model():
    method = make()
    names = {name: variable.shape for name, variable in training_variables(method).items()}
    assert (tiny.K, L) in names.values()
    x, y = tiny.batch(np.random.default_rng(0))
    method.train_step(tiny.tensors(x, y))
    again = make()
    again.set_weights(method.get_weights())
    np.testing.assert_array_equal(again.co_occurrence, method.co_occurrence)
    assert np.sum(method.co_occurrence) > 0


def test_all_ignored_labels_leave_the_labelled_terms_at_0():
    x, y = tiny.batch(np.random.default_rng(0))
    logs = make().train_step(tiny.tensors(x, np.full_like(y, 255)))
    assert [float(logs[name]) for name in ("L_ce", "L_latent", "L_adv")] == [0] * 3
    assert np.isfinite([float(value) for value in logs.values()]).all()


@pytest.mark.parametrize("joint", [True, False])
def test_batch_norm_sees_the_batches_together_or_apart(joint):
    method = make(joint_batch_norm=joint)
    passes = []
    encode = method.segmenter.encode
    method.segmenter.encode = lambda x, training: passes.append(np.asarray(x)) or encode(x, training)
    x, y = tiny.batch(np.random.default_rng(0))
    method.train_step(tiny.tensors(x, y))
    expected = [np.concatenate([x["labeled"], x["unlabeled"]])] if joint else [x["labeled"], x["unlabeled"]]
    for seen, images in zip(passes, expected, strict=True):
        np.testing.assert_array_equal(seen, images)


def test_the_papers_settings():
    method = Latent(tiny.BranchingSegmenter(), labeled_images=4, head_multiplier=1.0)
    method.compile()
    assert method.latent_head.output_shape[-1] == 20
    optimizers = method.training_optimizers
    assert (optimizers.segmenter.momentum, optimizers.segmenter.l2, optimizers.latent_head.l2) == (0.9, 1e-4, 1e-4)
    rates = [float(getattr(optimizers, name).learning_rate) for name in ("segmenter", "latent_head", "discriminator")]
    assert rates == pytest.approx([2.5e-4, 2.5e-4, 1e-4])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"lambda_latent": -1}, "lambda_latent .*got"),
        ({"lambda_adv": -1}, "lambda_adv .*got"),
        ({"lambda_adv_unlabeled": -1}, "lambda_adv_unlabeled .*got"),
        ({"lambda_cons": -1}, "lambda_cons .*got"),
        ({"cons_start": 2}, "cons_start .*got"),
        ({"branch": "none"}, "branch .*got"),
        ({"consistency_grad": "none"}, "consistency_grad .*got"),
        ({"latent_classes": 1}, "latent_classes .*got"),
        ({"branch": "symmetric_kl", "consistency_grad": "both"}, "with symmetric_kl both branches learn"),
        ({"labeled_images": 0}, "labeled_images .*got"),
        ({"super_categories": (0, 1, 0)}, "with branch super_categories and no other"),
        ({"branch": "super_categories"}, "with branch super_categories and no other"),
        ({"branch": "super_categories", "super_categories": (0, 1)}, "one number per class"),
    ],
)
def test_impossible_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)
