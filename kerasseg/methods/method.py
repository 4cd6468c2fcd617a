"""What all methods share, so that a method's `train_step` has only its paper in it."""

import dataclasses
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf

from kerasseg import accumulation
from kerasseg.losses import IGNORE_LABEL, cross_entropy, dice_loss, hard_pixels, sum_over_replicas
from kerasseg.methods.averaging import averaged_copy, follow
from kerasseg.methods.config import MethodConfig, require
from kerasseg.metrics import ConfusionMatrix
from kerasseg.optimizers import SGD, AdamW, LossScale, Poly

Segment = Callable[[Callable[[tf.Tensor], tf.Tensor], tf.Tensor], tf.Tensor]
"""From a network (images (B,H,W,3) to class probabilities (B,H,W,K)), and images, to class probabilities."""


def at_once(network: Callable[[tf.Tensor], tf.Tensor], images_BHW3: tf.Tensor) -> tf.Tensor:
    """The `Segment` that takes images as they are."""
    return network(images_BHW3)


class TrainingData(NamedTuple):
    """What a method may want to know of the data before its networks are built."""

    labeled_images: int
    """How many images have a label map."""
    crop: tuple[int, int]
    """Height and width of the training crops, pixels."""


class Inference(NamedTuple):
    """What a method answers for images (B,H,W,3); see `Method.infer`."""

    logits_BHWK: tf.Tensor
    """The predicting network's own."""
    segmentation_BHWK: tf.Tensor
    """Their softmax: the class probabilities before any gate, which critics judge."""
    variants: dict[str, tf.Tensor]
    """What `Method.variants_from` makes of them."""
    scores: tf.Tensor | None
    """What the method's critic makes of the segmentation, 0..1: (B,), (B,H,W), or None where there is no critic."""

    @property
    def probabilities_BHWK(self) -> tf.Tensor:
        """The answer: class probabilities, of a gated class 0."""
        return self.variants[""]

    @property
    def reliability_BHW(self) -> tf.Tensor | None:
        """How far a critic that judges pixels trusts the segmentation, 0..1; None where no critic does."""
        return self.scores if self.scores is not None and self.scores.shape.rank == 3 else None


class Method(keras.Model):
    """A way of training a segmenter: networks, one optimizer for each, and a `train_step`.

    As a Keras model it maps images (B,H,W,3), RGB in 0..255, any size, to class probabilities (B,H,W,K), float32.
    Training data are `({"labeled": images, "unlabeled": images}, labels)` with labels (B,H,W) in 0..K-1 or 255, and
    possibly `"unlabeled_valid"` (B,H,W), False where an unlabelled image is padding; evaluation data
    `(images, labels)`. So `compile`, `fit`, `evaluate`, `predict` and callbacks work as ever.

    A subclass names its networks in the constructor, gives `Config` and `make_optimizers`, and one of `train_step` or
    `update`.

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
    """The networks that segment, by name: what `SegmenterConfig` says holds for them."""
    gating: tuple[str, ...] = ()
    """The networks by which classes are switched off, by name: a small change there may change a whole picture."""
    uses_weak = False
    """Whether it learns from image-level labels: `"weak"` and `"weak_classes"` of a batch."""

    def __init__(self, networks: dict[str, keras.Model], fields: dict[str, Any], name: str | None = None):
        super().__init__(name=name)
        self.config = self.make_config(fields)
        self.network_names = tuple(networks)
        for network_name, network in networks.items():
            setattr(self, network_name, network)
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
        self.training_optimizers = SimpleNamespace()
        self.accumulate = 1
        self.measuring = threading.local()  # each replica has a thread
        self.built = True  # every network is functional, so there is nothing left to build

    @property
    def unlabeled_sets(self) -> int:
        """How many times `--unlabeled-batch-size` images a step takes from the unlabelled ones."""
        return 1

    @property
    def least_unlabeled(self) -> int:
        """How many unlabelled images of a step each device needs at least."""
        return 1

    # --- building from a configuration ---

    registry_name: str
    """The method's `--method`."""
    when: str = ""
    """When to take it: the rest of a line that begins with its name."""
    summary: str = ""
    """What it does, for the report's reader: a few sentences, the first of which begins with a verb."""

    @classmethod
    def make_config(cls, fields: dict[str, Any]) -> Any:
        """The checked configuration; ValueError for an unknown field or an impossible value."""
        known = [field.name for field in dataclasses.fields(cls.Config)]
        for field in fields:
            require(field in known, f"{cls.__name__} has no field {field!r}; its fields: {', '.join(known)}")
        return cls.Config(**fields)

    @classmethod
    def config_groups(cls, fields: dict[str, dict[str, Any]]) -> dict[str, type[MethodConfig]]:
        """The configurations a run of this method has, by registry name: its own, and those of methods inside it."""
        return {cls.registry_name: cls.Config}

    @classmethod
    def with_data(cls, fields: dict[str, dict[str, Any]], data: TrainingData) -> dict[str, dict[str, Any]]:
        """The fields, by registry name, with what a method has to know of the data."""
        return fields

    @classmethod
    def from_segmenter(cls, segmenter: keras.Model, fields: dict[str, dict[str, Any]]) -> Self:
        """The method around a segmenter; `fields` maps a method's registry name to its fields."""
        return cls(segmenter, **fields.get(cls.registry_name, {}))

    @classmethod
    def from_trained(cls, branch: "Method", fields: dict[str, dict[str, Any]], weights: str = "none") -> Self:
        """The method around an already trained one that it leaves as it is; ValueError where that makes no sense.

        Args:
            weights: what that one's backbone started from, as `build_backbone` takes it.
        """
        raise ValueError(f"{cls.registry_name} trains its own segmenter: only mlmt can be added to a finished run")

    def fields(self) -> dict[str, dict[str, Any]]:
        """All fields as they are in force, by registry name: its own, and those of methods inside it."""
        return {self.registry_name: dataclasses.asdict(self.config)}

    # --- inference ---

    @property
    def averages_weights(self) -> bool:
        """Whether it keeps a mean teacher of the segmenter, `averaged`."""
        fields = self.config
        return self.keeps_teacher or getattr(fields, "average_weights", False) or self.targets == "teacher"

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of what `predictions` gives, the method's answer (named "") first."""
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
        return self.variants_from(images_BHW3, self.class_probabilities(images_BHW3))[""]

    def infer(self, images_BHW3) -> Inference:
        """The method's answer, in inference mode: what is evaluated, drawn, exported and compared with exports."""
        images_BHW3 = tf.convert_to_tensor(images_BHW3)  # Keras takes no array beside a tensor
        logits_BHWK = self.predictor(images_BHW3, training=False)
        S_BHWK = tf.nn.softmax(logits_BHWK)
        variants = self.variants_from(images_BHW3, S_BHWK)
        return Inference(logits_BHWK, S_BHWK, variants, self.scores(images_BHW3, S_BHWK))

    def predictions(self, images_BHW3, segment: Segment = at_once) -> dict[str, tf.Tensor]:
        """Class probabilities (B,H,W,K) by variant, in inference mode; `segment` for protocols that average over
        scales, mirrorings and parts of an image."""
        S_BHWK = segment(self.class_probabilities, images_BHW3)
        return self.variants_from(images_BHW3, S_BHWK) | self.of_last_weights(images_BHW3, segment)

    def of_last_weights(self, images_BHW3, segment: Segment = at_once) -> dict[str, tf.Tensor]:
        """The class probabilities of the segmenter's last weights under "student", where their average predicts;
        nothing elsewhere."""
        if "student" not in self.variants:
            return {}
        return {"student": segment(lambda images: tf.nn.softmax(self.segmenter(images, training=False)), images_BHW3)}

    def class_probabilities(self, images_BHW3) -> tf.Tensor:
        """The predicting network's own class probabilities (B,H,W,K), before `variants_from` sees them."""
        return tf.nn.softmax(self.predictor(images_BHW3, training=False))

    def variants_from(self, images_BHW3, S_BHWK) -> dict[str, tf.Tensor]:
        """Class probabilities (B,H,W,K) by variant, from the predicting network's for whole images."""
        return {"": S_BHWK}

    def scores(self, images_BHW3, probabilities_BHWK) -> tf.Tensor | None:
        """What the method's critic makes of a segmentation, 0..1: (B,), (B,H,W), or None where there is no critic."""
        return None

    def reliability(self, images_BHW3) -> tf.Tensor | None:
        """How far a critic that judges pixels trusts the segmentation of images: (B,H,W), 0..1; None where no critic
        does."""
        return self.infer(images_BHW3).reliability_BHW

    def observe(self, images_BHW3, labels_BHW) -> dict[str, tf.Tensor]:
        """What `diagnostics` wants to know of held-out images, a row for each."""
        return {}

    def diagnostics(self, observed: dict[str, np.ndarray]) -> dict[str, Any]:
        """What a trained method says of itself beyond its scores: plain numbers, lists and dicts.

        Args:
            observed: what `observe` gave, for all images.
        """
        return {}

    def test_step(self, data):
        images_BHW3, labels_BHW = data
        for variant, probabilities_BHWK in self.predictions(images_BHW3).items():
            self.confusion[variant or "mIoU"].update_state(labels_BHW, tf.argmax(probabilities_BHWK, axis=-1))
        return {name: metric.result() for name, metric in self.confusion.items()}

    @property
    def metrics(self):
        return list(self.confusion.values())

    # --- training ---

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing is left to build; Keras would take a mean of the replicas' batches, which fails on their masks."""

    def make_optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """The paper's optimizer for each network that is trained, by the network's name."""
        raise NotImplementedError

    def compile(
        self,
        optimizers: dict[str, keras.optimizers.Optimizer] | None = None,
        jit_compile=None,
        sync_batch_norm: bool = False,
        accumulate: int = 1,
        **kwargs,
    ):
        """Makes the optimizers and their state.

        Args:
            optimizers: by network name, in place of the paper's.
            sync_batch_norm: whether batch norm goes by the batches of all replicas together.
            accumulate: in how many parts, one after the other, networks take a batch, for less memory; it divides the
                batches' sizes. Only batch norm notices: it goes by each part.
            jit_compile: whether XLA compiles the step; by default not: on CPU it is the slower of the two.
            kwargs: `steps_per_execution`, `run_eagerly` and so on, as `keras.Model.compile` takes them.
        """
        if getattr(self.config, "freeze_batch_norm", False):
            for layer in self.batch_norms(self.segmenting):
                layer.trainable = False
        if sync_batch_norm:
            for layer in self.batch_norms(self.network_names):
                layer.synchronized = True
        self.accumulate = accumulate
        if accumulate > 1:
            for network in (getattr(self, name) for name in self.network_names):
                if hasattr(network, "backbone"):  # of a `Segmenter`, backbone and head may be called apart
                    accumulation.accumulate(network.backbone)
                    accumulation.accumulate(network.head)
                elif not isinstance(network, Method):
                    accumulation.accumulate(network)
        chosen = self.make_optimizers() | (optimizers or {})
        for network_name, optimizer in chosen.items():
            require(
                network_name in self.network_names,
                f"{type(self).__name__} has no network {network_name!r}; its networks: {', '.join(self.network_names)}",
            )
            if keras.config.dtype_policy().name == "mixed_float16":
                optimizer = LossScale(optimizer)
            # Before the first step, or two optimizers in one step fail under MirroredStrategy.
            optimizer.build(getattr(self, network_name).trainable_variables)
            setattr(self.training_optimizers, network_name, optimizer)
        first = next(iter(chosen), None)
        super().compile(
            optimizer=getattr(self.training_optimizers, first) if first else "sgd",
            jit_compile=bool(jit_compile),
            **kwargs,
        )

    def batch_norms(self, network_names: tuple[str, ...]) -> list[keras.layers.BatchNormalization]:
        """The batch-norm layers of these networks."""
        layers = (layer for name in network_names for layer in getattr(self, name)._flatten_layers())
        return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]

    @property
    def stages(self) -> dict[str, int]:
        """The parts of the training in their order, by the name of the method that each belongs to, and how many steps
        they have."""
        return {self.registry_name: self.config.steps}

    @property
    def total_steps(self) -> int:
        """How many training steps there are in all."""
        return sum(self.stages.values())

    @property
    def crop_steps(self) -> int:
        """For how many steps, from the first one, the batches hold crops; those after them hold whole images."""
        return self.total_steps

    @property
    def main_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer whose learning rate the log shows."""
        return self.training_optimizers.segmenter

    @property
    def current_optimizers(self) -> dict[str, keras.optimizers.Optimizer]:
        """The optimizers of the networks that a step trains at present, by the network's name."""
        return vars(self.training_optimizers)

    def get_compile_config(self):
        return None  # a saved model is for inference; training resumes from a checkpoint

    def segmenter_optimizer(self, network: keras.Model | None = None) -> SGD | AdamW:
        """The optimizer that `SegmenterConfig` describes, for the segmenter or another `network`: all that is not of
        the segmenter's backbone learns at the head's rate."""
        config = self.config
        network = network or self.segmenter
        backbone = getattr(self.segmenter, "backbone", None)
        pretrained = {variable.path for variable in backbone.trainable_variables} if backbone else set()
        multipliers = [
            1.0 if not backbone or variable.path in pretrained else config.head_multiplier
            for variable in network.trainable_variables
        ]
        rate = Poly(config.learning_rate, config.main_updates * config.steps)
        if config.optimizer == "adamw":
            return AdamW(rate, weight_decay=config.weight_decay, multipliers=multipliers)
        return SGD(
            rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            l2=config.weight_decay,
            multipliers=multipliers,
        )

    def discriminator_optimizer(self, until: float = 1.0) -> keras.optimizers.Adam:
        """The optimizer that `AdversarialConfig` describes; `until` that share of training, when its rate becomes 0."""
        rate = Poly(self.config.discriminator_learning_rate, self.config.steps, until)
        return keras.optimizers.Adam(rate, beta_1=0.9, beta_2=0.99)

    def unpack(self, data) -> tuple[tf.Tensor, Any, tf.Tensor]:
        """Labelled images, unlabelled images (None where the method has no use for them), labels."""
        batch, labels_BHW = data
        labels_BHW = tf.cast(labels_BHW, tf.int32)
        if self.needs_unlabeled and "unlabeled" not in batch:
            raise ValueError(f"{type(self).__name__} learns from unlabelled images too; the batch has {sorted(batch)}")
        return batch["labeled"], batch.get("unlabeled"), labels_BHW

    @staticmethod
    def unlabeled_valid(data) -> tf.Tensor:
        """Which pixels of the unlabelled images are of the picture and not of its padding; (B,H,W) bool."""
        batch, _ = data
        if "unlabeled_valid" in batch:
            return batch["unlabeled_valid"]
        return tf.ones(tf.shape(batch["unlabeled"])[:3], tf.bool)

    def segment(self, x_l: tf.Tensor, x_u: tf.Tensor) -> list[tf.Tensor]:
        """Logits of labelled and of unlabelled images in train mode: batch norm goes by the batches themselves,
        together or each by itself (`joint_batch_norm`)."""
        if self.config.joint_batch_norm:
            return concatenated(self.segmenter, x_l, x_u, training=True)
        return [self.segmenter(x, training=True) for x in (x_l, x_u)]

    def labeled_loss(self, y_l: tf.Tensor, logits_l: tf.Tensor) -> tf.Tensor:
        """The loss on labels: cross-entropy, with class weights, hard pixels and a Dice loss as the fields say."""
        config = self.config
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
            logits_u: what the training pass gave for them.
        """
        if self.targets == "train_mode":
            return tf.stop_gradient(logits_u)
        network = self.averaged if self.targets == "teacher" else self.segmenter
        return tf.stop_gradient(network(x_u, training=False))

    def once_at(self, share: float) -> tf.Tensor:
        """1 from that share of training on, 0 before: the factor of a term that sets in late."""
        step = tf.cast(self.training_optimizers.segmenter.iterations, tf.float32)
        return tf.cast(step >= share * self.config.steps, tf.float32)

    def update(self, data) -> dict[str, tf.Tensor]:
        """One training step on a batch: updates the networks and returns the terms by their paper's names."""
        raise NotImplementedError

    def train_step(self, data):
        before = self.skipped()
        with accumulation.batches_in_parts(self.accumulate):
            terms = self.update(data)
        self.update_average()
        skipped = {name: count - before[name] for name, count in self.skipped().items()}
        return self.report(terms | skipped)

    def update_average(self) -> None:
        """The mean teacher follows the segmenter, where there is one: with decay min((1 + t) / (10 + t), `ema_decay`)
        after t updates, TensorFlow's. min(1 - 1 / (t + 1), ...) remembers the first steps for too long: from random
        weights batch norm's variances then fall by orders of magnitude, and the average of them fits no network."""
        if self.averaged is not None:
            steps = tf.cast(self.training_optimizers.segmenter.iterations, tf.float32)
            follow(self.averaged, self.segmenter, tf.minimum((1.0 + steps) / (10.0 + steps), self.config.ema_decay))

    def skipped(self) -> dict[str, tf.Tensor]:
        """How many updates of each network an overflow has cost so far, this replica's share: with mixed_float16."""
        scaled = {name: each for name, each in self.current_optimizers.items() if isinstance(each, LossScale)}
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return {f"skipped_{name}": tf.cast(each.skipped.value, tf.float32) / replicas for name, each in scaled.items()}

    def minimize(self, network_name: str, loss: tf.Tensor, tape: tf.GradientTape) -> None:
        """Updates one network, and no other, by the gradient of a loss. The tape has to be persistent."""
        if hasattr(self.measuring, "minimized"):
            self.measuring.minimized.append((network_name, loss, tape))
            return
        optimizer = getattr(self.training_optimizers, network_name)
        variables = getattr(self, network_name).trainable_variables
        scale = optimizer.scale_loss(tf.ones_like(loss))
        optimizer.apply(tape.gradient(loss, variables, output_gradients=scale), variables)

    def gradient_norms(self, data) -> dict[str, tf.Tensor]:
        """How hard each loss term pulls at the networks that learn by it, on a batch as `update` takes it.

        Nothing is trained. What a forward pass in train mode leaves behind (batch-norm statistics, random state) is the
        caller's to put back.

        Returns:
            By the term's name the Euclidean norm of its part of the gradient, its weight included: 0 where it has not
            set in yet. Sums of terms that are minimised are there under their own names.
        """
        minimized: list[tuple[str, tf.Tensor, tf.GradientTape]] = []
        self.measuring.minimized = minimized
        try:
            with accumulation.batches_in_parts(self.accumulate):
                terms = self.update(data)
        finally:
            del self.measuring.minimized
        squares: dict[str, tf.Tensor] = {}
        for network_name, loss, tape in minimized:
            variables = getattr(self, network_name).trainable_variables
            scale = getattr(self.training_optimizers, network_name).scale_loss(tf.ones_like(loss))
            weights = tape.gradient(loss, list(terms.values()), output_gradients=scale)
            for (name, term), weight in zip(terms.items(), weights, strict=True):
                if weight is None:  # the loss does not depend on it
                    continue
                gradients = tape.gradient(term, variables, output_gradients=weight)
                parts = [sum_over_replicas(gradient) for gradient in gradients if gradient is not None]
                squares[name] = squares.get(name, 0.0) + (tf.linalg.global_norm(parts) / scale) ** 2
        return {name: tf.sqrt(square) for name, square in squares.items()}

    def report(self, terms: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The terms of the global batch, for the log."""
        strategy = tf.distribute.get_strategy()
        several_workers = strategy.extended._in_multi_worker_mode()
        terms = {name: sum_over_replicas(term) for name, term in terms.items()}
        return {name: term[tf.newaxis] if several_workers else term for name, term in terms.items()}

    def separate_random_numbers(self) -> None:
        """Lets each replica draw random numbers of its own. Call it once, where all are in the same state: after
        `compile`, or after restoring a checkpoint, which holds the first replica's."""
        strategy = self.distribute_strategy
        states = [variable for variable in self.non_trainable_variables if variable.name == "seed_generator_state"]

        @tf.function
        def separate():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for state in states:  # a seed, and how many draws there were
                state.assign(state.value + tf.cast([0, 2**24], state.dtype) * tf.cast(replica, state.dtype))

        if strategy.num_replicas_in_sync > 1:
            strategy.run(separate)

    # --- saving ---

    def get_config(self):
        networks = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in self.network_names}
        return {"name": self.name, **networks, **dataclasses.asdict(self.config)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialize(network_config):
            network = keras.saving.deserialize_keras_object(network_config)
            for layer in network._flatten_layers():  # what was trained in mixed precision runs in the one in force
                if layer.dtype_policy.name.startswith("mixed"):
                    layer.dtype_policy = keras.config.dtype_policy()
            return network

        return cls(
            **{
                key: deserialize(value) if isinstance(value, dict) and "class_name" in value else value
                for key, value in config.items()
            }
        )

    def training_variables(self) -> dict[str, tf.Variable]:
        """Everything that a training resumed from here needs: weights, random state, optimizers.

        Named by position, because Keras numbers equal layer names by what else the process has built.
        """
        groups = {"model": self.variables} | {
            f"{name}_optimizer": optimizer.variables for name, optimizer in vars(self.training_optimizers).items()
        }
        return {
            f"{group}/{index}": variable.value
            for group, variables in groups.items()
            for index, variable in enumerate(variables)
        }


def concatenated(network: keras.Model, *batches: tf.Tensor, training: bool) -> list[tf.Tensor]:
    """One forward pass over several batches of one picture size, so that batch norm sees them together."""
    outputs = network(tf.concat(batches, axis=0), training=training)
    return tf.split(outputs, [tf.shape(batch)[0] for batch in batches], axis=0, num=len(batches))
