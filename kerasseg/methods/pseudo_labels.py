"""Predictions as labels, learned where they are sure: what the UniMatch methods share."""

import tensorflow as tf

from kerasseg.losses import mean_where, pixel_cross_entropy


def pseudo_labels(logits_BHWK, threshold: float) -> tuple[tf.Tensor, tf.Tensor]:
    """The likeliest class (B,H,W) int32, and where it has at least the probability `threshold`, (B,H,W) bool."""
    confidence_BHW = tf.reduce_max(tf.nn.softmax(logits_BHWK), axis=-1)
    return tf.argmax(logits_BHWK, axis=-1, output_type=tf.int32), confidence_BHW >= threshold


def agreement(logits_BHWK, target_BHW, trusted_BHW, valid_BHW) -> tf.Tensor:
    """Cross-entropy against the trusted targets, as a share of all pixels of the image."""
    loss_BHW = tf.where(trusted_BHW, pixel_cross_entropy(target_BHW, logits_BHWK), 0.0)
    return mean_where(loss_BHW, valid_BHW)
