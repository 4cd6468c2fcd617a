"""What a method answers for images."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

Segment = Callable[[Callable[[tf.Tensor], tf.Tensor], tf.Tensor], tf.Tensor]
"""From a network (images (B,H,W,3) to class probabilities (B,H,W,K)), and images, to class probabilities."""


def at_once(network: Callable[[tf.Tensor], tf.Tensor], images_BHW3: tf.Tensor) -> tf.Tensor:
    """The `Segment` that takes images as they are."""
    return network(images_BHW3)


class Inference(NamedTuple):
    """What a method answers for images (B,H,W,3); see `Method.infer`."""

    logits_BHWK: tf.Tensor
    """The predicting network's own."""
    segmentation_BHWK: tf.Tensor
    """Their softmax: the class probabilities before any gate, which critics judge."""
    variants: dict[str, tf.Tensor]
    """What `Method.variants_from` makes of them."""
    critic_scores: tf.Tensor | None
    """What the method's critic makes of the segmentation, 0..1: (B,), (B,H,W), or None where there is no critic."""

    @property
    def probabilities_BHWK(self) -> tf.Tensor:
        """The answer: class probabilities, of a gated class 0."""
        return self.variants[""]

    @property
    def reliability_BHW(self) -> tf.Tensor | None:
        """How far a critic that judges pixels trusts the segmentation, 0..1; None where no critic does."""
        scores = self.critic_scores
        return scores if scores is not None and scores.shape.rank == 3 else None
