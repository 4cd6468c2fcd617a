import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.accumulation import accumulate, batches_in_parts
from kerasseg.layers import BatchNormalization


def make_network() -> keras.Model:
    """[image, image] to [features, mean]: with batch norm and dropout, and a layer that runs in float32 always."""
    keras.utils.set_random_seed(1)
    inputs = [keras.Input((4, 4, 3)), keras.Input((4, 4, 1))]
    x = keras.layers.Concatenate()(inputs)
    x = keras.layers.Conv2D(5, 3, name="conv")(x)
    x = BatchNormalization(momentum=0.5)(x)
    x = keras.layers.Dropout(0.5, seed=3)(x)
    x = keras.layers.Dense(2, dtype="float32")(x)
    return keras.Model(inputs, [x, keras.layers.GlobalAveragePooling2D(dtype="float32")(x)])


def gradients_of(network, inputs, batches):
    """Outputs, and the gradients to inputs and weights of a loss that is no mean over images, from calls on batches."""
    inputs = [tf.constant(each) for each in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        parts = [network([each[items] for each in inputs], training=True) for items in batches]
        outputs = [tf.concat(each, axis=0) for each in zip(*parts, strict=True)]
        loss = tf.norm(tf.reduce_mean(outputs[0], axis=0)) + tf.norm(outputs[1])
    return outputs, tape.gradient(loss, [inputs, network.trainable_variables])


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("graph", [False, True])
def test_parts_are_taken_one_after_the_other_and_give_the_gradients_of_the_whole(precision, graph):
    keras.config.set_dtype_policy(precision)
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(4, 4, 4, channels)).astype(np.float32) for channels in (3, 1)]
    order = [0, 2, 1, 3]  # two parts: every second image

    by_hand = make_network()
    in_order = [each[order] for each in inputs]
    outputs, (d_inputs, d_weights) = gradients_of(by_hand, in_order, [slice(0, 2), slice(2, 4)])

    network = make_network()
    accumulate(network)
    conv = network.get_layer("conv")
    sizes, plain = [], conv.call
    conv.call = lambda x: sizes.append(x.shape[0]) or plain(x)
    step = lambda: gradients_of(network, inputs, [slice(0, 4)])  # noqa: E731
    with batches_in_parts(2):
        found, (d_found, d_found_weights) = tf.function(step)() if graph else step()
    assert sizes == [2] * 4  # forward, and again in the backward pass

    def same(one, other):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 if precision == "float32" else 1e-2)

    for one, other in zip(outputs + list(d_inputs), list(found) + list(d_found), strict=True):
        same(one, np.asarray(other)[order])
    for one, other in zip(d_weights, d_found_weights, strict=True):
        same(one, other)
    for one, other in zip(by_hand.non_trainable_variables, network.non_trainable_variables, strict=True):
        same(one, other)  # statistics averaged twice, random numbers drawn twice, and not once more


def test_elsewhere_a_network_is_what_it_was():
    network = make_network()
    inputs = [np.ones((3, 4, 4, channels), np.float32) for channels in (3, 1)]
    expected = network(inputs)
    accumulate(network)
    np.testing.assert_array_equal(network(inputs)[1], expected[1])
