"""Equations 1 to 6 of Mendel et al. 2020 in NumPy, their gradients by finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import ECS
from kerasseg.segmenters import build_segmenter
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract

RATE, STEPS = 0.3, 10


class TestECS(MethodContract):
    name = "ecs"
    minimized = ("corrector", "L_cor")
    fields = {"corrector_backbone": "tiny", "corrector_head_channels": 8}  # resnet34 takes long to build

    def make(self, segmenter):
        if segmenter.name == "segmenter":  # tiny.segmenter
            return ECS(segmenter, tiny.judge(tiny.K + 1, "corrector"), steps=10)
        return super().make(segmenter)


def make(**fields):
    method = ECS(
        tiny.segmenter(),
        tiny.judge(tiny.K + 1, "corrector"),
        **{"steps": STEPS, "learning_rate": RATE, "momentum": 0.0, "weight_decay": 0.0} | fields,
    )
    method.compile({"corrector": keras.optimizers.SGD(1.0)})
    return method


def weighted_cross_entropy(labels, logits, weights, gamma=0.0):
    known = np.where(labels == 255, 0, labels)
    weight = weights[known] * (labels != 255)
    p = np.take_along_axis(tiny.softmax(logits), known[..., None], axis=-1)[..., 0]
    return (weight * (1 - p) ** gamma * -np.log(p)).sum() / max(weight.sum(), 1e-12)


def L_cor(x, y, S, C, class_weight=2.0, gamma=0.0, shown=lambda S_l: S_l):
    S_l = shown(tiny.softmax(tiny.Segmenter.of(S).forward(x["labeled"])[0]))
    y_cor = np.where(np.argmax(S_l, axis=-1) == y, tiny.K, y)
    y_t = np.where(y == 255, 255, tiny.K)
    weights = np.array([class_weight] * tiny.K + [1.0])
    C_S, C_Y = (tiny.judgement(C, segmentation, x["labeled"]) for segmentation in (S_l, tiny.one_hot(y)))
    return weighted_cross_entropy(y_cor, C_S, weights, gamma) + weighted_cross_entropy(y_t, C_Y, weights, gamma)


def corrector_after(x, y, S, C, **given):
    """The corrector's weights after its update of rate 1."""
    return [w - g for w, g in zip(C, tiny.numeric_gradient(lambda c: L_cor(x, y, S, c, **given), C), strict=True)]


def padded_batch():
    rng = np.random.default_rng(0)
    x, y = tiny.batch(rng)
    x["unlabeled_valid"] = rng.random(y.shape) < 0.8
    return x, y


def L_sup(x, y, S, C, lambda_cor):
    logits = tiny.Segmenter.of(S).forward(x["labeled"])[0]
    L_ce = tiny.cross_entropy(y, logits)[0]
    judged = tiny.judgement(C, tiny.softmax(logits), x["labeled"])
    L_aux = weighted_cross_entropy(np.where(y == 255, 255, tiny.K), judged, np.ones(tiny.K + 1))
    return L_ce + lambda_cor * L_aux, L_ce, L_aux


def pseudo(x, S, C):
    """(y_p, j, where the prediction was kept)."""
    logits = tiny.Segmenter.of(S).forward(x["unlabeled"])[0]
    j = tiny.softmax(tiny.judgement(C, tiny.softmax(logits), x["unlabeled"]))
    kept = np.argmax(j, axis=-1) == tiny.K
    return np.where(kept, np.argmax(logits, axis=-1), np.argmax(j, axis=-1)), j, kept


def L_ecs(x, S, y_p, j, gamma):
    logits = tiny.Segmenter.of(S).forward(x["unlabeled"])[0]
    loss = -np.log(np.take_along_axis(tiny.softmax(logits), y_p[..., None], axis=-1))[..., 0]
    valid = x["unlabeled_valid"]
    return (j.max(axis=-1) ** gamma * loss * valid).sum() / valid.sum()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lambda_cor": 3.0},
        {"lambda_cor": 0.0},
        {"lambda_ecs": 3.0},
        {"gamma": 5.0},
        {"loss": "ce"},
        {"class_weight": 1.0},
        {"corrector_gamma": 2.0},
    ],
    ids=str,
)
def test_three_updates_in_this_order(fields):
    keras.utils.set_random_seed(3)
    x, y = padded_batch()
    method = make(**fields)
    lambda_cor, lambda_ecs = fields.get("lambda_cor", 0.1), fields.get("lambda_ecs", 1.0)
    gamma = 0.0 if fields.get("loss") == "ce" else fields.get("gamma", 2.0)
    given = {"class_weight": fields.get("class_weight", 2.0), "gamma": fields.get("corrector_gamma", 0.0)}
    S, C = tiny.float64_weights(method.segmenter), tiny.float64_weights(method.corrector)

    cor = L_cor(x, y, S, C, **given)
    C1 = corrector_after(x, y, S, C, **given)
    sup, ce, aux = L_sup(x, y, S, C1, lambda_cor)
    gradients = tiny.numeric_gradient(lambda s: L_sup(x, y, s, C1, lambda_cor)[0], S)
    S1 = [w - RATE * g for w, g in zip(S, gradients, strict=True)]
    y_p, j, kept = pseudo(x, S1, C1)
    valid = x["unlabeled_valid"]
    assert 0 < kept.sum() < kept.size
    terms = {"L_cor": cor, "L_sup": sup, "L_ce": ce, "L_aux": aux, "L_ecs": L_ecs(x, S1, y_p, j, gamma)}
    terms["kept"] = kept[valid].mean()
    logits = tiny.Segmenter.of(S).forward(x["labeled"])[0]
    right = np.argmax(logits, axis=-1) == y
    found_right = np.argmax(tiny.judgement(C, tiny.softmax(logits), x["labeled"]), axis=-1) == tiny.K
    terms |= {"acc_right": found_right[right].mean(), "acc_wrong": 1 - found_right[~right & (y != 255)].mean()}

    logs = method.train_step(tiny.tensors(x, y))

    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    tiny.assert_moved(method.corrector, C1, [np.zeros_like(w) for w in C1])
    gradients = tiny.numeric_gradient(lambda s: lambda_ecs * L_ecs(x, s, y_p, j, gamma), S1)
    second_rate = RATE * (1 - 1 / (2 * STEPS)) ** 0.9  # two updates a step, over which the schedule stretches
    tiny.assert_moved(method.segmenter, S1, gradients, second_rate)


@pytest.mark.parametrize("lambda_ecs", [0.0, 1.0, 3.0])
def test_one_update_of_the_segmenter_by_both_losses(lambda_ecs):
    """As many as a baseline has. Without L_ecs there is one in any case, and unlabelled images are not looked at."""
    keras.utils.set_random_seed(3)
    x, y = padded_batch()
    method = make(joint_update=lambda_ecs > 0, lambda_ecs=lambda_ecs)
    S, C = tiny.float64_weights(method.segmenter), tiny.float64_weights(method.corrector)
    C1 = corrector_after(x, y, S, C)
    y_p, j, _ = pseudo(x, S, C1)
    images = []
    segment = method.segmenter.call
    method.segmenter.call = lambda x, *args, **kwargs: images.append(np.asarray(x)) or segment(x, *args, **kwargs)

    logs = method.train_step(tiny.tensors(x, y))

    sup, ecs = L_sup(x, y, S, C1, 0.1)[0], L_ecs(x, S, y_p, j, 2.0)
    gradients = tiny.numeric_gradient(lambda s: L_sup(x, y, s, C1, 0.1)[0] + lambda_ecs * L_ecs(x, s, y_p, j, 2.0), S)
    tiny.assert_moved(method.segmenter, S, gradients, RATE)
    tiny.assert_moved(method.corrector, C1, [np.zeros_like(w) for w in C1])
    assert float(logs["L_sup"]) == pytest.approx(sup, rel=1e-4)
    if lambda_ecs:
        assert float(logs["L_ecs"]) == pytest.approx(ecs, rel=1e-4)
        assert float(logs["L_S"]) == pytest.approx(sup + lambda_ecs * ecs, rel=1e-4)
    else:
        assert not {"L_S", "L_ecs", "kept"} & logs.keys()
    for seen, name in zip(images, ("labeled", "unlabeled") if lambda_ecs else ("labeled",), strict=True):
        np.testing.assert_array_equal(seen, x[name])
    # The schedule stretches over one update a step.
    assert float(method.main_optimizer.learning_rate) == pytest.approx(RATE * (1 - 1 / STEPS) ** 0.9)


def test_the_corrector_learns_and_the_segmenter_stays_as_it_is():
    keras.utils.set_random_seed(3)
    x, y = padded_batch()
    method = make(corrector_only=True)
    S, C = tiny.float64_weights(method.segmenter), tiny.float64_weights(method.corrector)
    logs = method.train_step(tiny.tensors(x, y))
    assert float(logs["L_cor"]) == pytest.approx(L_cor(x, y, S, C), rel=1e-4)
    assert logs.keys() == {"L_cor", "acc_right", "acc_wrong"}
    tiny.assert_moved(method.corrector, corrector_after(x, y, S, C), [np.zeros_like(w) for w in C])

    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=tiny.K, head_channels=8)  # batch norm
    method = ECS(segmenter, tiny.judge(tiny.K + 1, "corrector"), steps=STEPS, corrector_only=True)
    method.compile(run_eagerly=True)
    before = segmenter.get_weights()
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0), height=32, width=32)).repeat()
    method.fit(data, steps_per_epoch=2, verbose=0)
    for weight, old in zip(segmenter.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert int(method.main_optimizer.iterations) == 2


def test_the_corrector_is_shown_swapped_classes_and_the_segmenter_is_not(monkeypatch):
    keras.utils.set_random_seed(3)
    x, y = padded_batch()
    method = make(class_swap=0.5)
    S, C = tiny.float64_weights(method.segmenter), tiny.float64_weights(method.corrector)
    given = []

    def swap(S_l, *others):
        given.append(others)
        return tf.roll(S_l, 1, axis=-1)

    monkeypatch.setattr("kerasseg.methods.ecs.swap_classes", swap)
    logs = method.train_step(tiny.tensors(x, y))

    def rolled(S_l):
        return np.roll(S_l, 1, axis=-1)

    ((valid, probability, random),) = given
    np.testing.assert_array_equal(valid, y != 255)
    assert probability == 0.5 and random is method.random
    assert float(logs["L_cor"]) == pytest.approx(L_cor(x, y, S, C, shown=rolled), rel=1e-4)
    C1 = corrector_after(x, y, S, C, shown=rolled)
    assert float(logs["L_sup"]) == pytest.approx(L_sup(x, y, S, C1, 0.1)[0], rel=1e-4)
    for each, has_one in ((method, True), (make(), False)):  # a checkpoint holds its state
        assert any(v.path.startswith("class_swap") for v in each.non_trainable_variables) == has_one


def test_all_ignored_labels_leave_the_corrector_and_the_supervised_terms_alone():
    x, y = tiny.batch(np.random.default_rng(0))
    method = make()
    before = method.corrector.get_weights()
    logs = method.train_step(tiny.tensors(x, np.full_like(y, 255)))
    assert [float(logs[name]) for name in ("L_cor", "L_sup", "L_ce", "L_aux")] == [0] * 4
    for weight, old in zip(method.corrector.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_scores_are_the_probability_of_right_as_it_is():
    x, _ = tiny.batch(np.random.default_rng(0))
    method = make()
    S = np.asarray(method(x["labeled"]), np.float64)
    expected = tiny.softmax(tiny.judgement(tiny.float64_weights(method.corrector), S, x["labeled"]))[..., tiny.K]
    scores = method.critic_scores(tf.constant(x["labeled"]), method(x["labeled"]))
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_the_fields_of_the_corrector_reach_it():
    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=tiny.K, head_channels=8)
    segmenter.backbone.set_weights([w + 0.25 for w in segmenter.backbone.get_weights()])
    for backbone, lent in ((None, True), ("tiny", False)):
        corrector = ECS(segmenter, corrector_backbone=backbone, corrector_head_channels=12).corrector
        same = corrector.get_layer("tiny").get_layer("middle").kernel == segmenter.backbone.get_layer("middle").kernel
        assert np.all(same) == lent
        assert corrector.get_layer("decoder").get_layer("decoder_2_conv").filters == 12
    with pytest.raises(ValueError, match="weights must be"):
        ECS(segmenter, corrector_backbone="tiny", corrector_weights="nowhere.h5")


def test_the_papers_settings():
    method = ECS(tiny.segmenter(), tiny.judge(tiny.K + 1, "corrector"), head_multiplier=1.0)
    method.compile()
    segmenter, corrector = method.training_optimizers.segmenter, method.training_optimizers.corrector
    assert (segmenter.momentum, segmenter.l2, float(segmenter.learning_rate)) == (0.9, 1e-4, pytest.approx(0.01))
    assert (corrector.beta_1, corrector.beta_2, corrector.l2) == (0.9, 0.99, 1e-4)
    assert float(corrector.learning_rate) == pytest.approx(1e-4)


def test_the_correctors_optimizer():
    corrector = make(corrector_learning_rate=0.5, corrector_weight_decay=0.25).make_optimizers()["corrector"]
    assert (float(corrector.learning_rate), corrector.l2) == (0.5, 0.25)


def test_weights_for_a_backbone_that_is_lent_are_refused():
    with pytest.raises(ValueError, match="leave out corrector_weights"):
        make(corrector_backbone=None, corrector_weights="imagenet")


@pytest.mark.parametrize(
    "field, value",
    [
        ("lambda_cor", -1),
        ("gamma", -1),
        ("lambda_ecs", -1),
        ("corrector_gamma", -1),
        ("class_swap", 2),
        ("loss", "focal"),
        ("class_weight", 0),
        ("corrector_learning_rate", 0),
        ("corrector_weight_decay", -1),
        ("corrector_head_channels", 0),
    ],
)
def test_impossible_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} .*got"):
        make(**{field: value})
