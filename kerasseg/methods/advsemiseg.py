"""AdvSemiSeg (Hung et al. 2018, arXiv:1802.07934): a discriminator of pixels, and self-training where it is fooled."""

from dataclasses import dataclass

import tensorflow as tf

from kerasseg.checks import require
from kerasseg.critics import build_deeplab_discriminator, build_pixel_discriminator
from kerasseg.critics.pixel_discriminator import STRIDE as DISCRIMINATOR_STRIDE
from kerasseg.losses import (
    binary_cross_entropy,
    cross_entropy,
    discriminator_scores,
    mean_where,
    one_hot,
    pseudo_labels,
    softened_label_maps,
    valid_pixels,
    zero_unless,
)
from kerasseg.methods.config import AdversarialConfig, PseudoLabelConfig, require_shares, require_weights
from kerasseg.methods.method import Method
from kerasseg.methods.registry import register_method
from kerasseg.optimizers import discriminator_optimizer, segmenter_optimizer
from kerasseg.segmenters import DeepLabV3Plus, fitting_rates


@dataclass(frozen=True, kw_only=True)
class AdvSemiSegConfig(PseudoLabelConfig, AdversarialConfig):
    """Fields of AdvSemiSeg; the defaults are the paper's for PASCAL VOC (section 4)."""

    nesterov: bool = True
    weight_decay: float = 1e-4
    """With SGD an L2 penalty, added to the gradient (the reference code has 5e-4); with AdamW decoupled from it."""
    lambda_adv: float = 0.01
    """Weight of the adversarial loss on labelled images."""
    lambda_adv_unlabeled: float = 0.001
    """Weight of the adversarial loss on unlabelled images."""
    lambda_semi: float = 0.1
    """Weight of the self-training loss."""
    T_semi: float = 0.2
    """Self-train on a pixel whose score D(S(x)) is above this: 0 is every pixel, 1 none."""
    adv_unlabeled_start: float = 0.25
    """Share of training before the adversarial loss on unlabelled images sets in: 5000 of 20000 steps; the reference
    code has 0."""
    semi_start: float = 0.25
    """Share of training before the self-training loss sets in: 5000 of 20000 steps."""
    discriminator_sees_unlabeled: bool = False
    """Whether the discriminator learns from predictions on unlabelled images too (reference code) or only on labelled
    ones (paper)."""
    mask_peak: float = 1.0
    """Lowest probability of the true class in the label maps shown to the discriminator; the other classes share the
    rest as in the prediction. This is the "Scale" of Luc et al. 2016, which has 0.9: a label map then cannot be
    recognised by its 0 and 1. 1 shows label maps as they are (section 3 reports no difference)."""
    convolutional: bool = True
    """Whether the discriminator judges each pixel, or the image as a whole (table 6)."""
    discriminator_backbone: str | None = None
    """A backbone whose DeepLab-v3+ judges the pixels in place of the five convolutions, from random weights: Mendel et
    al. 2020 (section 4.7) found such a discriminator, presumably on their corrector's resnet34, to overpower the
    segmenter."""
    discriminator_rates: tuple[int, ...] = ()
    """Dilation rates of that discriminator's head; none for the published ones. `training.run` puts in those that fit
    the training crop."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "lambda_adv", "lambda_adv_unlabeled", "lambda_semi")
        require_shares(self, "T_semi", "adv_unlabeled_start", "semi_start", "mask_peak")
        require(
            self.convolutional or self.discriminator_backbone is None,
            "a discriminator on a backbone judges each pixel; leave out convolutional or discriminator_backbone",
        )


@register_method
class AdvSemiSeg(Method):
    """L = L_ce + lambda_adv L_adv + lambda_semi L_semi (equation 2), against a fully convolutional discriminator.

    Args:
        segmenter: images (B,H,W,3) to logits (B,H,W,K).
        discriminator: segmentation (B,H,W,K) to logits (B,H,W,1); the paper's (`build_pixel_discriminator`) when None.
        fields: of `AdvSemiSegConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> method = kerasseg.AdvSemiSeg(kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2), steps=100)
        >>> method.compile()
        >>> history = method.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> method.critic_scores(images, method(images)).shape
        TensorShape([4, 32, 32])
    """

    registry_name = "advsemiseg"
    when = "to compare with its paper, or for a discriminator that scores every pixel"
    about = (
        "Learns from the labelled images, and from the unlabelled ones through a discriminator: a second "
        "network that scores, pixel by pixel and from 0 to 1, how much a segmentation resembles one drawn by "
        "hand. The segmenter learns to score well, and where its segmentations of unlabelled images score "
        "well enough they serve as further labels (self-training)."
    )
    Config = AdvSemiSegConfig
    config: AdvSemiSegConfig

    def __init__(self, segmenter, discriminator=None, *, name=None, **fields):
        config = self.make_config(fields)
        classes = segmenter.output_shape[-1]
        if discriminator is None and config.discriminator_backbone is not None:
            discriminator = build_deeplab_discriminator(
                classes, config.discriminator_backbone, rates=config.discriminator_rates
            )
        elif discriminator is None:
            discriminator = build_pixel_discriminator(classes, config.convolutional, config.discriminator_channels)
        super().__init__({"segmenter": segmenter, "discriminator": discriminator}, fields, name=name)

    @classmethod
    def with_data(cls, fields, data):
        own = fields.get(cls.registry_name, {})
        if own.get("discriminator_backbone") is None:
            return fields
        rates = own.get("discriminator_rates") or fitting_rates(DeepLabV3Plus, data.crop, DISCRIMINATOR_STRIDE)
        return fields | {cls.registry_name: own | {"discriminator_rates": rates}}

    def make_optimizers(self):
        return {
            "segmenter": segmenter_optimizer(self.config, self.segmenter),
            "discriminator": discriminator_optimizer(self.config),
        }

    def critic_scores(self, images_BHW3, S_BHWK):
        return tf.nn.sigmoid(self.discriminator(S_BHWK, training=False)[..., 0])

    def update(self, batch):
        x_l, y_l, x_u, valid_u = batch.labeled, batch.labels, batch.unlabeled, batch.valid
        valid_l = valid_pixels(y_l)
        config = self.config

        with tf.GradientTape(persistent=True) as tape:
            logits_l, logits_u = self.segment(x_l, x_u)  # train mode
            S_l, Y_l = tf.nn.softmax(logits_l), one_hot(y_l, self.num_classes)
            if config.mask_peak < 1:
                Y_l = softened_label_maps(Y_l, S_l, config.mask_peak)
            # Train mode, in which the paper's discriminator gives the same. Each of its passes serves both networks'
            # losses. A label map is all zero where it is ignored or padded; predictions are shown the same way, or the
            # discriminator would know them by that.
            D_Y = self.discriminator(Y_l, training=True)[..., 0]
            D_l = self.discriminator(zero_unless(valid_l, S_l), training=True)[..., 0]
            D_u = self.discriminator(zero_unless(valid_u, tf.nn.softmax(logits_u)), training=True)[..., 0]

            L_ce = self.labeled_loss(y_l, logits_l)
            L_adv = binary_cross_entropy(D_l, 1.0, valid_l)
            L_adv_u = binary_cross_entropy(D_u, 1.0, valid_u)
            trusted_u = (tf.nn.sigmoid(D_u) > config.T_semi) & valid_u
            with tape.stop_recording():
                targets_u = self.target_logits(x_u, logits_u)
            L_semi = cross_entropy(pseudo_labels(targets_u, trusted_u), logits_u)
            L_S = (
                L_ce
                + config.lambda_adv * L_adv
                + self.active_from(config.adv_unlabeled_start) * config.lambda_adv_unlabeled * L_adv_u
                + self.active_from(config.semi_start) * config.lambda_semi * L_semi
            )

            D_fake, valid_fake = D_l, valid_l
            if config.discriminator_sees_unlabeled:
                D_fake = tf.concat([D_l, D_u], axis=0)
                valid_fake = tf.concat([valid_l, valid_u], axis=0)
            L_D = (binary_cross_entropy(D_Y, 1.0, valid_l) + binary_cross_entropy(D_fake, 0.0, valid_fake)) / 2.0

        self.minimize("segmenter", L_S, tape)
        self.minimize("discriminator", L_D, tape)
        terms = {"L_S": L_S, "L_ce": L_ce, "L_adv": L_adv, "L_adv_u": L_adv_u, "L_semi": L_semi, "L_D": L_D}
        terms |= discriminator_scores(D_Y, D_fake, valid_l, valid_fake)
        if config.lambda_semi:
            terms["selected"] = mean_where(tf.cast(trusted_u, tf.float32), valid_u)
        return terms
