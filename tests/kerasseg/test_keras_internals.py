"""Which private name of Keras or TensorFlow a new version has changed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg import keras_internals
from kerasseg.keras_internals import BuiltModel


def two_networks() -> tuple[keras.Model, keras.Model]:
    """A network of a dense layer and another network with two; and that one."""
    inner_input = keras.Input((2,))
    x = keras.layers.Dense(3, name="first")(inner_input)
    y = keras.layers.Dense(3, name="second")(x)
    inner = keras.Model(inner_input, keras.layers.Add(name="sum")([x, y]), name="inner")
    outer_input = keras.Input((2,))
    return keras.Model(outer_input, keras.layers.Dense(1, name="last")(inner(outer_input)), name="outer"), inner


def test_all_layers_are_found_within_networks_too():
    outer, _ = two_networks()
    names = {layer.name for layer in keras_internals.all_layers(outer)}
    assert names >= {"outer", "inner", "first", "second", "sum", "last"}


def test_the_layers_directly_inside_a_layer():
    _, inner = two_networks()
    attention = keras.layers.MultiHeadAttention(2, 4)
    attention.build((None, 3, 8), (None, 3, 8))
    assert {part.name for part in keras_internals.parts_of(attention)} >= {"query", "key", "value", "attention_output"}
    assert keras_internals.parts_of(inner.get_layer("first")) == []


def test_the_inputs_of_a_layer():
    _, inner = two_networks()
    found = keras_internals.inputs_of(inner.get_layer("sum"))
    assert found == [inner.get_layer("first"), inner.get_layer("second")]


def test_layers_without_a_name_are_numbered_from_the_start():
    names = [keras.layers.ReLU().name]
    with keras_internals.fresh_names():
        names += [keras.layers.ReLU().name, keras.layers.ReLU().name]
    names.append(keras.layers.ReLU().name)
    assert names[1:3] == ["re_lu", "re_lu_1"] and names[0] != names[3]


def test_the_number_of_a_variable_in_its_optimizer():
    variables = [keras.Variable([1.0]), keras.Variable([2.0])]
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(variables)
    assert [keras_internals.index_of(variable, optimizer) for variable in variables] == [0, 1]


def test_variables_that_are_not_decayed():
    weight, bias = keras.Variable([1.0]), keras.Variable([2.0])
    optimizer = keras.optimizers.SGD(0.1)
    assert keras_internals.uses_weight_decay(bias, optimizer)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.exclude_from_weight_decay([bias])
    assert [keras_internals.uses_weight_decay(each, optimizer) for each in (weight, bias)] == [True, False]


def test_optimizers_share_a_rate():
    first, second = keras.optimizers.SGD(0.5), keras.optimizers.SGD(0.1)
    keras_internals.share_rate(second, first)
    first.learning_rate = 0.25
    weight = keras.Variable([1.0])
    second.build([weight])
    second.apply([tf.constant([1.0])])
    assert float(weight.value[0]) == 0.75


def test_the_stored_value_is_in_full_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(1 + 2**-12))
    layer.build((None, 1))
    value = keras_internals.full_precision(layer.kernel)
    assert value.dtype == tf.float32 and float(value[0, 0]) == 1 + 2**-12


def test_one_process_is_not_several_workers():
    assert not keras_internals.several_workers(tf.distribute.get_strategy())


def test_a_built_model_is_not_built_on_a_batch():
    """Keras' own would call it, on inputs that it cannot take."""

    class Untouched(BuiltModel):
        def call(self, inputs):
            raise AssertionError("was built on the batch")

        def train_step(self, data):
            return {"loss": tf.constant(0.0)}

    model = Untouched()
    model.compile(optimizer="sgd")
    model.fit(np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32), verbose=0)
    with pytest.raises(AssertionError, match="was built on the batch"):
        model(np.zeros((2, 1), np.float32))


def test_padding_is_known_as_a_layer_and_as_an_operation():
    image = keras.Input((8, 8, 3))
    padded = keras.layers.ZeroPadding2D()(image), keras.ops.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]])
    assert all(keras_internals.pads(keras_internals.made_by(x)[0]) for x in padded)
    assert not keras_internals.pads(keras_internals.made_by(keras.layers.ReLU()(image))[0])
