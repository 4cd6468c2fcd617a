"""The critics against NumPy, how they are built, and what they start from."""

from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401
from kerasseg.critics import (
    build_classifier_like,
    build_corrector,
    build_d1,
    build_d2,
    build_deeplab_discriminator,
    build_image_discriminator,
    build_pixel_discriminator,
)
from kerasseg.critics.dual_discriminators import Shown
from kerasseg.layers import Upsample
from kerasseg.methods import METHODS
from kerasseg.segmenters import build_segmenter


def strided_convolution(x, kernel, bias):
    """4x4, stride 2, padding "same" of an even size: one row and column of zeros on each side."""
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    height, width = x.shape[1] // 2, x.shape[2] // 2
    total = bias
    for i in range(4):
        for j in range(4):
            total = total + padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2] @ kernel[i, j]
    return total


@pytest.mark.parametrize("shrink", [1, 2])
def test_the_image_discriminator_in_numpy(shrink):
    discriminator = build_image_discriminator(3, shrink=shrink)
    rng = np.random.default_rng(0)
    discriminator.set_weights([w + rng.normal(scale=0.05, size=w.shape) for w in discriminator.get_weights()])
    size = (32 * shrink, 48 * shrink)
    segmentation, image = rng.random((2, *size, 3)), rng.uniform(0, 255, (2, *size, 3))
    weights = [w.astype(np.float64) for w in discriminator.get_weights()]
    x = np.concatenate([segmentation, image / 255], axis=-1)
    x = x.reshape(2, 32, shrink, 48, shrink, 6).mean(axis=(2, 4))
    for layer in range(4):
        x = strided_convolution(x, *weights[2 * layer : 2 * layer + 2])
        x = np.where(x > 0, x, 0.2 * x)
    features = x.mean(axis=(1, 2))
    ours, logit = discriminator([segmentation.astype(np.float32), image.astype(np.float32)])
    np.testing.assert_allclose(ours, features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logit, features @ weights[8] + weights[9], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("after_last", [True, False])
def test_dropout_takes_whole_channels_and_the_last_one_is_a_choice(after_last):
    discriminator = build_image_discriminator(3, dropout=0.5, dropout_after_last=after_last)
    rng = np.random.default_rng(0)
    x = [rng.random((1, 32, 32, 3)).astype(np.float32), rng.uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)]
    features, _ = discriminator(x, training=True)
    dropped = float(np.mean(features.numpy() == 0))
    assert 0.35 < dropped < 0.65 if after_last else dropped < 0.05


def with_random_weights(network):
    """The network, its biases drawn too."""
    rng = np.random.default_rng(1)
    network.set_weights([w + rng.normal(scale=0.05, size=w.shape) for w in network.get_weights()])
    return network


def trunk_by_hand(x, weights, layers=4):
    for layer in range(layers):
        x = strided_convolution(x, *weights[2 * layer : 2 * layer + 2])
        x = np.where(x > 0, x, 0.2 * x)
    return x


@pytest.mark.parametrize("convolutional", [True, False])
def test_the_pixel_discriminator_in_numpy(convolutional):
    discriminator = with_random_weights(build_pixel_discriminator(3, convolutional))
    segmentation = np.random.default_rng(0).random((2, 64, 96, 3)).astype(np.float32)
    weights = [w.astype(np.float64) for w in discriminator.get_weights()]
    x = trunk_by_hand(segmentation, weights)
    if convolutional:
        x = strided_convolution(x, *weights[8:])
        expected = tf.image.resize(x, (64, 96))
    else:
        verdict = x.mean(axis=(1, 2)) @ weights[8] + weights[9]
        expected = np.broadcast_to(verdict[:, None, None], (2, 64, 96, 1))
    np.testing.assert_allclose(discriminator(segmentation), expected, rtol=1e-3, atol=1e-4)
    assert discriminator(segmentation[:, :33, :47]).shape == (2, 33, 47, 1)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_deeplab_discriminator_judges_each_pixel_by_its_surroundings(classes):
    discriminator = with_random_weights(build_deeplab_discriminator(classes, "tiny", head_channels=8))
    assert discriminator.get_layer("tiny").get_layer("conv").kernel.shape[2] == classes
    S = np.random.default_rng(0).random((2, 33, 47, classes)).astype(np.float32)
    verdict = discriminator(S).numpy()
    assert verdict.shape == (2, 33, 47, 1) and verdict.dtype == np.float32 and verdict.std() > 0
    changed = S.copy()
    changed[:, 10:12, 10:12] = 1 - changed[:, 10:12, 10:12]
    assert np.abs(discriminator(changed).numpy() - verdict)[:, 20, 20].min() > 0


def test_d1_in_numpy():
    d1 = with_random_weights(build_d1(3))
    segmentation = np.random.default_rng(0).random((2, 64, 96, 3)).astype(np.float32)
    weights = [w.astype(np.float64) for w in d1.get_weights()]
    x = strided_convolution(trunk_by_hand(segmentation, weights), *weights[8:])
    np.testing.assert_allclose(d1(segmentation), x.mean(axis=(1, 2)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shown", get_args(Shown))
def test_d2_sees_what_it_is_shown(shown):
    """Its input, found as what reaches its first convolution."""
    d2 = build_d2(3, shown)
    rng = np.random.default_rng(0)
    segmentation, image = rng.random((1, 32, 32, 3)).astype(np.float32), rng.uniform(0, 255, (1, 32, 32, 3))
    image = image.astype(np.float32)
    rgb = image / 255
    expected = {
        "maps": segmentation,
        "maps_rgb": np.concatenate([segmentation, rgb], axis=-1),
        "labels_rgb": np.concatenate([np.argmax(segmentation, axis=-1)[..., None] / 2, rgb], axis=-1),
        "maps_times_rgb": np.concatenate([segmentation * rgb[..., c : c + 1] for c in range(3)], axis=-1),
    }[shown]
    first = keras.Model(d2.inputs, d2.get_layer("conv1").input)
    np.testing.assert_allclose(first([segmentation, image]), expected, atol=1e-6)


@pytest.mark.parametrize(
    "structure, down, up, joined",
    [
        ("stride16_up16", 4, [16], []),
        ("stride4_up4", 2, [4], []),
        ("stride16_up2", 4, [2, 2, 2, 2], [512 + 256, 256 + 128, 128 + 64]),
        ("stride16_up4", 4, [4, 4], [512 + 128]),
    ],
)
def test_d2s_structures_go_down_and_up_as_they_are_called(structure, down, up, joined):
    d2 = build_d2(3, structure=structure)
    convolutions = [layer for layer in d2.layers if isinstance(layer, keras.layers.Conv2D)]
    assert sum(layer.strides == (2, 2) for layer in convolutions) == down
    assert [layer.factor for layer in d2.layers if isinstance(layer, Upsample)] == up
    skips = [layer.output.shape[-1] for layer in d2.layers if isinstance(layer, keras.layers.Concatenate)]
    assert skips == joined
    x, image = np.full((1, 35, 50, 3), 1 / 3, np.float32), np.zeros((1, 35, 50, 3), np.float32)
    logits = d2([x, image]).numpy()
    assert logits.shape == (1, 35, 50, 1) and logits.dtype == np.float32


@pytest.mark.parametrize(
    "method, name, widths",
    [
        ("advsemiseg", "discriminator", [6, 12, 24, 48, 1]),
        ("s4gan", "discriminator", [6, 12, 24, 48]),
        ("latent", "discriminator", [6, 12, 24, 48, 1]),
        ("dualgan", "d1", [6, 12, 24, 48, 1]),
        ("dualgan", "d2", [6, 12, 24, 48, 12, 1]),
    ],
)
def test_the_discriminators_are_as_wide_as_the_method_says(method, name, widths):
    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=3, weights="none", head_channels=8)
    network = getattr(METHODS[method](segmenter, discriminator_channels=6), name)
    assert [layer.filters for layer in network.layers if isinstance(layer, keras.layers.Conv2D)] == widths


@pytest.mark.parametrize("structure, decoder", [("stride16_up2", [24, 12, 6]), ("stride4_up4", [])])
def test_d2s_decoder_is_as_wide_as_its_trunk(structure, decoder):
    layers = build_d2(3, structure=structure, channels=6).layers
    widths = [layer.filters for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    assert widths == [6, 12, 24, 48, *decoder, 1]


@pytest.mark.parametrize("field", [{"shown": "rgb"}, {"structure": "stride8"}])
def test_an_unknown_d2_is_refused(field):
    (name,) = field
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        build_d2(3, **field)


def test_the_corrector_has_a_class_more_and_fresh_eyes_for_the_classes():
    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=3, weights="none", head_channels=8)
    with_random_weights(segmenter.backbone)
    corrector = build_corrector(3, segmenter.backbone, head_channels=8)
    lent, own = segmenter.backbone, corrector.get_layer("tiny")
    assert own.get_layer("conv").kernel.shape == (3, 3, 6, 8)
    for name in ("norm", "middle", "high"):
        for ours, theirs in zip(own.get_layer(name).get_weights(), lent.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    rng = np.random.default_rng(0)
    S, image = rng.random((2, 33, 47, 3)).astype(np.float32), rng.uniform(0, 255, (2, 33, 47, 3)).astype(np.float32)
    verdict = corrector([S, image]).numpy()
    assert verdict.shape == (2, 33, 47, 4) and verdict.dtype == np.float32
    for changed in ([S[:, ::-1], image], [S, image[:, ::-1]]):  # it looks at both
        assert np.abs(corrector(changed) - verdict).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet34", "resnet50", "mobilenet_v2_c4"])
def test_every_backbone_makes_a_corrector(backbone):
    corrector = build_corrector(5, backbone, head_channels=8)
    S, image = np.zeros((1, 33, 47, 5), np.float32), np.zeros((1, 33, 47, 3), np.float32)
    verdict = corrector([S, image]).numpy()
    assert verdict.shape == (1, 33, 47, 6) and np.isfinite(verdict).all()


@pytest.mark.slow
def test_the_classifier_starts_from_the_segmenters_backbone():
    segmenter = build_segmenter("deeplab_v2", backbone="mobilenet_v2", num_classes=5, weights="none")
    rng = np.random.default_rng(0)
    backbone = segmenter.backbone
    backbone.set_weights([w + rng.normal(scale=0.01, size=w.shape) for w in backbone.get_weights()])
    classifier = build_classifier_like(segmenter)
    image = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    _, dense = backbone(image)
    _, sparse = classifier.get_layer("mobilenet_v2")(image)
    np.testing.assert_allclose(sparse, dense[:, 1::2, 1::2], atol=1e-4)
    assert classifier(np.zeros((2, 33, 47, 3), np.uint8)).shape == (2, 5)
