"""Backbones that are plain vision transformers: DINOv2, DINOv3, ViT, DeiT and SigLIP's image encoder, of keras-hub.

A name is that of keras-hub's preset without the data set, or without size and data set, where no other preset would
have it (`dinov2_small`, `vit_base_patch32_384`). Their blocks are keras-hub's own layers; what is around them, for
images of any size, is in `tokens`. keras-hub exports no blocks, so the names below `keras_hub.src` are private ones.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from kerasseg.segmenters.backbones.hub import hub
from kerasseg.segmenters.backbones.spec import BackboneSpec
from kerasseg.segmenters.backbones.tokens import RotaryAngles, StochasticDepth, TokenEmbedding, TokensToMap


class Architecture(NamedTuple):
    """The size of a transformer."""

    width: int
    """Channels of a token."""
    depth: int
    """Number of blocks."""
    heads: int
    """Attention heads of a block."""
    hidden: int
    """Channels between the two layers of a block's perceptron, as keras-hub's block takes it."""
    patch: int
    """Height and width of a patch, pixels."""
    size: int
    """Height and width of the images that the position embeddings are for, pixels."""
    registers: int = 0
    gated: bool = False
    """Whether the perceptron is gated (SwiGLU: Shazeer 2020, arXiv:2002.05202)."""


class Parts(NamedTuple):
    """Where a model of keras-hub holds what a backbone takes from it."""

    patches: keras.layers.Layer
    embedding: Sequence[Any]
    """Its variables in the order of `TokenEmbedding`."""
    blocks: Sequence[keras.layers.Layer]
    norm: keras.layers.Layer


class Family(NamedTuple):
    """What the transformers of one publication share."""

    pixels: str
    weights: str
    model: str
    """Name of the class in `keras_hub.models` that loads a preset."""
    block: Callable[[Architecture, str], keras.layers.Layer]
    """One block of that name."""
    parts: Callable[[Any], Parts]
    """The parts of a model of that class."""
    class_tokens: int = 1
    rotary: bool = False
    """Whether queries and keys are turned by their place, instead of position embeddings."""
    antialias: bool = True
    """As `TokenEmbedding` takes it."""
    epsilon: float = 1e-6
    """What the last layer norm adds to the variance."""


def _dinov2_block(size: Architecture, name: str) -> keras.layers.Layer:
    layers = hub("src.models.dinov2.dinov2_layers")
    return layers.DINOV2Layer(size.width, size.heads, size.hidden, use_swiglu_ffn=size.gated, name=name)


def _dinov2_parts(model) -> Parts:
    start = model.embeddings
    registers = [start.register_tokens] if model.num_register_tokens else []
    # Not those interpolated to the model's own size, which are another variable.
    embedding = [start.cls_token, *registers, start.position_embeddings]
    return Parts(start.patch_embeddings.projection, embedding, model.encoder.layers, model.layernorm)


def _dinov3_block(size: Architecture, name: str) -> keras.layers.Layer:
    layers = hub("src.models.dinov3.dinov3_layers")
    return layers.DINOV3Layer(
        size.width,
        size.heads,
        size.hidden,
        hidden_activation="silu" if size.gated else "gelu",
        use_gated_mlp=size.gated,
        use_key_bias=False,
        layer_norm_eps=1e-5,
        name=name,
    )


def _dinov3_parts(model) -> Parts:
    start = model.embeddings
    embedding = [start.cls_token, start.register_tokens]
    return Parts(start.patch_embeddings.projection, embedding, model.encoder.layers, model.layernorm)


def _vit_block(size: Architecture, name: str) -> keras.layers.Layer:
    layers = hub("src.models.vit.vit_layers")
    return layers.ViTEncoderBlock(size.heads, size.width, size.hidden, name=name)


def _vit_parts(model) -> Parts:
    start, encoder = model.get_layer("vit_patching_and_embedding"), model.get_layer("vit_encoder")
    embedding = [start.class_token, start.position_embedding.embeddings]
    return Parts(start.patch_embedding, embedding, encoder.encoder_layers, encoder.layer_norm)


def _deit_parts(model) -> Parts:
    start, encoder = model.get_layer("deit_patching_and_embedding"), model.get_layer("deit_encoder")
    tokens = keras.ops.concatenate([start.class_token, start.distillation_token], axis=1)
    return Parts(start.patch_embedding, [tokens, start.position_embedding], encoder.encoder_layers, encoder.layer_norm)


def _siglip_block(size: Architecture, name: str) -> keras.layers.Layer:
    layers = hub("src.models.siglip.siglip_layers")
    return layers.SigLIPEncoderLayer(size.width, size.heads, size.hidden, name=name)


def _siglip_parts(model) -> Parts:
    encoder = getattr(model, "vision_encoder", model)  # without the encoder of texts
    start = encoder.embedding
    embedding = [start.position_embedding.embeddings]
    return Parts(start.patch_embedding, embedding, encoder.encoder_layers, encoder.post_layer_norm)


DINOV2 = Family(
    "torch",
    "keras-hub, LVD-142M without labels; Apache 2.0",
    "DINOV2Backbone",
    _dinov2_block,
    _dinov2_parts,
    antialias=False,
)
DINOV2_REGISTERS = DINOV2._replace(antialias=True)
DINOV3 = Family(
    "torch",
    "keras-hub, LVD-1689M without labels; DINOv3 License, not a free one",
    "DINOV3Backbone",
    _dinov3_block,
    _dinov3_parts,
    rotary=True,
    epsilon=1e-5,
)
DINOV3_SATELLITE = DINOV3._replace(pixels="satellite", weights=DINOV3.weights.replace("LVD-1689M", "SAT-493M"))
VIT = Family("tf", "keras-hub, ImageNet-21k and ImageNet; Apache 2.0", "ViTBackbone", _vit_block, _vit_parts)
VIT_21K = VIT._replace(weights="keras-hub, ImageNet-21k; Apache 2.0")
# DeiT's block is ViT's, with its layers in other objects.
DEIT = Family("torch", "keras-hub, ImageNet; Apache 2.0", "DeiTBackbone", _vit_block, _deit_parts, class_tokens=2)
SIGLIP = Family(
    "tf",
    "keras-hub, WebLI, images with texts; Apache 2.0",
    "SigLIPBackbone",
    _siglip_block,
    _siglip_parts,
    class_tokens=0,
)

TINY = (192, 12, 3, 768)
SMALL = (384, 12, 6, 1536)
BASE = (768, 12, 12, 3072)
LARGE = (1024, 24, 16, 4096)
SO400M = (1152, 27, 16, 4304)
HUGE = (1280, 32, 16, 5120)
GIANT = (1536, 40, 24, 6144)
"""Width, depth, heads, hidden channels: Dosovitskiy et al. 2021 (arXiv:2010.11929), Touvron et al. 2021
(arXiv:2012.12877), Zhai et al. 2023 (arXiv:2303.15343), Oquab et al. 2024 (arXiv:2304.07193)."""

PRESETS: dict[str, tuple[Family, Architecture]] = {
    "dinov2_small": (DINOV2, Architecture(*SMALL, 14, 518)),
    "dinov2_base": (DINOV2, Architecture(*BASE, 14, 518)),
    "dinov2_large": (DINOV2, Architecture(*LARGE, 14, 518)),
    "dinov2_giant": (DINOV2, Architecture(*GIANT, 14, 518, gated=True)),
    "dinov2_with_registers_small": (DINOV2_REGISTERS, Architecture(*SMALL, 14, 518, registers=4)),
    "dinov2_with_registers_base": (DINOV2_REGISTERS, Architecture(*BASE, 14, 518, registers=4)),
    "dinov2_with_registers_large": (DINOV2_REGISTERS, Architecture(*LARGE, 14, 518, registers=4)),
    "dinov2_with_registers_giant": (DINOV2_REGISTERS, Architecture(*GIANT, 14, 518, registers=4, gated=True)),
    "dinov3_vit_small_lvd1689m": (DINOV3, Architecture(*SMALL, 16, 224, registers=4)),
    "dinov3_vit_small_plus_lvd1689m": (DINOV3, Architecture(*SMALL, 16, 224, registers=4, gated=True)),
    "dinov3_vit_base_lvd1689m": (DINOV3, Architecture(*BASE, 16, 224, registers=4)),
    "dinov3_vit_large_lvd1689m": (DINOV3, Architecture(*LARGE, 16, 224, registers=4)),
    "dinov3_vit_huge_plus_lvd1689m": (DINOV3, Architecture(1280, 32, 20, 5120, 16, 224, registers=4, gated=True)),
    "dinov3_vit_large_sat493m": (DINOV3_SATELLITE, Architecture(*LARGE, 16, 224, registers=4)),
    "vit_base_patch16_224_imagenet": (VIT, Architecture(*BASE, 16, 224)),
    "vit_base_patch16_384_imagenet": (VIT, Architecture(*BASE, 16, 384)),
    "vit_large_patch16_224_imagenet": (VIT, Architecture(*LARGE, 16, 224)),
    "vit_large_patch16_384_imagenet": (VIT, Architecture(*LARGE, 16, 384)),
    "vit_base_patch32_384_imagenet": (VIT, Architecture(*BASE, 32, 384)),
    "vit_large_patch32_384_imagenet": (VIT, Architecture(*LARGE, 32, 384)),
    "vit_base_patch16_224_imagenet21k": (VIT_21K, Architecture(*BASE, 16, 224)),
    "vit_base_patch32_224_imagenet21k": (VIT_21K, Architecture(*BASE, 32, 224)),
    "vit_huge_patch14_224_imagenet21k": (VIT_21K, Architecture(*HUGE, 14, 224)),
    "vit_large_patch16_224_imagenet21k": (VIT_21K, Architecture(*LARGE, 16, 224)),
    "vit_large_patch32_224_imagenet21k": (VIT_21K, Architecture(*LARGE, 32, 224)),
    "deit_tiny_distilled_patch16_224_imagenet": (DEIT, Architecture(*TINY, 16, 224)),
    "deit_small_distilled_patch16_224_imagenet": (DEIT, Architecture(*SMALL, 16, 224)),
    "deit_base_distilled_patch16_224_imagenet": (DEIT, Architecture(*BASE, 16, 224)),
    "deit_base_distilled_patch16_384_imagenet": (DEIT, Architecture(*BASE, 16, 384)),
    "siglip_base_patch16_224": (SIGLIP, Architecture(*BASE, 16, 224)),
    "siglip_base_patch16_256": (SIGLIP, Architecture(*BASE, 16, 256)),
    "siglip_base_patch16_384": (SIGLIP, Architecture(*BASE, 16, 384)),
    "siglip_base_patch16_512": (SIGLIP, Architecture(*BASE, 16, 512)),
    "siglip_large_patch16_256": (SIGLIP, Architecture(*LARGE, 16, 256)),
    "siglip_large_patch16_384": (SIGLIP, Architecture(*LARGE, 16, 384)),
    "siglip_so400m_patch14_224": (SIGLIP, Architecture(*SO400M, 14, 224)),
    "siglip_so400m_patch14_384": (SIGLIP, Architecture(*SO400M, 14, 384)),
    "siglip2_base_patch16_224": (SIGLIP, Architecture(*BASE, 16, 224)),
    "siglip2_base_patch16_256": (SIGLIP, Architecture(*BASE, 16, 256)),
    "siglip2_base_patch16_384": (SIGLIP, Architecture(*BASE, 16, 384)),
    "siglip2_base_patch32_256": (SIGLIP, Architecture(*BASE, 32, 256)),
    "siglip2_large_patch16_256": (SIGLIP, Architecture(*LARGE, 16, 256)),
    "siglip2_large_patch16_384": (SIGLIP, Architecture(*LARGE, 16, 384)),
    "siglip2_large_patch16_512": (SIGLIP, Architecture(*LARGE, 16, 512)),
    "siglip2_so400m_patch14_224": (SIGLIP, Architecture(*SO400M, 14, 224)),
    "siglip2_so400m_patch14_384": (SIGLIP, Architecture(*SO400M, 14, 384)),
    "siglip2_so400m_patch16_256": (SIGLIP, Architecture(*SO400M, 16, 256)),
    "siglip2_so400m_patch16_384": (SIGLIP, Architecture(*SO400M, 16, 384)),
    "siglip2_so400m_patch16_512": (SIGLIP, Architecture(*SO400M, 16, 512)),
}
"""keras-hub's presets, whose files keras-hub only loads from the network: so random weights need none. A test counts
their parameters."""

ENDINGS = re.compile(r"(_\d+)?(_(?:imagenet(?:21k)?|lvd1689m|sat493m))?$")
"""Size and data set, at the end of a preset's name."""
TAPS = 4
"""How many maps a backbone gives."""
PUBLISHED_TAPS = {24: (5, 12, 18, 24)}
"""By depth: the blocks after which DINOv2's maps are taken by Depth Anything (Yang et al. 2024, arXiv:2401.10891) and
UniMatch V2 (Yang et al. 2025, arXiv:2410.10777), counted from 1, where they are not evenly spread."""


def transformers() -> Iterator[tuple[str, BackboneSpec]]:
    """The name and the specification of every transformer."""
    for name, preset in short_names(PRESETS).items():
        yield name, transformer_spec(name, *PRESETS[preset], preset)


def short_names(presets: Sequence[str] | dict[str, Any]) -> dict[str, str]:
    """The presets by the shortest name that no other preset could have."""

    def forms(preset: str) -> list[str]:
        size, data = ENDINGS.search(preset).groups(default="")  # type: ignore[union-attr]
        bare = preset.removesuffix(size + data)
        return [bare, bare + size, preset]

    every = [form for preset in presets for form in {*forms(preset)}]
    return {next(form for form in forms(preset) if every.count(form) == 1): preset for preset in presets}


def transformer_spec(name: str, family: Family, size: Architecture, preset: str | None = None) -> BackboneSpec:
    """The specification of a transformer; without a `preset` it has no published weights."""
    return BackboneSpec(
        functools.partial(build_transformer, name, family, size, preset),
        family.pixels,
        taps=tuple(f"map_{block}" for block in tapped_blocks(size.depth)),
        stride=size.patch,
        dilates=False,
        plain=True,
        drop_path=True,
        weights=family.weights,
    )


def tapped_blocks(depth: int) -> tuple[int, ...]:
    """The blocks after which maps are taken, counted from 1: the published ones, or evenly spread."""
    return PUBLISHED_TAPS.get(depth, tuple(round(depth * tap / TAPS) for tap in range(1, TAPS + 1)))


def build_transformer(
    name: str,
    family: Family,
    size: Architecture,
    preset: str | None,
    weights: str | None,
    drop_path: float = 0.0,
) -> keras.Model:
    """Normalised image (B,H,W,3), H and W multiples of the patch, to maps (B,H/p,W/p,C) from four depths.

    The last layer norm is applied to each, and class tokens and registers are left out, as in DINOv2's DPT.

    Args:
        name: of the network.
        family: what it has in common with others.
        size: what it has not.
        preset: of keras-hub, for "imagenet".
        weights: "imagenet" for the published weights, whatever they were trained on; None; or a .weights.h5 file.
        drop_path: share of the images of a training batch for which the last block is left out. It grows linearly from
            0 at the first block.

    Raises:
        ValueError: there is no keras-hub, or there are no published weights.
    """
    others = family.class_tokens + size.registers
    image = keras.Input((None, None, 3), name="pixels")
    patches = keras.layers.Conv2D(
        size.width,
        size.patch,
        strides=size.patch,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        name="patches",
    )(image)
    grid = None if family.rotary else size.size // size.patch
    x = TokenEmbedding(family.class_tokens, size.registers, grid, family.antialias, name="embedding")(patches)
    positions: dict[str, Any] = {}
    if family.rotary:
        angles = RotaryAngles(size.width // size.heads, name="angles")(patches)
        positions = {"position_embeddings": angles, "num_prefix_tokens": others}
    norm = keras.layers.LayerNormalization(epsilon=family.epsilon, name="norm")
    maps = []
    for index in range(size.depth):
        y = family.block(size, f"block_{index}")(x, **positions)
        rate = drop_path * index / max(size.depth - 1, 1)
        x = StochasticDepth(rate, name=f"drop_{index}")([x, y]) if rate else y
        if index + 1 in tapped_blocks(size.depth):
            maps.append(TokensToMap(others, name=f"map_{index + 1}")([norm(x), patches]))
    network = keras.Model(image, maps, name=name)
    if weights == "imagenet":
        if preset is None:
            raise ValueError(f"there are no published weights of {name}; give a file of weights, or weights='none'")
        copy_parts(family.parts(getattr(hub("models"), family.model).from_preset(preset)), network)
    elif weights is not None:
        network.load_weights(weights)
    return network


def copy_parts(parts: Parts, network: keras.Model) -> None:
    """Gives a network of `build_transformer` the weights of keras-hub's model."""
    network.get_layer("patches").set_weights(parts.patches.get_weights())
    for variable, value in zip(network.get_layer("embedding").weights, parts.embedding, strict=True):
        variable.assign(keras.ops.reshape(value, variable.shape))
    for index, block in enumerate(parts.blocks):
        network.get_layer(f"block_{index}").set_weights(block.get_weights())
    network.get_layer("norm").set_weights(parts.norm.get_weights())


def with_channels(network: keras.Model, channels: int) -> keras.Model:
    """The network with so many channels of its input: a fresh first convolution (He-initialised), and the network's own
    other layers."""

    def keep(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name != "patches":
            return layer
        return keras.layers.Conv2D.from_config(layer.get_config() | {"kernel_initializer": "he_normal"})

    pixels = keras.Input((None, None, channels), name="pixels")
    return keras.models.clone_model(network, input_tensors=pixels, clone_function=keep)
