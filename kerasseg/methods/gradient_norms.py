"""How hard each loss term of a method pulls at the networks that learn by it."""

import threading
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from kerasseg import accumulation
from kerasseg.distribution import sum_over_replicas

if TYPE_CHECKING:
    from kerasseg.methods.method import Method

measuring = threading.local()  # each replica has a thread


def record(network_name: str, loss: tf.Tensor, tape: tf.GradientTape) -> bool:
    """Whether gradients are being measured; then `loss` is noted, and is not to be minimised."""
    if not hasattr(measuring, "minimized"):
        return False
    measuring.minimized.append((network_name, loss, tape))
    return True


def gradient_norms(method: "Method", data: Any) -> dict[str, tf.Tensor]:
    """The norms on a batch as `fit` takes it, of a compiled method.

    Nothing is trained. What a forward pass in train mode leaves behind (batch-norm statistics, random state) is the
    caller's to put back.

    Returns:
        By the term's name the Euclidean norm of its part of the gradient, its weight included: 0 where it has not
        set in yet. Sums of terms that are minimised are there under their own names.
    """
    minimized: list[tuple[str, tf.Tensor, tf.GradientTape]] = []
    measuring.minimized = minimized
    try:
        with accumulation.batches_in_parts(method.accumulate):
            terms = method.update(method.batch(data))
    finally:
        del measuring.minimized
    squares: dict[str, tf.Tensor] = {}
    for network_name, loss, tape in minimized:
        variables = getattr(method, network_name).trainable_variables
        scale = getattr(method.training_optimizers, network_name).scale_loss(tf.ones_like(loss))
        weights = tape.gradient(loss, list(terms.values()), output_gradients=scale)
        for (name, term), weight in zip(terms.items(), weights, strict=True):
            if weight is None:  # the loss does not depend on it
                continue
            gradients = tape.gradient(term, variables, output_gradients=weight)
            parts = [sum_over_replicas(gradient) for gradient in gradients if gradient is not None]
            squares[name] = squares.get(name, 0.0) + (tf.linalg.global_norm(parts) / scale) ** 2
    return {name: tf.sqrt(square) for name, square in squares.items()}
