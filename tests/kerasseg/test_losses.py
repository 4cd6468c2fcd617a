"""Every loss against NumPy in float64, with ignored pixels and with nothing but ignored pixels."""

import numpy as np
import pytest
import tensorflow as tf

from kerasseg import losses

B, H, W, K, F = 3, 5, 7, 4, 6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def logits(rng):
    return rng.normal(scale=3, size=(B, H, W, K)).astype(np.float32)


@pytest.fixture
def labels(rng):
    labels = rng.integers(0, K, (B, H, W))
    labels[rng.random(labels.shape) < 0.3] = 255
    return labels


def log_softmax(z):
    z = z.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def sigmoid(z):
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def test_accuracy_is_the_share_on_the_targets_side(logits, labels):
    target = (labels == 1).astype(np.float32)
    right = (logits[..., 0] > 0) == (labels == 1)
    assert float(losses.accuracy(logits[..., 0], target)) == pytest.approx(right.mean())
    assert float(losses.accuracy(logits[..., 0], 0.0)) == pytest.approx((logits[..., 0] <= 0).mean())
    known = labels != 255
    assert float(losses.accuracy(logits[..., 0], target, known)) == pytest.approx(right[known].mean())
    assert float(losses.accuracy(logits[..., 0], target, np.zeros_like(known))) == 0


def test_cross_entropy_is_the_mean_over_labelled_pixels(labels, logits):
    b, h, w = np.nonzero(labels != 255)
    expected = -log_softmax(logits)[b, h, w, labels[b, h, w]].mean()
    np.testing.assert_allclose(losses.cross_entropy(labels, logits), expected, rtol=1e-5)


@pytest.mark.parametrize("threshold, at_least", [(1.0, 0.01), (0.5, 0.01), (0.05, 0.5), (0.5, 1.0)], ids=str)
def test_hard_pixels_are_the_unlikely_ones_and_enough(labels, logits, threshold, at_least):
    loss = -np.take_along_axis(log_softmax(logits), np.where(labels == 255, 0, labels)[..., None], axis=-1)[..., 0]
    known = labels != 255
    unlikely = known & (np.exp(-loss) <= threshold)
    hard = losses.hard_pixels(labels, logits, threshold, at_least).numpy()
    assert hard.sum() == max(unlikely.sum(), np.ceil(at_least * known.sum()))
    assert not (hard & ~known).any() and (hard | ~unlikely).all()
    assert loss[hard].min() >= loss[known & ~hard].max(initial=0.0)


def test_there_are_no_hard_pixels_where_all_are_ignored(labels, logits):
    assert not losses.hard_pixels(np.full_like(labels, 255), logits, 0.7, 0.5).numpy().any()


def test_dice_counts_the_classes_of_the_labels_alike(labels, logits):
    labels = np.where(labels == 1, 0, labels)  # no pixel is of class 1
    p, t = np.exp(log_softmax(logits)), np.eye(logits.shape[-1])[np.where(labels == 255, 0, labels)]
    p, t = (x * (labels != 255)[..., None] for x in (p, t))
    present = [k for k in range(logits.shape[-1]) if t[..., k].any()]
    assert 1 not in present and len(present) > 1
    dice = [2 * (p * t)[..., k].sum() / (p[..., k].sum() + t[..., k].sum()) for k in present]
    np.testing.assert_allclose(losses.dice_loss(labels, tf.constant(logits)), 1 - np.mean(dice), rtol=1e-5)
    assert float(losses.dice_loss(np.full_like(labels, 255), tf.constant(logits))) == 0.0
    perfect = tf.constant(100.0 * np.eye(logits.shape[-1], dtype=np.float32)[np.where(labels == 255, 0, labels)])
    assert float(losses.dice_loss(labels, perfect)) == pytest.approx(0.0, abs=1e-6)


def test_cross_entropy_weights_classes(labels, logits):
    weights = np.array([2.0, 2.0, 0.5, 1.0], np.float32)
    b, h, w = np.nonzero(labels != 255)
    pixel_weights = weights[labels[b, h, w]]
    expected = -(pixel_weights * log_softmax(logits)[b, h, w, labels[b, h, w]]).sum() / pixel_weights.sum()
    np.testing.assert_allclose(losses.cross_entropy(labels, logits, weights), expected, rtol=1e-5)


def test_pseudo_labels_are_the_likeliest_classes_where_trusted(logits):
    trusted = np.zeros((B, H, W), bool)
    trusted[1] = True
    trusted[2, :, 3] = True
    expected = np.where(trusted, np.argmax(logits, axis=-1), 255)
    np.testing.assert_array_equal(losses.pseudo_labels(logits, trusted), expected)


def test_cross_entropy_over_nothing_is_0_with_0_gradient(labels, logits):
    logits = tf.constant(logits)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        ignored = losses.cross_entropy(np.full_like(labels, 255), logits)
        untrusted = losses.cross_entropy(losses.pseudo_labels(logits, False), logits)
    for loss in (ignored, untrusted):
        assert loss == 0
        np.testing.assert_array_equal(tape.gradient(loss, logits), 0)


@pytest.mark.parametrize("target", [0.0, 1.0, "tensor"])
def test_binary_cross_entropy(rng, logits, target):
    t = rng.random(logits.shape).astype(np.float32) if target == "tensor" else target
    p = sigmoid(logits)
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, t), expected.mean(), rtol=1e-5)

    mask = rng.random(logits.shape) < 0.5
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, t, mask), expected[mask].mean(), rtol=1e-5)


def test_binary_cross_entropy_of_extreme_logits_is_finite():
    np.testing.assert_allclose(losses.binary_cross_entropy(tf.constant([500.0, -500.0]), 1.0), 250.0)


def test_categorical_cross_entropy_of_multi_hot_targets(rng):
    z = (rng.random((B, K)) < 0.5).astype(np.float32)
    logits = rng.normal(size=(B, K)).astype(np.float32)
    expected = -(z * log_softmax(logits)).sum(axis=-1).mean()
    np.testing.assert_allclose(losses.categorical_cross_entropy(z, logits), expected, rtol=1e-5)


def test_feature_matching_compares_batch_means(rng):
    real, fake = rng.normal(size=(B, F)).astype(np.float32), rng.normal(size=(2 * B, F)).astype(np.float32)
    difference = real.astype(np.float64).mean(axis=0) - fake.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(losses.feature_matching(real, fake), np.abs(difference).mean(), rtol=1e-5)
    np.testing.assert_allclose(losses.feature_matching(real, fake, "l2"), np.sqrt((difference**2).sum()), rtol=1e-5)


def test_consistency_losses(rng):
    p, q = rng.normal(size=(B, K)).astype(np.float32), rng.normal(size=(B, K)).astype(np.float32)
    np.testing.assert_allclose(losses.mean_squared_error(p, q), ((p - q).astype(np.float64) ** 2).mean(), rtol=1e-5)
    cosine = (p * q).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(q, axis=-1)
    np.testing.assert_allclose(losses.cosine_distance(p, q), (1 - cosine).mean(), rtol=1e-5)


def test_one_hot_is_all_zero_where_ignored():
    labels = np.array([[[0, 2], [255, 1]]])
    np.testing.assert_array_equal(losses.one_hot(labels, 3), [[[[1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 0]]]])


def test_multi_hot_tells_the_classes_of_each_image():
    labels = np.array([[[0, 2], [255, 2]], [[255, 255], [255, 255]], [[1, 1], [1, 1]]])
    np.testing.assert_array_equal(losses.multi_hot(labels, 4), [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "feature_matching", "mean_squared_error"])
def test_replicas_shares_add_up_to_the_loss_of_the_global_batch(two_replicas, rng, name):
    """Unequal halves: one replica's labels are nearly all ignored, so means of means would be off."""
    logits = rng.normal(size=(4, H, W, K)).astype(np.float32)
    labels = rng.integers(0, K, (4, H, W))
    labels[2:, 1:] = 255
    features = rng.normal(size=(2, 4, F)).astype(np.float32)

    def loss(index):
        mask = tf.gather((labels != 255).astype(np.float32), index)
        picked, truth = tf.gather(logits, index), tf.gather(labels, index)
        real, fake = tf.gather(features[0], index), tf.gather(features[1], index)
        return {
            "cross_entropy": lambda: losses.cross_entropy(truth, picked),
            "binary_cross_entropy": lambda: losses.binary_cross_entropy(picked[..., 0], 1.0, mask),
            "feature_matching": lambda: losses.feature_matching(real, fake),
            "mean_squared_error": lambda: losses.mean_squared_error(real, fake),
        }[name]()

    @tf.function
    def shares():
        def share():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            return loss(tf.range(2) + 2 * tf.cast(replica, tf.int32))

        return two_replicas.experimental_local_results(two_replicas.run(share))

    np.testing.assert_allclose(sum(share.numpy() for share in shares()), loss(tf.range(4)), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss(logits, labels, gamma):
    weights = np.array([1.0, 2.0, 3.0, 0.5], np.float32)
    known = labels != 255
    log_p = np.take_along_axis(log_softmax(logits), np.where(known, labels, 0)[..., None], axis=-1)[..., 0][known]
    weight = weights[labels[known]]
    expected = (weight * (1 - np.exp(log_p)) ** gamma * -log_p).sum() / weight.sum()
    assert losses.focal_loss(labels, logits, gamma, weights).numpy() == pytest.approx(expected, rel=1e-4)
    unweighted = ((1 - np.exp(log_p)) ** gamma * -log_p).mean()
    assert losses.focal_loss(labels, logits, gamma).numpy() == pytest.approx(unweighted, rel=1e-4)
    assert losses.focal_loss(np.full_like(labels, 255), logits, gamma).numpy() == 0


def test_focal_loss_has_a_gradient_where_a_pixel_is_wholly_sure():
    logits = tf.Variable([[[[200.0, 0.0]]]])
    with tf.GradientTape() as tape:
        loss = losses.focal_loss(tf.constant([[[0]]]), logits, 0.5)
    np.testing.assert_array_equal(tape.gradient(loss, logits), np.zeros((1, 1, 1, 2)))


def test_softened_label_maps(logits, labels):
    S = np.exp(log_softmax(logits))
    truth = np.eye(K)[np.where(labels == 255, 0, labels)] * (labels != 255)[..., None]
    softened = losses.softened_label_maps(tf.constant(truth, tf.float32), tf.constant(S, tf.float32), 0.9).numpy()
    for place in np.ndindex(labels.shape):
        expected = np.zeros(K)
        if (label := labels[place]) != 255:
            expected = S[place] * (1 - max(0.9, S[place][label])) / (1 - S[place][label])
            expected[label] = max(0.9, S[place][label])
            assert softened[place].sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(softened[place], expected, atol=1e-5)
    hard = losses.softened_label_maps(tf.constant(truth, tf.float32), tf.constant(S, tf.float32), 1.0)
    np.testing.assert_allclose(hard, truth, atol=1e-7)
    sure = tf.one_hot([[[0]]], K)
    np.testing.assert_array_equal(losses.softened_label_maps(sure, sure, 0.9), sure)
