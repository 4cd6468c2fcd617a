"""A backbone of three convolutions, `--backbone tiny`: it shows in a second what MobileNetV2 shows in a minute."""

import keras

from kerasseg.segmenters.backbones import BACKBONES, BackboneSpec
from kerasseg.segmenters.backbones.hub import MIT, Network, hub_spec
from kerasseg.segmenters.backbones.transformers import DINOV2, Architecture, transformer_spec


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


BACKBONES["tiny_transformer"] = transformer_spec(
    "tiny_transformer", DINOV2, Architecture(width=16, depth=4, heads=2, hidden=32, patch=8, size=32)
)
"""A plain transformer of four narrow blocks, for the segmenter dpt."""

BACKBONES["tiny_mit"] = hub_spec("tiny_mit", Network(MIT, {"widths": (4, 8, 20, 32), "depths": (1, 1, 1, 1)}))
"""A hierarchical transformer of one narrow block a stage, for the segmenters segformer and fpn."""
