"""ImageNet classification networks as dense feature extractors of output stride 8, 16 or 32."""

from collections.abc import Callable
from dataclasses import dataclass

import keras

from kerasseg.checks import require_one_of
from kerasseg.keras_internals import inputs_of
from kerasseg.layers import AtrousConv2D, AtrousDepthwiseConv2D, BatchNormalization
from kerasseg.segmenters.weights import load_weights

OUTPUT_STRIDES = (8, 16, 32)
# MobileNetV2's own 0.999 averages more steps than a run on few labels has (docs/decisions/networks.md).
BATCH_NORM_MOMENTUM = 0.97


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a backbone and where to tap it."""

    build: Callable[[str | None], keras.Model]
    """Takes "imagenet", None or the path of a weights file."""
    low_level: str
    """Layer of the stride-4 features that DeepLab-v3+'s decoder reads."""
    high_level: str
    """Layer of the last features."""
    pixels: str
    """`PixelNormalization` scheme the pretrained weights expect."""


def _application(name: str) -> Callable[[str | None], keras.Model]:
    def build(weights: str | None) -> keras.Model:
        network = getattr(keras.applications, name)
        return network(weights=weights, include_top=False, input_shape=(None, None, 3))

    return build


def _resnet34(weights: str | None) -> keras.Model:
    # keras-cv takes seconds to import. Its ResNet34Backbone asks the network for a preset even untrained.
    import keras_cv

    if weights == "imagenet":
        raise ValueError(
            "keras-cv publishes no ImageNet weights for resnet34; give the path of a .weights.h5 file, weights='none', "
            "or another backbone"
        )
    network = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=[3, 4, 6, 3],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        block_type="basic_block",
    )
    network = keras.Model(network.input, network.output, name="resnet34")
    if weights is not None:
        network.load_weights(weights)
    return network


BACKBONES = {
    "mobilenet_v2": BackboneSpec(_application("MobileNetV2"), "block_3_expand_relu", "block_16_project_BN", "tf"),
    # Without the stage of stride 32, up to where SSDLite taps it (Sandler et al. 2018, arXiv:1801.04381, section 6.2).
    "mobilenet_v2_c4": BackboneSpec(_application("MobileNetV2"), "block_3_expand_relu", "block_13_expand_relu", "tf"),
    "resnet34": BackboneSpec(_resnet34, "v2_stack_0_block3_out", "v2_stack_3_block3_out", "unit"),
    "resnet50": BackboneSpec(_application("ResNet50"), "conv2_block3_out", "conv5_block3_out", "caffe"),
    "resnet101": BackboneSpec(_application("ResNet101"), "conv2_block3_out", "conv5_block3_out", "caffe"),
}


def backbone_spec(name: str) -> BackboneSpec:
    """The entry of `BACKBONES`; ValueError with the valid names otherwise."""
    require_one_of("backbone", name, BACKBONES)
    return BACKBONES[name]


def build_backbone(name: str, output_stride: int = 16, weights: str = "none", extra_channels: int = 0) -> keras.Model:
    """Normalised image (B,H,W,3) to `[low_level (B,H/4,W/4,C1), high_level (B,H/s,W/s,C2)]`.

    H and W must be multiples of the output stride s (`PadToMultiple` makes them so).

    Args:
        name: a key of `BACKBONES`.
        output_stride: 8, 16 or 32; below the network's own, stride is traded for dilation (Chen et al. 2017,
            arXiv:1606.00915). The network's own is 32, but 16 for mobilenet_v2_c4, which has no 32.
        weights: `"imagenet"` (from the Keras cache or the network), `"none"`, or the path of a file that `load_weights`
            reads.
        extra_channels: how many channels the input has after RGB. With any, the first convolution is fresh
            (He-initialised), whatever `weights` says.

    Raises:
        ValueError: for an unknown name or stride, or weights that are not available.
    """
    spec = backbone_spec(name)
    require_one_of("output_stride", output_stride, OUTPUT_STRIDES)
    network = _stock(spec, name, weights if weights == "imagenet" else "none")
    taps = [network.get_layer(spec.low_level).output, network.get_layer(spec.high_level).output]
    network = keras.Model(network.input, taps, name=name)
    dense = dilate(network, output_stride, extra_channels)
    copy_weights(network, dense)
    if weights not in ("imagenet", "none"):
        load_weights(dense, weights, spec.build)
    return dense


def copy_weights(network: keras.Model, other: keras.Model) -> None:
    """Gives `other` the network's weights, by layer names, except for a first convolution with more channels."""
    for layer in other.layers:
        if layer.weights:
            weights = network.get_layer(layer.name).get_weights()
            if [w.shape for w in layer.weights] == [w.shape for w in weights]:
                layer.set_weights(weights)


def _stock(spec: BackboneSpec, name: str, weights: str) -> keras.Model:
    if weights == "none":
        return spec.build(None)
    try:
        return spec.build(weights)
    except ValueError:
        raise
    except Exception as error:  # Keras raises anything from KeyError to OSError where there is no network
        raise ValueError(
            f"the ImageNet weights of {name} could not be downloaded ({error}); give the path of a weights file, "
            "or weights='none' to train from scratch"
        ) from error


def dilate(network: keras.Model, output_stride: int, extra_channels: int = 0) -> keras.Model:
    """A clone of a functional network whose strides beyond `output_stride` are traded for dilation.

    With `extra_channels` it takes so many more after RGB.

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
    for layer in network.layers:
        parents = inputs_of(layer)
        stride, rate = max((leaving[parent.name] for parent in parents), default=(1, 1))
        rates[layer.name] = rate
        step = getattr(layer, "strides", (1, 1))[0]
        if step > 1 and stride * step > output_stride:
            if isinstance(layer, keras.layers.MaxPooling2D):
                raise ValueError(f"{network.name}: cannot trade the stride of {layer.name} for dilation")
            removed[layer.name] = 0
            for parent in parents:
                if isinstance(parent, keras.layers.ZeroPadding2D) and layer.padding == "valid":
                    removed[parent.name] = rate * (layer.kernel_size[0] - 1)
            rate *= step
        else:
            stride *= step
        leaving[layer.name] = (stride, rate)
    return rates, removed
