"""Draws of rare classes, and of labelled images that hold them.

Legend: N labelled images; K classes.
"""

import numpy as np
import tensorflow as tf

DAFORMER_TEMPERATURE = 0.01


class RareClasses:
    """Draws a class, rare ones more often, then an image that holds it, each with the same probability.

    DAFormer (Hoyer et al. 2022, arXiv:2111.14887), equations 12 and 13: the probability of class c is
    softmax((1 - f_c) / T) over the classes that occur, where f_c is the share of class c in the labelled pixels.

    Args:
        pixels_NK: how many pixels of each class each image has.
        temperature: T; the higher, the more alike the classes' probabilities.

    Attributes:
        probabilities_K: the probability of each class; 0 where it does not occur.

    Raises:
        ValueError: the temperature is not above 0, or no image has a pixel of a class.
    """

    def __init__(self, pixels_NK: np.ndarray, temperature: float) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"rare_class_temperature must be above 0, got {temperature}")
        pixels_K = pixels_NK.sum(axis=0)
        if not pixels_K.any():
            raise ValueError("no labelled image has a pixel of a class, so there is no rare class to draw")
        rarity_K = np.where(pixels_K > 0, (1.0 - pixels_K / pixels_K.sum()) / temperature, -np.inf)
        odds_K = np.exp(rarity_K - rarity_K.max())
        self.probabilities_K = odds_K / odds_K.sum()

        holds_KN = pixels_NK.T > 0
        self._counts_K = holds_KN.sum(axis=1).astype(np.int32)
        self._starts_K = np.cumsum(self._counts_K, dtype=np.int32) - self._counts_K
        self._images = np.nonzero(holds_KN)[1].astype(np.int32)  # those of class 0, then those of class 1, ...
        # Where an image stands among those of a class; -1 where it does not hold it.
        self._places_NK = np.where(holds_KN, np.cumsum(holds_KN, axis=1) - 1, -1).T.astype(np.int32)

    def draw(self, seed: tf.Tensor, other_than: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """A class and the number of an image that holds it, int32 each.

        Args:
            seed: two integers; the same seed gives the same draw.
            other_than: the number of an image that must not be drawn. Where no other image holds the class, the
                image is -1.
        """
        class_seed, image_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        occurring = np.flatnonzero(self.probabilities_K).astype(np.int32)
        limits = np.cumsum(self.probabilities_K[occurring])[:-1].astype(np.float32)
        row = tf.searchsorted(limits, tf.random.stateless_uniform((1,), class_seed), side="right")[0]
        drawn = tf.gather(occurring, row)

        count = tf.gather(self._counts_K, drawn)
        place = tf.constant(-1) if other_than is None else tf.gather(self._places_NK, other_than)[drawn]
        count -= tf.cast(place >= 0, tf.int32)
        share = tf.random.stateless_uniform((), image_seed)
        choice = tf.minimum(tf.cast(share * tf.cast(count, tf.float32), tf.int32), count - 1)
        choice += tf.cast((place >= 0) & (choice >= place), tf.int32)  # passes over `other_than`
        image = tf.gather(self._images, tf.maximum(tf.gather(self._starts_K, drawn) + choice, 0))
        return drawn, tf.where(count > 0, image, -1)
