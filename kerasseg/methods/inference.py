"""What a method answers for images.

Legend: B batch; H, W size of the images; h, w the size at which they are segmented; K classes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from kerasseg.segmenters.cut import tensors_at
from kerasseg.working_size import enlarge, likeliest

Segment = Callable[[Callable[[tf.Tensor], tf.Tensor], tf.Tensor], tf.Tensor]
"""A function of a network (images (B,h,w,3) to class probabilities (B,h,w,K)) and images that gives class
probabilities: it decides which views of the images the network sees."""


def at_once(network: Callable[[tf.Tensor], tf.Tensor], images_Bhw3: tf.Tensor) -> tf.Tensor:
    """The `Segment` that takes images as they are."""
    return network(images_Bhw3)


def logits_of(network: keras.Model, images_Bhw3) -> tf.Tensor:
    """The network's logits (B,h,w,K) in inference mode, float32 in mixed precision too."""
    return tf.cast(network(images_Bhw3, training=False), tf.float32)


def with_features(network: keras.Model, layers: Sequence[str]) -> keras.Model:
    """The network with a second output, the mean over each image of the deepest features (B,D), float32.

    Args:
        layers: names of those where the backbone ends, the deepest last (`CutSegmenter.features`).
    """
    deepest = tensors_at(network, layers, avoidable=True)[-1]
    # Over height and width, or over tokens.
    mean = keras.ops.mean(keras.ops.cast(deepest, "float32"), axis=tuple(range(1, len(deepest.shape) - 1)))
    return keras.Model(network.inputs[0], [network.outputs[0], mean], name=network.name)


class Inference(NamedTuple):
    """What a method answers for images (B,H,W,3); see `Method.infer`."""

    logits_BhwK: tf.Tensor
    """The predicting network's logits."""
    features_BD: tf.Tensor | None
    """What each image looks like to that network: the mean over its positions of the backbone's deepest features. None
    where they were not asked for, or it is not known where the backbone ends."""
    segmentation_BhwK: tf.Tensor
    """Their softmax: the class probabilities before any gate. Critics judge these."""
    variants: dict[str, tf.Tensor]
    """The predictions (B,h,w,K) by name that `Method.variants_from` and `Method.of_last_weights` make; the answer is
    named ""."""
    critic_scores: tf.Tensor | None
    """The critic's scores of the segmentation, 0..1: (B,), (B,h,w), or None where there is no critic."""
    size: tf.Tensor | None
    """H and W; None where images are segmented at their own size."""

    def at_own_size(self, values_BhwC: tf.Tensor) -> tf.Tensor:
        """Values brought to the images' own size, (B,H,W,C)."""
        return values_BhwC if self.size is None else enlarge(values_BhwC, self.size)

    def label_map(self, variant: str = "") -> tuple[tf.Tensor, tf.Tensor]:
        """The likeliest class of each pixel, uint8 (B,H,W), and its probability, float32 (B,H,W), in memory that does
        not grow with H x W x K."""
        return likeliest(self.variants[variant], self.size)

    @property
    def probabilities_BHWK(self) -> tf.Tensor:
        """The answer: class probabilities, 0 for a gated class."""
        return self.at_own_size(self.variants[""])

    @property
    def logits_BHWK(self) -> tf.Tensor:
        return self.at_own_size(self.logits_BhwK)

    @property
    def reliability_BHW(self) -> tf.Tensor | None:
        """How far a critic that judges pixels trusts the segmentation, 0..1; None where no critic does."""
        scores = self.critic_scores
        if scores is None or scores.shape.rank != 3:
            return None
        return self.at_own_size(scores[..., tf.newaxis])[..., 0]
