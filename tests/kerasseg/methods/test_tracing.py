"""A training step is traced at its start and never again: each tracing costs as much as many steps."""

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import ECS, S4GAN
from tests.kerasseg.methods import tiny


@pytest.mark.parametrize("name", ["s4gan", "ecs"])
def test_no_step_after_the_first_is_traced(name):
    if name == "s4gan":
        method = S4GAN(tiny.segmenter(), tiny.discriminator(), steps=6, self_training_start=0.5)
    else:
        method = ECS(tiny.segmenter(), tiny.judge(tiny.K + 1, "corrector"), steps=6)
    method.compile()
    traced, update = [], method.update

    def counted(data):  # Python runs it while tracing alone
        traced.append(data)
        return update(data)

    method.update = counted
    x, y = tiny.batch(np.random.default_rng(0))
    data = tf.data.Dataset.from_tensors((x, y)).repeat()
    method.fit(data, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0)
    at_the_start = len(traced)
    for _ in range(2):
        method.fit(data, steps_per_epoch=2, epochs=1, shuffle=False, verbose=0)
        method.evaluate(tf.data.Dataset.from_tensors((x["labeled"], y)), verbose=0)
        method.segmenter.set_weights(method.segmenter.get_weights())
    assert int(method.training_optimizers.segmenter.iterations) == (5 if name == "s4gan" else 10)
    assert 0 < at_the_start == len(traced)
