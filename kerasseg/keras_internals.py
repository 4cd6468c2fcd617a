"""The private names of Keras and TensorFlow that this project needs: here and nowhere else.

`tests/kerasseg/test_keras_internals.py` says which of them a new version has changed.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.ops.numpy import Pad


class BuiltModel(keras.Model):
    """A model of functional networks, so that nothing is left to build.

    Keras would build it on the mean of the replicas' batches, which fails on label maps.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.built = True

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        pass


class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' loss scaling for float16, which calls `after_overflow` when an update is left out."""

    def after_overflow(self) -> None:
        """Called in the graph, after the scale was lowered."""

    def _stateful_handle_non_finite_grads(self):
        super()._stateful_handle_non_finite_grads()
        self.after_overflow()


def all_layers(network: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a network and of the networks inside it, and these networks themselves."""
    return iter(network._flatten_layers())


def parts_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers directly inside a layer, such as the attention of a transformer's block."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def inputs_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers whose outputs a layer of a functional network takes."""
    return [node.operation for node in layer._inbound_nodes[0].parent_nodes]


def pads(layer: keras.layers.Layer) -> bool:
    """Whether a layer of a functional network only pads images: with zeros, or with anything by `keras.ops.pad`."""
    return isinstance(layer, keras.layers.ZeroPadding2D | Pad)


def made_by(tensor: keras.KerasTensor) -> tuple[keras.layers.Layer, list[keras.KerasTensor]]:
    """The layer that gives this tensor in a functional network, and what it takes there: a layer may be used twice, and
    a network inside another one has outputs in both."""
    layer, node, _ = tensor._keras_history
    return layer, layer._inbound_nodes[node].input_tensors


def place_of(tensor: keras.KerasTensor) -> tuple[int, int]:
    """Which use of its layer gives this tensor in a functional network, and which output of that use it is."""
    _, use, output = tensor._keras_history
    return use, output


@contextlib.contextmanager
def fresh_names() -> Iterator[None]:
    """Keras numbers layers without a name from the start, whatever was built before."""
    key = "object_name_uids"
    before = global_state.get_global_attribute(key)
    global_state.set_global_attribute(key, defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(key, before)


def index_of(variable: keras.Variable, optimizer: keras.optimizers.Optimizer) -> int:
    """The variable's position, from 0, among those given to `optimizer.build`."""
    return optimizer._get_variable_index(variable)


def uses_weight_decay(variable: keras.Variable, optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the optimizer's `exclude_from_weight_decay` has not named the variable."""
    return optimizer._use_weight_decay(variable)


def share_rate(optimizer: keras.optimizers.Optimizer, first: keras.optimizers.Optimizer) -> None:
    """Lets an optimizer follow the learning rate of another one, also one that is set later."""
    optimizer._learning_rate = first._learning_rate


def full_precision(variable: keras.Variable) -> tf.Tensor:
    """The stored value, which `variable.value` has cast in mixed precision."""
    return tf.convert_to_tensor(variable._value)


def several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy spans several processes."""
    return strategy.extended._in_multi_worker_mode()
