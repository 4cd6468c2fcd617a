"""Latent classes (Sawatzky, Zatsarynna, Gall 2020, "Discovering latent classes for semi-supervised segmentation")."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import tensorflow as tf

from kerasseg.checks import require
from kerasseg.critics import build_pixel_discriminator
from kerasseg.distribution import sum_over_replicas
from kerasseg.losses import (
    IGNORE_LABEL,
    binary_cross_entropy,
    conditional_entropy,
    cross_entropy,
    discriminator_scores,
    mean_where,
    one_hot,
    valid_pixels,
    zero_unless,
)
from kerasseg.methods.config import AdversarialConfig, require_shares, require_weights
from kerasseg.methods.method import Method
from kerasseg.methods.registry import register_method
from kerasseg.optimizers import discriminator_optimizer, segmenter_optimizer, segmenter_rate
from kerasseg.segmenters import require_parts

EPSILON = 1e-7


@dataclass(frozen=True, kw_only=True)
class LatentConfig(AdversarialConfig):
    """Fields of latent classes; the defaults are the paper's for PASCAL VOC (section 4.1)."""

    weight_decay: float = 1e-4
    """With SGD an L2 penalty, added to the gradient; with AdamW decoupled from it."""
    latent_classes: int = 20
    """How many classes the latent branch has; 2 to 50 in table 4. The branches of table 5 have numbers of their own."""
    branch: Literal["latent", "super_categories", "classes", "symmetric_kl"] = "latent"
    """What the second branch learns on labelled images: latent classes, or, for table 5, `super_categories`, the
    classes themselves, or these by a second semantic branch whose symmetric divergence from the first is the
    consistency loss."""
    super_categories: tuple[int, ...] = ()
    """For `branch super_categories`: for each class the number of its category, counted from 0."""
    lambda_latent: float = 1.0
    """Weight of the second branch's loss on labelled images."""
    lambda_adv: float = 0.01
    """Weight of the adversarial loss on labelled images."""
    lambda_adv_unlabeled: float = 0.001
    """Weight of the adversarial loss on unlabelled images."""
    lambda_cons: float = 0.1
    """Weight of the consistency of the two branches on unlabelled images."""
    cons_start: float = 0.25
    """Share of training before the consistency loss sets in: 5000 of 20000 steps."""
    consistency_grad: Literal["semantic", "latent", "both"] = "semantic"
    """Which branch learns from the consistency loss. The paper says "only to the latent branch", but describes and
    draws the latent prediction as the target of the semantic branch."""
    labeled_images: int | None = None
    """How many labelled images there are; the co-occurrence of classes and latent classes is averaged over them.
    None for the number of the arrays that `fit` gets; `training.run` puts in that of its split."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "lambda_latent", "lambda_adv", "lambda_adv_unlabeled", "lambda_cons")
        require_shares(self, "cons_start")
        require(self.latent_classes >= 2, f"latent_classes must be at least 2; got {self.latent_classes}")
        require(
            self.labeled_images is None or self.labeled_images >= 1,
            f"labeled_images must be at least 1; got {self.labeled_images}",
        )
        require(
            self.branch != "symmetric_kl" or self.consistency_grad == "semantic",
            "consistency_grad is about the latent prediction; with symmetric_kl both branches learn: leave it out",
        )
        given = self.branch == "super_categories"
        require(
            bool(self.super_categories) == given and min(self.super_categories, default=0) >= 0,
            "super_categories takes a number from 0 for each class, with branch super_categories and no other; got "
            f"{self.super_categories} with branch {self.branch}",
        )


@register_method
class Latent(Method):
    """A second branch finds classes of its own, easier to recognise than the semantic ones, and teaches the first one.

    On labelled images L = L_ce + lambda_latent L_latent + lambda_adv L_adv (equation 6); on unlabelled ones
    L = lambda_adv_unlabeled L_adv + lambda_cons L_cons (equation 11).

    Args:
        segmenter: one of `kerasseg`, or `kerasseg.segmenters.cut(network, ...)`: it needs a backbone and a head.
        latent_head: the second branch's head, for the segmenter's `decode`; `second_head` when None.
        discriminator: segmentation (B,H,W,K) to logits (B,H,W,1); `build_pixel_discriminator` when None.
        fields: of `LatentConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> method = kerasseg.Latent(kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2), steps=100)
        >>> method.compile()
        >>> history = method.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> method.predict(images, verbose=0).shape
        (4, 32, 32, 2)
    """

    registry_name = "latent"
    when = "to compare with its paper, or to see which classes are hard to tell apart"
    about = (
        "Has a second branch that finds classes of its own on the labelled images: groups of the real ones "
        "that are easy to tell apart. On the unlabelled images the segmentation must agree with these "
        "groups. A discriminator that scores each pixel helps as in advsemiseg."
    )
    segmenting = ("segmenter", "latent_head")
    Config = LatentConfig
    config: LatentConfig

    def __init__(self, segmenter, latent_head=None, discriminator=None, *, name=None, **fields):
        config = self.make_config(fields)
        require_parts(segmenter, "Latent")
        classes = segmenter.output_shape[-1]
        self.branch_classes = {
            "latent": config.latent_classes,
            "super_categories": max(config.super_categories, default=0) + 1,
        }.get(config.branch, classes)
        require(
            len(config.super_categories) in (0, classes),
            f"super_categories takes one number per class ({classes}); got {len(config.super_categories)}",
        )
        latent_head = latent_head or segmenter.second_head(self.branch_classes, name="latent_head")
        discriminator = discriminator or build_pixel_discriminator(classes, channels=config.discriminator_channels)
        networks = {"segmenter": segmenter, "latent_head": latent_head, "discriminator": discriminator}
        super().__init__(networks, fields, name=name)
        self.co_occurrence = self.add_weight(
            (classes, self.branch_classes),
            initializer="zeros",
            trainable=False,
            dtype="float32",
            aggregation="mean",  # replicas all compute the same
            name="co_occurrence",
        )

    @classmethod
    def with_data(cls, fields, data):
        own = fields.get(cls.registry_name, {})
        return fields | {cls.registry_name: own | {"labeled_images": own.get("labeled_images") or data.labeled_images}}

    def make_optimizers(self):
        rate = segmenter_rate(self.config)  # one, so that a rate set by hand is both branches'
        return {
            "segmenter": segmenter_optimizer(self.config, self.segmenter, rate=rate),
            "latent_head": segmenter_optimizer(self.config, self.segmenter, self.latent_head, rate),
            "discriminator": discriminator_optimizer(self.config),
        }

    def fit(self, x=None, *args, **kwargs):
        if self.config.labeled_images is None:
            require(isinstance(x, Mapping), "latent needs to know how many images have labels: labeled_images=N")
            self.config = dataclasses.replace(self.config, labeled_images=len(x["labeled"]))
        return super().fit(x, *args, **kwargs)

    def critic_scores(self, images_BHW3, S_BHWK):
        return tf.nn.sigmoid(self.discriminator(S_BHWK)[..., 0])

    def diagnostics(self, observed):
        """P(l|c) (figures 6 and 7), and how many latent classes have P(l|c) above 0.1 and above 0.9 for some class
        (table 4). Empty for two semantic branches."""
        if self.config.branch == "symmetric_kl":
            return {}
        P_KL = self.latent_given_class().numpy().astype(float)
        effective = {str(t): int((t < P_KL).any(axis=0).sum()) for t in (0.1, 0.9)}
        return {"latent_given_class": P_KL.round(6).tolist(), "effective_latent_classes": effective}

    def update(self, batch):
        x_l, y_l, x_u, valid_u = batch.labeled, batch.labels, batch.unlabeled, batch.valid
        valid_l = valid_Y = valid_pixels(y_l)
        Y_l = one_hot(y_l, self.num_classes)
        config = self.config
        twins = config.branch == "symmetric_kl"
        branches = 2 if twins else 1  # that the discriminator judges; its losses are means over them

        with tf.GradientTape(persistent=True) as tape:
            (c_l, l_l), (c_u, l_u) = self.branches(x_l, x_u)
            S_c_l, S_c_u, S_l_l, S_l_u = (tf.nn.softmax(logits) for logits in (c_l, c_u, l_l, l_u))
            shown_l, shown_u = S_c_l, S_c_u
            if twins:
                shown_l, shown_u = tf.concat([S_c_l, S_l_l], axis=0), tf.concat([S_c_u, S_l_u], axis=0)
                valid_l, valid_u = (tf.concat([valid, valid], axis=0) for valid in (valid_l, valid_u))
            # Train mode, in which the discriminator gives the same. Each of its passes serves both networks' losses.
            # A label map is all zero where it is ignored or padded; predictions are shown the same way, or the
            # discriminator would know them by that.
            shown = Y_l, zero_unless(valid_l, shown_l), zero_unless(valid_u, shown_u)
            D_Y, D_l, D_u = (self.discriminator(S, training=True)[..., 0] for S in shown)

            L_ce = self.labeled_loss(y_l, c_l)
            if config.branch == "latent":
                L_latent = conditional_entropy(S_l_l, Y_l)
            else:
                L_latent = cross_entropy(self.branch_labels(y_l), l_l)
            L_adv, L_adv_u = binary_cross_entropy(D_l, 1.0, valid_l), binary_cross_entropy(D_u, 1.0, valid_u)
            if twins:
                L_cons = mean_where(divergence(S_c_u, S_l_u) + divergence(S_l_u, S_c_u), batch.valid)
            else:
                self.count(S_l_l, Y_l)
                L_cons = mean_where(self.inconsistency(S_c_u, S_l_u), valid_u)
            L_S = (
                L_ce
                + config.lambda_latent * L_latent
                + branches * config.lambda_adv * L_adv
                + branches * config.lambda_adv_unlabeled * L_adv_u
                + self.active_from(config.cons_start) * config.lambda_cons * L_cons
            )

            D_fake = tf.concat([D_l, D_u], axis=0)
            valid_fake = tf.concat([valid_l, valid_u], axis=0)
            L_D = (binary_cross_entropy(D_Y, 1.0, valid_Y) + binary_cross_entropy(D_fake, 0.0, valid_fake)) / 2.0

        self.minimize("segmenter", L_S, tape)
        self.minimize("latent_head", L_S, tape)
        self.minimize("discriminator", L_D, tape)
        terms = {"L_S": L_S, "L_ce": L_ce, "L_latent": L_latent, "L_adv": L_adv, "L_adv_u": L_adv_u, "L_cons": L_cons}
        return terms | {"L_D": L_D} | discriminator_scores(D_Y, D_fake, valid_Y, valid_fake)

    def branches(self, x_l, x_u) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """(semantic logits, the second branch's) of labelled and of unlabelled images, both heads on one pass of the
        backbone; train mode, batch norm as `joint_batch_norm` says."""

        def both(x):
            features = self.segmenter.encode(x, training=True)
            return [self.segmenter.decode(features, x, training=True, head=head) for head in (None, self.latent_head)]

        if not self.config.joint_batch_norm:
            return [tuple(both(x)) for x in (x_l, x_u)]
        sizes = [tf.shape(x)[0] for x in (x_l, x_u)]
        semantic, latent = (tf.split(logits, sizes, num=2) for logits in both(tf.concat([x_l, x_u], axis=0)))
        return list(zip(semantic, latent, strict=True))

    def branch_labels(self, y_l) -> tf.Tensor:
        """The labels of the second branch where it learns from labels: (B,H,W) int32."""
        if self.config.branch != "super_categories":
            return y_l
        category_K = tf.constant(self.config.super_categories, tf.int32)
        return tf.where(y_l == IGNORE_LABEL, IGNORE_LABEL, tf.gather(category_K, tf.where(y_l == IGNORE_LABEL, 0, y_l)))

    def count(self, S_l, Y) -> None:
        """Equation 8: how often class and latent class occur together on labelled pixels, a moving average."""
        images = sum_over_replicas(tf.cast(tf.shape(Y)[0], tf.float32))
        alpha = tf.minimum(images / self.config.labeled_images, 1.0)
        together_KL = sum_over_replicas(tf.einsum("bhwc,bhwl->cl", Y, S_l))
        self.co_occurrence.assign((1.0 - alpha) * self.co_occurrence + alpha * together_KL)

    def latent_given_class(self) -> tf.Tensor:
        """P(l|c) (K,L), equation 9; a row of zeros for a class that has not occurred yet."""
        M = tf.convert_to_tensor(self.co_occurrence)
        return tf.math.divide_no_nan(M, tf.reduce_sum(M, axis=1, keepdims=True))

    def inconsistency(self, S_c, S_l) -> tf.Tensor:
        """Equations 7 and 10: cross-entropy (B,H,W) of the latent prediction with the one that the semantic one
        implies."""
        S_lhat = tf.einsum("bhwc,cl->bhwl", S_c, self.latent_given_class())
        if self.config.consistency_grad == "semantic":
            S_l = tf.stop_gradient(S_l)
        elif self.config.consistency_grad == "latent":
            S_lhat = tf.stop_gradient(S_lhat)
        return -tf.reduce_sum(S_l * tf.math.log(S_lhat + EPSILON), axis=-1)


def divergence(P, Q) -> tf.Tensor:
    """Kullback-Leibler divergence KL(P|Q) of each pixel's distribution, (B,H,W)."""
    return tf.reduce_sum(P * (tf.math.log(P + EPSILON) - tf.math.log(Q + EPSILON)), axis=-1)
