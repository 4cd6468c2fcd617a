"""UniMatch's losses in NumPy, their gradients by finite differences, and its random views."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.distribution import separate_random_numbers
from kerasseg.methods import UniMatch
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract


class TestUniMatch(MethodContract):
    name = "unimatch"
    # A tiny segmenter is never sure, and what it is not sure of would lead it away from the labels.
    fields = {"threshold": 0.0, "lambda_s": 0.02, "lambda_fp": 0.05}

    def make(self, segmenter):
        if segmenter.name == "segmenter":  # tiny.segmenter, which cannot be taken apart
            segmenter = tiny.BranchingSegmenter()
        return super().make(segmenter)

    def make_without_chance(self, segmenter):
        return without_chance(
            UniMatch(tiny.BranchingSegmenter(), steps=10, channel_dropout=0.0, threshold=0.0), np.zeros((1, 4, 5), bool)
        )


def without_chance(method, *boxes):
    """The method with these boxes, one after the other, and strong views that are a little darker."""
    method.strong = lambda images: images * 0.7
    following = iter(boxes * 100)
    method.boxes = lambda shape: tf.constant(next(following))
    return method


def losses(x, y, w, targets, boxes, lambda_s, lambda_fp):
    """`y` is 255 where it is ignored or too easy."""
    twin = tiny.Segmenter.of(w)
    x_w, x_m = x["unlabeled"][::2], x["unlabeled"][1::2]
    (target_w, trusted_w), (target_m, trusted_m) = targets
    valid_w, valid_m = x["unlabeled_valid"][::2], x["unlabeled_valid"][1::2]

    def agreement(image, target, trusted, valid):
        S = tiny.softmax(twin.forward(image)[0])
        loss = -np.log(np.take_along_axis(S, target[..., None], axis=-1))[..., 0]
        return (loss * trusted * valid).sum() / valid.sum()

    terms = {"L_ce": tiny.cross_entropy(y, twin.forward(x["labeled"])[0])[0]}
    for name, box in zip(("L_s1", "L_s2"), boxes, strict=True):
        mixed = [np.where(box, m, w) for m, w in ((target_m, target_w), (trusted_m, trusted_w), (valid_m, valid_w))]
        terms[name] = agreement(np.where(box[..., None], x_m, x_w) * np.float32(0.7), *mixed)
    terms["L_fp"] = agreement(x_w, target_w, trusted_w, valid_w)  # no channel is dropped here
    terms["L_S"] = (terms["L_ce"] + lambda_s * (terms["L_s1"] + terms["L_s2"]) + lambda_fp * terms["L_fp"]) / 2
    terms["selected"] = trusted_w[valid_w].mean()
    return terms


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lambda_s": 3.0},
        {"lambda_fp": 3.0},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"ohem_threshold": 0.3, "ohem_share": 0.05},
        {"ohem_threshold": 0.01, "ohem_share": 0.3},
        {"targets": "inference_mode"},
        {"targets": "teacher"},
    ],
    ids=str,
)
def test_a_step_updates_the_segmenter(fields):
    rng = np.random.default_rng(0)
    x, y = tiny.batch(rng, size=2)
    x["unlabeled_valid"] = rng.random(y.shape) < 0.8
    method = UniMatch(
        tiny.BranchingSegmenter(),
        **{"steps": 10, "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, "channel_dropout": 0.0}
        | {"threshold": 0.45}
        | fields,
    )
    boxes = rng.random((2, 1, 4, 5)) < 0.4
    without_chance(method, *boxes)
    method.compile()
    w = tiny.float64_weights(method.segmenter)
    targets = []
    teacher = w
    if fields.get("targets") == "teacher":
        teacher = [weight + 0.3 for weight in w]
        method.averaged.set_weights(teacher)
    for image in (x["unlabeled"][::2], x["unlabeled"][1::2]):
        S = tiny.softmax(tiny.Segmenter.of(teacher).forward(image)[0])
        targets.append((np.argmax(S, axis=-1), S.max(axis=-1) >= fields.get("threshold", 0.45)))
    if not fields:
        assert 0 < targets[0][1].sum() < targets[0][1].size
    weights = {"lambda_s": fields.get("lambda_s", 0.25), "lambda_fp": fields.get("lambda_fp", 0.5)}
    learned = y
    if "ohem_threshold" in fields:
        S = tiny.softmax(tiny.Segmenter.of(w).forward(x["labeled"])[0])
        of_its_class = np.take_along_axis(S, np.where(y == 255, 0, y)[..., None], axis=-1)[..., 0]
        of_its_class[y == 255] = np.inf
        least = int(np.ceil(fields["ohem_share"] * (y != 255).sum()))
        limit = max(fields["ohem_threshold"], np.sort(of_its_class, axis=None)[least - 1])
        learned = np.where(of_its_class <= limit, y, 255)
        assert least <= (learned != 255).sum() < (y != 255).sum()
    terms = losses(x, learned, w, targets, boxes, **weights)

    logs = method.train_step(tiny.tensors(x, y))

    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    gradients = tiny.numeric_gradient(lambda w: losses(x, learned, w, targets, boxes, **weights)["L_S"], w)
    tiny.assert_moved(method.segmenter, w, gradients)


def test_the_published_settings():
    method = UniMatch(tiny.BranchingSegmenter(), head_multiplier=1.0)
    method.compile()
    optimizer = method.training_optimizers.segmenter
    assert (optimizer.momentum, optimizer.l2, float(optimizer.learning_rate)) == (0.9, 1e-4, pytest.approx(1e-3))


def test_boxes_are_one_rectangle_in_some_of_the_images():
    method = UniMatch(tiny.BranchingSegmenter(), cutmix=0.5)
    boxes = method.boxes(tf.constant([400, 40, 60, 3])).numpy()
    areas = boxes.mean(axis=(1, 2))
    assert 0.4 < (areas > 0).mean() < 0.6
    assert areas[areas > 0].min() > 0.01 and areas.max() < 0.45
    for box in boxes[areas > 0]:
        rows, columns = np.nonzero(box.any(axis=1))[0], np.nonzero(box.any(axis=0))[0]
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    centres = np.array([[index.mean() for index in np.nonzero(box)] for box in boxes[areas > 0]])
    np.testing.assert_allclose(centres.mean(axis=0), [19.5, 29.5], atol=2)
    assert not UniMatch(tiny.BranchingSegmenter(), cutmix=0.0).boxes(tf.constant([50, 40, 60, 3])).numpy().any()


def test_strong_views_keep_the_place_and_change_the_colours():
    method = UniMatch(tiny.BranchingSegmenter())
    images = np.zeros((200, 16, 16, 3), np.float32)
    images[:, 4:12, 4:12] = (200, 120, 60)
    views = method.strong(tf.constant(images)).numpy()
    unchanged = np.mean(np.abs(views - images).max(axis=(1, 2, 3)) < 1e-3)
    grey = np.mean(np.ptp(views, axis=-1).max(axis=(1, 2)) < 1e-2)
    assert 0.02 < unchanged < 0.2  # 0.2 of colour, 0.8 of grey, 0.5 of blur: 0.08
    assert 0.1 < grey < 0.35
    assert views.min() >= 0 and views.max() <= 255.01
    assert (views[:, 8, 8].mean(axis=-1) >= views[:, 0, 0].mean(axis=-1)).all()


def test_the_perturbed_features_are_those_without_some_channels():
    x, y = tiny.batch(np.random.default_rng(0))
    method = without_chance(UniMatch(tiny.BranchingSegmenter(), threshold=0.0, steps=10), np.zeros((1, 4, 5), bool))
    kept = method.drop_channels(tf.ones((1, 3, 3, 400)), training=True).numpy()
    assert (kept == kept[:, :1, :1]).all() and 0.4 < np.mean(kept == 0) < 0.6
    method.drop_channels = lambda features, training: features * 0  # nothing is left: all classes alike
    method.compile()
    logs = method.train_step(tiny.tensors(x, y))
    assert float(logs["L_fp"]) == pytest.approx(np.log(tiny.K), rel=1e-5)


@pytest.mark.parametrize(
    "field, value",
    [
        ("threshold", 1.5),
        ("lambda_s", -1),
        ("lambda_fp", -1),
        ("jitter", 2),
        ("channel_dropout", 1),
        ("cutmix", -1),
        ("ohem_threshold", 0),
        ("ohem_share", 2),
        ("targets", "teachers"),
    ],
)
def test_impossible_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} .*got"):
        UniMatch(tiny.BranchingSegmenter(), **{field: value})


def test_replicas_draw_random_numbers_of_their_own(two_replicas):
    draws = {}
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        keras.utils.set_random_seed(4)
        with strategy.scope():
            method = UniMatch(tiny.BranchingSegmenter(), steps=10)
        separate_random_numbers(method)

        @tf.function
        def draw():
            return keras.random.uniform((4,), seed=method.random)  # noqa: B023 (of this method)

        draws[strategy] = strategy.experimental_local_results(strategy.run(draw))
    (alone,), (first, second) = draws.values()
    np.testing.assert_array_equal(first, alone)
    assert not np.isclose(first, second).any()
