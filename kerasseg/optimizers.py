"""The methods' optimizers, where they differ from Keras' own."""

import itertools
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from kerasseg.distribution import number, sum_over_replicas
from kerasseg.keras_internals import LossScaleOptimizer, index_of, uses_weight_decay
from kerasseg.layers import register

if TYPE_CHECKING:
    from kerasseg.methods.config import AdversarialConfig, SegmenterConfig


class LossScale(LossScaleOptimizer):
    """Keras' loss scaling for float16, where a step that overflows counts as a step, and replicas agree on it.

    Only its update is left out. Schedules and all else that depends on `iterations` move on, as they do for the other
    networks of the method. (So does Adam's correction of its averages' bias: after k steps left out at the very
    beginning, the first updates are somewhat smaller than Adam's.)

    Attributes:
        skipped: how many updates have been left out so far; after `build`.
    """

    def build(self, var_list):
        self.skipped = self.add_variable(shape=(), dtype="int", initializer="zeros", aggregation="none", name="skipped")
        super().build(var_list)

    def check_finite(self, grads):
        """Whether the gradients are finite on all replicas: Keras asks the first one, before they are summed."""
        overflows = sum_over_replicas(tf.cast(tf.logical_not(super().check_finite(grads)), tf.float32))
        return overflows == 0

    def after_overflow(self):
        self.skipped.assign_add(1)
        self.iterations.assign_add(1)


@register
class Replaceable(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that a rate set by hand can replace, also in a graph that exists already."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule):
        self.schedule = schedule
        self.by_hand = tf.Variable(math.nan, trainable=False, name="rate_by_hand")

    def __call__(self, step):
        return tf.where(tf.math.is_nan(self.by_hand), self.schedule(step), self.by_hand)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]))


class SettableRate(keras.optimizers.Optimizer):
    """An optimizer whose `learning_rate` may be set although it has a schedule, as `LearningRateScheduler` and
    `ReduceLROnPlateau` set it: a `Replaceable` one steps aside, with a warning."""

    def __init__(self, learning_rate, *args, **kwargs):
        super().__init__(learning_rate, *args, **kwargs)
        self.schedule = learning_rate if isinstance(learning_rate, Replaceable) else None

    @property
    def learning_rate(self):
        return keras.optimizers.Optimizer.learning_rate.fget(self)

    @learning_rate.setter
    def learning_rate(self, rate):
        if self.schedule is None or callable(rate):
            keras.optimizers.Optimizer.learning_rate.fset(self, rate)
            return
        if math.isnan(number(self.schedule.by_hand)):
            warnings.warn(
                f"the learning rate is set to {float(rate):.3g} and no longer follows its schedule", stacklevel=2
            )
        self.schedule.by_hand.assign(rate)


class GroupRates(keras.optimizers.Optimizer):
    """An optimizer in which some variables learn at a multiple of the rate: a fresh head on a pretrained backbone.

    Args:
        multipliers: a factor of the learning rate for each variable given to `build`, in that order. None for 1
            everywhere.
        Others: of the optimizer.
    """

    def __init__(self, *args, multipliers: list[float] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.multipliers = multipliers

    def build(self, variables):
        if self.multipliers is not None and len(self.multipliers) != len(variables):
            raise ValueError(f"{len(self.multipliers)} multipliers for {len(variables)} variables: give one for each")
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        if self.multipliers is not None:
            learning_rate = learning_rate * self.multipliers[index_of(variable, self)]
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {"multipliers": self.multipliers}


class L2Penalty(keras.optimizers.Optimizer):
    """An optimizer with weight decay as in the papers' PyTorch code: added to the gradient.

    Keras' `weight_decay` acts on the weight directly, not on the gradient: about ten times weaker with SGD of momentum
    0.9.

    Args:
        l2: the factor by which the weight is multiplied before it is added to its gradient; not for weights that
            `exclude_from_weight_decay` names.
        Others: of the optimizer.
    """

    def __init__(self, *args, l2: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        if self.l2 and uses_weight_decay(variable, self):
            gradient = gradient + self.l2 * variable
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {"l2": self.l2}


@register
class SGD(SettableRate, L2Penalty, GroupRates, keras.optimizers.SGD):
    """SGD with momentum, as the papers' segmenters are trained. Arguments: `L2Penalty`, `GroupRates`,
    `keras.optimizers.SGD`."""


@register
class Adam(SettableRate, L2Penalty, keras.optimizers.Adam):
    """Adam, as a critic with weight decay is trained. Arguments: `L2Penalty`, `keras.optimizers.Adam`."""


@register
class AdamW(SettableRate, GroupRates, keras.optimizers.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101) and rates by group.

    A step subtracts from each weight, whatever its group, the weight times weight decay times learning rate. Arguments:
    `GroupRates`, `keras.optimizers.AdamW`.
    """


@register
class Poly(keras.optimizers.schedules.PolynomialDecay):
    """learning_rate * (1 - step / steps)^0.9, the schedule of all five papers; 0 from `until` of the steps on."""

    def __init__(self, learning_rate: float, steps: int, until: float = 1.0):
        super().__init__(learning_rate, steps, end_learning_rate=0.0, power=0.9)
        self.until = until

    def __call__(self, step):
        return super().__call__(step) * keras.ops.cast(step < self.until * self.decay_steps, "float32")

    def get_config(self):
        return {"learning_rate": self.initial_learning_rate, "steps": self.decay_steps, "until": self.until}


@register
class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises in equal parts over the first `steps` steps, from rate / steps to the one that `schedule` has
    there, and follows that from then on."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, steps: int):
        self.schedule = schedule
        self.steps = steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        rise = tf.minimum((step + 1.0) / self.steps, 1.0)
        return rise * self.schedule(tf.maximum(step, float(self.steps)))

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["steps"])


def segmenter_rate(config: "SegmenterConfig") -> Replaceable:
    """The learning rate that `config` describes."""
    updates = config.main_updates * config.steps
    poly = Poly(config.learning_rate, updates)
    warmup = round(config.warmup * updates)
    return Replaceable(Warmup(poly, warmup) if warmup else poly)


def layer_rates(backbone: keras.Model, layer_decay: float) -> dict[int, float]:
    """The learning rate of each trainable variable of a backbone as a share of its last layer's, by the variable's id:
    `layer_decay` in the first layer that has any, and equal factors from layer to layer.

    The order is that of the functional network, and within a layer made of layers that in which it made them.
    """
    layers = [
        list(group)
        for _, group in itertools.groupby(backbone.trainable_variables, lambda each: each.path.rpartition("/")[0])
    ]
    last = max(len(layers) - 1, 1)
    return {
        id(variable): layer_decay ** ((len(layers) - 1 - index) / last)
        for index, layer in enumerate(layers)
        for variable in layer
    }


NOT_DECAYED = re.compile(r"(bias|tokens?|pos_embed|position_\w+)(/embeddings)?$")
"""The ends of the paths of biases, tokens and position embeddings, which may have several dimensions."""


def not_decayed(variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """Those of the variables that `decay_matrices_only` leaves out of the weight decay: biases, scales and shifts of
    normalisation and of layers, position embeddings, tokens."""
    return [each for each in variables if len(each.shape) < 2 or NOT_DECAYED.search(each.path)]


def segmenter_optimizer(
    config: "SegmenterConfig",
    segmenter: keras.Model,
    network: keras.Model | None = None,
    rate: Replaceable | None = None,
) -> SGD | AdamW:
    """The optimizer that `config` describes, for the segmenter or another `network` that learns together with it:
    everything outside the segmenter's backbone learns at the head's rate."""
    network = network or segmenter
    backbone = getattr(segmenter, "backbone", None)
    pretrained = layer_rates(backbone, config.layer_decay) if backbone else {}
    head = config.head_multiplier if backbone else 1.0
    multipliers = [pretrained.get(id(variable), head) for variable in network.trainable_variables]
    rate = rate or segmenter_rate(config)
    optimizer: SGD | AdamW
    if config.optimizer == "adamw":
        optimizer = AdamW(rate, weight_decay=config.weight_decay, multipliers=multipliers)
    else:
        optimizer = SGD(
            rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            l2=config.weight_decay,
            multipliers=multipliers,
        )
    if config.decay_matrices_only:
        optimizer.exclude_from_weight_decay(not_decayed(network.trainable_variables))
    return optimizer


def discriminator_optimizer(config: "AdversarialConfig", until: float = 1.0) -> keras.optimizers.Adam:
    """The optimizer that `config` describes; its rate is 0 after the share `until` of training."""
    rate = Poly(config.discriminator_learning_rate, config.steps, until)
    return keras.optimizers.Adam(rate, beta_1=0.9, beta_2=0.99)


def skipped_updates(optimizers: Mapping[str, keras.optimizers.Optimizer]) -> dict[str, tf.Tensor]:
    """How many updates of each network an overflow has cost so far, this replica's share: with mixed_float16.

    Args:
        optimizers: by network name.
    """
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    scaled = {name: each for name, each in optimizers.items() if isinstance(each, LossScale)}
    return {f"skipped_{name}": tf.cast(each.skipped.value, tf.float32) / replicas for name, each in scaled.items()}
