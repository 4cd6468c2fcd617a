"""Networks of keras-hub with features of several strides: these are keras-hub's own, at every stride."""

import math
import subprocess
import sys

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from export.graph import serving_function, to_onnx
from kerasseg.keras_internals import fresh_names
from kerasseg.layers import PixelNormalization
from kerasseg.methods import Supervised
from kerasseg.segmenters import build_segmenter
from kerasseg.segmenters.backbones import BACKBONES, build_backbone
from kerasseg.segmenters.backbones.hub import (
    BASIC,
    BOTTLENECK_VD,
    CSP_DARKNET_53,
    CSP_RESNEXT_50,
    CSPNET,
    EFFICIENTNET,
    HGNETV2,
    MIT,
    NETWORKS,
    RESNET,
    RESNET_VD,
    Network,
    copy_in_order,
    hgnetv2,
    hub_spec,
    lite,
    mit,
    resnet,
)
from kerasseg.segmenters.backbones.tokens import StochasticDepth

keras_hub = pytest.importorskip("keras_hub", reason="needs the extra hub")

SHALLOW = {"stackwise_depth": [1] * 4, "stackwise_num_filters": [16, 32, 32, 64], "stem_filters": 8}
NARROW = {"stackwise_num_filters": [64, 8, 8, 16]}
TINY = {
    "efficientnet": Network(EFFICIENTNET, lite(0.25, 0.5)),
    "resnet": Network(RESNET, resnet(BASIC, 1, 1, 1, 1) | NARROW),
    "resnet_vd": Network(RESNET_VD, resnet(BOTTLENECK_VD, 1, 1, 1, 1) | NARROW, "a_preset"),
    "csp_darknet": Network(
        CSPNET,
        CSP_DARKNET_53 | {"stackwise_depth": [1] * 5, "stackwise_num_filters": [8, 8, 16, 16, 16], "stem_filters": 8},
    ),
    "csp_resnext": Network(CSPNET, CSP_RESNEXT_50 | SHALLOW | {"groups": 4}),
    "mit": Network(MIT, mit(8, 1, 1, 1, 1)),
    "hgnetv2": Network(
        HGNETV2, hgnetv2((8, 8), (4, 6, 8, 8), (8, 16, 16, 24), (1, 1, 2, 1), layers=2, affine=True), "a_preset"
    ),
    "hgnetv2_plain": Network(HGNETV2, hgnetv2((8, 8), (4, 6, 8, 8), (8, 16, 16, 24), (1, 1, 2, 1), layers=2)),
}


@pytest.fixture(autouse=True)
def tiny_backbones(monkeypatch):
    for name, network in TINY.items():
        monkeypatch.setitem(BACKBONES, f"tiny_{name}", hub_spec(f"tiny_{name}", network))


def randomize(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        variance = "variance" in weight.path
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if variance else rng.normal(0, 0.3, weight.shape))
    return model


def keras_hubs(name):
    """keras-hub's own network for square images of 64 pixels, with random weights, and its maps of four strides."""
    family, arguments, *_ = TINY[name]
    if family is MIT:
        model = keras_hub.models.MiTBackbone(
            layerwise_depths=arguments["depths"],
            num_layers=4,
            layerwise_num_heads=[1, 2, 5, 8],
            layerwise_sr_ratios=[8, 4, 2, 1],
            max_drop_path_rate=0.0,
            layerwise_patch_sizes=[7, 3, 3, 3],
            layerwise_strides=[4, 2, 2, 2],
            hidden_dims=arguments["widths"],
            image_shape=(64, 64, 3),
        )
    elif family is HGNETV2:
        layers, outputs, hidden = arguments["layers"], arguments["outputs"], arguments["hidden"]
        inputs = (arguments["stem"][1], *outputs[:-1])
        stages = zip(inputs, hidden, outputs, arguments["blocks"], [layers] * 4, (3, 3, 5, 5), strict=True)
        model = keras_hub.models.HGNetV2Backbone(
            depths=arguments["blocks"],
            embedding_size=arguments["stem"][1],
            hidden_sizes=outputs,
            stem_channels=(3, *arguments["stem"]),
            hidden_act="relu",
            use_learnable_affine_block=arguments["affine"],
            stackwise_stage_filters=list(stages),
            apply_downsample=[False, True, True, True],
            use_lightweight_conv_block=[False, False, True, True],
        )
        return randomize(model), [model.output[f"stage{stage}"] for stage in (1, 2, 3, 4)]
    else:
        with fresh_names():
            model = getattr(keras_hub.models, family.model)(**arguments)
        if family is EFFICIENTNET:  # where the EfficientNets of keras.applications are read too
            taps = [f"block{stage}a_expand_activation" for stage in (3, 4, 6)] + ["block7a_project_bn"]
            return randomize(model), [model.get_layer(tap).output for tap in taps]
    return randomize(model), [model.pyramid_outputs[level] for level in sorted(model.pyramid_outputs)[-4:]]


@pytest.mark.parametrize("name", TINY)
def test_features_are_those_of_keras_hub(name):
    model, maps = keras_hubs(name)
    whole = TINY[name].family.build(**TINY[name].arguments)
    copy_in_order(model, whole.weights)
    backbone = build_backbone(f"tiny_{name}", 32, maps="pyramid")
    for layer in backbone.layers:
        if layer.weights:
            layer.set_weights(whole.get_layer(layer.name).get_weights())
    image = np.random.default_rng(1).normal(size=(2, 64, 64, 3)).astype(np.float32)
    expected = keras.Model(model.inputs[0], maps)(image)
    assert backbone.strides == (4, 8, 16, 32)
    for stride, ours, theirs in zip(backbone.strides, backbone(image), expected, strict=True):
        assert ours.shape[1:3] == (64 // stride, 64 // stride)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_mit_takes_images_of_any_shape():
    """Where keras-hub's takes square ones: an image on its side gives maps on their side."""
    network = randomize(build_backbone("tiny_mit", output_stride=16, maps="pyramid"))
    assert network.strides == (4, 8, 16, 32)  # it is not dilated
    image = np.random.default_rng(1).normal(size=(1, 64, 96, 3)).astype(np.float32)
    upright = [np.asarray(features) for features in network(image)]
    for weight in network.weights:
        if len(weight.shape) == 4:
            weight.assign(np.swapaxes(weight, 0, 1))
    for features, expected in zip(network(np.swapaxes(image, 1, 2)), upright, strict=True):
        np.testing.assert_allclose(np.swapaxes(features, 1, 2), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["efficientnet", "resnet", "csp_resnext", "hgnetv2"])
def test_strides_are_traded_for_dilation_with_the_same_weights(name):
    dense, own = (build_backbone(f"tiny_{name}", stride, maps="pyramid") for stride in (8, 32))
    assert dense.strides == (4, 8, 8, 8)
    own.set_weights(dense.get_weights())
    image = np.random.default_rng(1).normal(size=(1, 64, 96, 3)).astype(np.float32)
    ours, theirs = dense(image), own(image)
    assert [x.shape[1:3] for x in ours] == [(16, 24), (8, 12), (8, 12), (8, 12)]
    for at in (0, 1):  # before the first stride that is traded
        np.testing.assert_allclose(ours[at], theirs[at], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["efficientnet", "resnet_vd"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("csp_resnext", "mit", "hgnetv2")],
)
def test_segmenters_are_trained_saved_and_exported(name, tmp_path):
    segmenter = build_segmenter("segformer", backbone=f"tiny_{name}", num_classes=3, head_channels=8)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    images = pixels.astype(np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(segmenter(images, training=True) ** 2)
    gradients = tape.gradient(loss, segmenter.trainable_weights)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    expected = np.asarray(segmenter(images))
    segmenter.save(tmp_path / "segmenter.keras")
    loaded = keras.saving.load_model(tmp_path / "segmenter.keras")
    np.testing.assert_allclose(loaded(images), expected, atol=1e-5)
    graph = to_onnx(serving_function(Supervised(segmenter), logits=True))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    outputs = dict(zip([x.name for x in session.get_outputs()], session.run(None, {given.name: pixels}), strict=True))
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_stochastic_depth_of_mit_grows_linearly():
    backbone = build_backbone("tiny_mit", drop_path=0.3)
    rates = {layer.name: layer.rate for layer in backbone.layers if hasattr(layer, "rate")}
    assert rates == pytest.approx({"drop_1_0": 0.1, "drop_2_0": 0.2, "drop_3_0": 0.3})


def test_stochastic_depth_leaves_out_whole_maps():
    x, y = (tf.fill((100, 3, 4, 5), value) for value in (1.0, 3.0))
    trained = np.asarray(StochasticDepth(0.5)([x, y], training=True))
    assert trained.shape == (100, 3, 4, 5) and (trained == trained[:, :1, :1, :1]).all()
    assert np.unique(trained).tolist() == [1.0, 5.0]


def test_lites_widths_and_depths_are_those_of_the_larger_efficientnets():
    """B3's and B4's, but for the depth of the first and the last stage."""
    three, four = lite(1.2, 1.4), lite(1.4, 1.8)
    assert three["stackwise_output_filters"] == [24, 32, 48, 96, 136, 232, 384]
    assert three["stackwise_num_repeats"] == [1, 3, 3, 5, 5, 6, 1]
    assert four["stackwise_output_filters"] == [24, 32, 56, 112, 160, 272, 448]
    assert four["stackwise_num_repeats"] == [1, 4, 4, 6, 6, 8, 1]


def test_layer_names_do_not_depend_on_what_was_built_before():
    for name in ("resnet_vd", "csp_darknet"):  # not all of whose layers keras-hub names
        first, second = (build_backbone(f"tiny_{name}") for _ in range(2))
        assert [layer.name for layer in first.layers[1:]] == [layer.name for layer in second.layers[1:]]


@pytest.mark.parametrize("name", NETWORKS)
def test_pixels_are_those_of_the_published_weights(name):
    """timm's constants: ImageNet's mean and deviation; (x - 127) / 128 in the code of EfficientNet-Lite's authors."""
    image = np.random.default_rng(0).uniform(0, 255, (1, 2, 3, 3)).astype(np.float32)
    if name.startswith("tf_"):
        expected = (image - 127) / 128
    else:
        expected = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(PixelNormalization(BACKBONES[name].pixels)(image), expected, atol=1e-5)


CLASSES = {
    "swin_tiny_patch4_window7": 0,
    "efficientnet_lite0": 1000,
    "resnet_18": 0,
    "resnet_vd_18": 1000,
    "csp_resnext_50": 1000,
    "mit_b0": 10,
    "hgnetv2_b4": 0,
}
"""The outputs of the classifier whose parameters keras-hub counts too."""


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_are_as_many_as_keras_hub_says(name):
    family, arguments, preset, _ = NETWORKS[name]
    network = family.build(**arguments)
    # timm's numbers are those of trained parameters.
    trained = name.startswith(("csp", "efficientnet"))
    weights = network.trainable_weights if trained else family.weights_of(network)
    classifier = CLASSES[name] and CLASSES[name] * (network.outputs[-1].shape[-1] + 1)
    expected = getattr(keras_hub.models, family.model).presets[preset]["metadata"]["params"]
    assert sum(math.prod(weight.shape) for weight in weights) + classifier == expected


def test_every_preset_is_one_of_keras_hub():
    for network in NETWORKS.values():
        presets = getattr(keras_hub.models, network.family.model).presets
        assert network.preset is None or network.preset in presets


@pytest.mark.parametrize("name", ["resnet_vd", "hgnetv2"])
def test_published_weights_come_from_the_preset(name, monkeypatch):
    model, maps = keras_hubs(name)
    loaded = []
    published = getattr(keras_hub.models, TINY[name].family.model)
    monkeypatch.setattr(published, "from_preset", lambda preset: loaded.append(preset) or model)
    backbone = build_backbone(f"tiny_{name}", 32, weights="imagenet", maps="pyramid")
    assert loaded == ["a_preset"]
    image = np.random.default_rng(1).normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = keras.Model(model.inputs[0], maps)(image)[-1]
    np.testing.assert_allclose(backbone(image)[-1], expected, atol=1e-5 * np.abs(expected).max())


def test_without_published_weights_the_error_says_what_to_give():
    with pytest.raises(ValueError, match="there are no published weights of tiny_mit; give a file of weights, or"):
        build_backbone("tiny_mit", weights="imagenet")


def test_without_keras_hub_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub.models", None)
    with pytest.raises(ValueError, match=r'needs keras-hub, .*: pip install "kerasseg\[hub\]"$') as error:
        build_backbone("resnet_vd_18")
    assert "\n" not in str(error.value)


def test_keras_hub_is_imported_only_where_it_is_needed():
    code = "import sys, kerasseg, kerasseg.segmenters; print('keras_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
