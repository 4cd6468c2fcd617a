"""Predictions with wrong segments, for critics that learn which pixels of a prediction are right."""

import keras
import tensorflow as tf

from kerasseg.losses import IGNORE_LABEL, multi_hot


def swap_classes(
    S_BHWK: tf.Tensor, valid_BHW: tf.Tensor, probability: float, random: keras.random.SeedGenerator
) -> tf.Tensor:
    """A prediction in which all segments of one class have another class, in some of the images; (B,H,W,K).

    In each chosen image, a class that the prediction has on valid pixels is drawn, and another one of the K. Where the
    first is the likeliest, the probabilities of the two change places. No gradient passes.

    Args:
        S_BHWK: class probabilities.
        valid_BHW: where pixels have labels, bool.
        probability: that an image is chosen; one without valid pixels stays as it is.
        random: draws the numbers.
    """
    S_BHWK = tf.stop_gradient(S_BHWK)
    B, K = tf.shape(S_BHWK)[0], S_BHWK.shape[-1]
    prediction_BHW = tf.argmax(S_BHWK, axis=-1, output_type=tf.int32)
    present_BK = multi_hot(tf.where(valid_BHW, prediction_BHW, IGNORE_LABEL), K)
    draw_2BK = 1.0 + keras.random.uniform((2, B, K), seed=random)  # at least 1: above the 0 of what is ruled out
    old_B = tf.argmax(draw_2BK[0] * present_BK, axis=-1, output_type=tf.int32)
    new_B = tf.argmax(draw_2BK[1] * tf.one_hot(old_B, K, 0.0, 1.0), axis=-1, output_type=tf.int32)
    chosen_B = (keras.random.uniform((B,), seed=random) < probability) & tf.reduce_any(present_BK > 0, axis=-1)

    places_BK = tf.tile(tf.range(K)[tf.newaxis], [B, 1])  # which class's probability a class takes
    old_B1, new_B1 = old_B[:, tf.newaxis], new_B[:, tf.newaxis]
    places_BK = tf.where(places_BK == old_B1, new_B1, tf.where(places_BK == new_B1, old_B1, places_BK))
    swapped_BHWK = tf.gather(S_BHWK, places_BK, axis=-1, batch_dims=1)
    segments_BHW = (prediction_BHW == old_B[:, tf.newaxis, tf.newaxis]) & chosen_B[:, tf.newaxis, tf.newaxis]
    return tf.where(segments_BHW[..., tf.newaxis], swapped_BHWK, S_BHWK)
