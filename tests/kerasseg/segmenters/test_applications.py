"""The networks of `keras.applications` as backbones."""

import inspect
import sys

import keras
import numpy as np
import pytest

from kerasseg.keras_internals import fresh_names
from kerasseg.layers import PixelNormalization
from kerasseg.segmenters.backbones import BACKBONES, backbone_spec, build_backbone
from kerasseg.segmenters.backbones.applications import FAMILIES, applications, snake_case
from kerasseg.segmenters.backbones.dilation import taps_by_stride, whole_strides
from kerasseg.segmenters.backbones.table import backbone_table

NETWORKS = {snake_case(name): network for name, network in inspect.getmembers(keras.applications, inspect.isfunction)}
NORMALIZING = ("convnext", "efficientnet", "efficientnet_v2", "mobilenet_v3")
"""Modules whose networks begin with their preprocessing."""


def module_of(name: str) -> str:
    return NETWORKS[name].__module__.rpartition(".")[2]


def test_names_are_those_of_keras_in_snake_case():
    names = ["efficientnet_v2_s", "convnext_xlarge", "mobilenet_v3_small", "resnet50_v2", "nasnet_mobile", "xception"]
    assert set(names) <= NETWORKS.keys() == dict(applications()).keys() <= BACKBONES.keys()
    assert {module_of(name) for name in NETWORKS} == FAMILIES.keys()


@pytest.mark.parametrize("name", [name for name in NETWORKS if module_of(name) not in NORMALIZING])
def test_pixels_are_those_of_the_familys_preprocessing(name):
    image = np.random.default_rng(0).uniform(0, 255, (1, 2, 3, 3)).astype(np.float32)
    expected = sys.modules[NETWORKS[name].__module__].preprocess_input(image.copy())
    np.testing.assert_allclose(PixelNormalization(backbone_spec(name).pixels)(image), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_v2_b0", "efficientnet_v2_s", "mobilenet_v3_small"])
def test_pixels_are_those_that_the_network_itself_would_make(name):
    network = NETWORKS[name](weights=None, include_top=False, input_shape=(None, None, 3))
    normalizing = [
        layer for layer in network.layers if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)
    ]
    image = np.random.default_rng(0).uniform(0, 255, (1, 32, 64, 3)).astype(np.float32)
    expected = keras.Model(network.input, normalizing[-1].output)(image)
    pixels = PixelNormalization(backbone_spec(name).pixels)
    np.testing.assert_allclose(pixels(image), expected, atol=1e-4)


def test_efficientnets_pixels_are_those_of_its_published_weights():
    """They hold ImageNet's mean, and its deviation as a variance; a last layer divides by the root of the deviation."""
    mean, deviation = (np.array(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = np.random.default_rng(0).uniform(0, 255, (1, 2, 3, 3)).astype(np.float32)
    expected = (image / 255.0 - mean) / np.sqrt(deviation) / np.sqrt(deviation)
    np.testing.assert_allclose(PixelNormalization(backbone_spec("efficientnet_b0").pixels)(image), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["convnext_tiny", "densenet121", "efficientnet_b0", "mobilenet", "mobilenet_v2"]
    + ["mobilenet_v3_small", "resnet50_v2", "vgg16"],
)
def test_features_are_those_of_the_network_itself(name):
    """At every stride, and with our batch norm in place of its own."""
    backbone = build_backbone(name, 32, maps="pyramid")
    rng = np.random.default_rng(0)
    backbone.set_weights([w + rng.uniform(0, 0.02, size=w.shape) for w in backbone.get_weights()])
    with fresh_names():
        network = backbone_spec(name).build(None)
    for layer in backbone.layers:
        if layer.weights:
            network.get_layer(layer.name).set_weights(layer.get_weights())
    image = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    strides = taps_by_stride(network)
    expected = keras.Model(network.input, [network.get_layer(strides[s]).output for s in (4, 8, 16, 32)])(image)
    assert backbone.strides == (4, 8, 16, 32)
    for stride, features, theirs in zip(backbone.strides, backbone(image), expected, strict=True):
        assert features.shape[1:3] == (64 // stride, 96 // stride)
        np.testing.assert_allclose(features, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nasnet_mobile", "xception"])
def test_networks_that_lose_the_border_have_whole_strides(name):
    backbone = build_backbone(name, 32, maps="pyramid")
    features = backbone(np.zeros((1, 64, 96, 3), np.float32))
    assert [tuple(x.shape[1:3]) for x in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_whole_strides_change_values_near_the_border_only():
    image = keras.Input((64, 64, 3))  # of one size
    x = keras.layers.Conv2D(4, 3, strides=2, name="first")(image)
    x = keras.layers.MaxPooling2D(3, strides=2, name="pool")(x)
    x = keras.layers.ZeroPadding2D(1, name="pad")(x)
    network = keras.Model(image, keras.layers.Conv2D(4, 3, name="padded")(x))
    whole = whole_strides(network)
    pixels = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    ours, theirs = whole(pixels), network(pixels)
    assert ours.shape == (1, 16, 16, 4) and theirs.shape == (1, 15, 15, 4)
    np.testing.assert_allclose(ours[:, 1:14, 1:14], theirs[:, 1:14, 1:14], atol=1e-5)
    assert whole(np.zeros((1, 32, 96, 3), np.float32)).shape == (1, 8, 24, 4)
    assert whole_strides(whole) is whole


def test_a_widening_convolution_at_the_end_is_left_out():
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", name="features")(image)
    x = keras.layers.Conv2D(32, 1, name="wide")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    assert taps_by_stride(keras.Model(image, x)) == {1: "image", 4: "features"}


def test_the_table_has_every_backbone_with_its_sizes():
    lines = backbone_table().splitlines()
    assert len(lines) == len(BACKBONES) + 1
    for name in NETWORKS:
        (line,) = (line for line in lines if line.split()[0] == name)
        assert "-" not in line.split()[1:3], f"run python -m benchmarks.backbones --names {name}"
    assert next(line for line in lines if line.startswith("resnet50 ")).split()[1:3] == ["23.6", "9.52"]
