"""Helpers for `tf.distribute`: sums over replicas, a random state for each replica, and state restored."""

import contextlib
from collections.abc import Iterator
from itertools import chain

import keras
import tensorflow as tf

from kerasseg.keras_internals import several_workers


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The sum of a tensor over replicas; the tensor itself where there is one."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def leave_gpus() -> None:
    """Keeps TensorFlow off the GPUs, all of whose memory it would take, perhaps from a training. Before it uses any."""
    tf.config.set_visible_devices([], "GPU")


def number(variable: keras.Variable | tf.Variable) -> float:
    """The value of a scalar variable that all replicas share."""
    return float(tf.convert_to_tensor(variable.value if isinstance(variable, keras.Variable) else variable))


def for_the_log(terms: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The terms of the global batch, from the replicas' shares of them, as `train_step` must return them."""
    terms = {name: sum_over_replicas(term) for name, term in terms.items()}
    if several_workers(tf.distribute.get_strategy()):  # Keras concatenates what workers return
        return {name: term[tf.newaxis] for name, term in terms.items()}
    return terms


def separate_random_numbers(model: keras.Model) -> None:
    """Lets each replica draw random numbers of its own. Call it once, when all are in the same state: after `compile`,
    or after restoring a checkpoint, which holds the first replica's state."""
    strategy = model.distribute_strategy
    states = [variable for variable in model.non_trainable_variables if variable.name == "seed_generator_state"]

    @tf.function
    def separate():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for state in states:  # a seed, and how many draws there were
            state.assign(state.value + tf.cast([0, 2**24], state.dtype) * tf.cast(replica, state.dtype))

    if strategy.num_replicas_in_sync > 1:
        strategy.run(separate)


@contextlib.contextmanager
def state_restored(model: keras.Model) -> Iterator[None]:
    """Restores on exit the variables that are not trained: batch-norm statistics, random state. Each replica has copies
    of its own."""
    local = model.distribute_strategy.experimental_local_results
    copies = list(chain(*(local(variable.value) for variable in model.non_trainable_variables)))
    values = [copy.numpy() for copy in copies]
    try:
        yield
    finally:
        for copy, value in zip(copies, values, strict=True):
            copy.assign(value)
