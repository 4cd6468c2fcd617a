"""Plain vision transformers: their features are those of keras-hub's models, at any size."""

import importlib
import sys

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401 (the backbone tiny_transformer)
from kerasseg.segmenters import build_segmenter
from kerasseg.segmenters.backbones import BACKBONES, backbone_spec, build_backbone
from kerasseg.segmenters.backbones.tokens import RotaryAngles, StochasticDepth, cubic_weights
from kerasseg.segmenters.backbones.transformers import (
    DEIT,
    DINOV2,
    DINOV2_REGISTERS,
    DINOV3,
    PRESETS,
    SIGLIP,
    VIT,
    Architecture,
    build_transformer,
    copy_parts,
    short_names,
    tapped_blocks,
    transformer_spec,
)
from kerasseg.settings import NetworkSettings

SIZE = Architecture(width=16, depth=4, heads=2, hidden=32, patch=4, size=16)
REGISTERS = SIZE._replace(registers=4)
COMMON = {"patch_size": 4, "num_layers": 4, "num_heads": 2, "hidden_dim": 16}


def dinov2(side, **options):
    arguments = (
        COMMON | {"intermediate_dim": 32, "position_embedding_shape": (16, 16), "apply_layernorm": True} | options
    )
    model = keras_hub.models.DINOV2Backbone(image_shape=(side, side, 3), **arguments)
    randomize(model)
    start = model.embeddings
    ours = start._interpolate_position_embeddings(
        start.position_embeddings, 4, (16, 16), (side, side), options.get("antialias_in_interpolation", False)
    )
    start.interpolated_position_embeddings.assign(ours)
    return model


def dinov3(side, **options):
    arguments = COMMON | {"intermediate_dim": 32, "use_key_bias": False, "apply_layernorm": True} | options
    return randomize(keras_hub.models.DINOV3Backbone(image_shape=(side, side, 3), **arguments))


def vit(side):
    return randomize(keras_hub.models.ViTBackbone((side, side, 3), mlp_dim=32, **COMMON))


def deit(side):
    return randomize(keras_hub.models.DeiTBackbone((side, side, 3), intermediate_dim=32, **COMMON))


def siglip(side):
    model = keras_hub.models.SigLIPVisionEncoder(image_shape=(side, side, 3), intermediate_dim=32, **COMMON)
    return randomize(model)


def randomize(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "float" in weight.dtype:  # not the numbers of SigLIP's positions
            weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return model


CASES = {
    "dinov2": (DINOV2, SIZE, dinov2, {}),
    "dinov2 giant": (DINOV2, SIZE._replace(gated=True), dinov2, {"use_swiglu_ffn": True}),
    "dinov2 with registers": (
        DINOV2_REGISTERS,
        REGISTERS,
        dinov2,
        {"num_register_tokens": 4, "antialias_in_interpolation": True},
    ),
    "dinov3": (DINOV3, REGISTERS, dinov3, {}),
    "dinov3 plus": (
        DINOV3,
        REGISTERS._replace(gated=True),
        dinov3,
        {"use_gated_mlp": True, "hidden_activation": "silu"},
    ),
    "vit": (VIT, SIZE, vit, {}),
    "deit": (DEIT, SIZE, deit, {}),
    "siglip": (SIGLIP, SIZE, siglip, {}),
}


def tokens_of(model, image):
    """The normalised tokens of keras-hub's model, after the blocks that are tapped as far as it gives them."""
    outputs = model.outputs
    if hasattr(model, "pyramid_outputs"):
        outputs = [model.pyramid_outputs[f"stage{block}"] for block in (1, 2, 3, 4)]
    elif hasattr(model, "post_layer_norm"):
        outputs = [model.post_layer_norm.output]
    return keras.tree.flatten(keras.Model(model.inputs[0], outputs)(image))


@pytest.mark.parametrize("case, side", [(case, side) for case in CASES for side in (16, 8 if "reg" in case else 24)])
def test_features_are_those_of_keras_hub(case, side):
    """At the pretrained size, and at others, for which keras-hub builds another model."""
    family, size, model_of, options = CASES[case]
    model = model_of(side, **options)
    network = build_transformer("network", family, size, None, None)
    parts = family.parts(model)
    if family in (VIT, DEIT, SIGLIP):
        # Their position embeddings have keras-hub's own size; ours are at the pretrained one.
        pretrained = family.parts(model_of(16)).embedding
        before = family.class_tokens
        positions = np.asarray(pretrained[-1]).reshape(before + 16, 16)
        resized = tf.image.resize(
            positions[before:].reshape(4, 4, 16), (side // 4, side // 4), "bicubic", antialias=True
        )
        theirs = np.concatenate([positions[:before], np.reshape(resized, (-1, 16))])
        parts.embedding[-1].assign(np.reshape(theirs, parts.embedding[-1].shape))
        parts = parts._replace(embedding=[*parts.embedding[:-1], pretrained[-1]])
    copy_parts(parts, network)
    image = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
    maps, tokens = network(image), tokens_of(model, image)
    # TensorFlow's op without antialias has the cubic from a table of 1024 entries.
    tolerance = 1e-5 if side == 16 or family != DINOV2 else 2e-2
    others = family.class_tokens + size.registers
    assert len(maps) == 4
    for ours, theirs in zip(maps[-len(tokens) :], tokens, strict=True):
        expected = np.reshape(theirs[:, others:], (2, side // 4, side // 4, 16))
        np.testing.assert_allclose(ours, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [37, 23, 80, 1])
def test_position_embeddings_are_interpolated_as_tensorflow_does(size, antialias):
    values = np.random.default_rng(0).normal(size=(37, 37, 2)).astype(np.float32)
    weights = np.asarray(cubic_weights(size, 37, antialias))
    ours = np.einsum("ig,jh,ghc->ijc", weights, weights, values)
    expected = tf.image.resize(values, (size, size), "bicubic", antialias=antialias)
    np.testing.assert_allclose(ours, expected, atol=1e-4 if antialias else 5e-3)  # the op's table has 1024 entries
    if size == 37:
        np.testing.assert_array_equal(weights, np.eye(37))


def test_rotary_angles_of_any_grid():
    """Half of the channels turn by the row and half by the column, from -1 to 1 over the image."""
    cosines, sines = RotaryAngles(8)(np.zeros((1, 2, 3, 5), np.float32))
    rows, columns = np.repeat([-0.5, 0.5], 3), np.tile([-2 / 3, 0, 2 / 3], 2)
    angles = 2 * np.pi * np.stack([rows, rows / 10, columns, columns / 10], axis=1)
    np.testing.assert_allclose(cosines, np.cos(np.tile(angles, 2)), atol=1e-6)
    np.testing.assert_allclose(sines, np.sin(np.tile(angles, 2)), atol=1e-6)


def test_an_image_of_a_batch_is_not_read_by_the_others():
    network = build_backbone("tiny_transformer", maps="pyramid")
    images = np.random.default_rng(0).normal(size=(2, 24, 40, 3)).astype(np.float32)
    for both, first in zip(network(images), network(images[:1]), strict=True):
        assert both.shape == (2, 3, 5, 16)
        np.testing.assert_allclose(both[:1], first, atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_position_embeddings_stay_in_full_precision(precision):
    image = np.random.default_rng(0).normal(size=(1, 40, 24, 3)).astype(np.float32)
    full = build_backbone("tiny_transformer")
    keras.config.set_dtype_policy(precision)
    half = build_backbone("tiny_transformer")
    half.set_weights(full.get_weights())
    embedding = half.get_layer("embedding")
    assert embedding.position_embeddings.dtype == "float32" and embedding.compute_dtype != "float32"
    for ours, expected in zip(half(image), full(image), strict=True):
        assert ours.dtype == embedding.compute_dtype
        np.testing.assert_allclose(tf.cast(ours, tf.float32), expected, atol=0.1)


def test_names_are_the_shortest_that_only_one_preset_could_have():
    assert short_names(
        ["dinov3_vit_small_lvd1689m", "vit_b_224_imagenet", "vit_b_384_imagenet", "vit_b_224_imagenet21k", "x_14_224"]
    ) == {
        "dinov3_vit_small": "dinov3_vit_small_lvd1689m",
        "vit_b_224_imagenet": "vit_b_224_imagenet",
        "vit_b_384": "vit_b_384_imagenet",
        "vit_b_224_imagenet21k": "vit_b_224_imagenet21k",
        "x_14": "x_14_224",
    }
    assert {"dinov2_small", "dinov3_vit_base", "deit_small_distilled_patch16", "vit_huge_patch14"} <= BACKBONES.keys()


def published(preset):
    """The metadata of keras-hub's preset."""
    return getattr(keras_hub.models, PRESETS[preset][0].model).presets[preset]["metadata"]


def test_every_preset_is_one_of_keras_hub():
    assert all(published(preset)["params"] for preset in PRESETS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    ["dinov2_small", "dinov2_with_registers_small", "dinov3_vit_small_lvd1689m", "dinov3_vit_small_plus_lvd1689m"]
    + ["deit_tiny_distilled_patch16_224_imagenet", "deit_small_distilled_patch16_224_imagenet"]
    + ["vit_base_patch32_384_imagenet"],
)
def test_parameters_are_as_many_as_keras_hub_says(preset):
    family, size = PRESETS[preset]
    count = build_transformer("network", family, size, None, None).count_params()
    if "dinov2" in preset:  # a token for masked patches, and position embeddings at the model's own size
        count += size.width * (1 + 1 + (size.size // size.patch) ** 2)
    if "dinov3" in preset:  # keras-hub rounds these to three digits and less
        assert count == pytest.approx(published(preset)["params"], rel=0.02)
    else:
        assert count == published(preset)["params"]


def test_taps_are_the_published_blocks():
    """UniMatch V2's code counts from 0: 2, 5, 8, 11 of 12 blocks, 4, 11, 17, 23 of 24, 9, 19, 29, 39 of 40."""
    assert tapped_blocks(12) == (3, 6, 9, 12)
    assert tapped_blocks(24) == (5, 12, 18, 24)
    assert tapped_blocks(40) == (10, 20, 30, 40)
    assert tapped_blocks(27) == (7, 14, 20, 27)
    assert backbone_spec("dinov2_large").taps == ("map_5", "map_12", "map_18", "map_24")


def test_published_weights_come_from_the_preset(monkeypatch):
    loaded = []
    model = dinov2(16)
    monkeypatch.setattr(keras_hub.models.DINOV2Backbone, "from_preset", lambda name: loaded.append(name) or model)
    monkeypatch.setitem(BACKBONES, "known", transformer_spec("known", DINOV2, SIZE, "a_preset"))
    segmenter = build_segmenter("dpt", backbone="known", num_classes=2, weights="imagenet")
    assert loaded == ["a_preset"]
    block = segmenter.backbone.get_layer("block_2")
    for ours, theirs in zip(block.get_weights(), model.encoder.layers[2].get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)

    def offline(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(keras_hub.models.DINOV2Backbone, "from_preset", offline)
    with pytest.raises(ValueError, match=r"^the published weights of known could not be downloaded \(no route.*'none'"):
        build_backbone("known", weights="imagenet")
    with pytest.raises(ValueError, match="there are no published weights of tiny_transformer"):
        build_backbone("tiny_transformer", weights="imagenet")


def test_without_keras_hub_the_error_says_how_to_install_it(monkeypatch):
    module = "keras_hub.src.models.vit.vit_layers"
    importlib.import_module(module)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r'needs keras-hub, .*: pip install "kerasseg\[hub\]"$') as error:
        build_backbone("vit_base_patch32_384")
    assert "\n" not in str(error.value)


def test_other_channels_after_rgb_get_a_fresh_first_convolution():
    network = build_backbone("tiny_transformer", extra_channels=2)
    kernel = network.get_layer("patches").kernel
    assert kernel.shape == (8, 8, 5, 16) and network.strides == (8, 8)
    image = np.random.default_rng(0).normal(size=(1, 16, 24, 5)).astype(np.float32)
    before = np.asarray(network(image)[1])
    kernel.assign(kernel * np.array([0, 0, 0, 0, 1]).reshape(1, 1, 5, 1))
    after = np.asarray(network(image)[1])
    assert not np.allclose(before, after)
    image[..., :4] = 9  # has no weight any more
    np.testing.assert_array_equal(network(image)[1], after)


def test_two_backbones_share_no_weights():
    first, second = (build_backbone("tiny_transformer") for _ in range(2))
    assert not {id(weight) for weight in first.weights} & {id(weight) for weight in second.weights}


def test_stochastic_depth_leaves_out_blocks_of_some_images_and_keeps_the_mean():
    x, y = (tf.fill((4000, 3, 2), value) for value in (1.0, 3.0))
    layer = StochasticDepth(0.25)
    np.testing.assert_array_equal(layer([x, y]), y)
    trained = np.asarray(layer([x, y], training=True))
    assert (trained == trained[:, :1, :1]).all()
    assert np.unique(trained).tolist() == [1.0, pytest.approx(1 + 2 / 0.75)]
    assert trained.mean() == pytest.approx(3, abs=0.1)


def test_the_share_of_left_out_blocks_grows_linearly_and_is_saved(tmp_path):
    build_segmenter("dpt", backbone="tiny_transformer", num_classes=2, drop_path=0.3).save(tmp_path / "segmenter.keras")
    backbone = keras.saving.load_model(tmp_path / "segmenter.keras").backbone
    rates = {layer.name: layer.rate for layer in backbone.layers if isinstance(layer, StochasticDepth)}
    assert rates == pytest.approx({"drop_1": 0.1, "drop_2": 0.2, "drop_3": 0.3})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"segmenter": "dpt"}, "DPT reads a plain transformer, and mobilenet_v2 has features of several strides"),
        ({"backbone": "dinov2_small"}, "dinov2_small is a plain transformer of one: choose the segmenter dpt"),
        ({"drop_path": 0.1}, "mobilenet_v2 has no stochastic depth: leave drop_path out, or choose a vision"),
        ({"backbone": "dinov2_small", "segmenter": "dpt", "drop_path": 1.0}, "must be in 0..1 .below 1.; got 1.0"),
        ({"backbone": "dinov2"}, "unknown backbone 'dinov2'; the nearest names are dinov2_.*kerasseg backbones"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(ValueError, match=message):
        NetworkSettings(**settings)
