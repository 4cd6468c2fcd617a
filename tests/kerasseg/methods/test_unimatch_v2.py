"""UniMatch V2's losses in NumPy, their gradients by finite differences, and its complementary dropout."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import UniMatchV2
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract
from tests.kerasseg.methods.test_meanteacher import after


class TestUniMatchV2(MethodContract):
    name = "unimatch_v2"
    # A tiny segmenter is never sure, and what it is not sure of would lead it away from the labels.
    fields = {"threshold": 0.0, "lambda_s": 0.02, "optimizer": "sgd", "head_multiplier": 1.0, "weight_decay": 0.0}

    def make(self, segmenter):
        if segmenter.name == "segmenter":  # tiny.segmenter, which cannot be taken apart
            segmenter = tiny.BranchingSegmenter()
        return super().make(segmenter)

    def make_without_chance(self, segmenter):
        off = {"cutmix": 0.0, "complementary_dropout": 0.0}
        method = UniMatchV2(tiny.BranchingSegmenter(), steps=10, **self.fields | off)
        method.strong = lambda images: images * 0.7
        return method


def make(**fields):
    """With SGD at a rate of 1, a teacher of other weights, and strong views that are a little darker."""
    plain = {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, "head_multiplier": 1.0}
    method = UniMatchV2(tiny.BranchingSegmenter(), **{"steps": 10} | plain | fields)
    method.averaged.set_weights([weight + 0.3 for weight in method.averaged.get_weights()])
    method.strong = lambda images: images * 0.7
    return method


def losses(x, y, w, target, trusted, boxes, factors, valid, lambda_s):
    """`factors` multiply the hidden values of both views: (2,B,HIDDEN)."""
    twin = tiny.Segmenter.of(w)
    terms = {"L_ce": tiny.cross_entropy(y, twin.forward(x["labeled"])[0])[0]}
    for name, box, factor_BC in zip(("L_s1", "L_s2"), boxes, factors, strict=True):
        _, (_, hidden) = twin.forward(after(box, x["unlabeled"] * np.float32(0.7)))
        S = tiny.softmax((hidden * factor_BC[:, None, None]) @ twin.w2)
        loss = -np.log(np.take_along_axis(S, after(box, target)[..., None], axis=-1))[..., 0]
        terms[name] = (loss * after(box, trusted) * after(box, valid)).sum() / after(box, valid).sum()
    return terms | {"L_S": (terms["L_ce"] + lambda_s * (terms["L_s1"] + terms["L_s2"])) / 2}


@pytest.mark.parametrize(
    "fields",
    [{}, {"lambda_s": 3.0}, {"threshold": 0.0}, {"complementary_dropout": 0.0}, {"joint_batch_norm": False}],
    ids=str,
)
def test_a_step_updates_the_student_and_then_the_teacher(fields):
    rng = np.random.default_rng(0)
    x, y = tiny.batch(rng, size=3)
    valid = x["unlabeled_valid"] = rng.random(y.shape) < 0.8
    method = make(**{"threshold": 0.6} | fields)
    boxes = rng.random((2, *y.shape)) < 0.4
    following = iter(boxes)
    method.boxes = lambda x_u: tf.constant(next(following))
    first = rng.choice([0.0, 2.0], (3, tiny.HIDDEN))
    first[1] = 1.0  # keeps all
    factors = np.stack([first, 2 - first])
    if fields.get("complementary_dropout") == 0.0:
        factors = np.ones_like(factors)
    else:

        def drop_channels(features, intact):
            factor_NC = np.concatenate([np.ones((int(intact), tiny.HIDDEN)), *factors]).astype(np.float32)
            return [feature * factor_NC[:, None, None] for feature in features]

        method.drop_channels = drop_channels
    method.compile(run_eagerly=True)
    H = tiny.softmax(tiny.Segmenter(method.averaged).forward(x["unlabeled"])[0])
    target, trusted = H.argmax(axis=-1), H.max(axis=-1) >= fields.get("threshold", 0.6)
    assert trusted.sum() > 0 and (trusted.all() == (fields.get("threshold") == 0.0))
    w, before = tiny.float64_weights(method.segmenter), tiny.float64_weights(method.averaged)
    arguments = target, trusted, boxes, factors, valid, fields.get("lambda_s", 0.5)
    terms = losses(x, y, w, *arguments) | {"selected": trusted[valid].mean()}

    logs = method.train_step(tiny.tensors(x, y))

    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    gradients = tiny.numeric_gradient(lambda w: losses(x, y, w, *arguments)["L_S"], w)
    tiny.assert_moved(method.segmenter, w, gradients)
    for teacher, old, student in zip(
        method.averaged.get_weights(), before, method.segmenter.get_weights(), strict=True
    ):
        np.testing.assert_allclose(teacher, 2 / 11 * old + 9 / 11 * student, rtol=1e-5)  # decay (1 + 1) / (10 + 1)


def test_the_loss_of_a_batch_made_by_hand():
    """Hidden value = the image's red; three classes with the logits 0, h and 2 h."""
    method = make(cutmix=0.0, threshold=0.9)
    w1 = np.zeros((3, tiny.HIDDEN), np.float32)
    w1[0, 0] = 1.0
    w2 = np.zeros((tiny.HIDDEN, tiny.K), np.float32)
    w2[0] = [0.0, 1.0, 2.0]
    method.segmenter.set_weights([w1, w2])
    method.averaged.set_weights([w1, 4 * w2])  # red 1: logits 0, 4, 8, sure of the third class; red 0: of none
    method.strong = lambda images: images
    method.drop_channels = lambda features, intact: [  # the channel is kept, doubled, by the first view only
        feature * tf.constant([1.0, 2.0, 2.0, 0.0, 0.0])[:, None, None, None] for feature in features
    ]
    method.compile()
    unlabeled = np.zeros((2, 1, 1, 3), np.float32)
    unlabeled[0] = 255
    x = {"labeled": np.full((1, 1, 1, 3), 255, np.float32), "unlabeled": unlabeled}
    logs = method.train_step(tiny.tensors(x, np.array([[[1]]], np.int32)))
    e = np.exp
    L_ce = -np.log(e(1) / (1 + e(1) + e(2)))
    L_s1 = -np.log(e(4) / (1 + e(2) + e(4))) / 2  # of two pixels one is learned
    L_s2 = np.log(3) / 2
    expected = {"L_ce": L_ce, "L_s1": L_s1, "L_s2": L_s2, "L_S": (L_ce + (L_s1 + L_s2) / 2) / 2, "selected": 0.5}
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "share, images, dropped", [(0.5, 8, 4), (0.5, 5, 3), (0.5, 1, 1), (0.3, 10, 3), (1.0, 7, 7), (0.0, 3, 0)]
)
def test_dropped_channels_are_complementary(share, images, dropped):
    """Doubled in one view and 0 in the other, or unchanged in both: in every position, alike in maps of equal width."""
    method = make(complementary_dropout=share)
    shapes = [(3, 2, 400), (3, 2, 400), (6, 40)]  # two maps, and tokens
    features = [tf.ones((2 + 2 * images, *shape)) for shape in shapes]
    first_map, second_map, tokens = (each.numpy() for each in method.drop_channels(features, 2))
    np.testing.assert_array_equal(first_map, second_map)
    for each in (first_map, tokens):
        assert (each[:2] == 1).all()  # the labelled images
        factors = each.reshape(len(each), -1, each.shape[-1])
        assert (factors == factors[:, :1]).all()
        first, second = factors[2:, 0].reshape(2, images, -1)
        np.testing.assert_array_equal(first + second, 2.0)
        changed = np.abs(first - 1).max(axis=-1) > 0
        assert changed.sum() == dropped and set(np.unique(first[changed])) <= {0.0, 2.0}
        if dropped:
            assert 0.3 < np.mean(first[changed] == 0) < 0.7
    changed_in = [np.abs(each[2:].reshape(2 * images, -1) - 1).max(axis=1) > 0 for each in (first_map, tokens)]
    np.testing.assert_array_equal(*changed_in)  # the same images


def test_features_of_half_precision_keep_it():
    features = [tf.ones((4, 2, 2, 8), tf.bfloat16)]
    assert make(complementary_dropout=1.0).drop_channels(features, 0)[0].dtype == tf.bfloat16


def test_the_published_settings():
    method = UniMatchV2(tiny.BranchingSegmenter(), steps=100)
    method.compile()
    optimizer, config = method.training_optimizers.segmenter, method.config
    assert isinstance(optimizer, keras.optimizers.AdamW)
    assert (optimizer.weight_decay, float(optimizer.learning_rate)) == (0.01, pytest.approx(5e-6))
    assert (config.head_multiplier, config.threshold, config.ema_decay, config.cutmix) == (40.0, 0.95, 0.996, 0.5)
    assert (config.lambda_s, config.complementary_dropout) == (0.5, 0.5)
    assert (config.jitter, config.hue, config.jitter_probability) == (0.5, 0.25, 0.8)
    assert (config.grey_probability, config.blur_probability) == (0.2, 0.5)


def test_the_teacher_predicts_and_the_student_is_a_variant():
    images = np.random.default_rng(0).uniform(0, 255, (1, 4, 5, 3)).astype(np.float32)
    method = make()
    teacher, student = (tiny.softmax(tiny.Segmenter(n).forward(images)[0]) for n in (method.averaged, method.segmenter))
    assert np.abs(teacher - student).max() > 0.05
    np.testing.assert_allclose(method(images), teacher, rtol=1e-4)
    np.testing.assert_allclose(method.predictions(images)["student"], student, rtol=1e-4)


def test_boxes_are_those_of_unimatch():
    method = make(cutmix=0.5)
    areas = method.boxes(tf.zeros((400, 40, 60, 3))).numpy().mean(axis=(1, 2))
    assert 0.4 < (areas > 0).mean() < 0.6 and areas[areas > 0].min() > 0.01 and areas.max() < 0.45
    assert not make(cutmix=0.0).boxes(tf.zeros((50, 40, 60, 3))).numpy().any()


def test_the_partner_is_another_image():
    x, y = tiny.batch(np.random.default_rng(0), size=1)
    method = make()
    method.compile()
    assert method.least_unlabeled == 2 and make(cutmix=0.0).least_unlabeled == 1
    message = "cutmix pastes parts of another image: give at least 2 unlabelled images a step, got 1; or cutmix 0"
    with pytest.raises(ValueError, match=message):
        method.train_step(tiny.tensors(x, y))


@pytest.mark.parametrize(
    "field, value",
    [("threshold", 1.5), ("lambda_s", -1), ("complementary_dropout", 2), ("cutmix", -1), ("hue", 1), ("ema_decay", 1)],
)
def test_impossible_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} .*got"):
        UniMatchV2(tiny.BranchingSegmenter(), **{field: value})
