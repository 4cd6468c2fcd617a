"""A network's strides: where they are, and how they are traded for dilation."""

from collections.abc import Sequence

import keras

from kerasseg.keras_internals import inputs_of, made_by, pads
from kerasseg.layers import AtrousConv2D, AtrousDepthwiseConv2D, BatchNormalization, GroupedConv2D

# MobileNetV2's own 0.999 averages more steps than a run on few labels has (docs/decisions/networks.md).
BATCH_NORM_MOMENTUM = 0.97
PROBE = 256
"""Side of the image with which strides are found, pixels: no network here has a larger stride."""
CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)


def dilate(network: keras.Model, output_stride: int, extra_channels: int = 0) -> keras.Model:
    """A clone of a functional network whose strides beyond `output_stride` are traded for dilation.

    With `extra_channels` it takes so many more after RGB. Its batch norm is ours.

    A convolution that loses its stride gives every output position, each centred on its input; those after it skip
    the new ones. So with the same weights the old values occur at every s-th position for s = 32 / output_stride: from
    position 0 in resnet50 and resnet101, where 1x1 convolutions have the strides, and from s - 1 in mobilenet_v2, where
    3x3 ones have them, which look at a pixel and its right and lower neighbours. resnet34 has both in one block, so
    there the old values do not occur.
    """
    rates, removed = _dilation_plan(network, output_stride)
    first = next((layer.name for layer in network.layers if isinstance(layer, keras.layers.Conv2D)), None)

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        rate = rates[layer.name]
        if isinstance(layer, keras.layers.BatchNormalization):
            config["momentum"] = BATCH_NORM_MOMENTUM
            return BatchNormalization.from_config(config)
        if getattr(layer, "groups", 1) > 1 and isinstance(layer, keras.layers.Conv2D):
            if layer.name in removed:
                config["strides"] = (1, 1)
            return GroupedConv2D.from_config(config | {"dilation_rate": (rate, rate)})
        if isinstance(layer, keras.layers.ZeroPadding2D) and layer.name in removed:
            # Feeds a convolution of padding "valid": what it needs at stride 1 to cover every position. As much on
            # either side, or all that follows would be shifted from the pixels that it describes
            # (docs/decisions/networks.md).
            before = removed[layer.name] // 2
            config["padding"] = [(before, removed[layer.name] - before)] * 2
        elif isinstance(layer, keras.layers.DepthwiseConv2D | keras.layers.Conv2D) and (
            rate > 1 or layer.name in removed
        ):
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            config |= {"strides": (1, 1), "dilation_rate": (rate, rate)}
            return (AtrousDepthwiseConv2D if depthwise else AtrousConv2D).from_config(config)
        elif isinstance(layer, keras.layers.MaxPooling2D) and layer.name in removed:
            config["strides"] = (1, 1)  # of one pixel: it only took every second position
        elif layer.name == first and extra_channels:
            config["kernel_initializer"] = "he_normal"
        return type(layer).from_config(config)

    pixels = keras.Input((None, None, 3 + extra_channels)) if extra_channels else None
    return keras.models.clone_model(network, input_tensors=pixels, clone_function=clone)


def _dilation_plan(network: keras.Model, output_stride: int) -> tuple[dict[str, int], dict[str, int]]:
    """The dilation of each layer; and the layers changed by a removed stride.

    For a convolution the second holds 0; for the zero padding before one, the rows of padding needed in all.
    """
    rates: dict[str, int] = {}
    removed: dict[str, int] = {}
    leaving: dict[str, tuple[int, int]] = {}  # layer -> (stride, dilation) of its output
    for layer in network.operations:  # layers, and sums written as such
        parents = inputs_of(layer)
        stride, rate = max((leaving[parent.name] for parent in parents), default=(1, 1))
        rates[layer.name] = rate
        step = getattr(layer, "strides", (1, 1))[0]
        if step > 1 and stride * step > output_stride:
            if not isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D) and layer.pool_size != (1, 1):
                raise ValueError(f"{network.name}: cannot trade the stride of {layer.name} for dilation")
            removed[layer.name] = 0
            after = stride, rate * step
        else:
            after = stride * step, rate
        for parent in parents:
            if isinstance(parent, keras.layers.ZeroPadding2D) and (rate > 1 or layer.name in removed):
                removed[parent.name] = rate * (layer.kernel_size[0] - 1)
        leaving[layer.name] = after
    return rates, removed


def whole_strides(network: keras.Model) -> keras.Model:
    """The functional network for images of any size, with padding "same" where a convolution or pooling loses the
    border ("valid", and no padding before it), so that features of an image of H x W pixels have H/s x W/s
    positions. The same network where there is nothing to change.

    The weights stay; only values near the border change. A 3x3 convolution of stride 2 sees the same pixels as before,
    and one of stride 1 is centred on its pixel.
    """

    def loses_the_border(layer) -> bool:
        if not isinstance(layer, CONVOLUTIONS + POOLINGS) or layer.padding != "valid":
            return False
        size = layer.pool_size if isinstance(layer, POOLINGS) else layer.kernel_size
        large = any(side > step for side, step in zip(size, layer.strides, strict=True))
        return large and not any(map(pads, inputs_of(layer)))

    changed = {layer.name for layer in network.layers if loses_the_border(layer)}
    batch, *size, channels = network.inputs[0].shape
    if not changed and size == [None, None]:
        return network
    clone = keras.models.clone_model(
        network,
        input_tensors=keras.Input((None, None, channels)),
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config() | ({"padding": "same"} if layer.name in changed else {})
        ),
    )
    clone.set_weights(network.get_weights())
    return clone


def strides_of_taps(network: keras.Model, taps: Sequence[str] | None = None) -> dict[str, int]:
    """The layers whose features heads read, the finest first, with their strides in pixels.

    They are `taps`; without, those of the network's outputs where it has several, otherwise `taps_by_stride` from 4
    on.
    """
    if taps is None and len(network.outputs) == 1:
        return {layer: stride for stride, layer in taps_by_stride(network).items() if stride >= 4}
    strides = _strides(network)
    return {tap: strides[tap] for tap in taps or [made_by(output)[0].name for output in network.outputs]}


def taps_by_stride(network: keras.Model) -> dict[int, str]:
    """The last layer of each stride in a functional network, by its stride in pixels.

    A 1x1 convolution that widens the last features for a classifier is left out: MobileNetV2's last layer is the block
    before it, as in DeepLab's published code.
    """
    taps: dict[int, str] = {}
    last = _features_end(network).name
    for layer, stride in _strides(network).items():
        taps[stride] = layer
        if layer == last:
            break
    return taps


def _strides(network: keras.Model) -> dict[str, int]:
    """The stride of each layer's map, pixels, in the order of the layers; none for what is no map, or a padded one."""
    probe = keras.Model(network.inputs[0], [layer.output for layer in network.layers])
    image = keras.KerasTensor((1, PROBE, PROBE, network.inputs[0].shape[-1]))
    return {
        layer.name: PROBE // features.shape[1]
        for layer, features in zip(network.layers, probe.compute_output_spec(image), strict=True)
        if len(features.shape) == 4 and features.shape[1] > 1 and PROBE % features.shape[1] == 0
    }


def _features_end(network: keras.Model) -> keras.layers.Layer:
    """The layer whose output a widening 1x1 convolution takes at the network's end; without one, the last layer."""
    layer = end = made_by(network.outputs[0])[0]
    while isinstance(layer, keras.layers.Activation | keras.layers.ReLU | keras.layers.BatchNormalization):
        (layer,) = inputs_of(layer)
    if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1):
        (before,) = inputs_of(layer)
        if layer.filters > before.output.shape[-1]:
            return before
    return end


def copy_weights(network: keras.Model, other: keras.Model) -> None:
    """Gives `other` the network's weights, by layer names, except for a first convolution with more channels."""
    for layer in other.layers:
        if layer.weights:
            weights = network.get_layer(layer.name).get_weights()
            if [w.shape for w in layer.weights] == [w.shape for w in weights]:
                layer.set_weights(weights)
