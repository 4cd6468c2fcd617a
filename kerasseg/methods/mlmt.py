"""MLMT (Mittal, Tatarchenko, Brox 2019, arXiv:1908.05724): a multi-label mean teacher gates a segmenter's classes."""

from dataclasses import dataclass
from typing import Literal

import keras
import tensorflow as tf

from kerasseg.checks import require
from kerasseg.critics import build_classifier, build_classifier_like, start_from_backbone
from kerasseg.distribution import number
from kerasseg.losses import (
    binary_cross_entropy,
    categorical_cross_entropy,
    cosine_distance,
    mean_squared_error,
    multi_hot,
)
from kerasseg.methods.averaging import averaged_copy, follow
from kerasseg.methods.batch import Batch, concatenated
from kerasseg.methods.method import Method
from kerasseg.methods.registry import find_method, register_method
from kerasseg.methods.views import StrongView, StrongViewConfig
from kerasseg.metrics import roc
from kerasseg.optimizers import SGD, Replaceable


@dataclass(frozen=True, kw_only=True)
class MLMTConfig(StrongViewConfig):
    """Fields of MLMT's classification branch and of the fusion; the segmentation branch has its own, also `steps`."""

    steps: int = 20_000
    """Length of the classifier's training, in optimisation steps, after the segmenter's."""
    branch: str = "s4gan"
    """The method that trains the segmenter: s4gan (paper), supervised (table 5's second row), or any other, also
    package.module:Class."""
    train_branch: bool = True
    """Train the segmenter first; off where an already trained one only gets a classifier."""
    tau: float = 0.2
    """The gate switches off a class whose probability is at most this (equation 7)."""
    gate: Literal["mean_teacher", "student", "pixel_count", "none"] = "mean_teacher"
    """What switches classes off: the teacher; the student (table 5's plain classifier, with `lambda_cons` 0); a class's
    own number of predicted pixels (table 5's threshold baselines); nothing."""
    min_pixels: tuple[int, ...] = (1000,)
    """For `gate="pixel_count"`: a class predicted on fewer pixels is switched off. One number, or one per class."""
    lambda_cons: float = 1.0
    """Weight of the consistency loss at the end of its ramp."""
    consistency: Literal["squared", "cosine"] = "squared"
    """Mean squared error of probabilities (paper), or cosine distance of logits (reference code)."""
    classification: Literal["binary", "categorical"] = "binary"
    """Loss per class on sigmoids (reference code; what the gate needs), or the softmax of equation 6."""
    classifier_start: Literal["initial", "segmenter"] = "initial"
    """Weights from which the classifier's backbone starts: the segmenter's before its training (ImageNet's in the
    paper), so that the two branches differ; or the segmenter's after it."""
    whole_images: bool = True
    """The classifier learns from whole images, squeezed to the size of the crops, as it judges whole images (reference
    code); off for the segmenter's crops."""
    perturb_labeled: bool = False
    """The student sees labelled images in other colours too; otherwise they are only mirrored (reference code)."""
    jitter: float = 0.4
    """Brightness, contrast and saturation of the student's unlabelled images change by up to this share."""
    hue: float = 0.1
    """Their hue turns by up to this share of the colour circle."""
    jitter_probability: float = 1.0
    """Probability that one of them has other colours."""
    grey_probability: float = 0.0
    """Probability that one of them is grey."""
    blur_probability: float = 1.0
    """Probability that one of them is blurred, with a standard deviation of 0.1 to 2 pixels."""
    ema_decay: float = 0.999
    """Largest decay per step of the teacher's moving average."""
    burn_in: float = 0.1
    """Share of the classifier's training before the consistency loss sets in."""
    ramp: float = 0.5
    """Share of the classifier's training over which its weight then grows from 0 to 1 (reference code)."""
    classifier_learning_rate: float = 3e-2
    """Initial rate of the student's SGD; follows a cosine to 1/300 of it (3e-2 to 1e-4, reference code)."""
    classifier_weight_decay: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        branch_class(self)
        require(0 <= self.tau < 1, f"tau is a probability in 0..1 (below 1); got {self.tau}")
        require(self.lambda_cons >= 0, f"lambda_cons must be 0 or more; got {self.lambda_cons}")
        require(0 <= self.ema_decay < 1, f"ema_decay must be in 0..1 (below 1); got {self.ema_decay}")
        require(0 <= self.burn_in <= 1, f"burn_in is a share of training in 0..1; got {self.burn_in}")
        require(0 < self.ramp <= 1, f"ramp is a share of training in 0..1 (above 0); got {self.ramp}")
        require(
            self.classifier_learning_rate > 0,
            f"classifier_learning_rate must be above 0; got {self.classifier_learning_rate}",
        )
        require(
            self.classifier_weight_decay >= 0,
            f"classifier_weight_decay must be 0 or more; got {self.classifier_weight_decay}",
        )


@register_method
class MLMT(Method):
    """One branch segments, the other finds which classes are there; they are fused at inference.

    Two fits, one after the other: `branch.fit(...)` trains the segmenter, then `MLMT(branch).fit(...)` the classifier.

    Args:
        segmentation: the method that trains the segmenter, by a `fit` of its own; or a segmenter, of which the method
            that `branch` names is made.
        student: images (B,H,W,3) to one logit per class (B,K); when None, `build_classifier_like` the segmenter, which
            starts from its backbone, as `classifier_start` says.
        teacher: the same kind of network; its weights follow the student's, batch-norm statistics included.
        fields: of `MLMTConfig`.

    Example:
        >>> images, labels = np.random.randint(256, size=(4, 32, 32, 3)), np.zeros((2, 32, 32), "int32")
        >>> branch = kerasseg.MeanTeacher(kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=2), steps=100)
        >>> method = kerasseg.MLMT(branch, steps=50)
        >>> for stage in method.stages():  # branch, then method
        ...     stage.compile()
        ...     history = stage.fit({"labeled": images[:2], "unlabeled": images[2:]}, labels, verbose=0)
        >>> list(method.predictions(images))
        ['', 'without_gate', 'student']
    """

    registry_name = "mlmt"
    when = "where an image holds few of many classes: its gate switches the others off"
    about = (
        "Two branches. One learns to segment as s4gan does: from the labelled images, and from the "
        "unlabelled ones through a discriminator that scores how much a segmentation resembles one made by "
        "hand. The other then learns which classes are in an image at all; its teacher is a running average "
        "of its student. In the final segmentation a gate switches off every class that the teacher finds "
        "unlikely in the image."
    )
    gating = ("student", "teacher")
    uses_image_labels = True
    Config = MLMTConfig
    config: MLMTConfig

    def __init__(self, segmentation, student=None, teacher=None, *, name=None, **fields):
        if not isinstance(segmentation, Method):
            own = self.make_config(fields)
            branch = branch_class(own)
            segmentation = branch.from_segmenter(segmentation, {branch.registry_name: {"steps": own.steps}})
        fields["branch"] = segmentation.registry_name
        self.segmenter = segmentation.segmenter
        self.starts_from_segmenter = student is None and self.make_config(fields).classifier_start == "segmenter"
        student = student or build_classifier_like(self.segmenter, name="student")
        if teacher is None:
            teacher = averaged_copy(student, name="teacher")
        teacher.trainable = False
        super().__init__({"segmentation": segmentation, "student": student, "teacher": teacher}, fields, name=name)
        require(
            len(self.config.min_pixels) in (1, self.num_classes),
            f"min_pixels takes 1 number or one per class ({self.num_classes}); got {len(self.config.min_pixels)}",
        )
        self.branch_is_trained = not self.config.train_branch
        # "Different small perturbations": both are flipped, and the student sees other colours and a softer image.
        self.flip = keras.layers.RandomFlip("horizontal", dtype="float32", name="flip")
        self.strong = StrongView(self.config)

    @classmethod
    def config_groups(cls, fields):
        own = cls.make_config(fields.get(cls.registry_name, {}))
        return super().config_groups(fields) | branch_class(own).config_groups(fields)

    @classmethod
    def with_data(cls, fields, data):
        own = cls.make_config(fields.get(cls.registry_name, {}))
        return branch_class(own).with_data(fields, data)

    @classmethod
    def from_segmenter(cls, segmenter, fields):
        own = cls.make_config(fields.get(cls.registry_name, {}))
        require(
            own.train_branch,
            "train_branch can be off only where the segmenter is trained already: give --branch-run RUN",
        )
        return cls(branch_class(own).from_segmenter(segmenter, fields), **fields.get(cls.registry_name, {}))

    @classmethod
    def from_trained(cls, branch, fields, weights="none"):
        if isinstance(branch, cls):  # a new classifier in place of the old one
            branch = branch.segmentation
        own, student = fields.get(cls.registry_name, {}) | {"train_branch": False}, None
        if cls.make_config(own).classifier_start == "initial":
            student = build_classifier(branch.segmenter.backbone_name, branch.num_classes, weights, name="student")
        return cls(branch, student, **own)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        method = super().from_config(config, custom_objects)
        method.branch_is_trained = True  # before it was saved
        return method

    def fields(self):
        return super().fields() | self.segmentation.fields()

    # --- inference: fusion (section 3.3) ---

    def critic_scores(self, images_BHW3, S_BHWK):
        return self.segmentation.critic_scores(images_BHW3, S_BHWK)

    @property
    def variants(self):
        return ("", "without_gate", *self.segmentation.variants[1:])

    @property
    def predictor(self):
        return self.segmentation.predictor

    def variants_from(self, images_BHW3, S_BHWK):
        return {"": gated(S_BHWK, self.present(images_BHW3, S_BHWK)), "without_gate": S_BHWK}

    def present(self, images_BHW3, S_BHWK) -> tf.Tensor:
        """Which classes the gate leaves on: (B,K) bool."""
        config = self.config
        if config.gate == "none":
            return tf.ones([tf.shape(images_BHW3)[0], self.num_classes], tf.bool)
        if config.gate == "pixel_count":
            return predicted_pixels(S_BHWK) >= tf.constant(config.min_pixels, tf.float32)
        classifier = self.teacher if config.gate == "mean_teacher" else self.student
        return self.probabilities(classifier(images_BHW3, training=False)) > config.tau

    def probabilities(self, logits_BK) -> tf.Tensor:
        return tf.nn.sigmoid(logits_BK) if self.config.classification == "binary" else tf.nn.softmax(logits_BK)

    def observe(self, images_BHW3, labels_BHW):
        classifiers = {"mean_teacher": self.teacher, "plain": self.student}
        found = {name: self.probabilities(net(images_BHW3, training=False)) for name, net in classifiers.items()}
        return found | {"present": multi_hot(labels_BHW, self.num_classes)}

    def diagnostics(self, observed):
        """How well teacher and student find which classes are there: figure 12, all classes together, and by class."""
        present_NK = observed["present"] > 0
        classifiers = {}
        for name in ("mean_teacher", "plain"):
            aucs = [roc(p, there)["auc"] for p, there in zip(observed[name].T, present_NK.T, strict=True)]
            classifiers[name] = roc(observed[name].ravel(), present_NK.ravel()) | {"per_class_auc": aucs}
        return {"classifiers": classifiers}

    # --- training ---

    def make_optimizers(self):
        config = self.config
        rate = keras.optimizers.schedules.CosineDecay(config.classifier_learning_rate, config.steps, alpha=1 / 300)
        return {"student": SGD(Replaceable(rate), momentum=0.9, nesterov=True, l2=config.classifier_weight_decay)}

    def stages(self):
        return (*self.segmentation.stages(), self) if self.config.train_branch else (self,)

    @property
    def learns_from_whole_images(self):
        return self.config.whole_images

    @property
    def unlabeled_sets(self):
        return self.segmentation.unlabeled_sets

    @property
    def least_unlabeled(self):
        return self.segmentation.least_unlabeled

    @property
    def main_optimizer(self):
        return self.training_optimizers.student

    def fit(self, *args, **kwargs):
        """As `keras.Model.fit`. Before the first step, the classifier gets the segmenter's trained backbone, where
        `classifier_start` says so."""
        updates = [number(each.iterations) for each in vars(self.segmentation.training_optimizers).values()]
        require(
            any(updates) or self.branch_is_trained,
            "MLMT.fit trains the classifier: fit its branch first (method.segmentation), or give train_branch=False "
            "where the segmenter is trained already",
        )
        if self.compiled and self.starts_from_segmenter and number(self.main_optimizer.iterations) == 0:
            start_from_backbone(self.student, self.segmenter)
            self.teacher.set_weights(self.student.get_weights())
        return super().fit(*args, **kwargs)

    def update(self, batch):
        x_u = batch.unlabeled
        x, z = self.labeled_for_classifier(batch)
        config = self.config

        # Inference mode, in which the teacher will be used.
        H_l, H_u = concatenated(
            self.teacher, self.flip(x, training=True), self.flip(x_u, training=True), training=False
        )
        with tf.GradientTape(persistent=True) as tape:
            # Train mode, all images in one pass.
            x_s = self.strong(self.flip(x_u, training=True))
            x_l = self.flip(x, training=True)
            G_l, G_u = concatenated(
                self.student, self.strong(x_l) if config.perturb_labeled else x_l, x_s, training=True
            )
            G, H = tf.concat([G_l, G_u], axis=0), tf.stop_gradient(tf.concat([H_l, H_u], axis=0))

            L_cls = (
                binary_cross_entropy(G_l, z) if config.classification == "binary" else categorical_cross_entropy(z, G_l)
            )
            if config.consistency == "squared":
                L_cons = mean_squared_error(self.probabilities(H), self.probabilities(G))
            else:
                L_cons = cosine_distance(H, G)
            L_MT = L_cls + self.consistency_weight() * L_cons

        self.minimize("student", L_MT, tape)
        steps = tf.cast(self.training_optimizers.student.iterations, tf.float32)
        follow(self.teacher, self.student, tf.minimum(1.0 - 1.0 / (steps + 1.0), config.ema_decay))
        return {"L_MT": L_MT, "L_cls": L_cls, "L_cons": L_cons}

    def labeled_for_classifier(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Images whose classes are known, and those classes (B,K): from label maps, and from image-level labels."""
        x, z = batch.labeled, multi_hot(batch.labels, self.num_classes)
        if batch.image_labeled is not None:
            x, z = tf.concat([x, batch.image_labeled], axis=0), tf.concat([z, batch.image_labels], axis=0)
        return x, z

    def consistency_weight(self) -> tf.Tensor:
        """lambda_cons * w(t), w from 0 to 1 after the burn-in."""
        progress = tf.cast(self.training_optimizers.student.iterations, tf.float32) / self.config.steps
        return self.config.lambda_cons * tf.clip_by_value((progress - self.config.burn_in) / self.config.ramp, 0.0, 1.0)


def branch_class(config: MLMTConfig) -> type[Method]:
    """The method of the segmentation branch; ValueError where there is none of this name."""
    branch = find_method(config.branch, flag="branch")
    require(branch is not MLMT, "branch must be the method that trains the segmenter; got mlmt itself")
    return branch


def predicted_pixels(S_BHWK: tf.Tensor) -> tf.Tensor:
    """The number of pixels of each image on which each class is the likeliest: (B,K) float32."""
    return tf.reduce_sum(tf.one_hot(tf.argmax(S_BHWK, axis=-1), S_BHWK.shape[-1]), axis=[1, 2])


def gated(S_BHWK: tf.Tensor, present_BK: tf.Tensor) -> tf.Tensor:
    """S with absent classes set to 0 (equation 7, on probabilities); an image left without any class stays ungated."""
    present_BK |= ~tf.reduce_any(present_BK, axis=-1, keepdims=True)
    return S_BHWK * tf.cast(present_BK, S_BHWK.dtype)[:, tf.newaxis, tf.newaxis, :]
