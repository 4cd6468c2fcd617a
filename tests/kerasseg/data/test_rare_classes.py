import itertools

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.data.rare_classes import RareClasses

# Three images, four classes, of which the last does not occur; shares 0.7, 0.2, 0.1.
PIXELS_NK = np.array([[5, 2, 0, 0], [2, 0, 0, 0], [0, 0, 1, 0]])


def draws(rare: RareClasses, count: int, **fields):
    """(class, image) for `count` seeds."""
    seeds = tf.data.Dataset.range(count).map(lambda i: tf.stack([i, 3]))
    return [(int(k), int(n)) for k, n in seeds.map(lambda s: rare.draw(s, **fields)).as_numpy_iterator()]


def test_the_probability_of_a_class_is_daformers():
    weights = [np.exp((1 - share) / 0.5) for share in (0.7, 0.2, 0.1)]
    expected = [weight / sum(weights) for weight in weights]
    np.testing.assert_allclose(RareClasses(PIXELS_NK, 0.5).probabilities_K, [*expected, 0], rtol=1e-12)
    np.testing.assert_allclose(expected, [0.1421, 0.3863, 0.4717], atol=1e-4)
    np.testing.assert_allclose(RareClasses(PIXELS_NK, 0.01).probabilities_K, [0, 4.54e-5, 0.9999546, 0], atol=1e-7)
    assert RareClasses(PIXELS_NK, 1e-5).probabilities_K.tolist() == [0, 0, 1, 0]


def test_classes_and_images_are_drawn_with_their_probabilities():
    pairs = draws(RareClasses(PIXELS_NK, 0.5), 4000)
    shares = {pair: pairs.count(pair) / 4000 for pair in set(pairs)}
    expected = {(0, 0): 0.0710, (0, 1): 0.0710, (1, 0): 0.3863, (2, 2): 0.4717}
    assert shares.keys() == expected.keys()
    for pair, share in expected.items():
        assert shares[pair] == pytest.approx(share, abs=0.025)  # three standard errors at most


def test_another_image_is_drawn_where_there_is_one():
    holders = np.zeros((5, 2), int)
    holders[[0, 2, 3, 4], 0] = 1
    holders[1, 1] = 1
    rare = RareClasses(holders, 1.0)
    for other_than in range(5):
        pairs = draws(rare, 400, other_than=tf.constant(other_than))
        images = [n for k, n in pairs if k == 0]
        assert set(images) == {0, 2, 3, 4} - {other_than}
        assert min(map(images.count, set(images))) > 0.7 * len(images) / len(set(images))
        assert {n for k, n in pairs if k == 1} == ({-1} if other_than == 1 else {1})


def test_a_single_class():
    assert set(draws(RareClasses(np.array([[0, 4], [0, 1]]), 0.01), 40)) == {(1, 0), (1, 1)}


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_impossible_temperatures(temperature):
    with pytest.raises(ValueError, match=f"rare_class_temperature must be above 0, got {temperature}"):
        RareClasses(PIXELS_NK, temperature)


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="no labelled image has a pixel of a class"):
        RareClasses(np.zeros((2, 3), int), 0.01)


def test_seeds_decide():
    rare = RareClasses(PIXELS_NK, 1.0)
    assert draws(rare, 20) == draws(rare, 20)
    assert any(a != b for a, b in itertools.pairwise(draws(rare, 20)))
