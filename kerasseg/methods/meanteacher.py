"""Mean teacher with CutMix (French et al. 2020, arXiv:1906.01916): a teacher labels images, and the student learns
these labels from images with parts of other images pasted in."""

from dataclasses import dataclass
from typing import Literal

import keras
import tensorflow as tf

from kerasseg.distribution import sum_over_replicas
from kerasseg.losses import mean_where, pixel_cross_entropy
from kerasseg.methods.config import SemiSupervisedConfig, require_shares, require_weights
from kerasseg.methods.method import Method
from kerasseg.methods.registry import register_method
from kerasseg.methods.views import (
    StrongView,
    StrongViewConfig,
    mixed,
    partners,
    random_boxes,
    random_classes,
    require_partners,
)
from kerasseg.optimizers import segmenter_optimizer

CONFIDENCE_DECAY = 0.99
"""Decay of the classes' mean confidences (`trust="class"`): they average about the last hundred steps."""


@dataclass(frozen=True, kw_only=True)
class MeanTeacherConfig(StrongViewConfig, SemiSupervisedConfig):
    """Fields of the mean teacher. The teacher's `ema_decay` is French et al.'s; pixels are trusted as in DACS
    (arXiv:2007.08702), which weights an image by its share of sure pixels."""

    mixing: Literal["cutmix", "classmix", "none"] = "cutmix"
    """Which part of another unlabelled image is pasted into the student's: one rectangle, the pixels of half of its
    classes (ClassMix, arXiv:2007.07936), or none."""
    trust: Literal["image", "pixel", "class"] = "image"
    """Which of the teacher's labels are learned. image: all, each weighted by the share of sure pixels in its image.
    pixel: only the sure ones. class: the sure ones, with a lower threshold for a class that the teacher is less sure
    of."""
    threshold: float = 0.9
    """A pixel is sure if its likeliest class has at least this probability."""
    lambda_cons: float = 1.0
    """Weight of the loss on unlabelled images."""
    cons_start: float = 0.1
    """Share of training before that loss sets in: at first the teacher knows nothing."""

    def __post_init__(self):
        if vars(self)["trust"] == "picture":  # the name of "image" in older runs
            object.__setattr__(self, "trust", "image")
        super().__post_init__()
        require_weights(self, "lambda_cons")
        require_shares(self, "threshold", "cons_start")


@register_method
class MeanTeacher(Method):
    """L = L_ce + lambda_cons L_cons. The teacher, whose weights are an average of the student's, is what predicts.

    Args:
        segmenter: the student, images (B,H,W,3) to logits (B,H,W,K).
        fields: of `MeanTeacherConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> method = kerasseg.MeanTeacher(kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2), steps=100)
        >>> method.compile()
        >>> history = method.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> method.predict(images, verbose=0).shape
        (4, 32, 32, 2)
    """

    registry_name = "meanteacher"
    when = "the first to try: few labelled photographs, many unlabelled ones"
    about = (
        "Learns from the labelled images, and from the unlabelled ones through a teacher: a second copy of "
        "the network whose weights are a running average of the student's. The teacher labels the unlabelled "
        "images as they are; the student must find these labels again in other colours and with a part of "
        "another image pasted in. The teacher is what predicts."
    )
    Config = MeanTeacherConfig
    config: MeanTeacherConfig
    keeps_teacher = True

    def __init__(self, segmenter, *, name=None, **fields):
        super().__init__({"segmenter": segmenter}, fields, name=name)
        self.random = keras.random.SeedGenerator(name="mixing")
        self.strong = StrongView(self.config)
        self.class_confidence = self.add_weight(
            (self.num_classes,),
            initializer="zeros",
            trainable=False,
            dtype="float32",
            aggregation="mean",  # replicas all compute the same
            name="class_confidence",
        )

    @property
    def least_unlabeled(self):
        return 1 if self.config.mixing == "none" else 2

    def make_optimizers(self):
        return {"segmenter": segmenter_optimizer(self.config, self.segmenter)}

    def update(self, batch):
        x_l, y_l, x_u, valid_u = batch.labeled, batch.labels, batch.unlabeled, batch.valid
        config = self.config

        # Inference mode: the teacher sees the images as they are.
        H_u = tf.nn.softmax(self.averaged(x_u, training=False))
        target_u = tf.argmax(H_u, axis=-1, output_type=tf.int32)
        if config.trust == "class":
            self.update_class_confidence(H_u, valid_u)
        weight_u = self.pixel_weights(H_u, valid_u)
        pasted_u = self.pasted(target_u)
        x_s = mixed(self.strong(x_u), pasted_u[..., tf.newaxis])
        target_s, weight_s, valid_s = (mixed(values_u, pasted_u) for values_u in (target_u, weight_u, valid_u))

        with tf.GradientTape(persistent=True) as tape:
            logits_l, logits_s = self.segment(x_l, x_s)  # train mode
            L_ce = self.labeled_loss(y_l, logits_l)
            L_cons = mean_where(weight_s * pixel_cross_entropy(target_s, logits_s), valid_s)
            L_S = L_ce + self.active_from(config.cons_start) * config.lambda_cons * L_cons

        self.minimize("segmenter", L_S, tape)
        return {"L_S": L_S, "L_ce": L_ce, "L_cons": L_cons, "trust": mean_where(weight_u, valid_u)}

    def pixel_weights(self, H_BHWK, valid_BHW) -> tf.Tensor:
        """How much each of the teacher's labels counts, 0..1: (B,H,W), float32."""
        config = self.config
        confidence_BHW = tf.reduce_max(H_BHWK, axis=-1)
        threshold = config.threshold
        if config.trust == "class":
            confidence_K = tf.convert_to_tensor(self.class_confidence)
            # FreeMatch (arXiv:2205.07246), equation 7: as a share of the largest of all classes.
            threshold *= tf.gather(confidence_K / tf.reduce_max(confidence_K), tf.argmax(H_BHWK, axis=-1))
        sure_BHW = tf.cast(confidence_BHW >= threshold, tf.float32)
        if config.trust != "image":
            return sure_BHW
        valid_BHW = tf.cast(valid_BHW, tf.float32)
        share_B = tf.math.divide_no_nan(
            tf.reduce_sum(sure_BHW * valid_BHW, axis=(1, 2)), tf.reduce_sum(valid_BHW, axis=(1, 2))
        )
        return tf.ones_like(sure_BHW) * share_B[:, tf.newaxis, tf.newaxis]

    def update_class_confidence(self, H_BHWK, valid_BHW) -> None:
        """A moving average of the mean confidence of the pixels that the teacher gives to each class; 0 for a class
        that it has not given to any pixel yet."""
        found_BHWK = tf.one_hot(tf.argmax(H_BHWK, axis=-1), self.num_classes)
        found_BHWK *= tf.cast(valid_BHW, tf.float32)[..., tf.newaxis]
        count_K, sum_K = (
            sum_over_replicas(tf.reduce_sum(x, axis=(0, 1, 2))) for x in (found_BHWK, found_BHWK * H_BHWK)
        )
        before_K = tf.convert_to_tensor(self.class_confidence)
        mean_K = tf.math.divide_no_nan(sum_K, count_K)
        new_K = tf.where(before_K > 0, CONFIDENCE_DECAY * before_K + (1.0 - CONFIDENCE_DECAY) * mean_K, mean_K)
        self.class_confidence.assign(tf.where(count_K > 0, new_K, before_K))

    def pasted(self, target_BHW) -> tf.Tensor:
        """Where each image is covered by a part of its partner: (B,H,W) bool."""
        if self.config.mixing == "none":
            return tf.zeros_like(target_BHW, tf.bool)
        require_partners(target_BHW, self.config.mixing, "mixing none")
        if self.config.mixing == "classmix":
            return random_classes(partners(target_BHW), self.num_classes, self.random)
        return random_boxes(tf.shape(target_BHW), area=(0.1, 0.5), ratio=(0.4, 2.5), random=self.random)
