"""UniMatch V2 (Yang, Zhao, Zhao 2024, arXiv:2410.10777): a teacher's sure labels, learned from two strong views whose
features lack complementary halves of the channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import keras
import tensorflow as tf

from kerasseg.losses import mean_where
from kerasseg.methods.config import SemiSupervisedConfig, require_shares, require_weights
from kerasseg.methods.method import Method
from kerasseg.methods.pseudo_labels import agreement, pseudo_labels
from kerasseg.methods.registry import register_method
from kerasseg.methods.views import StrongView, StrongViewConfig, cutmix_boxes, mixed, require_partners
from kerasseg.optimizers import segmenter_optimizer
from kerasseg.segmenters import require_parts


@dataclass(frozen=True, kw_only=True)
class UniMatchV2Config(StrongViewConfig, SemiSupervisedConfig):
    """Fields of UniMatch V2. The defaults are the published code's, for DINOv2 with a DPT head: its rate is far too low
    for a backbone that starts from nothing or from ImageNet. Its code for Cityscapes has an `ohem_threshold` of 0.7."""

    optimizer: Literal["sgd", "adamw"] = "adamw"
    """The segmenter's optimizer."""
    learning_rate: float = 5e-6
    """Initial rate of the segmenter's pretrained part."""
    head_multiplier: float = 40.0
    """The freshly initialised head learns this many times faster; 1 switches it off."""
    weight_decay: float = 0.01
    """With SGD an L2 penalty, added to the gradient; with AdamW decoupled from it."""
    ema_decay: float = 0.996
    """Largest decay per step of the teacher's average. The published code comes to it after 250 steps, by
    min(1 - 1 / t, 0.996); here it takes 2240 (`kerasseg.methods.averaging.decay_after`)."""
    threshold: float = 0.95
    """Learn from a pixel whose likeliest class has at least this probability."""
    lambda_s: float = 0.5
    """Weight of each of the two strong views."""
    complementary_dropout: float = 0.5
    """Share of the unlabelled images, rounded up, of which one strong view loses half of the features' channels and the
    other view the other half. 0 switches it off."""
    cutmix: float = 0.5
    """Probability of pasting a box of another image into a strong view."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "lambda_s")
        require_shares(self, "threshold", "complementary_dropout", "cutmix")


@register_method
class UniMatchV2(Method):
    """L = (L_ce + lambda_s (L_s1 + L_s2)) / 2. The teacher, whose weights are an average of the student's, is what
    predicts.

    Args:
        segmenter: the student, one of `kerasseg`, or `kerasseg.segmenters.cut(network, ...)`: it needs a backbone and a
            head.
        fields: of `UniMatchV2Config`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> segmenter = kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2)
        >>> method = kerasseg.UniMatchV2(segmenter, steps=100, learning_rate=3e-4, head_multiplier=3.0)
        >>> method.compile()
        >>> history = method.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> method.predict(images, verbose=0).shape
        (4, 32, 32, 2)
    """

    registry_name = "unimatch_v2"
    when = "as meanteacher, with a backbone that was pretrained on many images, such as DINOv2"
    about = (
        "Learns from the labelled images, and from the unlabelled ones through a teacher: a second copy of "
        "the network whose weights are a running average of the student's. Where the teacher is sure about an image, "
        "the student must give the same classes for two views of it, each in other colours, with a part of another "
        "image pasted in, and often with the half of its inner features missing that the other view keeps. The "
        "teacher is what predicts."
    )
    Config = UniMatchV2Config
    config: UniMatchV2Config
    keeps_teacher = True

    def __init__(self, segmenter, *, name=None, **fields):
        super().__init__({"segmenter": segmenter}, fields, name=name)
        require_parts(segmenter, "UniMatchV2")
        self.random = keras.random.SeedGenerator(name="boxes_and_channels")
        self.strong = StrongView(self.config)

    @property
    def least_unlabeled(self):
        return 2 if self.config.cutmix else 1

    def make_optimizers(self):
        return {"segmenter": segmenter_optimizer(self.config, self.segmenter)}

    def update(self, batch):
        x_l, y_l, x_u, valid_u = batch.labeled, batch.labels, batch.unlabeled, batch.valid
        config = self.config

        # Inference mode: the teacher sees the images as they are.
        target_u, trusted_u = pseudo_labels(self.averaged(x_u, training=False), config.threshold)
        boxes = [self.boxes(x_u) for _ in range(2)]
        x_s = tf.concat([mixed(self.strong(x_u), box[..., tf.newaxis]) for box in boxes], axis=0)

        with tf.GradientTape(persistent=True) as tape:
            logits_l, logits_s = self.segment(x_l, x_s)  # train mode
            L_ce = self.labeled_loss(y_l, logits_l)
            L_s1, L_s2 = (
                agreement(logits, *(mixed(values_u, box) for values_u in (target_u, trusted_u, valid_u)))
                for logits, box in zip(tf.split(logits_s, 2), boxes, strict=True)
            )
            L_S = (L_ce + config.lambda_s * (L_s1 + L_s2)) / 2.0

        self.minimize("segmenter", L_S, tape)
        selected = mean_where(tf.cast(trusted_u, tf.float32), valid_u)
        return {"L_S": L_S, "L_ce": L_ce, "L_s1": L_s1, "L_s2": L_s2, "selected": selected}

    def boxes(self, x_u) -> tf.Tensor:
        """Where a part of the partner is pasted into each image: (B,H,W) bool."""
        if not self.config.cutmix:
            return tf.zeros(tf.shape(x_u)[:3], tf.bool)
        require_partners(x_u, "cutmix", "cutmix 0")
        return cutmix_boxes(tf.shape(x_u), self.config.cutmix, self.random)

    def segment(self, x_l, x_u):
        """As `Method.segment`, for unlabelled images (2B,H,W,3), the first strong views before the second ones: the
        head takes their features with complementary dropout."""

        def logits(x, intact):
            features = self.segmenter.encode(x, training=True)
            if self.config.complementary_dropout:
                features = self.drop_channels(features, intact)
            return self.segmenter.decode(features, x, training=True)

        labeled = tf.shape(x_l)[0]
        if self.config.joint_batch_norm:
            return tf.split(logits(tf.concat([x_l, x_u], axis=0), labeled), [labeled, tf.shape(x_u)[0]], num=2)
        # As published: a pass each.
        return [self.segmenter(x_l, training=True), logits(x_u, 0)]

    def drop_channels(self, features: Sequence[tf.Tensor], intact) -> list[tf.Tensor]:
        """Features (N,...,C) of `intact` images that keep all channels, and then of two views of the same images: each
        channel is doubled in one view and 0 in the other, or unchanged in both.

        Features of equal width lose the same channels, as in the published code: all maps of a plain transformer are
        states of one stream.
        """
        images = (tf.shape(features[0])[0] - intact) // 2
        dropped = tf.math.ceil(self.config.complementary_dropout * tf.cast(images, tf.float32) - 1e-4)
        place_B = tf.argsort(tf.argsort(keras.random.uniform((images,), seed=self.random)))
        dropped_B1 = (tf.cast(place_B, tf.float32) < dropped)[:, tf.newaxis]
        factors_NC = {}
        for channels in sorted({feature.shape[-1] for feature in features}):
            kept_BC = keras.random.uniform((images, channels), seed=self.random) < 0.5
            first_BC = tf.where(dropped_B1, tf.where(kept_BC, 2.0, 0.0), 1.0)
            factors_NC[channels] = tf.concat([tf.ones((intact, channels)), first_BC, 2.0 - first_BC], axis=0)

        def scaled(feature):
            factor = tf.cast(factors_NC[feature.shape[-1]], feature.dtype)
            for _ in range(feature.shape.rank - 2):  # height and width, or tokens
                factor = factor[:, tf.newaxis]
            return feature * factor

        return [scaled(feature) for feature in features]
