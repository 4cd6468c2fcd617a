"""DualGAN ("Improved GAN with two discriminators"): one judges images, the other says which pixels are right.

The paper's text has lost its equations; the ones here are rebuilt from its prose.
"""

from dataclasses import dataclass
from typing import Literal

import keras
import tensorflow as tf

from kerasseg.checks import require
from kerasseg.critics import build_d1, build_d2
from kerasseg.critics.dual_discriminators import Shown, Structure
from kerasseg.losses import (
    accuracy,
    binary_cross_entropy,
    cross_entropy,
    discriminator_scores,
    mean_where,
    one_hot,
    pseudo_labels,
    valid_pixels,
    zero_unless,
)
from kerasseg.methods.class_swap import swap_classes
from kerasseg.methods.config import AdversarialConfig, PseudoLabelConfig, require_shares, require_weights
from kerasseg.methods.method import Method
from kerasseg.methods.registry import register_method
from kerasseg.optimizers import discriminator_optimizer, segmenter_optimizer


@dataclass(frozen=True, kw_only=True)
class DualGANConfig(PseudoLabelConfig, AdversarialConfig):
    """Fields of DualGAN; the defaults are the paper's for PASCAL VOC ("Implementation details")."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    """With SGD an L2 penalty, added to the gradient; with AdamW decoupled from it."""
    lambda_ad: float = 0.01
    """Weight of the adversarial loss."""
    lambda_s: float = 0.1
    """Weight of the self-training loss."""
    semi_start: float = 0.25
    """Share of training before the segmenter learns from unlabelled images: 5000 of 20000 steps."""
    freeze_discriminators: bool = False
    """Keep the discriminators as they are from then on (the rate of the paper's optimizers is 0). The paper says that
    they are fixed, and also that labelled images train them throughout."""
    threshold: Literal["dynamic", "inverted", "static"] = "dynamic"
    """Self-train on a pixel whose score by D2 is above this. `dynamic`: D1's score of the segmentation, as the paper
    says. It falls as D1 grows surer that this is a prediction, so the worst images are trusted most, in the end with
    nearly all their pixels. `inverted`: 1 - that score, which trusts the more real-looking ones more. `static`: `T`,
    the paper's variant without D1 (table 3)."""
    T: float = 0.9
    """The static threshold."""
    use_d1: bool = True
    """Use D1 (tables 3 to 5); without it the threshold is static."""
    wrong_weight: float = 1.0
    """Weight of the wrong pixels in D2's loss; the right ones, soon the majority, have 1."""
    class_swap: float = 0.0
    """Probability, for each labelled image, that one class in its prediction is replaced by another before D2 learns
    from it. Predictions on labelled images are mostly right; swapped ones are wrong in known places."""
    use_d2: bool = True
    """Use D2 (tables 3 to 5); without it no pixel is trusted, so lambda_s must be 0."""
    d2_input: Shown = "maps"
    """What D2 sees (table 6): the class maps, these and the image, the label map and the image, or each class map
    times each colour."""
    d2_structure: Structure = "stride16_up4"
    """D2's stride, and the steps in which it scales up again (table 7)."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "lambda_ad", "lambda_s")
        require_shares(self, "semi_start", "T", "class_swap")
        require(self.wrong_weight > 0, f"wrong_weight must be above 0; got {self.wrong_weight}")
        require(self.use_d1 or self.use_d2, "without d1 and d2 nothing is left of dualgan: use supervised")
        require(
            self.use_d1 or self.threshold == "static",
            f"the {self.threshold} threshold comes from D1's score; without d1 use static",
        )
        require(self.use_d2 or self.lambda_s == 0, "without d2 no pixel is trusted; set lambda_s to 0")


@register_method
class DualGAN(Method):
    """L_G = L_ce + lambda_ad L_ad + lambda_s L_s.

    Args:
        segmenter: the generator, images (B,H,W,3) to logits (B,H,W,K).
        d1: segmentation (B,H,W,K) to a logit (B,1).
        d2: `[segmentation, image]` to logits (B,H,W,1). For None, d1 and d2 are the paper's, if the fields use them.
        fields: of `DualGANConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> method = kerasseg.DualGAN(kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2), steps=100)
        >>> method.compile()
        >>> history = method.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> method.reliability(images).shape
        TensorShape([4, 32, 32])
    """

    registry_name = "dualgan"
    when = "to compare with its paper, or for a critic that finds wrong pixels"
    about = (
        "Learns from the labelled images, and from the unlabelled ones through two discriminators: D1 "
        "scores how much a whole segmentation resembles one drawn by hand, D2 says for each pixel whether it "
        "is right. Pixels that D2 scores higher than D1 scores the image serve as further labels (self-"
        "training)."
    )
    Config = DualGANConfig
    config: DualGANConfig

    def __init__(self, segmenter, d1=None, d2=None, *, name=None, **fields):
        config = self.make_config(fields)
        classes = segmenter.output_shape[-1]
        networks = {"segmenter": segmenter}
        if config.use_d1:
            networks["d1"] = d1 or build_d1(classes, config.discriminator_channels)
        if config.use_d2:
            networks["d2"] = d2 or build_d2(
                classes, config.d2_input, config.d2_structure, config.discriminator_channels
            )
        super().__init__(networks, fields, name=name)
        if config.class_swap:
            self.random = keras.random.SeedGenerator(name="class_swap")

    def make_optimizers(self):
        until = self.config.semi_start if self.config.freeze_discriminators else 1.0
        critics = {
            name: discriminator_optimizer(self.config, until) for name in self.network_names if name != "segmenter"
        }
        return {"segmenter": segmenter_optimizer(self.config, self.segmenter)} | critics

    def critic_scores(self, images_BHW3, S_BHWK):
        if self.config.use_d2:
            return tf.nn.sigmoid(self.d2([S_BHWK, images_BHW3])[..., 0])
        return tf.nn.sigmoid(self.d1(S_BHWK)[:, 0])

    def update(self, batch):
        x_l, y_l, x_u, valid_u = batch.labeled, batch.labels, batch.unlabeled, batch.valid
        valid_l = valid_pixels(y_l)
        config = self.config
        late = self.active_from(config.semi_start)
        terms = {}

        with tf.GradientTape(persistent=True) as tape:
            logits_l, logits_u = self.segment(x_l, x_u)  # train mode
            G_l, G_u = tf.nn.softmax(logits_l), tf.nn.softmax(logits_u)
            L_G = terms["L_ce"] = self.labeled_loss(y_l, logits_l)
            L_ad = 0.0

            # Train mode, in which the discriminators give the same. Each of their passes serves both networks' losses.
            if config.use_d1:
                D1_Y = self.d1(one_hot(y_l, self.num_classes), training=True)
                # A label map is all zero where ignored. Predictions are shown the same way, or D1 would know them.
                D1_l = self.d1(zero_unless(valid_l, G_l), training=True)
                D1_u = self.d1(zero_unless(valid_u, G_u), training=True)
                L_ad += binary_cross_entropy(D1_l, 1.0) + late * binary_cross_entropy(D1_u, 1.0)
                terms["L_D1"] = binary_cross_entropy(D1_Y, 1.0) + binary_cross_entropy(D1_l, 0.0)
                terms |= discriminator_scores(D1_Y, D1_l, name="D1")
            if config.use_d2:
                D2_l = self.d2([G_l, x_l], training=True)[..., 0]
                D2_u = self.d2([zero_unless(valid_u, G_u), x_u], training=True)[..., 0]
                L_ad += binary_cross_entropy(D2_l, 1.0, valid_l) + late * binary_cross_entropy(D2_u, 1.0, valid_u)
                if config.class_swap:  # D2 learns from a pass of its own; the segmenter has no part in the swap
                    G_l = swap_classes(G_l, valid_l, config.class_swap, self.random)
                    D2_l = self.d2([G_l, x_l], training=True)[..., 0]
                right_l = valid_l & (tf.argmax(G_l, axis=-1, output_type=tf.int32) == y_l)
                wrong_l = valid_l & ~right_l
                weights_l = tf.cast(right_l, tf.float32) + config.wrong_weight * tf.cast(wrong_l, tf.float32)
                terms["L_D2"] = binary_cross_entropy(D2_l, tf.cast(right_l, tf.float32), weights_l)
                terms["acc_right"] = accuracy(D2_l, 1.0, right_l)
                terms["acc_wrong"] = accuracy(D2_l, 0.0, wrong_l)
                T = config.T
                if config.threshold != "static":
                    T = tf.nn.sigmoid(D1_u if config.threshold == "dynamic" else -D1_u)[..., tf.newaxis]
                trusted_u = (tf.nn.sigmoid(D2_u) > T) & valid_u
                with tape.stop_recording():
                    targets_u = self.target_logits(x_u, logits_u)
                terms["L_s"] = cross_entropy(pseudo_labels(targets_u, trusted_u), logits_u)
                terms["selected"] = mean_where(tf.cast(trusted_u, tf.float32), valid_u)
                L_G += late * config.lambda_s * terms["L_s"]
            L_G += config.lambda_ad * L_ad

        self.minimize("segmenter", L_G, tape)
        if config.use_d1:
            self.minimize("d1", terms["L_D1"], tape)
        if config.use_d2:
            self.minimize("d2", terms["L_D2"], tape)
        return {"L_G": L_G, "L_ad": L_ad} | terms
