"""Image networks as dense feature extractors: those of Keras' own libraries, at output stride 8, 16 or 32, or the
patches of a transformer."""

import dataclasses
import difflib
from typing import Literal

import keras

from kerasseg.checks import require_one_of
from kerasseg.keras_internals import fresh_names
from kerasseg.segmenters.backbones.applications import applications
from kerasseg.segmenters.backbones.dilation import (
    BATCH_NORM_MOMENTUM,
    copy_weights,
    dilate,
    strides_of_taps,
    whole_strides,
)
from kerasseg.segmenters.backbones.hub import hub_pyramids
from kerasseg.segmenters.backbones.spec import BackboneSpec
from kerasseg.segmenters.backbones.transformers import transformers, with_channels
from kerasseg.segmenters.weights import load_weights

OUTPUT_STRIDES = (8, 16, 32)
Maps = Literal["ends", "pyramid"]
"""Which features a head reads: the finest and the last ones, or those of every stride from 4 on."""


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


BACKBONES: dict[str, BackboneSpec] = dict([*hub_pyramids(), *transformers(), *applications()])
BACKBONES["resnet34"] = BackboneSpec(_resnet34, "unit", weights="none published by keras-cv")
# Without the stage of stride 32, up to where SSDLite taps it (Sandler et al. 2018, arXiv:1801.04381, section 6.2).
BACKBONES["mobilenet_v2_c4"] = dataclasses.replace(
    BACKBONES["mobilenet_v2"],
    taps=("block_3_expand_relu", "block_6_expand_relu", "block_13_expand_relu"),
    stride=16,
)
"""By name. A program may add its own."""


def backbone_spec(name: str) -> BackboneSpec:
    """The entry of `BACKBONES`; ValueError with the nearest names otherwise."""
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=3, cutoff=0.5) or ["mobilenet_v2", "resnet50"]
        raise ValueError(
            f"unknown backbone {name!r}; the nearest names are {', '.join(near)}, and `kerasseg backbones` lists all"
        )
    return BACKBONES[name]


def build_backbone(
    name: str,
    output_stride: int = 16,
    weights: str = "none",
    extra_channels: int = 0,
    maps: Maps = "ends",
    drop_path: float = 0.0,
) -> keras.Model:
    """Normalised image (B,H,W,3) to features: `[low_level (B,H/4,W/4,C1), high_level (B,H/s,W/s,C2)]`, or those of
    every stride. A plain transformer gives the first and the last of its four maps (B,H/p,W/p,C), or all.

    H and W must be multiples of the last features' stride s (`PadToMultiple` makes them so). The model's attribute
    `strides` has the stride of each output, pixels.

    Args:
        name: a key of `BACKBONES`.
        output_stride: 8, 16 or 32; below the network's own, stride is traded for dilation (Chen et al. 2017,
            arXiv:1606.00915). The network's own is 32, but 16 for mobilenet_v2_c4, which has no 32. Networks that
            cannot be dilated keep theirs (`BackboneSpec.stride_of`), whatever this is.
        weights: `"imagenet"` (from the Keras cache or the network), `"none"`, or the path of a file that `load_weights`
            reads.
        extra_channels: how many channels the input has after RGB. With any, the first convolution is fresh
            (He-initialised), whatever `weights` says.
        maps: which features.
        drop_path: stochastic depth: share of the images of a training batch for which the last block is left out,
            0..1 (below 1); earlier blocks have less.

    Raises:
        ValueError: for an unknown name or stride, weights that are not available, or `drop_path` for a backbone that
            has no stochastic depth.
    """
    spec = backbone_spec(name)
    if spec.dilates:
        require_one_of("output_stride", output_stride, OUTPUT_STRIDES)
    require_drop_path(name, drop_path)
    with fresh_names():  # a file of weights knows layers by their names
        network = _stock(spec, name, weights if weights == "imagenet" else "none", drop_path)
        if spec.plain:
            strides = dict.fromkeys(spec.taps or (), spec.stride)
        else:
            network = whole_strides(network)
            strides = strides_of_taps(network, spec.taps)
    taps = tuple(strides)
    if maps == "ends":
        taps = (taps[0], taps[-1])
    network = keras.Model(network.input, [network.get_layer(tap).output for tap in taps], name=name)
    if not spec.plain:
        dense = dilate(network, spec.stride_of(output_stride), extra_channels)
        copy_weights(network, dense)
    else:
        dense = with_channels(network, 3 + extra_channels) if extra_channels else network
    dense.strides = tuple(min(strides[tap], spec.stride_of(output_stride)) for tap in taps)
    if weights not in ("imagenet", "none"):
        load_weights(dense, weights, spec.build)
    return dense


def require_drop_path(name: str, drop_path: float) -> None:
    """ValueError for a share that is not in 0..1 (below 1), or where the backbone has no stochastic depth."""
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path must be in 0..1 (below 1); got {drop_path}")
    if drop_path and not backbone_spec(name).drop_path:
        raise ValueError(f"{name} has no stochastic depth: leave drop_path out, or choose a vision transformer")


def _stock(spec: BackboneSpec, name: str, weights: str, drop_path: float) -> keras.Model:
    options = {"drop_path": drop_path} if drop_path else {}
    if weights == "none":
        return spec.build(None, **options)
    try:
        return spec.build(weights, **options)
    except ValueError:
        raise
    except Exception as error:  # Keras raises anything from KeyError to OSError where there is no network
        raise ValueError(
            f"the published weights of {name} could not be downloaded ({error}); give the path of a weights file, "
            "or weights='none' to train from scratch"
        ) from error


__all__ = [
    "BACKBONES",
    "BATCH_NORM_MOMENTUM",
    "BackboneSpec",
    "Maps",
    "backbone_spec",
    "build_backbone",
    "copy_weights",
    "dilate",
    "require_drop_path",
]
