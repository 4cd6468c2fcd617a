"""The layers that stand in for Keras' own give what those give."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg.layers
from kerasseg.layers import BatchNormalization, Conv2D, CropLike, GroupedConv2D, PadToMultiple


def trained(layer, inputs_BHWC, weights_BHWC):
    """Outputs, gradients and moving averages of two passes in train mode."""
    layer.build(inputs_BHWC.shape)
    layer.gamma.assign([0.5, 2.0, -1.0])
    layer.beta.assign([0.1, 0.0, 3.0])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(inputs_BHWC)
            outputs_BHWC = layer(inputs_BHWC, training=True)
            loss = tf.reduce_sum(tf.cast(outputs_BHWC, tf.float32) * weights_BHWC)
        return outputs_BHWC, *tape.gradient(loss, [inputs_BHWC, layer.gamma.value, layer.beta.value])

    step()
    return [*step(), layer.moving_mean, layer.moving_variance]


@pytest.mark.parametrize("dtype, places", [("float32", 5), ("mixed_bfloat16", 1), ("mixed_float16", 2)])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 1, 2, 3), (1, 1, 1, 3)])
def test_the_fused_batch_norm_is_keras_own(shape, dtype, places):
    rng = np.random.default_rng(0)
    policy = keras.dtype_policies.DTypePolicy(dtype)
    inputs_BHWC = tf.constant(rng.normal(2.0, 3.0, shape), policy.compute_dtype)
    weights_BHWC = tf.constant(rng.normal(size=shape), tf.float32)
    fused = trained(BatchNormalization(momentum=0.7, dtype=policy), inputs_BHWC, weights_BHWC)
    kerass = trained(keras.layers.BatchNormalization(momentum=0.7, dtype=policy), inputs_BHWC, weights_BHWC)
    for value, expected in zip(fused, kerass, strict=True):
        value, expected = (tf.cast(x, tf.float32).numpy() for x in (value, expected))
        np.testing.assert_allclose(value, expected, rtol=10**-places, atol=10**-places)


def test_a_training_step_holds_the_fused_op_and_inference_does_not():
    layer = BatchNormalization()
    layer.build((None, None, None, 3))

    def ops(training):
        graph = tf.function(lambda x: layer(x, training=training)).get_concrete_function(tf.TensorSpec((2, 4, 4, 3)))
        return {op.type for op in graph.graph.get_operations()}

    assert "FusedBatchNormV3" in ops(True)
    assert "FusedBatchNormV3" not in ops(False)
    layer.trainable = False  # frozen: it goes by its averages in training too
    assert "FusedBatchNormV3" not in ops(True)


@pytest.mark.parametrize("static", [True, False])
def test_cropping_and_its_gradient_are_those_of_indexing(static):
    rng = np.random.default_rng(0)
    inputs_BHWC = tf.constant(rng.normal(size=(2, 6, 7, 3)), tf.float32)
    like_BHWC = tf.zeros((2, 5, 4, 1))
    weights_BHWC = tf.constant(rng.normal(size=(2, 5, 4, 3)), tf.float32)
    specs = [tf.TensorSpec(x.shape if static else (None, None, None, x.shape[-1])) for x in (inputs_BHWC, like_BHWC)]

    @tf.function(input_signature=specs)
    def cropped(inputs_BHWC, like_BHWC):
        with tf.GradientTape() as tape:
            tape.watch(inputs_BHWC)
            outputs_BHWC = CropLike()([inputs_BHWC, like_BHWC])
        assert outputs_BHWC.shape[-1] == 3
        return outputs_BHWC, tape.gradient(outputs_BHWC, inputs_BHWC, output_gradients=weights_BHWC)

    outputs_BHWC, gradient_BHWC = cropped(inputs_BHWC, like_BHWC)
    np.testing.assert_array_equal(outputs_BHWC, inputs_BHWC[:, :5, :4])
    np.testing.assert_array_equal(gradient_BHWC, np.pad(weights_BHWC, [(0, 0), (0, 1), (0, 3), (0, 0)]))
    ops = {op.type for op in cropped.get_concrete_function().graph.get_operations()}
    assert "StridedSliceGrad" not in ops  # slow on a CPU


@pytest.mark.parametrize("height, width", [(8, 12), (7, 9), (5, 4)])
@pytest.mark.parametrize("size, stride", [(3, 1), (4, 2), (5, 2), (2, 2), (4, 1)])
def test_the_gradients_of_a_convolution_are_keras_own(size, stride, height, width, monkeypatch):
    monkeypatch.setattr(kerasseg.layers, "slow_kernel_gradients", lambda: True)
    rng = np.random.default_rng(0)
    inputs_BHWC = tf.constant(rng.normal(size=(2, height, width, 3)), tf.float32)
    layers = [Layer(5, size, strides=stride, padding="same") for Layer in (Conv2D, keras.layers.Conv2D)]
    weights = [rng.normal(size=(size, size, 3, 5)), np.arange(5.0)]
    for layer in layers:
        layer.build(inputs_BHWC.shape)
        layer.set_weights(weights)
    weights_BHWC = tf.constant(rng.normal(size=layers[1](inputs_BHWC).shape), tf.float32)

    def results(layer, **training):
        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3))])
        def run(inputs_BHWC):
            with tf.GradientTape() as tape:
                tape.watch(inputs_BHWC)
                outputs_BHWC = layer(inputs_BHWC, **training)
            sources = [inputs_BHWC, *(variable.value for variable in layer.trainable_variables)]
            return outputs_BHWC, *tape.gradient(outputs_BHWC, sources, output_gradients=weights_BHWC)

        ops = {op.type for op in run.get_concrete_function().graph.get_operations()}
        return run(inputs_BHWC), ops

    (expected, _), (values, ops) = results(layers[1]), results(layers[0], training=True)
    for value, reference in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-4)
    assert "Conv2DBackpropFilter" not in ops  # slow on a CPU
    np.testing.assert_allclose(layers[0](inputs_BHWC), expected[0], rtol=1e-5, atol=1e-5)


def test_a_convolution_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="otherwise use keras.layers.Conv2D"):
        Conv2D(4, 3, padding="valid")


@pytest.mark.parametrize("groups, filters", [(4, 4), (2, 6), (4, 8)])
@pytest.mark.parametrize("strides, dilation_rate", [(1, 1), (2, 1), (1, 2)])
def test_grouped_convolutions_are_those_of_keras_without_a_compiled_call(groups, filters, strides, dilation_rate):
    arguments = {"padding": "same", "groups": groups, "strides": strides, "dilation_rate": dilation_rate}
    theirs, ours = (layer(filters, 3, **arguments) for layer in (keras.layers.Conv2D, GroupedConv2D))
    x = np.random.default_rng(0).normal(size=(2, 8, 10, 4)).astype(np.float32)
    expected = theirs(x)
    ours.build(x.shape)
    ours.set_weights([w + 0.1 for w in theirs.get_weights()])
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    assert not np.allclose(ours(x), expected, atol=1e-2)
    graph = tf.function(ours).get_concrete_function(tf.TensorSpec((None, None, None, 4))).graph
    assert not [op for op in graph.get_operations() if "Call" in op.type]


def test_padding_repeats_the_border_or_adds_zeros():
    x_BHWC = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    for border, mode in (("zeros", "constant"), ("repeat", "edge")):
        layer = PadToMultiple.from_config(PadToMultiple(4, border).get_config())
        np.testing.assert_array_equal(layer(x_BHWC), np.pad(x_BHWC, [(0, 0), (0, 3), (0, 2), (0, 0)], mode=mode))
        assert layer(x_BHWC[:, :4, :4]).shape == (2, 4, 4, 3)
    assert PadToMultiple.from_config({"multiple": 4}).border == "zeros", "in models from before there was a choice"
