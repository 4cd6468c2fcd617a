"""Mean teachers (Tarvainen and Valpola 2017, arXiv:1703.01780): networks whose weights follow another one's."""

import keras
import tensorflow as tf


def averaged_copy(network: keras.Model, name: str = "averaged") -> keras.Model:
    """A network of the same layers and weights that no optimizer trains."""
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    copy.name, copy.trainable = name, False
    return copy


def follow(averaged: keras.Model, network: keras.Model, steps, ema_decay: float) -> None:
    """theta' = a theta' + (1 - a) theta over all weights, batch-norm statistics included; a = min(1 - 1 / (steps + 1),
    ema_decay).

    Args:
        steps: how many updates the network has had, a scalar.
    """
    decay = tf.minimum(1.0 - 1.0 / (tf.cast(steps, tf.float32) + 1.0), ema_decay)
    for average, weight in zip(averaged.weights, network.weights, strict=True):
        average.assign(decay * average + (1.0 - decay) * weight)
