"""UniMatch (Yang et al. 2023, arXiv:2208.09910): agreement of weak, strong and feature-perturbed views, no critic."""

from dataclasses import dataclass

import keras
import tensorflow as tf

from kerasseg.checks import require
from kerasseg.losses import mean_where
from kerasseg.methods.config import PseudoLabelConfig, require_shares, require_weights
from kerasseg.methods.method import Method
from kerasseg.methods.pseudo_labels import agreement, pseudo_labels
from kerasseg.methods.registry import register_method
from kerasseg.methods.views import StrongView, StrongViewConfig, cutmix_boxes
from kerasseg.optimizers import segmenter_optimizer
from kerasseg.segmenters import require_parts


@dataclass(frozen=True, kw_only=True)
class UniMatchConfig(StrongViewConfig, PseudoLabelConfig):
    """Fields of UniMatch; the defaults are the published code's for PASCAL VOC. Its code for Cityscapes has an
    `ohem_threshold` of 0.7."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    """With SGD an L2 penalty, added to the gradient; with AdamW decoupled from it."""
    threshold: float = 0.95
    """Learn from a pixel whose likeliest class has at least this probability; 0 for Cityscapes."""
    lambda_s: float = 0.25
    """Weight of each of the two strong views."""
    lambda_fp: float = 0.5
    """Weight of the view with perturbed features."""
    channel_dropout: float = 0.5
    """Share of the encoder's channels that the feature perturbation drops."""
    cutmix: float = 0.5
    """Probability of pasting a box of another image into a strong view."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "lambda_s", "lambda_fp")
        require_shares(self, "threshold", "cutmix")
        require(0 <= self.channel_dropout < 1, f"channel_dropout must be in 0..1 (below 1); got {self.channel_dropout}")


@register_method
class UniMatch(Method):
    """L = (L_ce + lambda_s (L_s1 + L_s2) + lambda_fp L_fp) / 2: the network's prediction for an image should be the
    same for changed views of it.

    In each step it learns from every second unlabelled image; the pasted boxes come from those between.

    Args:
        segmenter: one of `kerasseg`, or `kerasseg.segmenters.cut(network, ...)`: it needs a backbone and a head.
        fields: of `UniMatchConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> method = kerasseg.UniMatch(kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2), steps=100)
        >>> method.compile()
        >>> history = method.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> method.predict(images, verbose=0).shape
        (4, 32, 32, 2)
    """

    registry_name = "unimatch"
    when = "to compare with meanteacher: its gain differs more between seeds, and a step takes 2 to 3 times as long"
    about = (
        "Learns from the labelled images, and from the unlabelled ones by agreement: where it is sure about "
        "an image, it should give the same classes for the image in other colours, with a part of another one "
        "pasted in, and with some of its inner features missing. It has no second network."
    )
    Config = UniMatchConfig
    config: UniMatchConfig

    def __init__(self, segmenter, *, name=None, **fields):
        super().__init__({"segmenter": segmenter}, fields, name=name)
        require_parts(segmenter, "UniMatch")
        self.random = keras.random.SeedGenerator(name="boxes")
        self.strong = StrongView(self.config)
        self.drop_channels = keras.layers.SpatialDropout2D(self.config.channel_dropout, name="drop_channels")

    @property
    def unlabeled_sets(self):
        return 2

    def make_optimizers(self):
        return {"segmenter": segmenter_optimizer(self.config, self.segmenter)}

    def update(self, batch):
        x_l, y_l, x_u, valid_u = batch.labeled, batch.labels, batch.unlabeled, batch.valid
        require(
            x_u.shape[0] is None or x_u.shape[0] % 2 == 0,
            f"unimatch needs an even number of unlabelled images; got {x_u.shape[0]}",
        )
        x_w, x_m, valid_w, valid_m = x_u[::2], x_u[1::2], valid_u[::2], valid_u[1::2]
        config = self.config

        # Inference mode: the lenders' targets.
        lenders = self.averaged if config.targets == "teacher" else self.segmenter
        target_m, trusted_m = pseudo_labels(lenders(x_m, training=False), config.threshold)
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

            with tape.stop_recording():
                target_w, trusted_w = pseudo_labels(self.target_logits(x_w, logits_w), config.threshold)
            L_ce = self.labeled_loss(y_l, logits_l)
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

    def boxes(self, shape) -> tf.Tensor:
        """Where a part of another image is pasted: (B,H,W) bool."""
        return cutmix_boxes(shape, self.config.cutmix, self.random)
