"""Layers of PyTorch's files in networks of three families, and files that only seem to fit."""

import keras
import numpy as np
import pytest

from kerasseg.segmenters import load_weights
from tests.kerasseg.segmenters.torch_writer import write_safetensors, write_zip

BLOCKS = {"kernel_sizes": [3, 5, 3], "num_repeats": [1, 3, 1], "strides": [1, 2, 1], "expansion_ratios": [1, 2, 2]}
FILTERS = [8, 16, 16, 16]


def small_efficientnet(excitation=0):
    """EfficientNet-Lite's structure in three stages; with a share of channels, squeeze and excitation."""
    hub = pytest.importorskip("keras_hub")
    arguments = {f"stackwise_{name}": value for name, value in BLOCKS.items()}
    arguments |= {f"stackwise_{name}_coefficients": [1.0] * 3 for name in ("width", "depth")}
    arguments |= {"stackwise_input_filters": FILTERS[:-1], "stackwise_output_filters": FILTERS[1:]}
    arguments |= {"stackwise_squeeze_and_excite_ratios": [excitation] * 3, "stackwise_block_types": ["v1"] * 3}
    arguments |= {"min_depth": None, "use_depth_divisor_as_min_depth": True, "dropout": 0, "activation": "relu6"}
    network = hub.models.EfficientNetBackbone(**arguments)
    return keras.Model(network.inputs, network.get_layer("block3a_project_bn").output, name="small")


def efficientnet_modules(network, excitation=False):
    """timm's names in timm's order, and the layers that they belong to."""
    modules = {"conv_stem": "stem_conv", "bn1": "stem_bn"}
    for stage, repeats in enumerate(BLOCKS["num_repeats"]):
        for repeat in range(repeats):
            ours, theirs = f"block{stage + 1}{'abc'[repeat]}", f"blocks.{stage}.{repeat}"
            excite = {f"{theirs}.se.conv_reduce": f"{ours}_se_reduce", f"{theirs}.se.conv_expand": f"{ours}_se_expand"}
            excite = excite if excitation else {}
            middle = {"conv_dw": "dwconv", "bn1": "dwconv_bn"} if stage == 0 else {}
            ends = {"conv_pw": "project", "bn2": "project_bn"}
            if stage > 0:
                middle = {"conv_pw": "expand_conv", "bn1": "expand_bn", "conv_dw": "dwconv", "bn2": "dwconv_bn"}
                ends = {"conv_pwl": "project", "bn3": "project_bn"}
            modules |= {f"{theirs}.{name}": f"{ours}_{layer}" for name, layer in middle.items()} | excite
            modules |= {f"{theirs}.{name}": f"{ours}_{layer}" for name, layer in ends.items()}
    return {name: network.get_layer(layer) for name, layer in modules.items()}


def mobilenet_modules(network):
    """torchvision's names of MobileNetV2."""
    modules = {"0.0": "Conv1", "0.1": "bn_Conv1"}
    parts = ["depthwise", "depthwise_BN", "project", "project_BN"]
    modules |= {
        f"1.conv.{place}": f"expanded_conv_{part}" for place, part in zip(("0.0", "0.1", 1, 2), parts, strict=True)
    }
    places = ("0.0", "0.1", "1.0", "1.1", 2, 3)
    for block in range(1, 17):
        names = [f"block_{block}_{part}" for part in ("expand", "expand_BN", *parts)]
        modules |= {f"{block + 1}.conv.{place}": name for place, name in zip(places, names, strict=True)}
    modules |= {"18.0": "Conv_1", "18.1": "Conv_1_bn"}
    return {f"features.{name}": network.get_layer(layer) for name, layer in modules.items()}


def plain():
    """Convolutions and batch norms of one shape each: only their order separates them."""
    layers = [
        layer
        for place in range(3)
        for layer in (
            keras.layers.Conv2D(3, 3, name=f"conv{place}"),
            keras.layers.BatchNormalization(name=f"bn{place}"),
        )
    ]
    return keras.Sequential([keras.Input((None, None, 3)), *layers], name="plain")


def plain_modules(network):
    return {str(place): layer for place, layer in enumerate(network.layers)}


def torch_state(modules):
    """Random weights of the layers under PyTorch's names and in its layout, and each layer's values."""
    rng = np.random.default_rng(0)
    state, values = {}, {}
    for name, layer in modules.items():
        arrays = [rng.uniform(0.5, 1.5, weight.shape).astype(np.float32) for weight in layer.weights]
        values[name] = arrays
        if isinstance(layer, keras.layers.BatchNormalization):
            parts = {"weight": arrays[0], "bias": arrays[1], "running_mean": arrays[2], "running_var": arrays[3]}
            parts["num_batches_tracked"] = np.array(9, np.int64)
        else:
            axes = (2, 3, 0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (3, 2, 0, 1)
            parts = {"weight": np.ascontiguousarray(arrays[0].transpose(axes))}
            parts |= {"bias": arrays[1]} if len(arrays) == 2 else {}
        state |= {f"{name}.{part}": array for part, array in parts.items()}
    return state | {
        "classifier.weight": np.zeros((5, 16), np.float32),
        "classifier.bias": np.zeros(5, np.float32),
    }, values


def mobilenet():
    return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)


@pytest.mark.parametrize("write", [write_zip, write_safetensors])
@pytest.mark.parametrize(
    ("build", "modules_of"),
    [
        (small_efficientnet, efficientnet_modules),
        (lambda: small_efficientnet(0.25), lambda network: efficientnet_modules(network, excitation=True)),
        (mobilenet, mobilenet_modules),
        (plain, plain_modules),
    ],
    ids=["efficientnet_lite", "efficientnet", "mobilenet_v2", "plain"],
)
def test_every_layer_has_the_values_of_its_module(build, modules_of, write, tmp_path):
    network = build()
    modules = modules_of(network)
    assert len(modules) == sum(bool(layer.weights) for layer in network.layers)
    state, values = torch_state(modules)
    write(tmp_path / "file", state)
    loaded = load_weights(network, tmp_path / "file")
    for name, layer in modules.items():
        for ours, theirs in zip(layer.get_weights(), values[name], strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert loaded.by == "order" and len(loaded.loaded) == len(modules)
    assert loaded.skipped == ("classifier 16x5 5",)


@pytest.mark.parametrize("write", [write_zip, write_safetensors])
def test_a_network_with_layers_more_is_another_one(write, tmp_path):
    """All layers of EfficientNet-Lite fit the file of an EfficientNet, which also squeezes and excites."""
    state, _ = torch_state(efficientnet_modules(small_efficientnet(0.25), excitation=True))
    write(tmp_path / "file", state)
    network = small_efficientnet()
    before = network.get_weights()
    message = (
        r"no layer for blocks.0.0.se.conv_reduce \(convolution with bias\), which lies between .*, nor for \d others"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(network, tmp_path / "file")
    for ours, theirs in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("write", [write_zip, write_safetensors])
def test_a_network_may_end_within_a_block(write, tmp_path):
    whole = small_efficientnet()
    state, values = torch_state(efficientnet_modules(whole))
    write(tmp_path / "file", state)
    network = keras.Model(whole.input, whole.get_layer("block3a_expand_bn").output)
    loaded = load_weights(network, tmp_path / "file")
    np.testing.assert_array_equal(network.get_layer("block3a_expand_conv").kernel, values["blocks.2.0.conv_pw"][0])
    assert len(loaded.skipped) == 5 and not loaded.reinitialised


def test_a_file_of_another_network_is_one_line(tmp_path):
    state, _ = torch_state(plain_modules(plain()))
    write_zip(tmp_path / "file", state)
    with pytest.raises(ValueError, match="stem_conv has no counterpart: 0 layers are a convolution;") as caught:
        load_weights(small_efficientnet(), tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_strides_on_the_first_convolution_of_a_block_are_refused(tmp_path):
    """Shapes are those of PyTorch's ResNets, which have these strides on the 3x3 convolution."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(image)
    ways = [keras.layers.Conv2D(4, 1, strides=2, use_bias=False)(x) for _ in range(2)]
    ways[1] = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(ways[1])
    network = keras.Model(image, keras.layers.Add()(ways))
    shapes = {"conv1": (4, 3, 3, 3), "a.conv1": (4, 4, 1, 1), "a.conv2": (4, 4, 3, 3), "a.downsample.0": (4, 4, 1, 1)}
    write_zip(tmp_path / "a.pth", {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()})
    with pytest.raises(ValueError, match="strides on 1x1 convolutions .* give other features"):
        load_weights(network, tmp_path / "a.pth")
    assert all(weight.any() for weight in network.get_weights())


def test_padding_as_of_tensorflow_is_a_warning(tmp_path):
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)]
    write_zip(tmp_path / "a.pth", {"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)})
    assert "pads as TensorFlow does" in load_weights(keras.Sequential(layers), tmp_path / "a.pth").summary()
