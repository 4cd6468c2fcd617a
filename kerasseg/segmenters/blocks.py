"""Layers that the heads of segmenters share."""

import keras

from kerasseg.layers import AtrousConv2D, BatchNormalization
from kerasseg.segmenters.backbones import BATCH_NORM_MOMENTUM


def conv_bn_relu(x, filters: int, kernel_size: int, dilation_rate: int = 1, *, name: str, layer=AtrousConv2D):
    """A convolution without bias, `NAME_conv`, with padding "same"; then `bn_relu`."""
    x = layer(
        filters,
        kernel_size,
        padding="same",
        dilation_rate=dilation_rate,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return bn_relu(x, name=name)


def bn_relu(x, *, name: str):
    """Batch norm, `NAME_bn`, and ReLU, `NAME_relu`."""
    x = BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)
