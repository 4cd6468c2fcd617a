"""The part that discriminators share: 4x4 convolutions of stride 2 (Radford et al. 2016, arXiv:1511.06434)."""

import keras

from kerasseg.layers import Conv2D

CHANNELS = 64
DEPTH = 4


def widths(channels: int = CHANNELS) -> list[int]:
    """Channels of the trunk's convolutions, of which the first has `channels`: 64, 128, 256, 512."""
    return [channels * 2**index for index in range(DEPTH)]


def convolution(x, channels: int, name: str):
    """4x4, stride 2: half the size, rounded up."""
    return Conv2D(channels, 4, strides=2, padding="same", name=name)(x)


def leaky_relu(x):
    """Leaky ReLU of slope 0.2. TensorFlow's graph optimiser fails on the gradient of TensorFlow's own one."""
    return keras.ops.maximum(x, 0.2 * x)


def trunk(x, channels: int = CHANNELS, depth: int = DEPTH) -> list:
    """The features after each of the first `depth` convolutions and leaky ReLUs, the largest first; x is (B,H,W,C)."""
    features = []
    for index, width in enumerate(widths(channels)[:depth], start=1):
        x = leaky_relu(convolution(x, width, f"conv{index}"))
        features.append(x)
    return features
