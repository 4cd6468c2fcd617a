"""Optimizers where they have to differ from Keras' own."""

import keras

from kerasseg.layers import register


class GroupRates(keras.optimizers.Optimizer):
    """An optimizer some of whose variables learn at a multiple of the rate: a fresh head on a pretrained backbone.

    Args:
        multipliers: per variable given to `build`, in that order, what the learning rate is multiplied by. None for 1
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
            learning_rate = learning_rate * self.multipliers[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {"multipliers": self.multipliers}


@register
class SGD(GroupRates, keras.optimizers.SGD):
    """SGD with momentum whose weight decay and rates by group work as in the papers' PyTorch code.

    Args:
        l2: weight decay added to the gradient, so that it passes through the momentum. Keras' `weight_decay` acts on
            the weight beside the gradient: about ten times weaker at momentum 0.9.
        multipliers: `GroupRates`.
        Others: `keras.optimizers.SGD`.
    """

    def __init__(self, *args, l2: float = 0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        if self.l2:
            gradient = gradient + self.l2 * variable
        super().update_step(gradient, variable, learning_rate)

    def get_config(self):
        return super().get_config() | {"l2": self.l2}


@register
class AdamW(GroupRates, keras.optimizers.AdamW):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101) and rates by group.

    A step takes the weight decay times the learning rate off each weight, whatever its group. Arguments: `GroupRates`,
    `keras.optimizers.AdamW`.
    """


def poly(learning_rate: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """learning_rate * (1 - step / steps)^0.9: the schedule of all five papers."""
    return keras.optimizers.schedules.PolynomialDecay(learning_rate, steps, end_learning_rate=0.0, power=0.9)
