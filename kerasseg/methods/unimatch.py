"""UniMatch (Yang et al. 2023, arXiv:2208.09910): agreement of weak, strong and feature-perturbed views, no critic."""

from dataclasses import dataclass

import keras
import tensorflow as tf

from kerasseg.layers import register
from kerasseg.losses import IGNORE_LABEL, cross_entropy, hard_pixels, mean_where, pixel_cross_entropy
from kerasseg.methods.method import Method, SegmenterConfig, require, require_shares, require_weights
from kerasseg.methods.views import blur, color_jitter


@dataclass(frozen=True, kw_only=True)
class UniMatchConfig(SegmenterConfig):
    """Fields of UniMatch; the defaults are the published code's for PASCAL VOC."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    """With SGD an L2 penalty, added to the gradient; with AdamW decoupled from it."""
    threshold: float = 0.95
    """Learn from a pixel whose likeliest class has at least this probability; 0 for Cityscapes."""
    lambda_s: float = 0.25
    """Weight of each of the two strong views."""
    lambda_fp: float = 0.5
    """Weight of the view with perturbed features."""
    strength: float = 0.5
    """Change of brightness, contrast, saturation (half of it: hue) in the strong views."""
    channel_dropout: float = 0.5
    """Share of the encoder's channels that the feature perturbation drops."""
    cutmix: float = 0.5
    """Probability of pasting a box of another image into a strong view."""
    ohem_threshold: float = 1.0
    """Of the labelled pixels learn only from those whose class has at most this probability (online hard example
    mining): 1 is all, 0.7 for Cityscapes."""
    ohem_pixels: int = 200_000
    """But from at least so many, the hardest."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "lambda_s", "lambda_fp")
        require_shares(self, "threshold", "strength", "cutmix")
        require(0 < self.ohem_threshold <= 1, f"ohem_threshold must be above 0, at most 1; got {self.ohem_threshold}")
        require(self.ohem_pixels >= 1, f"ohem_pixels must be at least 1; got {self.ohem_pixels}")
        require(0 <= self.channel_dropout < 1, f"channel_dropout must be in 0..1 (below 1); got {self.channel_dropout}")


@register
class UniMatch(Method):
    """L = (L_ce + lambda_s (L_s1 + L_s2) + lambda_fp L_fp) / 2: what the network says of a picture as it is, it should
    say of changed ones too.

    Of a step's unlabelled images, every other one is learned from, and those between lend the pasted boxes.

    Args:
        segmenter: a `Segmenter` (its `encode` and `decode` are used).
        fields: of `UniMatchConfig`.
    """

    registry_name = "unimatch"
    Config = UniMatchConfig
    config: UniMatchConfig
    unlabeled_sets = 2

    def __init__(self, segmenter, *, name=None, **fields):
        super().__init__({"segmenter": segmenter}, fields, name=name)
        strength = self.config.strength
        self.random = keras.random.SeedGenerator(name="views")
        self.jitter = color_jitter(strength, strength / 2)
        self.soften = keras.Sequential([keras.layers.RandomGrayscale(0.2, dtype="float32"), blur(0.5)], name="soften")
        self.drop_channels = keras.layers.SpatialDropout2D(self.config.channel_dropout, name="drop_channels")

    def make_optimizers(self):
        return {"segmenter": self.segmenter_optimizer()}

    def update(self, data):
        x_l, x_u, y_l = self.unpack(data)
        valid_u = self.unlabeled_valid(data)
        x_w, x_m, valid_w, valid_m = x_u[::2], x_u[1::2], valid_u[::2], valid_u[1::2]
        config = self.config

        # Inference mode: the lenders' targets.
        target_m, trusted_m = self.targets(self.segmenter(x_m, training=False))
        boxes = [self.boxes(tf.shape(x_w)) for _ in range(2)]
        x_s = [tf.where(box[..., tf.newaxis], self.strong(x_m), self.strong(x_w)) for box in boxes]

        with tf.GradientTape(persistent=True) as tape:
            # Train mode. The backbone sees labelled and weak views together, the head also the perturbed features.
            features = self.segmenter.encode(tf.concat([x_l, x_w], axis=0), training=True)
            perturbed = [self.drop_channels(feature[tf.shape(x_l)[0] :], training=True) for feature in features]
            features = [tf.concat(pair, axis=0) for pair in zip(features, perturbed, strict=True)]
            logits = self.segmenter.decode(features, x_l, training=True)
            logits_l, logits_w, logits_fp = tf.split(logits, [tf.shape(x)[0] for x in (x_l, x_w, x_w)], num=3)
            logits_s = tf.split(self.segmenter(tf.concat(x_s, axis=0), training=True), 2)

            target_w, trusted_w = self.targets(logits_w)
            L_ce = cross_entropy(self.hard_labels(y_l, logits_l), logits_l)
            L_fp = agreement(logits_fp, target_w, trusted_w, valid_w)
            L_s1, L_s2 = (
                agreement(
                    logits,
                    tf.where(box, target_m, target_w),
                    tf.where(box, trusted_m, trusted_w),
                    tf.where(box, valid_m, valid_w),
                )
                for logits, box in zip(logits_s, boxes, strict=True)
            )
            L_S = (L_ce + config.lambda_s * (L_s1 + L_s2) + config.lambda_fp * L_fp) / 2.0

        self.minimize("segmenter", L_S, tape)
        selected = mean_where(tf.cast(trusted_w, tf.float32), valid_w)
        return {"L_S": L_S, "L_ce": L_ce, "L_s1": L_s1, "L_s2": L_s2, "L_fp": L_fp, "selected": selected}

    def targets(self, logits_BHWK) -> tuple[tf.Tensor, tf.Tensor]:
        """The likeliest class (B,H,W) int32, and where it is likely enough to be learned, bool."""
        sure_BHW = tf.reduce_max(tf.nn.softmax(logits_BHWK), axis=-1)
        return tf.argmax(logits_BHWK, axis=-1, output_type=tf.int32), sure_BHW >= self.config.threshold

    def hard_labels(self, y_l, logits_l) -> tf.Tensor:
        """The labels, those ignored that are easy (`ohem_threshold`)."""
        if self.config.ohem_threshold == 1.0:
            return y_l
        return tf.where(
            hard_pixels(y_l, logits_l, self.config.ohem_threshold, self.config.ohem_pixels), y_l, IGNORE_LABEL
        )

    def strong(self, images_BHW3) -> tf.Tensor:
        """The images in other colours (4 of 5), some of them grey, some blurred."""
        chosen_B = keras.random.uniform((tf.shape(images_BHW3)[0], 1, 1, 1), seed=self.random) < 0.8
        return self.soften(tf.where(chosen_B, self.jitter(images_BHW3, training=True), images_BHW3), training=True)

    def boxes(self, shape) -> tf.Tensor:
        """A box in some of the images, 2 to 40 % of the area, sides 0.3 to 1 / 0.3 as long as each other; (B,H,W) bool.

        A side that would be longer than the picture is as long.
        """
        B, H, W = shape[0], tf.cast(shape[1], tf.float32), tf.cast(shape[2], tf.float32)
        draw = keras.random.uniform((5, B), seed=self.random)
        area, ratio = (0.02 + 0.38 * draw[0]) * H * W, 0.3 + (1 / 0.3 - 0.3) * draw[1]
        height, width = tf.minimum(tf.sqrt(area * ratio), H), tf.minimum(tf.sqrt(area / ratio), W)
        top, left = draw[2] * (H - height), draw[3] * (W - width)
        rows, columns = tf.range(H) + 0.5, tf.range(W) + 0.5
        in_rows = (rows >= top[:, tf.newaxis]) & (rows < (top + height)[:, tf.newaxis])
        in_columns = (columns >= left[:, tf.newaxis]) & (columns < (left + width)[:, tf.newaxis])
        chosen_B = draw[4] < self.config.cutmix
        return in_rows[:, :, tf.newaxis] & in_columns[:, tf.newaxis, :] & chosen_B[:, tf.newaxis, tf.newaxis]


def agreement(logits_BHWK, target_BHW, trusted_BHW, valid_BHW) -> tf.Tensor:
    """Cross-entropy against the trusted targets, as a share of all pixels of the picture."""
    loss_BHW = tf.where(trusted_BHW, pixel_cross_entropy(target_BHW, logits_BHWK), 0.0)
    return mean_where(loss_BHW, valid_BHW)
