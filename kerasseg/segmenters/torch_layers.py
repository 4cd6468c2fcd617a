"""Layers of PyTorch as layers of Keras: the same numbers in another layout, matched by their order."""

from collections.abc import Sequence

import keras
import numpy as np

from kerasseg.keras_internals import inputs_of

COUNTER = "num_batches_tracked"
"""What PyTorch's batch norm counts; Keras has nothing like it."""
ORDER = ("weight", "bias", "running_mean", "running_var")
"""A module's tensors as Keras orders a layer's variables."""


def modules_of(tensors: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The tensors of each module by its name, in the file's order of modules and Keras' order of variables."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        module, _, part = name.rpartition(".")
        if part != COUNTER:
            modules.setdefault(module, {})[part] = array
    return {
        module: [parts[part] for part in sorted(parts, key=lambda part: ORDER.index(part) if part in ORDER else 9)]
        for module, parts in modules.items()
    }


def as_keras(arrays: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray] | None:
    """A module's arrays in the layout of a Keras layer whose variables have these shapes; None where they do not fit.

    Convolutions are (out,in,H,W) there and (H,W,in,out) here, depthwise ones (C,1,H,W) and (H,W,C,1), dense layers
    (out,in) and (in,out).
    """
    if len(arrays) != len(shapes):
        return None
    kernel, *others = arrays
    if kernel.ndim == 4:
        depthwise = kernel.shape[1] == 1 and shapes[0][-1] == 1
        kernel = kernel.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    elif kernel.ndim == 2:
        kernel = kernel.T
    turned = [kernel, *others]
    return turned if [array.shape for array in turned] == list(map(tuple, shapes)) else None


def require_chain(network: keras.Model) -> None:
    """ValueError unless each layer with weights follows from the one before it, so that their order is the network's.

    In others (the two ways of a ResNet's block) it depends on the library.
    """
    before: dict[str, set[str]] = {}
    last = None
    for layer in network.operations:
        parents = inputs_of(layer)
        before[layer.name] = {parent.name for parent in parents}.union(*(before[parent.name] for parent in parents))
        if getattr(layer, "weights", None):
            if last is not None and last not in before[layer.name]:
                raise ValueError(
                    f"files of PyTorch are matched by the order of layers, and {network.name} has layers side by side "
                    f"({last} and {layer.name}): give a file of Keras (.weights.h5, .keras)"
                )
            last = layer.name
