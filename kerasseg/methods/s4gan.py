"""s4GAN (Mittal, Tatarchenko, Brox 2019, arXiv:1908.05724): feature matching and discriminator-gated self-training."""

from dataclasses import dataclass
from typing import Literal

import tensorflow as tf

from kerasseg.checks import require
from kerasseg.critics import build_image_discriminator
from kerasseg.losses import (
    binary_cross_entropy,
    cross_entropy,
    discriminator_scores,
    feature_matching,
    mean,
    one_hot,
    pseudo_labels,
    valid_pixels,
    zero_unless,
)
from kerasseg.methods.config import AdversarialConfig, PseudoLabelConfig, require_shares, require_weights
from kerasseg.methods.method import Method
from kerasseg.methods.registry import register_method
from kerasseg.optimizers import discriminator_optimizer, segmenter_optimizer


@dataclass(frozen=True, kw_only=True)
class S4GANConfig(PseudoLabelConfig, AdversarialConfig):
    """Fields of s4GAN; the defaults are the paper's for PASCAL VOC (section 4.1.3).

    For Cityscapes: gamma 0.7, discriminator_learning_rate 1e-5.
    """

    steps: int = 35_000
    lambda_fm: float = 0.1
    """Weight of the feature-matching loss, or of the plain GAN loss where `adversarial` says so."""
    lambda_st: float = 1.0
    """Weight of the self-training loss."""
    gamma: float = 0.6
    """Self-train on an unlabelled image whose score D(S(x), x) is at least this."""
    self_training_start: float = 0.0
    """Share of training before the self-training loss sets in: at first the discriminator's scores mean nothing."""
    hide_ignored: bool = False
    """Set predictions to zero, for the discriminator, at the labelled batch's ignored pixels. Label maps are all zero
    there and predictions never are, so it could otherwise recognise every label map (as in the reference code)."""
    adversarial: Literal["feature_matching", "gan"] = "feature_matching"
    """What the segmenter learns from the discriminator: to match its features, or only to fool it (table 6)."""
    fm_norm: Literal["l1", "l2"] = "l1"
    """Distance in feature matching: mean absolute difference (reference code) or Euclidean norm (equation 2)."""
    discriminator_dropout: float = 0.5
    """Share of channels dropped after each of the discriminator's convolutions."""
    dropout_after_last: bool = True
    """Drop after the last convolution too (paper), or not (reference code)."""
    discriminator_shrink: int = 1
    """Side, in pixels, of the squares over which segmentation and image are averaged before the discriminator sees
    them. With 2 it takes a quarter of the time; the edges, by which it can recognise a label map, become softer."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "lambda_fm", "lambda_st")
        require_shares(self, "self_training_start", "gamma")
        require(
            self.discriminator_shrink >= 1, f"discriminator_shrink must be at least 1; got {self.discriminator_shrink}"
        )
        require(
            0 <= self.discriminator_dropout < 1,
            f"discriminator_dropout must be in 0..1 (below 1); got {self.discriminator_dropout}",
        )


@register_method
class S4GAN(Method):
    """L_S = L_ce + lambda_fm L_fm + lambda_st L_st (equation 4), against an image-level discriminator.

    Args:
        segmenter: images (B,H,W,3) to logits (B,H,W,K).
        discriminator: `[segmentation, image]` to `[features, logit]`; the paper's (`build_image_discriminator`) when
            None.
        fields: of `S4GANConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> method = kerasseg.S4GAN(kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2), steps=100)
        >>> method.compile()
        >>> history = method.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> method.predict(images, verbose=0).shape
        (4, 32, 32, 2)
    """

    registry_name = "s4gan"
    when = "to compare with its paper; mlmt trains its segmenter by it"
    about = (
        "Learns from the labelled images, and from the unlabelled ones through a discriminator: a second "
        "network that looks at an image with its segmentation and scores, from 0 to 1, how much it resembles "
        "one labelled by hand. The segmenter learns to imitate the features of such label maps (feature "
        "matching), and its own segmentations that score well enough serve as further labels (self-training)."
    )
    Config = S4GANConfig
    config: S4GANConfig

    def __init__(self, segmenter, discriminator=None, *, name=None, **fields):
        config = self.make_config(fields)
        discriminator = discriminator or build_image_discriminator(
            segmenter.output_shape[-1],
            config.discriminator_dropout,
            config.dropout_after_last,
            config.discriminator_shrink,
            config.discriminator_channels,
        )
        super().__init__({"segmenter": segmenter, "discriminator": discriminator}, fields, name=name)

    def make_optimizers(self):
        return {
            "segmenter": segmenter_optimizer(self.config, self.segmenter),
            "discriminator": discriminator_optimizer(self.config),
        }

    def critic_scores(self, images_BHW3, S_BHWK):
        _, logits_B1 = self.discriminator([S_BHWK, images_BHW3], training=False)
        return tf.nn.sigmoid(logits_B1[:, 0])

    def update(self, batch):
        x_l, y_l, x_u, valid_u = batch.labeled, batch.labels, batch.unlabeled, batch.valid
        config = self.config

        with tf.GradientTape(persistent=True) as tape:
            logits_l, logits_u = self.segment(x_l, x_u)  # train mode
            S_u = tf.nn.softmax(logits_u)
            # Train mode for its dropout. Each of the two passes serves both networks' losses.
            features_real, D_real = self.discriminator([one_hot(y_l, self.num_classes), x_l], training=True)
            shown_u = zero_unless(valid_u, S_u)
            if config.hide_ignored:
                shown_u = zero_unless(valid_pixels(y_l), shown_u)
            features_fake, D_fake = self.discriminator([shown_u, x_u], training=True)

            L_ce = self.labeled_loss(y_l, logits_l)
            if config.adversarial == "feature_matching":
                L_fm = feature_matching(features_real, features_fake, config.fm_norm)
            else:
                L_fm = binary_cross_entropy(D_fake, 1.0)
            trusted_B = tf.nn.sigmoid(D_fake[:, 0]) >= config.gamma
            with tape.stop_recording():
                targets_u = self.target_logits(x_u, logits_u)
            L_st = cross_entropy(pseudo_labels(targets_u, trusted_B[:, tf.newaxis, tf.newaxis] & valid_u), logits_u)
            L_S = (
                L_ce + config.lambda_fm * L_fm + self.active_from(config.self_training_start) * config.lambda_st * L_st
            )

            L_D = (binary_cross_entropy(D_real, 1.0) + binary_cross_entropy(D_fake, 0.0)) / 2.0

        self.minimize("segmenter", L_S, tape)
        self.minimize("discriminator", L_D, tape)
        terms = {"L_S": L_S, "L_ce": L_ce, "L_fm": L_fm, "L_st": L_st, "L_D": L_D}
        terms |= discriminator_scores(D_real, D_fake)
        if config.lambda_st:
            terms["selected"] = mean(tf.cast(trusted_B, tf.float32))
        return terms
