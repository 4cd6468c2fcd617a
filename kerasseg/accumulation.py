"""Gradient accumulation: networks that take their batch in parts, one after the other.

A method's `update` still sees whole batches, so that every loss is that of the whole batch. Averages over small batches
would differ: means over valid or trusted pixels, means of features, entropies. Of a forward pass only input and output
are kept; the backward pass computes a part's inner activations again, adds its gradients to those of the parts before,
and drops them.
"""

import contextlib
import threading
from collections.abc import Iterator

import keras
import tensorflow as tf

from kerasseg.keras_internals import full_precision

state = threading.local()  # each replica has a thread


@contextlib.contextmanager
def batches_in_parts(parts: int) -> Iterator[None]:
    """Inside, networks prepared by `accumulate` take their batches in so many parts of equal size."""
    before = getattr(state, "parts", 1)
    state.parts = parts
    try:
        yield
    finally:
        state.parts = before


def accumulate(network: keras.Model) -> None:
    """Prepares a network for `batches_in_parts`; outside of it the network works as before. Part i of n has every n-th
    item from the i-th, so that batches joined for batch norm stay together. A segmenter's backbone and head, which may
    be called separately, are prepared each."""
    if getattr(network, "takes_parts", False):
        return
    if hasattr(network, "backbone"):
        accumulate(network.backbone)
        accumulate(network.head)
        if network.backbone in network.layers:  # so that a call of the network calls these two
            return
    network.takes_parts = True
    plain = network.call

    def call(inputs, training=None, **others):
        parts = getattr(state, "parts", 1)
        if parts == 1:
            return plain(inputs, training=training, **others)
        return _in_parts(network, parts, inputs, training)

    network.call = call


def _in_parts(network: keras.Model, parts: int, inputs, training: bool | None):
    flat_inputs = tf.nest.flatten(inputs)
    # Not `.value`: in mixed precision that is cast already.
    weights = [full_precision(variable) for variable in network.trainable_variables]
    kept = [full_precision(variable) for variable in network.non_trainable_variables]
    states = [kept]  # batch-norm statistics and random state before each part and after the last
    structure = None

    def run(part_inputs, weights, kept):
        """A pure function: a recomputation with the same input has the same output, and changes no state."""
        with batches_in_parts(1):
            part_inputs = tf.nest.pack_sequence_as(inputs, part_inputs)
            return network.stateless_call(weights, kept, part_inputs, training=training)

    @tf.custom_gradient
    def whole(*tensors):
        nonlocal structure
        x, w = tensors[: len(flat_inputs)], tensors[len(flat_inputs) :]
        outputs: list[list[tf.Tensor]] = []
        for part in range(parts):
            with tf.control_dependencies(outputs[-1] if outputs else []):  # one after the other
                part_x = _part(x, part, parts)
            structure, after = run(part_x, w, states[-1])
            outputs.append(tf.nest.flatten(structure))
            states.append(after)

        def gradient(*d_outputs):
            d_x, d_w, before = [], [tf.zeros_like(weight) for weight in w], list(d_outputs)
            for part in range(parts):
                with tf.control_dependencies(before):
                    part_x = _part(x, part, parts)
                with tf.GradientTape() as tape:
                    tape.watch([part_x, w])
                    part_outputs, _ = run(part_x, w, states[part])
                d_part, d_more = tape.gradient(
                    tf.nest.flatten(part_outputs),
                    [part_x, list(w)],
                    output_gradients=_part(d_outputs, part, parts),
                    unconnected_gradients="zero",
                )
                d_x.append(d_part)
                d_w = [total + more for total, more in zip(d_w, d_more, strict=True)]
                before = d_part + d_w
            return *_joined(d_x), *d_w

        return _joined(outputs), gradient

    outputs = whole(*flat_inputs, *weights)
    for variable, value in zip(network.non_trainable_variables, states[-1], strict=True):
        variable.assign(value)
    return tf.nest.pack_sequence_as(structure, tf.nest.flatten(outputs))


def _part(tensors, part: int, parts: int) -> list[tf.Tensor]:
    return [tf.identity(tensor[part::parts]) for tensor in tensors]


def _joined(parts: list[list[tf.Tensor]]) -> list[tf.Tensor]:
    """Undoes `_part`: the whole tensors, one by one."""

    def join(*tensors):
        shape = tf.shape(tensors[0])
        return tf.reshape(tf.stack(tensors, axis=1), tf.concat([[-1], shape[1:]], axis=0))

    return [tf.ensure_shape(join(*each), [None, *each[0].shape[1:]]) for each in zip(*parts, strict=True)]
