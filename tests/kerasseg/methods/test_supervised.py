import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import Supervised
from kerasseg.optimizers import SGD, AdamW
from kerasseg.segmenters import build_segmenter
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract


class TestSupervised(MethodContract):
    name = "supervised"
    minimized = ("segmenter", "L_ce")


def test_a_step_is_sgd_on_the_labelled_cross_entropy():
    rng = np.random.default_rng(0)
    method = Supervised(tiny.segmenter(), steps=10, learning_rate=0.5, weight_decay=0.01, momentum=0.9)
    method.compile()
    twin = tiny.Segmenter(method.segmenter)
    x, y = tiny.batch(rng)

    expected = [twin.w1.copy(), twin.w2.copy()]
    velocity = [0.0, 0.0]
    for step in range(2):
        logits, cache = twin.forward(x["labeled"])
        loss, d_logits = tiny.cross_entropy(y, logits)
        rate = 0.5 * (1 - step / 10) ** 0.9
        gradients = twin.backward(cache, d_logits)
        for i in range(2):
            velocity[i] = 0.9 * velocity[i] - rate * (gradients[i] + 0.01 * expected[i])
            expected[i] = expected[i] + velocity[i]
        twin.w1, twin.w2 = expected
        np.testing.assert_allclose(method.train_step(tiny.tensors(x, y))["L_ce"], loss, rtol=1e-5)
    for weight, value in zip(method.segmenter.get_weights(), expected, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-4, atol=1e-6)


def test_adamw_moves_by_the_rate_whatever_the_gradient_and_decays_beside_it():
    method = Supervised(tiny.segmenter(), steps=10, optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
    method.compile()
    twin = tiny.Segmenter(method.segmenter)
    x, y = tiny.batch(np.random.default_rng(0))
    logits, cache = twin.forward(x["labeled"])
    gradients = twin.backward(cache, tiny.cross_entropy(y, logits)[1])
    method.train_step(tiny.tensors(x, y))
    for weight, before, gradient in zip(method.segmenter.get_weights(), (twin.w1, twin.w2), gradients, strict=True):
        expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (np.abs(gradient) + 1e-7)
        np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_rates_by_group(optimizer):
    slow, fast = keras.Variable([1.0]), keras.Variable([1.0])
    steps = optimizer(0.01, multipliers=[1.0, 3.0])
    steps.build([slow, fast])
    steps.apply([tf.constant([2.0]), tf.constant([2.0])])
    decay = 0.01 * (steps.weight_decay or 0.0)
    np.testing.assert_allclose((1.0 - decay - fast.numpy()) / (1.0 - decay - slow.numpy()), 3.0, rtol=1e-3)
    with pytest.raises(ValueError, match="3 multipliers for 1 variables"):
        optimizer(0.01, multipliers=[1.0] * 3).build([slow])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_fresh_head_learns_ten_times_faster(optimizer):
    segmenter = build_segmenter("deeplab_v2", backbone="tiny", num_classes=3, weights="none")
    method = Supervised(segmenter, steps=10, head_multiplier=10.0, optimizer=optimizer)
    method.compile()
    head = {variable.path for variable in segmenter.head.trainable_variables}
    multipliers = dict(zip([v.path for v in segmenter.trainable_variables], method.optimizer.multipliers, strict=True))
    assert head and {multipliers[path] for path in head} == {10.0}
    assert {m for path, m in multipliers.items() if path not in head} == {1.0}


@pytest.mark.slow
def test_batch_norm_of_two_replicas_is_that_of_one_where_it_is_synchronised(two_replicas):
    x, y = tiny.batch(np.random.default_rng(4), size=4, height=32, width=32)
    x["labeled"][2:] *= 0.2  # the second replica's share
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    losses, statistics = {}, {}
    for strategy, sync in ((tf.distribute.get_strategy(), False), (two_replicas, True), (two_replicas, False)):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            segmenter = build_segmenter("deeplab_v2", backbone="tiny", num_classes=tiny.K, weights="none")
            method = Supervised(segmenter, steps=10, learning_rate=0.1)
            method.compile(sync_batch_norm=sync)
        history = method.fit(data, steps_per_epoch=1, epochs=10, shuffle=False, verbose=0).history
        case = strategy is two_replicas, sync
        losses[case] = history["L_ce"]
        statistics[case] = np.stack(segmenter.backbone.get_layer("norm").get_weights()[2:])
    assert losses[True, True] == pytest.approx(losses[False, False], rel=1e-4)
    np.testing.assert_allclose(statistics[True, True], statistics[False, False], rtol=1e-4, atol=1e-5)
    assert losses[True, False] != pytest.approx(losses[False, False], rel=1e-4)
    assert np.abs(statistics[True, False] - statistics[False, False]).max() > 1e-3


def test_frozen_batch_norm_keeps_its_statistics_and_affine_parameters():
    rng = np.random.default_rng(0)
    changed = {}
    for freeze in (True, False):
        keras.utils.set_random_seed(0)
        segmenter = build_segmenter("deeplab_v2", backbone="tiny", num_classes=3, weights="none")
        method = Supervised(segmenter, steps=10, learning_rate=0.1, freeze_batch_norm=freeze)
        method.compile()
        norm = segmenter.backbone.get_layer("norm")
        before = norm.get_weights()
        method.train_step(tiny.tensors(*tiny.batch(rng, height=32, width=32)))
        changed[freeze] = [not np.array_equal(a, b) for a, b in zip(before, norm.get_weights(), strict=True)]
    assert changed == {True: [False] * 4, False: [True] * 4}


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("optimizer", "adam", "optimizer must be one of sgd, adamw; got 'adam'"),
        ("learning_rate", 0, "learning_rate must be above 0; got 0"),
        ("momentum", 1.0, "momentum must be in 0..1"),
        ("weight_decay", -1, "weight_decay must be 0 or more; got -1"),
        ("head_multiplier", 0, "head_multiplier must be above 0; got 0"),
    ],
)
def test_impossible_fields(field, value, message):
    with pytest.raises(ValueError, match=message):
        Supervised(tiny.segmenter(), **{field: value})
