"""Layers of PyTorch as layers of Keras: the same numbers in another layout, matched by kind, order and shapes."""

from collections.abc import Iterator

import keras
import numpy as np

from kerasseg.keras_internals import all_layers, inputs_of, made_by

Tensors = dict[str, np.ndarray]

BIAS = " with bias"
DEPTHWISE = "depthwise convolution"
_PARTS = {"weight", "bias", "running_mean", "running_var"}


def match(network: keras.Model, tensors: Tensors) -> dict[str, tuple[keras.layers.Layer, list[np.ndarray]]]:
    """What each module of a file gives to which layer: arrays in Keras' order and layout.

    Libraries name layers differently, but run them in the same order. So the n-th convolution takes the weights of the
    file's n-th, and so do depthwise convolutions, batch norms, layer norms, dense layers and layer scales. Modules that
    the file holds before or after these, such as the classifier, are left; one between them means another network
    (EfficientNet-B0 is Lite0 with squeeze and excitation). Only the first convolution may differ, in the channels that
    the network has after RGB; it is left out.

    Args:
        network: functional, without a head.
        tensors: as `read_tensors` gives them.

    Raises:
        ValueError: a layer has no counterpart of its kind and shapes, a module between those that fit has none, the
            order is not known, or the network has its strides where PyTorch's do not.
    """
    if _strides_first(network):
        raise ValueError(
            "the network has its strides on 1x1 convolutions and PyTorch's ResNets on the 3x3 ones after them, so the "
            "same weights give other features"
        )
    modules = _modules(tensors)
    left: dict[str, list[str]] = {}
    for name, (kind, _) in modules.items():
        left.setdefault(kind, []).append(name)
    kinds = {kind: len(names) for kind, names in left.items()}
    taken: set[str] = set()
    given: dict[str, tuple[keras.layers.Layer, list[np.ndarray]]] = {}
    first = True
    for layer in _in_order(network):
        kind = _kind(layer)
        expected = [tuple(weight.shape) for weight in layer.weights]
        if bare := kind not in kinds and kind.endswith(BIAS):
            kind = kind.removesuffix(BIAS)  # as in keras.applications' ResNets: a bias before batch norm, so 0 is exact
        if not left.get(kind):
            raise ValueError(f"{layer.name} has no counterpart: {kinds.get(kind, 0)} layers are a {kind}")
        name = left[kind].pop(0)
        taken.add(name)
        _, arrays = modules[name]
        if kind.startswith(DEPTHWISE) and not isinstance(layer, keras.layers.DepthwiseConv2D):
            arrays = [arrays[0].transpose(0, 1, 3, 2), *arrays[1:]]  # a convolution of as many groups as channels
        if bare:
            arrays = [*arrays, np.zeros(expected[-1], np.float32)]
        came = [array.shape for array in arrays]
        if came == expected:
            given[name] = layer, arrays
        elif not (first and _more_channels(expected[0], came[0])):
            raise ValueError(
                f"{layer.name} ({kind}) expects {_text(expected)}, and {name} in its place has {_text(came)}"
            )
        first = False
    if strangers := _between(list(modules), taken):
        raise ValueError(
            f"the network has no layer for {strangers[0]} ({modules[strangers[0]][0]}), which lies between layers that "
            "fit" + f", nor for {len(strangers) - 1} others" * (len(strangers) > 1)
        )
    return given


def _between(names: list[str], taken: set[str]) -> list[str]:
    """The names that are not taken between those that are. A network may end within a block, whose modules are sorted
    by name in a safetensors file: the block of the last one taken does not count."""
    places = [place for place, name in enumerate(names) if name in taken]
    if not places:
        return []
    block = names[places[-1]].rpartition(".")[0]
    return [
        name
        for name in names[places[0] : places[-1]]
        if name not in taken and not (block and name.startswith(f"{block}."))
    ]


def cautions(network: keras.Model) -> list[str]:
    """Why the same weights may give other features than in PyTorch, which no file says."""
    if any(
        isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D)
        and layer.padding == "same"
        and layer.strides[0] > 1
        and layer.kernel_size[0] > layer.strides[0]
        for layer in all_layers(network)
    ):
        return ["the network pads as TensorFlow does, as only timm's tf_ models do"]
    return []


def _strides_first(network: keras.Model) -> bool:
    """Whether 1x1 convolutions with strides begin both ways of a block, as in the ResNets of `keras.applications`."""
    strided: dict[int, int] = {}
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size[0] == 1 and layer.strides[0] > 1:
            parent = id(inputs_of(layer)[0])
            strided[parent] = strided.get(parent, 0) + 1
    return max(strided.values(), default=0) > 1


def _in_order(network: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers with weights in PyTorch's order: those of a longer branch before those of a shortcut."""
    if isinstance(network, keras.Sequential):
        for layer in network.layers:
            yield from _leaves(layer)
        return
    parents: dict[int, list] = {}
    tensors = list(network.outputs)
    while tensors:
        operation, inputs = made_by(tensors.pop())
        if id(operation) not in parents:
            parents[id(operation)] = [made_by(tensor)[0] for tensor in inputs]
            tensors += inputs
    depth: dict[int, int] = {}
    for operation in network.operations:  # inputs first
        depth[id(operation)] = 1 + max((depth[id(each)] for each in parents[id(operation)]), default=0)
    waiting = sorted(network.operations, key=lambda operation: depth[id(operation)])
    done: set[int] = set()
    while waiting:
        layer = waiting[-1]
        before = {id(each): each for each in parents[id(layer)] if id(each) not in done}
        if id(layer) in done:
            waiting.pop()
        elif before:
            depths = [depth[each] for each in before]
            if len(set(depths)) < len(depths):
                raise ValueError(f"the branches that {layer.name} joins are equally long, so their order is not known")
            waiting.append(before[max(before, key=lambda each: depth[each])])
        else:
            done.add(id(waiting.pop()))
            yield from _leaves(layer)


def _leaves(layer: keras.Operation) -> Iterator[keras.layers.Layer]:
    if isinstance(layer, keras.Model):
        yield from _in_order(layer)
    elif getattr(layer, "weights", None) and not isinstance(
        layer, keras.layers.Normalization
    ):  # which holds the pixels' statistics
        yield layer


def _kind(layer: keras.layers.Layer) -> str:
    bias = BIAS * (len(layer.weights) == 2)
    if isinstance(layer, keras.layers.BatchNormalization):
        return "batch norm"
    if isinstance(layer, keras.layers.LayerNormalization):
        return "layer norm"
    conv = isinstance(layer, keras.layers.Conv2D)
    if isinstance(layer, keras.layers.DepthwiseConv2D) or (conv and layer.groups == layer.filters > 1):
        return DEPTHWISE + bias
    if conv:
        return "convolution" + bias
    if isinstance(layer, keras.layers.Dense):
        return "dense layer" + bias
    if [len(weight.shape) for weight in layer.weights] == [1]:
        return "layer scale"
    raise ValueError(f"{layer.name} ({type(layer).__name__}) is of no kind that is read from PyTorch's files")


def _modules(tensors: Tensors) -> dict[str, tuple[str, list[np.ndarray]]]:
    """The file's modules in its order: the kind of each, and its arrays in Keras' order and layout."""
    grouped: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        module, _, own = name.rpartition(".")
        if own in _PARTS:
            grouped.setdefault(module, {})[own] = tensor
        elif own != "num_batches_tracked":
            grouped[name] = {own: tensor.squeeze()}
    return {name: _converted(parts) for name, parts in grouped.items()}


def _converted(parts: Tensors) -> tuple[str, list[np.ndarray]]:
    weight = parts.get("weight")
    if weight is None:
        return "layer scale", list(parts.values())
    bias = [parts["bias"]] if "bias" in parts else []
    ending = BIAS * len(bias)
    if "running_mean" in parts:
        return "batch norm", [
            weight,
            *bias,
            *(parts[name] for name in ("running_mean", "running_var") if name in parts),
        ]
    if weight.ndim == 4 and weight.shape[1] == 1:
        return DEPTHWISE + ending, [weight.transpose(2, 3, 0, 1), *bias]
    if weight.ndim == 4:
        return "convolution" + ending, [weight.transpose(2, 3, 1, 0), *bias]
    if weight.ndim == 2:
        return "dense layer" + ending, [weight.T, *bias]
    return "layer norm" if weight.ndim == 1 else "module", [weight, *bias]


def _more_channels(expected: tuple[int, ...], came: tuple[int, ...]) -> bool:
    return len(came) == 4 == len(expected) and came[2] == 3 < expected[2] and came[::3] == expected[::3]


def _text(shapes: list[tuple[int, ...]]) -> str:
    return " ".join("x".join(map(str, shape)) for shape in shapes)


def layers_of(tensors: Tensors) -> dict[str, list[np.ndarray]]:
    """Every module of a file with its arrays, for a list."""
    return {name: arrays for name, (_, arrays) in _modules(tensors).items()}
