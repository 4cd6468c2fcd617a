import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.optimizers import SGD, LossScale, Poly


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_overflow_on_any_replica_costs_the_update_and_a_step_of_the_schedule(replicas, request):
    strategy = request.getfixturevalue("two_replicas") if replicas == 2 else tf.distribute.get_strategy()
    with strategy.scope():
        weight = keras.Variable([1.0])
        optimizer = LossScale(SGD(Poly(0.5, 4)), initial_scale=8.0)
        optimizer.build([weight])

    @tf.function
    def step(overflows):
        def on_replica():
            last = tf.distribute.get_replica_context().replica_id_in_sync_group == replicas - 1
            gradient = tf.where(tf.logical_and(last, overflows), np.inf, 8.0 / replicas)
            optimizer.apply([tf.reshape(gradient, [1])], [weight])

        strategy.run(on_replica)

    expected = 1.0
    for number, overflows in enumerate((False, True, False)):
        if not overflows:
            scale = 8.0 if number == 0 else 4.0
            expected -= 0.5 * (1 - number / 4) ** 0.9 * 8.0 / scale
        step(tf.constant(overflows))
        np.testing.assert_allclose(weight, [expected], rtol=1e-6)
        assert optimizer.iterations.numpy() == number + 1
    assert optimizer.skipped.numpy() == 1 and optimizer.dynamic_scale.numpy() == 4.0
    assert any(variable is optimizer.skipped for variable in optimizer.variables)
