"""The loss terms of the methods, each a mean, on logits wherever it can be.

Shapes: B batch, H W height and width, K classes, F features. Labels are integers in 0..K-1, or 255 (`IGNORE_LABEL`)
for ignored pixels. A mean over no values is 0, never NaN.

Under `tf.distribute` every loss is the replica's share of the mean over the global batch: the shares add up to it, and
so do their gradients, which Keras' optimizers sum over replicas.
"""

import tensorflow as tf

from kerasseg.distribution import sum_over_replicas

IGNORE_LABEL = 255


def mean_where(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Mean of `values` weighted by `weights` (same shape, 0 or more); 0 where all weights are 0."""
    weights = tf.cast(weights, values.dtype)
    count = sum_over_replicas(tf.reduce_sum(weights))
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights), count)


def mean(values: tf.Tensor) -> tf.Tensor:
    """Mean of all values of the global batch."""
    return mean_where(values, tf.ones_like(values))


def valid_pixels(labels_BHW: tf.Tensor) -> tf.Tensor:
    """Where a pixel has a label that is not ignored; (B,H,W) bool."""
    return labels_BHW != IGNORE_LABEL


def one_hot(labels_BHW: tf.Tensor, num_classes: int) -> tf.Tensor:
    """The methods' Y: (B,H,W,K) float32, all zero where ignored."""
    return tf.one_hot(tf.cast(labels_BHW, tf.int32), num_classes)


def zero_unless(valid_BHW: tf.Tensor, S_BHWK: tf.Tensor) -> tf.Tensor:
    """A prediction shown like a one-hot label map, which is all zero in the padding and where pixels are ignored."""
    return S_BHWK * tf.cast(valid_BHW, S_BHWK.dtype)[..., tf.newaxis]


def multi_hot(labels_BHW: tf.Tensor, num_classes: int) -> tf.Tensor:
    """The classes present in each label map: (B,K) float32 of 0 and 1."""
    labels_BP = tf.reshape(tf.cast(labels_BHW, tf.int32), [tf.shape(labels_BHW)[0], -1])
    present = tf.math.bincount(
        labels_BP, minlength=num_classes, maxlength=num_classes, binary_output=True, axis=-1, dtype=tf.float32
    )
    return tf.ensure_shape(present, [None, num_classes])


def pseudo_labels(logits_BHWK: tf.Tensor, trusted: tf.Tensor) -> tf.Tensor:
    """The likeliest class where a prediction is trusted (bool, broadcast to (B,H,W)), elsewhere 255; (B,H,W) int32.

    No gradient passes.
    """
    return tf.where(trusted, tf.argmax(logits_BHWK, axis=-1, output_type=tf.int32), IGNORE_LABEL)


def pixel_cross_entropy(labels_BHW: tf.Tensor, logits_BHWK: tf.Tensor) -> tf.Tensor:
    """-log softmax(logits)[label] of each pixel, 0 or more, (B,H,W); without meaning at ignored pixels."""
    known_BHW = tf.where(labels_BHW == IGNORE_LABEL, 0, tf.cast(labels_BHW, tf.int32))
    return tf.nn.sparse_softmax_cross_entropy_with_logits(known_BHW, tf.cast(logits_BHWK, tf.float32))


def cross_entropy(labels_BHW: tf.Tensor, logits_BHWK: tf.Tensor, class_weights_K: tf.Tensor | None = None) -> tf.Tensor:
    """Mean over labelled pixels of -log softmax(logits)[label]; scalar, 0 or more.

    Args:
        class_weights_K: optional weight of the pixels of each class in that mean.
    """
    return mean_where(pixel_cross_entropy(labels_BHW, logits_BHWK), pixel_weights(labels_BHW, class_weights_K))


def pixel_weights(labels_BHW: tf.Tensor, class_weights_K: tf.Tensor | None) -> tf.Tensor:
    """The weight of each pixel's class, 1 without `class_weights_K`, and 0 at ignored pixels; (B,H,W) float32."""
    valid_BHW = tf.cast(valid_pixels(labels_BHW), tf.float32)
    if class_weights_K is None:
        return valid_BHW
    return valid_BHW * tf.gather(class_weights_K, tf.where(labels_BHW == IGNORE_LABEL, 0, labels_BHW))


def hard_pixels(labels_BHW: tf.Tensor, logits_BHWK: tf.Tensor, threshold: float, at_least: float) -> tf.Tensor:
    """The labelled pixels whose class has a probability of at most `threshold`, or the hardest ones where those are
    fewer than the share `at_least` of all labelled pixels (online hard example mining, arXiv:1604.03540); (B,H,W) bool.

    Under `tf.distribute` each replica counts its own.
    """
    known_BHW = valid_pixels(labels_BHW)
    loss_BHW = pixel_cross_entropy(labels_BHW, logits_BHWK)
    losses_N = tf.boolean_mask(loss_BHW, known_BHW)
    count = tf.cast(tf.math.ceil(at_least * tf.cast(tf.size(losses_N), tf.float32)), tf.int32)
    hardest_N, _ = tf.math.top_k(losses_N, tf.minimum(count, tf.size(losses_N)))
    return known_BHW & (loss_BHW >= tf.minimum(-tf.math.log(threshold), tf.reduce_min(hardest_N)))


def dice_loss(labels_BHW: tf.Tensor, logits_BHWK: tf.Tensor) -> tf.Tensor:
    """1 - mean over the classes of the batch of 2 sum(p t) / (sum(p) + sum(t)) over its labelled pixels; scalar, 0..1.

    p is the softmax probability of a class, and t is 1 where the pixel has that class (Milletari et al. 2016,
    arXiv:1606.04797, with sums in place of sums of squares). The mean leaves out classes without a labelled pixel.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    Y_BHWK = one_hot(labels_BHW, logits_BHWK.shape[-1])
    S_BHWK = zero_unless(valid_pixels(labels_BHW), tf.nn.softmax(tf.cast(logits_BHWK, tf.float32)))
    both_K, S_K, Y_K = tf.unstack(
        sum_over_replicas(tf.stack([tf.reduce_sum(x, axis=(0, 1, 2)) for x in (S_BHWK * Y_BHWK, S_BHWK, Y_BHWK)]))
    )
    present_K = tf.cast(Y_K > 0, tf.float32)
    dice = tf.math.divide_no_nan(
        tf.reduce_sum(present_K * tf.math.divide_no_nan(2.0 * both_K, S_K + Y_K)), tf.reduce_sum(present_K)
    )
    return tf.where(tf.reduce_any(Y_K > 0), 1.0 - dice, 0.0) / replicas


def binary_cross_entropy(logits: tf.Tensor, target: float | tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Mean of -t log sigmoid(z) - (1 - t) log(1 - sigmoid(z)) over logits z of any shape; scalar, 0 or more.

    Args:
        target: t in 0..1, one number for all or a tensor of the logits' shape.
        weights: optional, of the logits' shape; an entry of weight 0 does not count.
    """
    logits = tf.cast(logits, tf.float32)
    target = tf.broadcast_to(tf.cast(target, tf.float32), tf.shape(logits))
    loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
    return mean(loss) if weights is None else mean_where(loss, weights)


def accuracy(logits: tf.Tensor, target: float | tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Share of logits on the correct side of 0 for the target; arguments as in `binary_cross_entropy`; 0..1."""
    right = tf.cast((logits > 0) == (tf.cast(target, tf.float32) > 0.5), tf.float32)
    return mean(right) if weights is None else mean_where(right, weights)


def discriminator_scores(
    D_real: tf.Tensor,
    D_fake: tf.Tensor,
    weights_real: tf.Tensor | None = None,
    weights_fake: tf.Tensor | None = None,
    name: str = "D",
) -> dict[str, tf.Tensor]:
    """How well a discriminator works, for the log.

    Args:
        D_real: logits, any shape, for label maps.
        D_fake: logits, any shape, for predictions.
        weights_real: as in `binary_cross_entropy`.
        weights_fake: likewise.
        name: of the discriminator, in the names of the terms.

    Returns:
        Scalars: `D_real` and `D_fake`, its mean scores in 0..1; `acc_real` and `acc_fake`, the shares that it
        recognised, 0..1.
    """
    shown = {"real": (D_real, 1.0, weights_real), "fake": (D_fake, 0.0, weights_fake)}
    terms = {}
    for kind, (logits, target, weights) in shown.items():
        scores = tf.nn.sigmoid(tf.cast(logits, tf.float32))
        terms[f"{name}_{kind}"] = mean(scores) if weights is None else mean_where(scores, weights)
        terms[f"acc_{kind}"] = accuracy(logits, target, weights)
    return terms


def categorical_cross_entropy(targets_BK: tf.Tensor, logits_BK: tf.Tensor) -> tf.Tensor:
    """Mean over images of -sum_c z(c) log softmax(logits)(c), z a multi-hot vector (Mittal et al. 2019, eq. 6)."""
    loss_B = tf.nn.softmax_cross_entropy_with_logits(labels=targets_BK, logits=tf.cast(logits_BK, tf.float32))
    return mean(loss_B)


def feature_matching(real_BF: tf.Tensor, fake_BF: tf.Tensor, norm: str = "l1") -> tf.Tensor:
    """Distance of the batch means of two sets of features (Mittal et al. 2019, eq. 2); scalar, 0 or more.

    Args:
        norm: `"l1"` for the mean absolute difference (the reference code), `"l2"` for the Euclidean norm (the paper's
            double bars).
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    means_2F = tf.stack([tf.reduce_mean(tf.cast(features, tf.float32), axis=0) for features in (real_BF, fake_BF)])
    means_F = tf.unstack(sum_over_replicas(means_2F) / replicas)
    difference_F = means_F[0] - means_F[1]
    distance = tf.reduce_mean(tf.abs(difference_F)) if norm == "l1" else tf.norm(difference_F)
    return distance / replicas


def mean_squared_error(targets: tf.Tensor, predictions: tf.Tensor) -> tf.Tensor:
    """Mean of squared differences of two tensors of one shape; scalar, 0 or more."""
    squared = tf.math.squared_difference(tf.cast(targets, tf.float32), tf.cast(predictions, tf.float32))
    return mean(squared)


def cosine_distance(targets_BK: tf.Tensor, predictions_BK: tf.Tensor) -> tf.Tensor:
    """Mean over images of 1 - cos(target, prediction); scalar in 0..2."""
    unit_targets, unit_predictions = (
        tf.math.l2_normalize(tf.cast(x, tf.float32), axis=-1) for x in (targets_BK, predictions_BK)
    )
    distance_B = 1.0 - tf.reduce_sum(unit_targets * unit_predictions, axis=-1)
    return mean(distance_B)


def conditional_entropy(latent_BHWL: tf.Tensor, one_hot_BHWK: tf.Tensor) -> tf.Tensor:
    """-sum P(c,l) log P(c|l) over the labelled pixels of a batch (Sawatzky et al. 2020, eq. 1 to 3); 0 or more.

    Args:
        latent_BHWL: probabilities of L latent classes.
        one_hot_BHWK: labels, all zero where ignored.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    together_KL = tf.einsum("bhwc,bhwl->cl", one_hot_BHWK, latent_BHWL)
    P_KL = tf.math.divide_no_nan(sum_over_replicas(together_KL), sum_over_replicas(tf.reduce_sum(one_hot_BHWK)))
    P_L = tf.reduce_sum(P_KL, axis=0, keepdims=True)
    tiny = 1e-12  # P log P is 0 at 0
    return -tf.reduce_sum(P_KL * (tf.math.log(P_KL + tiny) - tf.math.log(P_L + tiny))) / replicas


def focal_loss(
    labels_BHW: tf.Tensor, logits_BHWK: tf.Tensor, gamma: float, class_weights_K: tf.Tensor | None = None
) -> tf.Tensor:
    """Mean over labelled pixels of -(1 - p)^gamma log p with p = softmax(logits)[label] (Lin et al. 2017,
    arXiv:1708.02002): pixels with a high p count less. Scalar, 0 or more; at gamma 0 it is `cross_entropy`.

    Args:
        class_weights_K: as in `cross_entropy`; both means have the same divisor.
    """
    if gamma == 0:
        return cross_entropy(labels_BHW, logits_BHWK, class_weights_K)
    loss_BHW = pixel_cross_entropy(labels_BHW, logits_BHWK)
    doubt_BHW = tf.maximum(1.0 - tf.exp(-loss_BHW), 1e-7)  # a power below 1 has no gradient at 0
    return mean_where(doubt_BHW**gamma * loss_BHW, pixel_weights(labels_BHW, class_weights_K))


def softened_label_maps(one_hot_BHWK: tf.Tensor, S_BHWK: tf.Tensor, peak: float) -> tf.Tensor:
    """Label maps as soft distributions ("Scale" of Luc et al. 2016, arXiv:1611.08408): the true class has the
    probability max(peak, S), the others share the rest as a prediction has them; all zero where ignored. (B,H,W,K).

    No gradient passes. With a peak of 1 the label maps stay as they are.
    """
    S_BHWK = tf.stop_gradient(tf.cast(S_BHWK, one_hot_BHWK.dtype))
    predicted_BHW1 = tf.reduce_sum(S_BHWK * one_hot_BHWK, axis=-1, keepdims=True)
    true_BHW1 = tf.maximum(predicted_BHW1, peak)
    shares_BHWK = tf.math.divide_no_nan(S_BHWK, 1.0 - predicted_BHW1)
    labeled_BHW1 = tf.reduce_sum(one_hot_BHWK, axis=-1, keepdims=True)
    others_BHWK = labeled_BHW1 - one_hot_BHWK
    return one_hot_BHWK * true_BHW1 + others_BHWK * shares_BHWK * (1.0 - true_BHW1)
