"""Trading stride for dilation, and the layers it needs."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg.layers
from kerasseg.layers import AtrousConv2D, AtrousDepthwiseConv2D
from kerasseg.segmenters import build_segmenter
from kerasseg.segmenters.backbones import build_backbone, dilate


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name, position", [("mobilenet_v2", -1), ("resnet50", 0)])
def test_stride_32_features_are_found_among_the_dense_ones(name, position, output_stride):
    """Every value, borders included: with the same weights the dense network only adds positions in between."""
    sparse = build_backbone(name, 32)
    rng = np.random.default_rng(0)
    sparse.set_weights([w + rng.normal(scale=0.01, size=w.shape) for w in sparse.get_weights()])
    dense = build_backbone(name, output_stride)
    dense.set_weights(sparse.get_weights())
    image = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    low_sparse, high_sparse = sparse(image)
    low_dense, high_dense = dense(image)
    step = 32 // output_stride
    assert high_dense.shape[1:3] == (64 // output_stride, 96 // output_stride)
    scale = np.abs(high_sparse).max()
    assert scale > 0
    start = position % step
    np.testing.assert_allclose(high_dense[:, start::step, start::step], high_sparse, atol=1e-5 * scale)
    np.testing.assert_array_equal(low_dense, low_sparse)


@pytest.mark.slow
def test_the_short_mobilenet_is_the_first_part_of_the_long_one():
    short = build_backbone("mobilenet_v2_c4", 16)
    rng = np.random.default_rng(0)
    short.set_weights([w + rng.normal(scale=0.01, size=w.shape) for w in short.get_weights()])
    long = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(None, None, 3))
    for layer in short.layers:
        if layer.weights:
            long.get_layer(layer.name).set_weights(layer.get_weights())
    image = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    expected = keras.Model(long.input, long.get_layer("block_13_expand_relu").output)(image)
    np.testing.assert_allclose(short(image)[1], expected, rtol=1e-4, atol=1e-5)
    assert build_backbone("mobilenet_v2_c4", 8)(image)[1].shape == (1, 8, 12, 576)


@pytest.mark.slow
def test_resnet34_reaches_its_stride():
    image = np.zeros((1, 64, 96, 3), np.float32)
    assert build_backbone("resnet34", 8)(image)[1].shape == (1, 8, 12, 512)
    assert build_backbone("resnet34", 16)(image)[1].shape == (1, 4, 6, 512)


@pytest.mark.parametrize("depthwise", [True, False])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_what_lost_its_stride_looks_to_both_sides_of_its_pixel(padding, depthwise):
    """It once looked to the right and down alone, which put all features 16 pixels beside what they describe."""
    convolution = keras.layers.DepthwiseConv2D if depthwise else keras.layers.Conv2D
    arguments = ((3,) if depthwise else (4, 3), {"use_bias": False})
    image = keras.Input((None, None, 4))
    x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)))(image) if padding == "valid" else image
    first = convolution(*arguments[0], strides=2, padding=padding, **arguments[1])
    second = convolution(*arguments[0], strides=2, padding="same", **arguments[1])
    network = keras.Model(image, second(first(x)))
    dense = dilate(network, 1)
    dense.set_weights(network.get_weights())
    x = np.random.default_rng(0).normal(size=(1, 8, 12, 4)).astype(np.float32)
    expected = x
    for layer, rate in ((first, 1), (second, 2)):
        expected = dilated_by_hand(expected, layer.kernel.numpy(), rate, rate, rate, depthwise)
    np.testing.assert_allclose(dense(x), expected, atol=1e-4)


def test_a_dilated_convolution_is_one_op_forward_and_backward():
    layer = AtrousConv2D(4, 3, padding="same", dilation_rate=6)
    layer.build((None, None, None, 3))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x))
        return tape.gradient(loss, layer.trainable_variables)

    ops = {op.type for op in step.get_concrete_function(tf.TensorSpec((1, 16, 16, 3))).graph.get_operations()}
    assert "Conv2D" in ops and not {op for op in ops if "SpaceToBatch" in op}


TRAINS_AND_ANSWERS = """
import dataclasses, os
import kerasseg
import keras
import tensorflow as tf
from kerasseg.layers import has_dilated_gradient
from kerasseg.segmenters.backbones import BACKBONES
import tests.backbone

def build(weights):
    tiny = BACKBONES["tiny"].build(weights)
    return keras.Model(tiny.inputs, keras.layers.DepthwiseConv2D(3, padding="same", name="dilated")(tiny.outputs[0]))

BACKBONES["small"] = dataclasses.replace(BACKBONES["tiny"], build=build)
segmenter = kerasseg.build_segmenter("deeplab_v3plus", backbone="small", num_classes=2, head_channels=8)
assert segmenter.get_layer("small").get_layer("dilated").dilation_rate == (2, 2)
method = kerasseg.METHODS["supervised"](segmenter, steps=1)
method.compile()
images, labels = tf.zeros((2, 32, 48, 3)), tf.zeros((2, 32, 48), tf.int32)
losses = method.fit(tf.data.Dataset.from_tensors(({"labeled": images}, labels)), verbose=0)
print(os.environ["TF_ENABLE_ONEDNN_OPTS"], has_dilated_gradient("float32"))
print(losses.history["L_ce"][0] > 0, method.predict(images, verbose=0).shape)
"""


@pytest.mark.slow
@pytest.mark.parametrize("onednn", [None, "0"])
def test_training_and_inference_with_and_without_onednn(onednn):
    """By itself TensorFlow uses oneDNN on newer CPUs only; without it, no CPU has the gradient of a dilation."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    environment |= {"TF_ENABLE_ONEDNN_OPTS": onednn} if onednn else {}
    command = [sys.executable, "-c", TRAINS_AND_ANSWERS]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout == f"{onednn or 1} {onednn is None}\nTrue (2, 32, 48, 2)\n"


def dilated_by_hand(x, kernel, rate, before, after, depthwise):
    """Correlation with a dilated 3x3 kernel after zero padding, in NumPy."""
    padded = np.pad(x.astype(np.float64), [(0, 0), (before, after), (before, after), (0, 0)])
    height, width = x.shape[1:3]
    total = 0.0
    for i in range(3):
        for j in range(3):
            window = padded[:, i * rate : i * rate + height, j * rate : j * rate + width]
            total = total + (window * kernel[i, j, :, 0] if depthwise else window @ kernel[i, j])
    return total


@pytest.mark.parametrize("native", [True, False])
def test_atrous_conv_values(native, monkeypatch):
    monkeypatch.setattr(kerasseg.layers, "has_dilated_gradient", lambda dtype: native)
    rng = np.random.default_rng(0)
    layer = AtrousConv2D(5, 3, padding="same", dilation_rate=2, use_bias=False)
    x = rng.normal(size=(2, 8, 9, 3)).astype(np.float32)
    y = layer(x)
    np.testing.assert_allclose(y, dilated_by_hand(x, layer.kernel.numpy(), 2, 2, 2, depthwise=False), atol=1e-5)


def test_atrous_depthwise_values():
    rng = np.random.default_rng(0)
    layer = AtrousDepthwiseConv2D(3, padding="same", dilation_rate=2, use_bias=False)
    x = rng.normal(size=(2, 8, 9, 3)).astype(np.float32)
    y = layer(x)
    np.testing.assert_allclose(y, dilated_by_hand(x, layer.kernel.numpy(), 2, 2, 2, depthwise=True), atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_dilated_convolutions_train_in_every_precision(precision):
    keras.config.set_dtype_policy(precision)
    dilated = {"padding": "same", "dilation_rate": 2}
    network = keras.Sequential([AtrousConv2D(3, 3, **dilated), AtrousDepthwiseConv2D(3, **dilated)])

    @tf.function
    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(network(x, training=True))
        return tape.gradient(loss, network.trainable_variables)

    network.build((2, 8, 8, 3))
    for gradient in gradients(tf.ones((2, 8, 8, 3))):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_atrous_depthwise_gradients(padding):
    rng = np.random.default_rng(0)
    layer = AtrousDepthwiseConv2D(3, padding=padding, dilation_rate=2, use_bias=False)
    x = tf.constant(rng.normal(size=(2, 8, 9, 3)), tf.float32)
    layer.build(x.shape)
    upstream = None
    gradients = []
    for convolve in (
        layer,
        reference := lambda x: tf.nn.depthwise_conv2d(x, layer.kernel, [1, 1, 1, 1], padding.upper(), dilations=[2, 2]),
    ):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = convolve(x)
        upstream = tf.constant(rng.normal(size=y.shape), tf.float32) if upstream is None else upstream
        np.testing.assert_allclose(y, reference(x), atol=1e-5)
        gradients.append(tape.gradient(y, [x, layer.kernel.value], upstream))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_strided_atrous_convolution_is_refused():
    with pytest.raises(ValueError, match="has stride 1"):
        AtrousConv2D(4, 3, strides=2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("resnet",), "unknown backbone 'resnet'; the nearest names are resnet50, resnet34, .*kerasseg backbones"),
        (("mobilenet_v2", 4), "output_stride must be one of 8, 16, 32; got 4"),
        (("mobilenet_v2", 16, "no/such/file.h5"), "weights must be 'imagenet', 'none' or an existing file"),
        (("resnet34", 16, "imagenet"), "no ImageNet weights for resnet34"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(*arguments)


def test_stride_of_pooling_cannot_be_traded():
    image = keras.Input((None, None, 3))
    network = keras.Model(image, keras.layers.MaxPooling2D(2)(image))
    with pytest.raises(ValueError, match="cannot trade the stride"):
        dilate(network, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "mit_b0", "swin_tiny_patch4_window7"])
def test_gradients_do_not_explode_where_an_image_is_padded(name):
    """Zeros have no variance for the layer norm after the first convolution: with them this is a million times more."""
    segmenter = build_segmenter("fpn", backbone=name, num_classes=3, head_channels=8)
    bias = segmenter.trainable_weights[1]
    assert bias.path.endswith("bias")
    norms = []
    for side in (64, 65):
        image = np.random.default_rng(0).uniform(0, 255, (1, side, side, 3)).astype(np.float32)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(segmenter(image, training=True) ** 2)
        norms.append(float(tf.norm(tape.gradient(loss, bias.value))))
    assert 0 < norms[1] < 5 * norms[0]
