"""A backbone of three convolutions, `--backbone tiny`: it shows in a second what MobileNetV2 shows in a minute."""

import keras

from kerasseg.segmenters.backbones import BACKBONES, BackboneSpec


def build(weights: str | None) -> keras.Model:
    assert weights is None
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", name="conv")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="low")(x)
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", activation="relu", name="middle")(x)
    x = keras.layers.DepthwiseConv2D(3, strides=2, padding="same", name="high")(x)
    return keras.Model(image, x)


BACKBONES["tiny"] = BackboneSpec(build, pixels="tf")
