"""keras-hub, and its backbones with features of several strides."""

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import keras

from kerasseg.segmenters.backbones.spec import BackboneSpec

EFFICIENTNET: dict[str, Any] = {
    "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
    "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
    "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
    "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
    "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
    "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
    "stackwise_block_types": ["v1"] * 7,
    "min_depth": None,
    "use_depth_divisor_as_min_depth": True,
    "cap_round_filter_decrease": True,
    "dropout": 0,
}
"""EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946, table 1), as keras-hub's class takes it."""
LITE0 = EFFICIENTNET | {
    "stackwise_width_coefficients": [1.0] * 7,
    "stackwise_depth_coefficients": [1.0] * 7,
    "stackwise_squeeze_and_excite_ratios": [0] * 7,
    "activation": "relu6",
}
"""Its Lite form: no squeeze and excitation, ReLU6."""


def hub(module: str) -> Any:
    """A module of keras-hub, which takes a second to import.

    Raises:
        ValueError: keras-hub is not installed.
    """
    try:
        return importlib.import_module(f"keras_hub.{module}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f'this backbone needs keras-hub, and there is no module {error.name}: pip install "kerasseg[hub]"'
        ) from error


def hub_pyramids() -> Iterator[tuple[str, BackboneSpec]]:
    """The name and the specification of every network."""
    yield (
        "efficientnet_lite0",
        BackboneSpec(
            functools.partial(build_efficientnet, "efficientnet_lite0_ra_imagenet", LITE0),
            "torch",
            weights="keras-hub, ImageNet; Apache 2.0",
        ),
    )
    # timm's name for the network as TensorFlow's authors published it.
    yield (
        "tf_efficientnet_lite0",
        BackboneSpec(
            functools.partial(build_efficientnet, None, LITE0 | {"batch_norm_epsilon": 1e-3}),
            "lite",
            weights="a file of timm's tf_efficientnet_lite0",
        ),
    )


def build_efficientnet(preset: str | None, arguments: dict[str, Any], weights: str | None) -> keras.Model:
    """An EfficientNet of keras-hub.

    Args:
        preset: for "imagenet"; None for a network of TensorFlow's own padding, for which keras-hub has none.
        arguments: of keras-hub's class.
        weights: "imagenet", None, or the path of a `.weights.h5` file.

    Raises:
        ValueError: keras-hub is not installed, or there are no published weights.
    """
    network_class = hub("models").EfficientNetBackbone
    if weights == "imagenet":
        if preset is None:
            raise ValueError(
                "keras-hub publishes no weights of this network; give the path of a file, or weights='none'"
            )
        network = network_class.from_preset(preset)
    else:
        network = network_class(**arguments)
    network = keras.Model(network.inputs, network.outputs, name=network.name)
    if preset is None:
        network = with_same_padding(network)
    if weights not in (None, "imagenet"):
        network.load_weights(weights)
    return network


def with_same_padding(network: keras.Model) -> keras.Model:
    """The functional network with padding "same" in place of zero padding as much on either side: what PyTorch's
    networks have there, TensorFlow's shift by a pixel where they have a stride."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.ZeroPadding2D):
            return keras.layers.Identity(name=layer.name)
        config = layer.get_config()
        return type(layer).from_config(config | ({"padding": "same"} if config.get("padding") == "valid" else {}))

    return keras.models.clone_model(network, clone_function=clone)
