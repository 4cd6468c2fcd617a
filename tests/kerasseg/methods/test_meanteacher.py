"""The mean teacher's losses in NumPy, their gradients by finite differences, what is pasted and what is trusted."""

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import MeanTeacher
from kerasseg.methods.meanteacher import MeanTeacherConfig
from kerasseg.methods.views import mixed
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract


class TestMeanTeacher(MethodContract):
    name = "meanteacher"
    fields = {"threshold": 0.0, "lambda_cons": 0.05}

    def make_without_chance(self, segmenter):
        # A part of another image would be another one on a replica's share of the batch.
        method = MeanTeacher(segmenter, steps=10, threshold=0.0, mixing="none")
        method.strong = lambda images: images * 0.7
        return method


def make(**fields):
    defaults = {"steps": 10, "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, "cons_start": 0.0}
    method = MeanTeacher(tiny.segmenter(), **defaults | fields)
    method.averaged.set_weights([weight + 0.3 for weight in method.averaged.get_weights()])
    method.strong = lambda images: images * 0.7
    return method


def after(pasted, values):
    """Every item with a part of the one before it, the first one with a part of the second."""
    partners = values[[1, *range(len(values) - 1)]]
    return np.where(pasted.reshape(pasted.shape + (1,) * (values.ndim - 3)), partners, values)


def losses(x, y, w, target, trust, pasted, valid, lambda_cons):
    twin = tiny.Segmenter.of(w)
    terms = {"L_ce": tiny.cross_entropy(y, twin.forward(x["labeled"])[0])[0]}
    S = tiny.softmax(twin.forward(after(pasted, x["unlabeled"] * np.float32(0.7)))[0])
    loss = -np.log(np.take_along_axis(S, after(pasted, target)[..., None], axis=-1))[..., 0]
    valid = after(pasted, valid)
    terms["L_cons"] = (loss * after(pasted, trust) * valid).sum() / valid.sum()
    return terms | {"L_S": terms["L_ce"] + lambda_cons * terms["L_cons"]}


@pytest.mark.parametrize(
    "fields",
    [{}, {"lambda_cons": 3.0}, {"trust": "pixel"}, {"mixing": "none"}, {"joint_batch_norm": False}],
    ids=str,
)
def test_a_step_updates_the_student_and_then_the_teacher(fields):
    rng = np.random.default_rng(0)
    x, y = tiny.batch(rng, size=3)
    valid = x["unlabeled_valid"] = rng.random(y.shape) < 0.8
    method = make(threshold=0.6, **fields)
    pasted = rng.random(y.shape) < 0.4 if fields.get("mixing") != "none" else np.zeros(y.shape, bool)
    method.pasted = lambda target: tf.constant(pasted)
    method.compile()
    H = tiny.softmax(tiny.Segmenter(method.averaged).forward(x["unlabeled"])[0])
    target, sure = H.argmax(axis=-1), (H.max(axis=-1) >= 0.6).astype(float)
    assert 0 < sure.sum() < sure.size
    trust = sure
    if fields.get("trust", "image") == "image":
        share = (sure * valid).sum(axis=(1, 2)) / valid.sum(axis=(1, 2))
        trust = np.ones(sure.shape) * share[:, None, None]
    w, before = tiny.float64_weights(method.segmenter), tiny.float64_weights(method.averaged)
    arguments = target, trust, pasted, valid, fields.get("lambda_cons", 1.0)
    terms = losses(x, y, w, *arguments) | {"trust": (trust * valid).sum() / valid.sum()}

    logs = method.train_step(tiny.tensors(x, y))

    assert {name: float(value) for name, value in logs.items()} == pytest.approx(terms, rel=1e-4, abs=1e-6)
    gradients = tiny.numeric_gradient(lambda w: losses(x, y, w, *arguments)["L_S"], w)
    tiny.assert_moved(method.segmenter, w, gradients)
    for teacher, old, student in zip(
        method.averaged.get_weights(), before, method.segmenter.get_weights(), strict=True
    ):
        np.testing.assert_allclose(teacher, 2 / 11 * old + 9 / 11 * student, rtol=1e-5)  # decay (1 + 1) / (10 + 1)


def test_the_loss_on_unlabelled_images_sets_in_late():
    x, y = tiny.batch(np.random.default_rng(0), size=2)
    method = make(cons_start=0.1, threshold=0.0)
    method.compile()
    first, second = (method.train_step(tiny.tensors(x, y)) for _ in range(2))
    assert float(first["L_S"]) == float(first["L_ce"])
    assert float(second["L_S"]) == pytest.approx(float(second["L_ce"]) + float(second["L_cons"]), rel=1e-6)


def test_the_teacher_predicts_and_the_student_is_a_variant():
    images = np.random.default_rng(0).uniform(0, 255, (1, 4, 5, 3)).astype(np.float32)
    method = make()
    predictions = method.predictions(images)
    teacher, student = (tiny.softmax(tiny.Segmenter(n).forward(images)[0]) for n in (method.averaged, method.segmenter))
    assert np.abs(teacher - student).max() > 0.05
    assert predictions.keys() == {"", "student"}
    np.testing.assert_allclose(predictions[""], teacher, rtol=1e-4)
    np.testing.assert_allclose(predictions["student"], student, rtol=1e-4)
    np.testing.assert_allclose(method(images), teacher, rtol=1e-4)


def test_a_class_that_the_teacher_is_less_sure_of_has_a_lower_threshold():
    """FreeMatch's: 0.9 times the class's mean confidence, as a share of the largest of all classes seen so far."""
    method = make(trust="class", threshold=0.9)
    H = np.zeros((1, 2, 4, 3), np.float32)
    H[0, 0] = [0.80, 0.10, 0.10]
    H[0, 1] = [[0.1, 0.6, 0.3], [0.1, 0.6, 0.3], [0.1, 0.5, 0.4], [0.1, 0.5, 0.4]]
    valid = np.ones((1, 2, 4), bool)
    method.update_class_confidence(tf.constant(H), tf.constant(valid))
    np.testing.assert_allclose(method.class_confidence, [0.80, 0.55, 0.0], rtol=1e-5)  # no pixel is of class 2
    trust = method.pixel_weights(tf.constant(H), tf.constant(valid)).numpy()
    # Thresholds: 0.9 * 0.80 / 0.80 and 0.9 * 0.55 / 0.80 = 0.62.
    np.testing.assert_array_equal(trust[0], [[0, 0, 0, 0], [0, 0, 0, 0]])
    H[0, 0], H[0, 1, :2] = [0.95, 0.05, 0.0], [0.1, 0.65, 0.25]
    valid[0, 1, 2:] = False
    method.update_class_confidence(tf.constant(H), tf.constant(valid))
    expected = [0.99 * 0.80 + 0.01 * 0.95, 0.99 * 0.55 + 0.01 * 0.65, 0.0]
    np.testing.assert_allclose(method.class_confidence, expected, rtol=1e-5)
    trust = method.pixel_weights(tf.constant(H), tf.constant(valid)).numpy()
    np.testing.assert_array_equal(trust[0], [[1, 1, 1, 1], [1, 1, 0, 0]])  # 0.9 and 0.62


def test_a_part_of_the_image_before_is_pasted():
    values = np.arange(3 * 2 * 2).reshape(3, 2, 2)
    pasted = np.zeros((3, 2, 2), bool)
    pasted[0, 0, 0] = pasted[1, 1, 1] = True
    np.testing.assert_array_equal(mixed(tf.constant(values), tf.constant(pasted)), after(pasted, values))
    assert mixed(tf.constant(values), tf.constant(pasted)).numpy()[0, 0, 0] == values[1, 0, 0]


def test_what_mixing_pastes():
    target = np.zeros((2, 20, 30), np.int32)
    target[0, :, :10], target[1, :5] = 1, 2
    box = MeanTeacher(tiny.segmenter(), mixing="cutmix").pasted(tf.constant(target)).numpy()
    assert (box.mean(axis=(1, 2)) > 0.08).all() and (box.mean(axis=(1, 2)) < 0.55).all()
    classes = MeanTeacher(tiny.segmenter(), mixing="classmix").pasted(tf.constant(target)).numpy()
    for pasted, partner in zip(classes, target[::-1], strict=True):  # one of the partner's two classes, whole
        assert len(set(partner[pasted])) == 1 and len(set(partner[~pasted])) == 1
    assert not MeanTeacher(tiny.segmenter(), mixing="none").pasted(tf.constant(target)).numpy().any()


def test_the_partner_is_another_image():
    x, y = tiny.batch(np.random.default_rng(0), size=1)
    method = MeanTeacher(tiny.segmenter(), steps=10)
    method.compile()
    assert method.least_unlabeled == 2 and MeanTeacher(tiny.segmenter(), mixing="none").least_unlabeled == 1
    with pytest.raises(ValueError, match="cutmix pastes parts of another image: give at least 2 unlabelled images"):
        method.train_step(tiny.tensors(x, y))


@pytest.mark.parametrize(
    "field, value",
    [("mixing", "mixup"), ("trust", "none"), ("threshold", 2), ("lambda_cons", -1), ("cons_start", 2), ("hue", 1)],
)
def test_impossible_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} .*got"):
        MeanTeacher(tiny.segmenter(), **{field: value})


def test_older_runs_are_read():
    assert MeanTeacherConfig(trust="picture") == MeanTeacherConfig(trust="image")
