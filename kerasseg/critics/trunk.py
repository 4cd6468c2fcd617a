"""What the discriminators have in common: convolutions of 4x4 and stride 2 (Radford et al. 2016, arXiv:1511.06434)."""

from collections.abc import Sequence

import keras

TRUNK_CHANNELS = (64, 128, 256, 512)


def convolution(x, channels: int, name: str):
    """4x4, stride 2: half the size, rounded up."""
    return keras.layers.Conv2D(channels, 4, strides=2, padding="same", name=name)(x)


def leaky_relu(x):
    """Of slope 0.2. TensorFlow's graph optimiser trips over the gradient of its own and gives up on the whole graph."""
    return keras.ops.maximum(x, 0.2 * x)


def trunk(x, channels: Sequence[int] = TRUNK_CHANNELS) -> list:
    """The features after each convolution and leaky ReLU, the largest first; x is (B,H,W,C)."""
    features = []
    for index, width in enumerate(channels, start=1):
        x = leaky_relu(convolution(x, width, f"conv{index}"))
        features.append(x)
    return features
