"""The discriminator against NumPy, and what the classifier starts from."""

import numpy as np
import pytest

from kerasseg.critics import build_classifier_like, build_image_discriminator
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
