"""ECS (Mendel et al. 2020, "Semi-supervised segmentation based on error-correcting supervision")."""

from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from kerasseg.checks import require
from kerasseg.critics import build_corrector
from kerasseg.critics.corrector import STRIDE as CORRECTOR_STRIDE
from kerasseg.losses import IGNORE_LABEL, cross_entropy, focal_loss, mean_where, one_hot, pixel_cross_entropy
from kerasseg.methods.class_swap import swap_classes
from kerasseg.methods.config import PseudoLabelConfig, require_shares, require_weights
from kerasseg.methods.method import Method
from kerasseg.methods.registry import register_method
from kerasseg.metrics import scores
from kerasseg.optimizers import Adam, Poly, segmenter_optimizer
from kerasseg.segmenters import BACKBONES, DeepLabV3Plus, fitting_rates


@dataclass(frozen=True, kw_only=True)
class ECSConfig(PseudoLabelConfig):
    """Fields of ECS; the defaults are the paper's for PASCAL VOC (section 4.4)."""

    steps: int = 22_000
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    """With SGD an L2 penalty, added to the gradient; with AdamW decoupled from it."""
    lambda_cor: float = 0.1
    """Weight of the auxiliary objective: the corrector should find nothing to correct (table 2 has 0 too)."""
    lambda_ecs: float = 1.0
    """Weight of the loss on unlabelled images. 0 leaves their update and their forward passes out, as in the first and
    the third row of table 2."""
    joint_update: bool = False
    """Update the segmenter once per step, by L_sup + lambda_ecs L_ecs, instead of the paper's two updates. A baseline
    makes one; so both train equally long, and the schedule counts one update per step."""
    corrector_only: bool = False
    """Train the corrector only (figure 3). The segmenter stays as it is, and must come trained, from a file."""
    loss: Literal["nfl", "ce"] = "nfl"
    """Loss on the pseudo labels: negated focal loss, or plain cross-entropy (table 2)."""
    gamma: float = 2.0
    """Exponent of the negated focal loss: the higher, the more sure corrections count."""
    class_weight: float = 2.0
    """Weight of the dataset's classes in the corrector's loss; "right as it is" has 1 (figure 3 has 1 for both too).
    These classes are the answers for wrong pixels, so this is the weight of a wrong pixel."""
    corrector_gamma: float = 0.0
    """Exponent of the corrector's focal loss (figure 3); 0 is cross-entropy, 2 the usual value."""
    class_swap: float = 0.0
    """Probability, for each labelled image, that one class in its prediction is replaced by another before the
    corrector learns from it. Most of the labelled prediction is right; swapped classes are wrong in known places."""
    corrector_learning_rate: float = 1e-4
    """Initial rate of the corrector's Adam."""
    corrector_weight_decay: float = 1e-4
    """L2 penalty of the corrector's weights."""
    corrector_backbone: str | None = "resnet34"
    """The corrector's backbone; None for the segmenter's, with the segmenter's initial weights."""
    corrector_weights: str = "none"
    """Initial weights of a `corrector_backbone`: imagenet, none, or the path of a weights file. Its first convolution
    is always fresh. The paper starts from ImageNet; Keras has such weights for resnet50, but not for resnet34."""
    corrector_head_channels: int = 256
    """Width of the corrector's head."""
    corrector_rates: tuple[int, ...] = ()
    """Dilation rates of the corrector's head; none for the published ones. `training.run` puts in those that fit the
    training crop."""

    def __post_init__(self):
        super().__post_init__()
        require_weights(self, "lambda_cor", "lambda_ecs", "gamma", "corrector_gamma", "corrector_weight_decay")
        require_shares(self, "class_swap")
        require(
            self.corrector_backbone is not None or self.corrector_weights == "none",
            "a corrector with the segmenter's backbone has the segmenter's weights too: leave out corrector_weights",
        )
        require(
            not (self.corrector_only and (self.average_weights or self.targets == "teacher")),
            "corrector_only does not train the segmenter, so it has no average: leave out average_weights and targets",
        )
        for name in ("class_weight", "corrector_learning_rate", "corrector_head_channels"):
            require(getattr(self, name) > 0, f"{name} must be above 0; got {getattr(self, name)}")

    @property
    def main_updates(self):
        return 1 if self.joint_update or self.lambda_ecs == 0 or self.corrector_only else 2


@register_method
class ECS(Method):
    """A corrector learns where segmentations are wrong and which class belongs there; its corrections are the pseudo
    labels.

    Three updates per step: L_cor (equation 2), L_sup (equation 3), L_ecs (equation 6). With `joint_update` two: L_cor
    and L_S = L_sup + lambda_ecs L_ecs.

    Args:
        segmenter: images (B,H,W,3) to logits (B,H,W,K).
        corrector: `[segmentation, image]` to logits (B,H,W,K+1), the last class "right as it is"; the paper's
            (`build_corrector`) when None.
        fields: of `ECSConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> segmenter = kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2)
        >>> method = kerasseg.ECS(segmenter, corrector_backbone=None, steps=100)
        >>> method.compile()
        >>> history = method.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> method.reliability(images).shape
        TensorShape([4, 32, 32])
    """

    registry_name = "ecs"
    when = "to compare with its paper, or for a corrector that names the right class where a prediction is wrong"
    about = (
        "Learns from the labelled images, and from the unlabelled ones through a corrector: a second "
        "network that looks at an image with its segmentation and says for each pixel whether it is right, "
        "and if not, which class belongs there. Its corrections serve as further labels, the surer the "
        "heavier."
    )
    Config = ECSConfig
    config: ECSConfig

    def __init__(self, segmenter, corrector=None, *, name=None, **fields):
        config = self.make_config(fields)
        if corrector is None:
            own = BACKBONES.get(getattr(segmenter, "backbone_name", ""))
            require(
                config.corrector_backbone is not None or (own is not None and not own.plain),
                "corrector_backbone must name a convolutional or pyramid backbone, such as mobilenet_v2: the "
                "segmenter's own is none of those in --list-backbones, or a plain transformer",
            )
            corrector = build_corrector(
                segmenter.output_shape[-1],
                config.corrector_backbone or segmenter.backbone,
                config.corrector_weights,
                config.corrector_head_channels,
                config.corrector_rates,
            )
        super().__init__({"segmenter": segmenter, "corrector": corrector}, fields, name=name)
        if config.class_swap:
            self.random = keras.random.SeedGenerator(name="class_swap")

    @classmethod
    def with_data(cls, fields, data):
        own = fields.get(cls.registry_name, {})
        rates = own.get("corrector_rates") or fitting_rates(DeepLabV3Plus, data.crop, CORRECTOR_STRIDE)
        return fields | {cls.registry_name: own | {"corrector_rates": rates}}

    def make_optimizers(self):
        config = self.config
        rate = Poly(config.corrector_learning_rate, config.steps)
        corrector = Adam(rate, beta_1=0.9, beta_2=0.99, l2=config.corrector_weight_decay)
        if config.corrector_only:
            return {"corrector": corrector}
        return {"segmenter": segmenter_optimizer(self.config, self.segmenter), "corrector": corrector}

    @property
    def main_optimizer(self):
        return self.training_optimizers.corrector if self.config.corrector_only else super().main_optimizer

    def critic_scores(self, images_BHW3, S_BHWK):
        """The corrector's probability of "right as it is" (B,H,W)."""
        return tf.nn.softmax(self.corrector([S_BHWK, images_BHW3], training=False))[..., -1]

    def observe(self, images_BHW3, labels_BHW):
        logits_BHWK = self.predictor(images_BHW3, training=False)
        C_BHWK1 = tf.nn.softmax(self.corrector([tf.nn.softmax(logits_BHWK), images_BHW3], training=False))
        y_cor = self.correction_map(logits_BHWK, labels_BHW)
        likelihood_BHW = -pixel_cross_entropy(labels_BHW, logits_BHWK)

        def of_one_image(image):
            labels_HW, y_cor_HW, C_HWK1, likelihood_HW = image
            known = labels_HW != IGNORE_LABEL
            confusion = tf.math.confusion_matrix(
                y_cor_HW[known], tf.argmax(C_HWK1, axis=-1)[known], self.num_classes + 1
            )
            of_class = [labels_HW == number for number in range(self.num_classes)]
            correct_HW = C_HWK1[..., -1] ** 2
            rho = [rank_correlation(correct_HW[pixels], likelihood_HW[pixels]) for pixels in of_class]
            return confusion, tf.stack(rho)

        confusion_BK1K1, rho_BK = tf.map_fn(
            of_one_image, (labels_BHW, y_cor, C_BHWK1, likelihood_BHW), fn_output_signature=(tf.int32, tf.float32)
        )
        return {"confusion": confusion_BK1K1, "spearman": rho_BK}

    def diagnostics(self, observed):
        """The corrector's IoU by class, "right as it is" last (figure 3), and for each class the mean, over the images
        that hold it, of Spearman's correlation of the squared probability of "right" with the likelihood of the truth
        (figure 4; None where no image does)."""
        corrector = scores(observed["confusion"].sum(axis=0, dtype=np.int64))
        rho_K = [column[~np.isnan(column)] for column in observed["spearman"].T]
        spearman_K = [float(column.mean()) if column.size else None for column in rho_K]
        return {"corrector": {"mIoU": corrector.mean_iou, "IoU": list(corrector.iou), "spearman": spearman_K}}

    def correction_map(self, S_BHWK, y) -> tf.Tensor:
        """y_cor (equation 1): K where a prediction or its logits are right, else the true class; (B,H,W) int32."""
        prediction_BHW = tf.argmax(S_BHWK, axis=-1, output_type=tf.int32)
        return tf.where(prediction_BHW == y, self.num_classes, y)

    def update(self, batch):
        x_l, y_l, x_u, valid_u = batch.labeled, batch.labels, batch.unlabeled, batch.valid
        config = self.config
        y_t = tf.where(y_l == IGNORE_LABEL, IGNORE_LABEL, self.num_classes)  # "right as it is" everywhere
        if config.corrector_only:  # the segmenter in inference mode, or its batch norm would learn
            return self.update_corrector(x_l, tf.nn.softmax(self.segmenter(x_l, training=False)), y_l, y_t)

        # All passes of both networks are in train mode: batch norm uses the batch's statistics.
        with tf.GradientTape(persistent=True) as tape:
            logits_l = self.segmenter(x_l, training=True)
            S_l = tf.nn.softmax(logits_l)
            with tape.stop_recording():
                corrector_terms = self.update_corrector(x_l, S_l, y_l, y_t)
            L_ce = self.labeled_loss(y_l, logits_l)
            L_aux = cross_entropy(y_t, self.corrector([S_l, x_l], training=True))
            L_S = L_sup = L_ce + config.lambda_cor * L_aux
            terms = {"L_sup": L_sup, "L_ce": L_ce, "L_aux": L_aux} | corrector_terms
            if config.joint_update and config.lambda_ecs:
                terms |= self.learn_corrections(x_u, valid_u, tape)
                L_S = L_sup + config.lambda_ecs * terms["L_ecs"]
                terms = {"L_S": L_S} | terms
        self.minimize("segmenter", L_S, tape)

        if config.lambda_ecs and not config.joint_update:
            with tf.GradientTape(persistent=True) as tape:
                terms |= self.learn_corrections(x_u, valid_u, tape)
                weighted = config.lambda_ecs * terms["L_ecs"]
            self.minimize("segmenter", weighted, tape)
        return terms

    def learn_corrections(self, x_u, valid_u, tape) -> dict[str, tf.Tensor]:
        """L_ecs on the tape, and the share of the pixels whose prediction the corrector keeps."""
        config = self.config
        logits_u = self.segmenter(x_u, training=True)
        with tape.stop_recording():
            targets_u = self.target_logits(x_u, logits_u)
            j = tf.nn.softmax(self.corrector([tf.nn.softmax(targets_u), x_u], training=True))
            y_p, kept_u = corrected(targets_u, j)
            gamma = config.gamma if config.loss == "nfl" else 0.0
            sureness = tf.reduce_max(j, axis=-1) ** gamma
        L_ecs = mean_where(sureness * pixel_cross_entropy(y_p, logits_u), valid_u)
        return {"L_ecs": L_ecs, "kept": mean_where(tf.cast(kept_u, tf.float32), valid_u)}

    def update_corrector(self, x_l, S_l, y_l, y_t) -> dict[str, tf.Tensor]:
        """Updates the corrector by L_cor, on predictions and label maps of the labelled images; returns its terms."""
        gamma = self.config.corrector_gamma
        if self.config.class_swap:
            S_l = swap_classes(S_l, y_l != IGNORE_LABEL, self.config.class_swap, self.random)
        y_cor = self.correction_map(S_l, y_l)
        weights_K1 = tf.constant([self.config.class_weight] * self.num_classes + [1.0])
        Y_l = one_hot(y_l, self.num_classes)
        with tf.GradientTape(persistent=True) as tape:
            C_S = self.corrector([S_l, x_l], training=True)
            C_Y = self.corrector([Y_l, x_l], training=True)
            L_cor = focal_loss(y_cor, C_S, gamma, weights_K1) + focal_loss(y_t, C_Y, gamma, weights_K1)
        self.minimize("corrector", L_cor, tape)
        right_l, found_right_l = y_cor == self.num_classes, tf.argmax(C_S, axis=-1) == self.num_classes
        return {
            "L_cor": L_cor,
            "acc_right": mean_where(tf.cast(found_right_l, tf.float32), right_l),
            "acc_wrong": mean_where(tf.cast(~found_right_l, tf.float32), ~right_l & (y_l != IGNORE_LABEL)),
        }


def rank_correlation(a_P: tf.Tensor, b_P: tf.Tensor) -> tf.Tensor:
    """Spearman's correlation: that of the values' ranks, where equal values have the mean of their ranks; NaN where all
    values are equal."""

    def places(values_P: tf.Tensor) -> tf.Tensor:
        in_order_P = tf.sort(values_P)
        first_P, last_P = (tf.searchsorted(in_order_P, values_P, side=side) for side in ("left", "right"))
        return tf.cast(first_P + last_P, tf.float32) / 2

    a, b = (place_P - tf.reduce_mean(place_P) for place_P in map(places, (a_P, b_P)))
    return tf.reduce_sum(a * b) / tf.sqrt(tf.reduce_sum(a**2) * tf.reduce_sum(b**2))


def corrected(logits_BHWK, corrections_BHWK1) -> tuple[tf.Tensor, tf.Tensor]:
    """The pseudo labels (equation 4), int32 (B,H,W): the prediction where the corrector finds it right, else its
    correction; and where the prediction was kept, bool (B,H,W)."""
    correction_BHW = tf.argmax(corrections_BHWK1, axis=-1, output_type=tf.int32)
    kept_BHW = correction_BHW == logits_BHWK.shape[-1]
    prediction_BHW = tf.argmax(logits_BHWK, axis=-1, output_type=tf.int32)
    return tf.where(kept_BHW, prediction_BHW, correction_BHW), kept_BHW
