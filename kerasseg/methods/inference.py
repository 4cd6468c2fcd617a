"""What a method answers for images."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

Segment = Callable[[Callable[[tf.Tensor], tf.Tensor], tf.Tensor], tf.Tensor]
"""A function of a network (images (B,H,W,3) to class probabilities (B,H,W,K)) and images that gives class
probabilities: it decides which views of the images the network sees."""


def at_once(network: Callable[[tf.Tensor], tf.Tensor], images_BHW3: tf.Tensor) -> tf.Tensor:
    """The `Segment` that takes images as they are."""
    return network(images_BHW3)


def logits_of(network: keras.Model, images_BHW3) -> tf.Tensor:
    """The network's logits (B,H,W,K) in inference mode, float32 in mixed precision too."""
    return tf.cast(network(images_BHW3, training=False), tf.float32)


class Inference(NamedTuple):
    """What a method answers for images (B,H,W,3); see `Method.infer`."""

    logits_BHWK: tf.Tensor
    """The predicting network's logits."""
    segmentation_BHWK: tf.Tensor
    """Their softmax: the class probabilities before any gate. Critics judge these."""
    variants: dict[str, tf.Tensor]
    """The predictions that `Method.variants_from` makes from them."""
    critic_scores: tf.Tensor | None
    """The critic's scores of the segmentation, 0..1: (B,), (B,H,W), or None where there is no critic."""

    @property
    def probabilities_BHWK(self) -> tf.Tensor:
        """The answer: class probabilities, 0 for a gated class."""
        return self.variants[""]

    @property
    def reliability_BHW(self) -> tf.Tensor | None:
        """How far a critic that judges pixels trusts the segmentation, 0..1; None where no critic does."""
        scores = self.critic_scores
        return scores if scores is not None and scores.shape.rank == 3 else None
