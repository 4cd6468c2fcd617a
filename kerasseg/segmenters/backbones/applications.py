"""Backbones of `keras.applications`: every network there, by its name in snake case (`convnext_tiny`)."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras

from kerasseg.layers import Border
from kerasseg.segmenters.backbones.dilation import copy_weights
from kerasseg.segmenters.backbones.spec import BackboneSpec


class Family(NamedTuple):
    """What the networks of one module of `keras.applications` share."""

    pixels: str
    licence: str
    """Licence of the published weights."""
    dilates: bool = True
    border: Border = "zeros"
    """`BackboneSpec.border`."""
    size: int | None = None
    """Side of the images that it is built for, pixels, where its graph follows from that; it is then used for any."""


FAMILIES = {
    "convnext": Family("torch", "MIT", dilates=False, border="repeat"),  # strides in networks of their own
    "densenet": Family("torch", "BSD 3-clause", dilates=False),  # strides in poolings
    "efficientnet": Family("torch", "Apache 2.0"),
    "efficientnet_v2": Family("torch", "Apache 2.0"),
    "inception_resnet_v2": Family("tf", "Apache 2.0", dilates=False),
    "inception_v3": Family("tf", "MIT", dilates=False),
    "mobilenet": Family("tf", "Apache 2.0"),
    "mobilenet_v2": Family("tf", "Apache 2.0"),
    "mobilenet_v3": Family("tf", "Apache 2.0"),
    "nasnet": Family("tf", "Apache 2.0", dilates=False, size=224),
    "resnet": Family("caffe", "MIT"),
    "resnet_v2": Family("tf", "Apache 2.0"),
    "vgg16": Family("caffe", "CC BY 4.0", dilates=False),
    "vgg19": Family("caffe", "CC BY 4.0", dilates=False),
    "xception": Family("tf", "MIT", dilates=False),
}
"""By module. A test compares the pixels with the family's own preprocessing."""
PIXELS = dict.fromkeys(("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"), "tf128")
"""Networks whose pixels are not their family's."""


def applications() -> Iterator[tuple[str, BackboneSpec]]:
    """The name and the specification of every network."""
    for name, network in inspect.getmembers(keras.applications, inspect.isfunction):
        family = FAMILIES[network.__module__.rpartition(".")[2]]
        snake = snake_case(name)
        pixels = PIXELS.get(snake, family.pixels)
        weights = f"Keras, ImageNet; {family.licence}"
        build = builder(network, family.size)
        yield snake, BackboneSpec(build, pixels, dilates=family.dilates, border=family.border, weights=weights)


def snake_case(name: str) -> str:
    """EfficientNetV2S to efficientnet_v2_s."""
    name = name.replace("NeXt", "next").replace("Net", "net")
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def builder(network: Callable[..., keras.Model], size: int | None = None) -> Callable[[str | None], keras.Model]:
    """The function `BackboneSpec.build` of a network of `keras.applications`.

    The normalisation of pixels that some networks begin with is left out: segmenters have it in one place
    (`PixelNormalization`), and critics join the image with other maps after it.
    """
    options = (
        {"include_preprocessing": False} if "include_preprocessing" in inspect.signature(network).parameters else {}
    )

    def build(weights: str | None) -> keras.Model:
        whole = network(weights=weights, include_top=False, input_shape=(size, size, 3), **options)
        return without_normalization(whole)

    return build


def without_normalization(network: keras.Model) -> keras.Model:
    """The functional network without layers that normalise pixels; the same network where it has none."""

    def normalizes(layer: keras.layers.Layer) -> bool:
        return isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)

    if not any(map(normalizes, network.layers)):
        return network

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if normalizes(layer):
            return keras.layers.Identity(name=layer.name)
        return type(layer).from_config(layer.get_config())

    bare = keras.models.clone_model(network, clone_function=clone)
    copy_weights(network, bare)
    return bare
