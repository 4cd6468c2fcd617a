"""Swapped classes: which segments, which classes, how often."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods.class_swap import swap_classes
from tests.kerasseg.methods import tiny

K = 4


@pytest.fixture
def prediction():
    return tiny.softmax(np.random.default_rng(0).normal(scale=2, size=(40, 5, 6, K))).astype(np.float32)


def swapped(S, valid, probability, seed=0):
    return swap_classes(tf.constant(S), tf.constant(valid), probability, keras.random.SeedGenerator(seed)).numpy()


def test_the_segments_of_one_class_take_another_and_all_else_stays(prediction):
    valid = np.random.default_rng(1).random(prediction.shape[:3]) < 0.9
    result = swapped(prediction, valid, 1.0)
    pairs = set()
    for before, after, known in zip(prediction, result, valid, strict=True):
        was, is_now = np.argmax(before, axis=-1), np.argmax(after, axis=-1)
        changed = was != is_now
        (old,), (new,) = np.unique(was[changed]), np.unique(is_now[changed])
        np.testing.assert_array_equal(changed, was == old)  # all its segments
        assert (changed & known).any()
        expected = before.copy()
        expected[changed, old], expected[changed, new] = before[changed, new], before[changed, old]
        np.testing.assert_array_equal(after, expected)
        pairs.add((old, new))
    assert len(pairs) > K * (K - 1) / 2  # of the 12 that there are


def test_a_class_may_become_one_that_the_prediction_lacks(prediction):
    only = np.zeros_like(prediction)
    only[..., 2] = 1
    result = np.argmax(swapped(only, np.ones(only.shape[:3], bool), 1.0), axis=-1)
    assert set(np.unique(result)) == {0, 1, 3}
    assert all(len(np.unique(image)) == 1 for image in result)


def test_a_class_on_ignored_pixels_only_is_not_drawn(prediction):
    valid = np.argmax(prediction, axis=-1) == 1
    result = swapped(prediction, valid, 1.0)
    changed = (result != prediction).any(axis=-1)
    np.testing.assert_array_equal(changed, valid)


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_so_many_images_are_chosen(prediction, probability):
    S = np.tile(prediction, (10, 1, 1, 1))
    result = swapped(S, np.ones(S.shape[:3], bool), probability)
    changed = (result != S).any(axis=(1, 2, 3)).mean()
    assert changed == pytest.approx(probability, abs=0.06)


def test_where_all_is_ignored_nothing_changes(prediction):
    np.testing.assert_array_equal(swapped(prediction, np.zeros(prediction.shape[:3], bool), 1.0), prediction)


def test_the_generator_decides(prediction):
    valid = np.ones(prediction.shape[:3], bool)
    np.testing.assert_array_equal(swapped(prediction, valid, 0.5, 3), swapped(prediction, valid, 0.5, 3))
    assert (swapped(prediction, valid, 0.5, 3) != swapped(prediction, valid, 0.5, 4)).any()
    random = keras.random.SeedGenerator(0)
    first, second = (swap_classes(tf.constant(prediction), tf.constant(valid), 0.5, random) for _ in range(2))
    assert (first.numpy() != second.numpy()).any()


def test_a_graph_gives_the_same(prediction):
    random = keras.random.SeedGenerator(3)
    signature = [tf.TensorSpec([None, None, None, K]), tf.TensorSpec([None, None, None], tf.bool)]
    swap = tf.function(lambda S, valid: swap_classes(S, valid, 0.5, random), input_signature=signature)
    valid = np.ones(prediction.shape[:3], bool)
    np.testing.assert_array_equal(swap(prediction, valid), swapped(prediction, valid, 0.5, 3))
