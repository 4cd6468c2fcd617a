"""keras-hub, and its backbones with features of several strides: EfficientNet-Lite, ResNet and ResNet-vd, CSPNet and
DarkNet, MiT, Swin and HGNetV2.

A name is that of keras-hub's preset without data set and training recipe. keras-hub is imported when one is built.
"""

import functools
import importlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

from kerasseg.layers import Border
from kerasseg.segmenters.backbones.hgnetv2 import build_hgnetv2
from kerasseg.segmenters.backbones.mit import build_mit
from kerasseg.segmenters.backbones.spec import BackboneSpec
from kerasseg.segmenters.backbones.swin import build_swin, published_weights


def hub(module: str) -> Any:
    """A module of keras-hub, which takes a second to import.

    Raises:
        ValueError: keras-hub is not installed.
    """
    try:
        return importlib.import_module(f"keras_hub.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f'this backbone needs keras-hub, and there is no module {error.name}: pip install "kerasseg[hub]"'
        ) from error


def build_pyramid(model: str, **arguments: Any) -> keras.Model:
    """A network of a `FeaturePyramidBackbone` of keras-hub: normalised image (B,H,W,3) to the features of stride 4, 8,
    16 and 32 that keras-hub names, the finest first."""
    network = getattr(hub("models"), model)(**arguments)
    last = max(int(level[1:]) for level in network.pyramid_outputs)
    features = [network.pyramid_outputs[f"P{level}"] for level in range(last - 3, last + 1)]
    return keras.Model(network.inputs[0], features, name=network.name)


def build_efficientnet(same_padding: bool = False, **arguments: Any) -> keras.Model:
    """An EfficientNet of keras-hub, to its last features: those that heads read are found in the graph, as in the
    EfficientNets of `keras.applications`.

    Args:
        same_padding: whether its padding is TensorFlow's (`with_same_padding`).
        arguments: of keras-hub's class.
    """
    network = hub("models").EfficientNetBackbone(**arguments)
    network = keras.Model(network.inputs[0], network.outputs[0], name=network.name)
    return with_same_padding(network) if same_padding else network


def with_same_padding(network: keras.Model) -> keras.Model:
    """The functional network with padding "same" in place of zero padding as much on either side: what PyTorch's
    networks have there, TensorFlow's shift by a pixel where they have a stride."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.ZeroPadding2D):
            return keras.layers.Identity(name=layer.name)
        config = layer.get_config()
        return type(layer).from_config(config | ({"padding": "same"} if config.get("padding") == "valid" else {}))

    return keras.models.clone_model(network, clone_function=clone)


class Family(NamedTuple):
    """What the networks of one publication share."""

    model: str
    """Name of the class in `keras_hub.models`."""
    build: Callable[..., keras.Model]
    """Takes the arguments of a network, and `drop_path` where the family has stochastic depth."""
    licence: str = "Apache 2.0"
    """Licence of the published weights."""
    pixels: str = "torch"
    dilates: bool = True
    border: Border = "zeros"
    drop_path: bool = False
    weights_of: Callable[[keras.Model], list[keras.Variable]] = operator.attrgetter("weights")
    """The weights of a network that the published one has too, in its order."""


EFFICIENTNET = Family("EfficientNetBackbone", build_efficientnet)
TF_EFFICIENTNET = EFFICIENTNET._replace(build=functools.partial(build_efficientnet, same_padding=True), pixels="lite")
RESNET = Family("ResNetBackbone", functools.partial(build_pyramid, "ResNetBackbone"))
RESNET_VD = RESNET._replace(dilates=False)  # strides in poolings
CSPNET = Family("CSPNetBackbone", functools.partial(build_pyramid, "CSPNetBackbone"))
MIT = Family(
    "MiTBackbone",
    build_mit,
    "NVIDIA's of SegFormer, not a free one",
    dilates=False,
    border="repeat",
    drop_path=True,
)
SWIN = Family(
    "SwinTransformerBackbone",
    build_swin,
    "MIT",
    dilates=False,
    border="repeat",
    drop_path=True,
    weights_of=published_weights,
)
HGNETV2 = Family("HGNetV2Backbone", build_hgnetv2)


def lite(width: float, depth: float) -> dict[str, Any]:
    """EfficientNet-Lite (Tan and Le 2019, arXiv:1905.11946, without squeeze and excitation and with ReLU6): the first
    convolution, and the depth of the first and the last stage, are not scaled."""

    def channels(count: float) -> int:
        rounded = max(8, int(count * width + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * count * width else rounded

    filters = [channels(count) for count in (16, 24, 40, 80, 112, 192, 320)]
    return {
        "stackwise_width_coefficients": [1.0] * 7,
        "stackwise_depth_coefficients": [1.0] * 7,
        "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
        "stackwise_num_repeats": [1, *(math.ceil(count * depth) for count in (2, 2, 3, 3, 4)), 1],
        "stackwise_input_filters": [32, *filters[:-1]],
        "stackwise_output_filters": filters,
        "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
        "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
        "stackwise_squeeze_and_excite_ratios": [0] * 7,
        "stackwise_block_types": ["v1"] * 7,
        "activation": "relu6",
        "dropout": 0,
    }


def resnet(block: str, *blocks: int) -> dict[str, Any]:
    """ResNet (He et al. 2016, arXiv:1512.03385), and ResNet-vd (He et al. 2019, arXiv:1812.01187) of blocks `_vd`."""
    stem = ([32, 32, 64], [3, 3, 3]) if block.endswith("_vd") else ([64], [7])
    return {
        "input_conv_filters": stem[0],
        "input_conv_kernel_sizes": stem[1],
        "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_blocks": list(blocks),
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": block,
    }


BASIC, BOTTLENECK = "basic_block", "bottleneck_block"
BASIC_VD, BOTTLENECK_VD = "basic_block_vd", "bottleneck_block_vd"

DARKNET_53 = {
    "stem_filters": 32,
    "stem_kernel_size": 3,
    "stem_strides": 1,
    "stem_padding": "same",
    "stackwise_depth": [1, 2, 8, 8, 4],
    "stackwise_strides": [2, 2, 2, 2, 2],
    "stackwise_num_filters": [64, 128, 256, 512, 1024],
    "block_type": "dark_block",
    "stage_type": "dark",
    "bottle_ratio": [0.5],
}
"""Redmon and Farhadi 2018 (arXiv:1804.02767)."""
CSP_DARKNET_53 = DARKNET_53 | {
    "stage_type": "csp",
    "bottle_ratio": [0.5, 1.0],
    "block_ratio": [1.0, 0.5],
    "expand_ratio": [2.0, 1.0],
    "down_growth": True,
}
CSP_RESNET_50 = {
    "stem_filters": 64,
    "stem_kernel_size": 7,
    "stem_strides": 4,
    "stem_padding": "valid",
    "stem_pooling": "max",
    "stackwise_depth": [3, 3, 5, 2],
    "stackwise_strides": [1, 2, 2, 2],
    "stackwise_num_filters": [128, 256, 512, 1024],
    "block_type": "bottleneck_block",
    "stage_type": "csp",
    "bottle_ratio": [0.5],
    "expand_ratio": [2.0],
    "cross_linear": True,
}
"""Wang et al. 2020 (arXiv:1911.11929)."""
CSP_RESNEXT_50 = CSP_RESNET_50 | {
    "stackwise_num_filters": [256, 512, 1024, 2048],
    "groups": 32,
    "bottle_ratio": [1.0],
    "block_ratio": [0.5],
    "expand_ratio": [1.0],
}


def mit(width: int, *depths: int) -> dict[str, Any]:
    """MiT (Xie et al. 2021, arXiv:2105.15203, table 6)."""
    return {"widths": (width, 2 * width, 5 * width, 8 * width), "depths": depths}


def swin(width: int, middle: int, window: int) -> dict[str, Any]:
    """Swin (Liu et al. 2021, arXiv:2103.14030, section 3.3), `middle` blocks in the third stage; 32 channels a head."""
    heads = tuple(width * 2**stage // 32 for stage in range(4))
    return {"width": width, "depths": (2, 2, middle, 2), "heads": heads, "window": window}


def hgnetv2(
    stem: tuple[int, int],
    hidden: tuple[int, ...],
    outputs: tuple[int, ...],
    blocks: tuple[int, ...],
    layers: int,
    affine: bool = False,
) -> dict[str, Any]:
    """PP-HGNetV2 of PaddleClas, as `build_hgnetv2` takes it."""
    return locals()


class Network(NamedTuple):
    """One network."""

    family: Family
    arguments: dict[str, Any]
    preset: str | None = None
    """keras-hub's preset with its weights."""
    data: str = "ImageNet"
    """What it was trained on."""


NETWORKS = {
    "efficientnet_lite0": Network(EFFICIENTNET, lite(1.0, 1.0), "efficientnet_lite0_ra_imagenet"),
    "efficientnet_lite1": Network(EFFICIENTNET, lite(1.0, 1.1)),
    "efficientnet_lite2": Network(EFFICIENTNET, lite(1.1, 1.2)),
    "efficientnet_lite3": Network(EFFICIENTNET, lite(1.2, 1.4)),
    "efficientnet_lite4": Network(EFFICIENTNET, lite(1.4, 1.8)),
    # timm's names for the networks as TensorFlow's authors published them.
    "tf_efficientnet_lite0": Network(TF_EFFICIENTNET, lite(1.0, 1.0) | {"batch_norm_epsilon": 1e-3}),
    "tf_efficientnet_lite1": Network(TF_EFFICIENTNET, lite(1.0, 1.1) | {"batch_norm_epsilon": 1e-3}),
    "tf_efficientnet_lite2": Network(TF_EFFICIENTNET, lite(1.1, 1.2) | {"batch_norm_epsilon": 1e-3}),
    "tf_efficientnet_lite3": Network(TF_EFFICIENTNET, lite(1.2, 1.4) | {"batch_norm_epsilon": 1e-3}),
    "tf_efficientnet_lite4": Network(TF_EFFICIENTNET, lite(1.4, 1.8) | {"batch_norm_epsilon": 1e-3}),
    "resnet_18": Network(RESNET, resnet(BASIC, 2, 2, 2, 2), "resnet_18_imagenet"),
    "resnet_50": Network(RESNET, resnet(BOTTLENECK, 3, 4, 6, 3), "resnet_50_imagenet"),
    "resnet_101": Network(RESNET, resnet(BOTTLENECK, 3, 4, 23, 3), "resnet_101_imagenet"),
    "resnet_152": Network(RESNET, resnet(BOTTLENECK, 3, 8, 36, 3), "resnet_152_imagenet"),
    "resnet_vd_18": Network(RESNET_VD, resnet(BASIC_VD, 2, 2, 2, 2), "resnet_vd_18_imagenet"),
    "resnet_vd_34": Network(RESNET_VD, resnet(BASIC_VD, 3, 4, 6, 3), "resnet_vd_34_imagenet"),
    "resnet_vd_50": Network(RESNET_VD, resnet(BOTTLENECK_VD, 3, 4, 6, 3), "resnet_vd_50_imagenet"),
    "resnet_vd_50_ssld": Network(RESNET_VD, resnet(BOTTLENECK_VD, 3, 4, 6, 3), "resnet_vd_50_ssld_imagenet"),
    "resnet_vd_50_ssld_v2": Network(RESNET_VD, resnet(BOTTLENECK_VD, 3, 4, 6, 3), "resnet_vd_50_ssld_v2_imagenet"),
    "resnet_vd_101": Network(RESNET_VD, resnet(BOTTLENECK_VD, 3, 4, 23, 3), "resnet_vd_101_imagenet"),
    "resnet_vd_101_ssld": Network(RESNET_VD, resnet(BOTTLENECK_VD, 3, 4, 23, 3), "resnet_vd_101_ssld_imagenet"),
    "resnet_vd_152": Network(RESNET_VD, resnet(BOTTLENECK_VD, 3, 8, 36, 3), "resnet_vd_152_imagenet"),
    "resnet_vd_200": Network(RESNET_VD, resnet(BOTTLENECK_VD, 3, 12, 48, 3), "resnet_vd_200_imagenet"),
    "csp_darknet_53": Network(CSPNET, CSP_DARKNET_53, "csp_darknet_53_ra_imagenet"),
    "csp_resnet_50": Network(CSPNET, CSP_RESNET_50, "csp_resnet_50_ra_imagenet"),
    "csp_resnext_50": Network(CSPNET, CSP_RESNEXT_50, "csp_resnext_50_ra_imagenet"),
    "darknet_53": Network(CSPNET, DARKNET_53, "darknet_53_imagenet"),
    "mit_b0": Network(MIT, mit(32, 2, 2, 2, 2), "mit_b0_ade20k_512", "ADE20K"),
    "mit_b1": Network(MIT, mit(64, 2, 2, 2, 2), "mit_b1_ade20k_512", "ADE20K"),
    "mit_b2": Network(MIT, mit(64, 3, 4, 6, 3), "mit_b2_ade20k_512", "ADE20K"),
    "mit_b3": Network(MIT, mit(64, 3, 4, 18, 3), "mit_b3_ade20k_512", "ADE20K"),
    "mit_b4": Network(MIT, mit(64, 3, 8, 27, 3), "mit_b4_ade20k_512", "ADE20K"),
    "mit_b5": Network(MIT, mit(64, 3, 6, 40, 3), "mit_b5_ade20k_640", "ADE20K"),
    "swin_tiny_patch4_window7": Network(SWIN, swin(96, 6, 7), "swin_tiny_patch4_window7_224"),
    "swin_small_patch4_window7": Network(SWIN, swin(96, 18, 7), "swin_small_patch4_window7_224"),
    "swin_base_patch4_window7": Network(SWIN, swin(128, 18, 7), "swin_base_patch4_window7_224"),
    "swin_base_patch4_window12": Network(SWIN, swin(128, 18, 12), "swin_base_patch4_window12_384"),
    "swin_large_patch4_window7": Network(SWIN, swin(192, 18, 7), "swin_large_patch4_window7_224"),
    "swin_large_patch4_window12": Network(SWIN, swin(192, 18, 12), "swin_large_patch4_window12_384"),
    "hgnetv2_b0": Network(
        HGNETV2, hgnetv2((16, 16), (16, 32, 64, 128), (64, 256, 512, 1024), (1, 1, 2, 1), 3, affine=True)
    ),
    "hgnetv2_b1": Network(
        HGNETV2, hgnetv2((24, 32), (32, 48, 96, 192), (64, 256, 512, 1024), (1, 1, 2, 1), 3, affine=True)
    ),
    "hgnetv2_b2": Network(
        HGNETV2, hgnetv2((24, 32), (32, 64, 128, 256), (96, 384, 768, 1536), (1, 1, 3, 1), 4, affine=True)
    ),
    "hgnetv2_b3": Network(
        HGNETV2, hgnetv2((24, 32), (32, 64, 128, 256), (128, 512, 1024, 2048), (1, 1, 3, 1), 5, affine=True)
    ),
    "hgnetv2_b4": Network(
        HGNETV2,
        hgnetv2((32, 48), (48, 96, 192, 384), (128, 512, 1024, 2048), (1, 1, 3, 1), 6),
        "hgnetv2_b4_ssld_stage2_ft_in1k",
    ),
    "hgnetv2_b5": Network(
        HGNETV2,
        hgnetv2((32, 64), (64, 128, 256, 512), (128, 512, 1024, 2048), (1, 2, 5, 2), 6),
        "hgnetv2_b5_ssld_stage2_ft_in1k",
    ),
    "hgnetv2_b6": Network(
        HGNETV2,
        hgnetv2((48, 96), (96, 192, 384, 768), (192, 512, 1024, 2048), (2, 3, 6, 3), 6),
        "hgnetv2_b6_ssld_stage2_ft_in1k",
    ),
}
"""By name. keras-hub loads its presets only from the network, so the arguments stand here for random weights. A test
counts their parameters."""


def hub_pyramids() -> Iterator[tuple[str, BackboneSpec]]:
    """The name and the specification of every network."""
    for name, network in NETWORKS.items():
        yield name, hub_spec(name, network)


def hub_spec(name: str, network: Network) -> BackboneSpec:
    """The specification of a network."""
    family = network.family
    if network.preset is not None:
        source = f"keras-hub, {network.data}; {family.licence}"
    else:
        source = f"a file of timm's {name}" if family is TF_EFFICIENTNET else "none published by keras-hub"
    return BackboneSpec(
        functools.partial(build_network, name, network),
        family.pixels,
        dilates=family.dilates,
        border=family.border,
        drop_path=family.drop_path,
        weights=source,
    )


def build_network(name: str, network: Network, weights: str | None, **options: float) -> keras.Model:
    """Normalised image (B,H,W,3), H and W multiples of 32, to features.

    Args:
        name: of the network.
        network: its family and its size.
        weights: "imagenet" for the published weights, whatever they were trained on; None; or a .weights.h5 file.
        options: `drop_path` of a family that has stochastic depth.

    Raises:
        ValueError: there is no keras-hub, or there are no published weights.
    """
    family = network.family
    model = family.build(**network.arguments, **options)
    if weights == "imagenet":
        if network.preset is None:
            raise ValueError(f"there are no published weights of {name}; give a file of weights, or weights='none'")
        published = getattr(hub("models"), family.model).from_preset(network.preset)
        copy_in_order(published, family.weights_of(model))
    elif weights is not None:
        model.load_weights(weights)
    return model


def copy_in_order(published: keras.Model, weights: list[keras.Variable]) -> None:
    """Gives weights of a network of `build_network` the values of keras-hub's model.

    Both have them in the same order. A depthwise convolution's are those of a grouped one, in another shape.
    """
    for weight, value in zip(weights, published.weights, strict=True):
        weight.assign(keras.ops.reshape(value, weight.shape))
