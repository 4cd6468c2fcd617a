"""Mean teachers (Tarvainen and Valpola 2017, arXiv:1703.01780): networks whose weights follow another one's."""

import random

import keras
import tensorflow as tf

from kerasseg.segmenters.weights import AVERAGED


def averaged_copy(network: keras.Model, name: str = AVERAGED) -> keras.Model:
    """A network of the same layers and weights that no optimizer trains."""
    chance = random.getstate()
    copy = keras.models.clone_model(network)
    random.setstate(chance)  # Keras draws seeds from it: a training with an average is to be the one without, too
    copy.set_weights(network.get_weights())
    copy.name, copy.trainable = name, False
    return copy


def decay_after(updates: tf.Tensor, ema_decay: float) -> tf.Tensor:
    """The decay after t updates: min((1 + t) / (10 + t), `ema_decay`), as in TensorFlow's own moving averages.

    min(1 - 1 / (t + 1), ...) remembers the first steps for too long: from random weights batch norm's variances then
    fall by orders of magnitude, and their average fits no network.
    """
    steps = tf.cast(updates, tf.float32)
    return tf.minimum((1.0 + steps) / (10.0 + steps), ema_decay)


def follow(averaged: keras.Model, network: keras.Model, decay: tf.Tensor) -> None:
    """theta' = decay theta' + (1 - decay) theta over all weights, batch-norm statistics included."""
    for average, weight in zip(averaged.weights, network.weights, strict=True):
        average.assign(decay * average + (1.0 - decay) * weight)
