"""What all methods share, so that a method's own file has only its paper in it."""

import dataclasses
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import keras
import numpy as np
import tensorflow as tf

from kerasseg import accumulation
from kerasseg.checks import require
from kerasseg.distribution import for_the_log
from kerasseg.keras_internals import all_layers
from kerasseg.losses import IGNORE_LABEL, cross_entropy, dice_loss, hard_pixels
from kerasseg.methods import gradient_norms
from kerasseg.methods.averaging import averaged_copy, decay_after, follow
from kerasseg.methods.batch import Batch, as_batch, concatenated
from kerasseg.methods.compiling import require_backbone, require_logits
from kerasseg.methods.config import MethodConfig, TrainingData
from kerasseg.methods.fitting import FittedModel
from kerasseg.methods.inference import Inference, Segment, at_once, logits_of, with_features
from kerasseg.metrics import ConfusionMatrix
from kerasseg.optimizers import skipped_updates
from kerasseg.working_size import enlarge, likeliest, shrink


class Method(FittedModel):
    """A way of training a segmenter: networks, one optimizer for each, and a `train_step`.

    As a Keras model it maps images (B,H,W,3), RGB in 0..255, any size, to class probabilities (B,H,W,K), float32.
    Training data are what `as_batch` takes, evaluation data `(images, labels)`. So `compile`, `fit`, `evaluate`,
    `predict` and callbacks work as for any Keras model.

    A subclass names its networks in the constructor and gives `Config`, `make_optimizers` and `update`.

    Args:
        networks: name -> network, the segmenter under `"segmenter"`.
        fields: the fields of `Config`.

    Raises:
        ValueError: for an unknown field or an impossible value.
    """

    Config: type[MethodConfig] = MethodConfig
    config: Any
    needs_unlabeled = True
    """Whether a batch without unlabelled images is a mistake."""
    keeps_teacher = False
    """Whether it always has a mean teacher, which then is what predicts."""
    segmenting: tuple[str, ...] = ("segmenter",)
    """The networks that segment, by name: `SegmenterConfig` is about these."""
    gating: tuple[str, ...] = ()
    """The networks that switch classes off, by name: a small change there may change a whole image."""
    uses_image_labels = False
    """Whether it learns from image-level labels: `"image_labeled"` and `"image_labels"` of a batch."""

    def __init__(self, networks: dict[str, keras.Model], fields: dict[str, Any], name: str | None = None):
        super().__init__(name=name)
        if "segmenter" in networks:
            require_logits(networks["segmenter"])
        self.config = self.make_config(fields)
        self.network_names = tuple(networks)
        for network_name, network in networks.items():
            setattr(self, network_name, network)
        require_backbone(self.config, self.segmenter)
        weights = len(getattr(self.config, "class_weights", ()))
        require(
            weights in (0, self.num_classes),
            f"{self.registry_name}'s class_weights takes one number for each of the {self.num_classes} classes, or "
            f"none; got {weights}",
        )
        self.averaged: Any = averaged_copy(self.segmenter) if self.averages_weights else None
        self.confusion = {
            variant or "mIoU": ConfusionMatrix(self.num_classes, name=variant or "mIoU") for variant in self.variants
        }
        self.evaluation_loss = keras.metrics.Mean(name="loss")
        self.training_optimizers = SimpleNamespace()
        self.accumulate = 1

    @property
    def unlabeled_sets(self) -> int:
        """How many unlabelled images a step takes, as a multiple of `--unlabeled-batch-size`."""
        return 1

    @property
    def least_unlabeled(self) -> int:
        """How many unlabelled images of a step each device needs at least."""
        return 1

    # --- building from a configuration ---

    registry_name: str
    """The method's name for `--method`."""
    when: str = ""
    """When to use it: the rest of a line that begins with its name."""
    about: str = ""
    """What it does, for the report's reader: a few sentences, the first of which begins with a verb."""
    terms: ClassVar[dict[str, tuple[str, str, str]]] = {}
    """The words of the report for logged terms that `training.glossary` does not know: as its `Term`, the plot, the
    meaning, and how the curve should look (the rest of a sentence that begins with "It")."""

    @classmethod
    def make_config(cls, fields: dict[str, Any]) -> Any:
        """The checked configuration; ValueError for an unknown field or an impossible value."""
        known = [field.name for field in dataclasses.fields(cls.Config)]
        for field in fields:
            require(field in known, f"{cls.__name__} has no field {field!r}; its fields: {', '.join(known)}")
        return cls.Config(**fields)

    @classmethod
    def config_groups(cls, fields: dict[str, dict[str, Any]]) -> dict[str, type[MethodConfig]]:
        """The configurations in a run of this method, by registry name: its own, and those of methods inside it."""
        return {cls.registry_name: cls.Config}

    @classmethod
    def with_data(cls, fields: dict[str, dict[str, Any]], data: TrainingData) -> dict[str, dict[str, Any]]:
        """The fields, by registry name, completed by those that follow from the data."""
        return fields

    @classmethod
    def from_segmenter(cls, segmenter: keras.Model, fields: dict[str, dict[str, Any]]) -> Self:
        """The method around a segmenter; `fields` maps a method's registry name to its fields."""
        return cls(segmenter, **fields.get(cls.registry_name, {}))

    @classmethod
    def from_trained(cls, branch: "Method", fields: dict[str, dict[str, Any]], weights: str = "none") -> Self:
        """The method around an already trained one, which it does not change; ValueError where that is not possible.

        Args:
            weights: the initial weights of that one's backbone, as `build_backbone` takes them.
        """
        raise ValueError(f"{cls.registry_name} trains its own segmenter: only mlmt can be added to a finished run")

    def fields(self) -> dict[str, dict[str, Any]]:
        """All fields in force, by registry name: its own, and those of methods inside it."""
        return {self.registry_name: dataclasses.asdict(self.config)}

    # --- inference ---

    @property
    def averages_weights(self) -> bool:
        """Whether it keeps a mean teacher of the segmenter, `averaged`."""
        fields = self.config
        return self.keeps_teacher or getattr(fields, "average_weights", False) or self.targets == "teacher"

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the `predictions`, the method's answer (named "") first."""
        return ("",) if self.averaged is None else ("", "student")

    @property
    def num_classes(self) -> int:
        return self.segmenter.output_shape[-1]

    @property
    def predictor(self) -> keras.Model:
        """The network that predicts, images (B,H,W,3) to logits (B,H,W,K): the mean teacher where there is one."""
        return self.segmenter if self.averaged is None else self.averaged

    def call(self, images, training: bool = False):
        """Class probabilities (B,H,W,K) of images (B,H,W,3), or of the labelled images of a training batch."""
        images_BHW3 = images["labeled"] if isinstance(images, dict) else images
        x, size = self.at_working_size(images_BHW3)
        answer = self.variants_from(x, self.class_probabilities(x))[""]
        return answer if size is None else enlarge(answer, size)

    def infer(self, images_BHW3, last_weights: bool = False, features: bool = False) -> Inference:
        """The method's answer, in inference mode: what is drawn, exported and compared with exports.

        Args:
            last_weights: also the prediction by the segmenter's last weights, where their average predicts.
            features: also what each image looks like to the predicting network.
        """
        # Keras takes no array together with a tensor.
        x, size = self.at_working_size(tf.convert_to_tensor(images_BHW3))
        if features and hasattr(self.segmenter, "encode"):
            logits, vectors = with_features(self.predictor, self.segmenter.features)(x, training=False)
            logits = tf.cast(logits, tf.float32)
        else:
            logits, vectors = logits_of(self.predictor, x), None
        S = tf.nn.softmax(logits)
        variants = self.variants_from(x, S) | (self.of_last_weights(x) if last_weights else {})
        return Inference(logits, vectors, S, variants, self.critic_scores(x, S), size)

    def predictions(self, images_BHW3) -> dict[str, tf.Tensor]:
        """Class probabilities (B,H,W,K) by variant, in inference mode."""
        answer = self.infer(images_BHW3, last_weights=True)
        return {variant: answer.at_own_size(probabilities) for variant, probabilities in answer.variants.items()}

    def label_maps(self, images_BHW3, segment: Segment = at_once) -> dict[str, tf.Tensor]:
        """The likeliest classes, uint8 (B,H,W), by variant, in inference mode: what is evaluated.

        Args:
            segment: for protocols that average over scales, mirrorings and parts of an image.
        """
        x, size = self.at_working_size(images_BHW3)
        variants = self.variants_from(x, segment(self.class_probabilities, x)) | self.of_last_weights(x, segment)
        return {variant: likeliest(probabilities, size)[0] for variant, probabilities in variants.items()}

    def at_working_size(self, images_BHW3) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Images (B,h,w,3) as they are segmented, and the own size (H,W) to which answers are brought back; None where
        the method has no working size. The functions below take images of that size."""
        if self.config.working_size is None:
            return images_BHW3, None
        return shrink(images_BHW3, self.config.working_size), tf.shape(images_BHW3)[1:3]

    def of_last_weights(self, images_Bhw3, segment: Segment = at_once) -> dict[str, tf.Tensor]:
        """The probabilities by the segmenter's last weights under "student", where their average predicts; else
        nothing."""
        if "student" not in self.variants:
            return {}
        return {"student": segment(lambda images: tf.nn.softmax(logits_of(self.segmenter, images)), images_Bhw3)}

    def class_probabilities(self, images_Bhw3) -> tf.Tensor:
        """The predicting network's own class probabilities (B,h,w,K), before `variants_from` sees them."""
        return tf.nn.softmax(logits_of(self.predictor, images_Bhw3))

    def variants_from(self, images_Bhw3, S_BhwK) -> dict[str, tf.Tensor]:
        """Class probabilities (B,h,w,K) by variant, from the predicting network's for whole images."""
        return {"": S_BhwK}

    def critic_scores(self, images_Bhw3, probabilities_BhwK) -> tf.Tensor | None:
        """The critic's scores of a segmentation, 0..1: (B,), (B,h,w), or None where there is no critic."""
        return None

    def reliability(self, images_BHW3) -> tf.Tensor | None:
        """How far a critic that judges pixels trusts the segmentation of images: (B,H,W), 0..1; None where no critic
        does."""
        return self.infer(images_BHW3).reliability_BHW

    def observe(self, images_Bhw3, labels_Bhw) -> dict[str, tf.Tensor]:
        """What `diagnostics` needs from held-out images, a row for each."""
        return {}

    def diagnostics(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """What a trained method reports beyond its scores: plain numbers, lists and dicts.

        Args:
            observed: what `observe` gave, for all images.
        """
        return {}

    # --- training ---

    def make_optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """The paper's optimizer for each network that is trained, by the network's name."""
        raise NotImplementedError

    def stages(self) -> tuple["Method", ...]:
        """The methods that are fitted one after the other, itself last: more than one where another method trains its
        segmenter first. No property, since Keras stores what it finds in properties."""
        return (self,)

    @property
    def learns_from_whole_images(self) -> bool:
        """Whether its batches hold whole images instead of crops."""
        return False

    @property
    def main_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer whose learning rate the log shows."""
        return self.training_optimizers.segmenter

    def get_compile_config(self):
        return None  # a saved model is for inference; training resumes from a checkpoint

    def segment(self, x_l: tf.Tensor, x_u: tf.Tensor) -> list[tf.Tensor]:
        """Logits of labelled and of unlabelled images in train mode: batch norm uses the statistics of both batches
        together or of each by itself (`joint_batch_norm`)."""
        if self.config.joint_batch_norm:
            return concatenated(self.segmenter, x_l, x_u, training=True)
        return [self.segmenter(x, training=True) for x in (x_l, x_u)]

    def labeled_loss(self, y_l: tf.Tensor, logits_l: tf.Tensor) -> tf.Tensor:
        """The loss on labels: cross-entropy, with class weights, hard pixels and a Dice loss as the fields say."""
        config = self.config
        if not y_l.shape[1:].is_compatible_with(logits_l.shape[1:3]):
            raise ValueError(
                f"the segmenter must give logits as large as the image; got {logits_l.shape[1:3]} for labels of "
                f"{y_l.shape[1:]}: add UpSampling2D"
            )
        learned = y_l
        if config.ohem_threshold < 1.0:
            hard = hard_pixels(y_l, logits_l, config.ohem_threshold, config.ohem_share)
            learned = tf.where(hard, y_l, IGNORE_LABEL)
        loss = cross_entropy(learned, logits_l, tf.constant(config.class_weights) if config.class_weights else None)
        return loss + config.dice_weight * dice_loss(y_l, logits_l) if config.dice_weight else loss

    @property
    def targets(self) -> str:
        """`PseudoLabelConfig.targets`; "train_mode" where the method has no pseudo labels."""
        return getattr(self.config, "targets", "train_mode")

    def target_logits(self, x_u: tf.Tensor, logits_u: tf.Tensor) -> tf.Tensor:
        """Logits (B,H,W,K) that pseudo labels come from (`PseudoLabelConfig.targets`), without a gradient.

        Args:
            x_u: unlabelled images.
            logits_u: their logits in the training pass.
        """
        if self.targets == "train_mode":
            return tf.stop_gradient(logits_u)
        network = self.averaged if self.targets == "teacher" else self.segmenter
        return tf.stop_gradient(network(x_u, training=False))

    def active_from(self, share: float) -> tf.Tensor:
        """0 before that share of training, 1 from there on: the factor of a term that sets in late."""
        step = tf.cast(self.training_optimizers.segmenter.iterations, tf.float32)
        return tf.cast(step >= share * self.config.steps, tf.float32)

    def update(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One training step: updates the networks and returns the terms by their paper's names."""
        raise NotImplementedError

    def train_step(self, data):
        optimizers = vars(self.training_optimizers)
        before = skipped_updates(optimizers)
        with accumulation.batches_in_parts(self.accumulate):
            terms = self.update(self.batch(data))
        self.term_names = tuple(terms)  # the graph returns them in alphabetical order
        self.update_average()
        skipped = {name: count - before[name] for name, count in skipped_updates(optimizers).items()}
        return for_the_log(terms | skipped)

    def batch(self, data) -> Batch:
        """What `update` takes, made from what `fit` was given; ValueError where the unlabelled images are missing."""
        batch = as_batch(data)
        if self.needs_unlabeled and batch.unlabeled is None:
            raise ValueError(
                f"{type(self).__name__} learns from unlabelled images too: give fit {{'labeled': images, 'unlabeled': "
                "images} and the labels of the former, or batches of these"
            )
        return batch

    def update_average(self) -> None:
        """The mean teacher, where there is one, follows the segmenter."""
        if self.averaged is not None:
            decay = decay_after(self.training_optimizers.segmenter.iterations, self.config.ema_decay)
            follow(self.averaged, self.segmenter, decay)

    def minimize(self, network_name: str, loss: tf.Tensor, tape: tf.GradientTape) -> None:
        """Updates one network, and no other, by the gradient of a loss. The tape must be persistent."""
        if gradient_norms.record(network_name, loss, tape):
            return
        optimizer = getattr(self.training_optimizers, network_name)
        variables = getattr(self, network_name).trainable_variables
        scale = optimizer.scale_loss(tf.ones_like(loss))
        optimizer.apply(tape.gradient(loss, variables, output_gradients=scale), variables)

    # --- saving ---

    def get_config(self):
        networks = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in self.network_names}
        return {"name": self.name, **networks, **dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialize(network_config):
            network = keras.saving.deserialize_keras_object(network_config)
            for layer in all_layers(network):  # trained in mixed precision, it runs in the precision in force
                if layer.dtype_policy.name.startswith("mixed"):
                    layer.dtype_policy = keras.config.dtype_policy()
            return network

        return cls(
            **{
                key: deserialize(value) if isinstance(value, dict) and "class_name" in value else value
                for key, value in config.items()
            }
        )
