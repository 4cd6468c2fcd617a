"""Every method on a plain transformer with the head dpt: training in every precision, saving, export, two replicas."""

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401 (tiny, tiny_transformer)
from export.graph import serving_function, to_onnx
from kerasseg.methods import METHODS
from kerasseg.segmenters import build_segmenter
from tests.kerasseg.methods import tiny

FIELDS: dict[str, dict] = {
    "ecs": {"corrector_backbone": "tiny", "corrector_head_channels": 8},
    "latent": {"labeled_images": 16, "latent_classes": 4},
}
"""What a method needs to be small."""


def make(name, drop_path=0.0):
    segmenter = build_segmenter(
        "dpt", backbone="tiny_transformer", num_classes=tiny.K, head_channels=8, drop_path=drop_path
    )
    # mlmt trains its segmenter by another method.
    fields = {method: FIELDS.get(method, {}) | {"steps": 10} for method in METHODS}
    return METHODS[name].from_segmenter(segmenter, fields)


def phases(method):
    """The methods that are trained one after the other."""
    return [method.segmentation, method] if hasattr(method, "segmentation") else [method]


def data(images):
    batch = tiny.batch(np.random.default_rng(1), size=images, height=20, width=30)
    return tf.data.Dataset.from_tensors(batch).repeat()


def fit(method, images=2, **options):
    logs = {}
    for phase in phases(method):
        phase.compile(**options)
        logs |= phase.fit(data(images), steps_per_epoch=1, epochs=1, shuffle=False, verbose=0).history
    return logs


@pytest.mark.parametrize(
    "name, precision", [*((name, "mixed_float16") for name in METHODS), ("unimatch_v2", "mixed_bfloat16")]
)
def test_mixed_precision_trains_every_weight(name, precision):
    keras.config.set_dtype_policy(precision)
    method = make(name, drop_path=0.1)
    before = method.segmenter.get_weights()
    logs = fit(method, run_eagerly=True)
    assert all(np.isfinite(values).all() for values in logs.values()), logs
    changed = [not np.array_equal(old, new) for old, new in zip(before, method.segmenter.get_weights(), strict=True)]
    assert np.mean(changed) > 0.8
    assert method(np.zeros((1, 20, 30, 3), np.float32)).dtype == tf.float32


# Three ways to predict: the segmenter, its teacher, a gate. What else a method has is saved in its contract's tests.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["supervised", "unimatch_v2", "mlmt"])
def test_saved_and_exported_it_gives_the_same_probabilities(name, tmp_path):
    method = make(name, drop_path=0.1)
    fit(method, run_eagerly=True)
    method.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    graph = to_onnx(serving_function(loaded))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in ((33, 47), (32, 32), (8, 70)):
        images_NHW3 = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        expected = method(images_NHW3.astype(np.float32))
        np.testing.assert_array_equal(loaded(images_NHW3.astype(np.float32)), expected)
        labels, confidence = session.run(["labels", "confidence"], {"image": images_NHW3})
        np.testing.assert_allclose(confidence, np.max(expected, axis=-1), atol=1e-5)
        ours = np.take_along_axis(np.asarray(expected), labels[..., np.newaxis], axis=-1)
        np.testing.assert_allclose(ours[..., 0], confidence, atol=1e-5)


@pytest.mark.slow
def test_two_replicas_follow_the_losses_of_one(two_replicas):
    batch = tiny.batch(np.random.default_rng(4), size=4, height=20, width=30)
    logs = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            method = make("supervised")
            method.compile({"segmenter": keras.optimizers.SGD(0.01)}, run_eagerly=strategy is not two_replicas)
        batches = tf.data.Dataset.from_tensor_slices(batch).repeat().batch(4)
        logs.append(method.fit(batches, steps_per_epoch=1, epochs=5, shuffle=False, verbose=0).history["L_ce"])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert logs[0][-1] < logs[0][0]
