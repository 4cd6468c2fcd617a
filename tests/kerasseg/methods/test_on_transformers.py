"""Every method on a plain and on a hierarchical transformer: training in half precision, saving, export, two replicas.
On convolutional networks they are in the contract of each method."""

from typing import NamedTuple

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401 (tiny, tiny_transformer, tiny_mit)
from export.graph import serving_function, to_onnx
from kerasseg.methods import METHODS
from kerasseg.segmenters import build_segmenter
from tests.kerasseg.methods import tiny

FIELDS: dict[str, dict] = {
    "ecs": {"corrector_backbone": "tiny", "corrector_head_channels": 8},
    "latent": {"labeled_images": 16, "latent_classes": 4},
}
"""What a method needs to be small."""


class Kind(NamedTuple):
    """Head and backbone, and the size of images that it has something to attend to in."""

    segmenter: dict
    height: int
    width: int


KINDS = {
    "plain": Kind({"name": "dpt", "backbone": "tiny_transformer"}, 20, 30),
    # Padded to 64x96, or the last stage would have one position.
    "hierarchical": Kind({"name": "segformer", "backbone": "tiny_mit", "head_dropout": 0.0}, 40, 70),
}


def make(name, kind, drop_path=0.0):
    segmenter = build_segmenter(**KINDS[kind].segmenter, num_classes=tiny.K, head_channels=8, drop_path=drop_path)
    # mlmt trains its segmenter by another method.
    fields = {method: FIELDS.get(method, {}) | {"steps": 10} for method in METHODS}
    return METHODS[name].from_segmenter(segmenter, fields)


def phases(method):
    """The methods that are trained one after the other."""
    return [method.segmentation, method] if hasattr(method, "segmentation") else [method]


def batch(kind, seed, images):
    return tiny.batch(np.random.default_rng(seed), size=images, height=KINDS[kind].height, width=KINDS[kind].width)


def fit(method, kind, **options):
    data = tf.data.Dataset.from_tensors(batch(kind, seed=1, images=2)).repeat()
    logs = {}
    for phase in phases(method):
        phase.compile(**options)
        logs |= phase.fit(data, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0).history
    return logs


@pytest.mark.parametrize(
    "name, kind, precision",
    [
        *((name, kind, "mixed_float16") for name in METHODS for kind in KINDS),
        ("unimatch_v2", "plain", "mixed_bfloat16"),
        ("supervised", "hierarchical", "mixed_bfloat16"),
    ],
)
def test_mixed_precision_trains_every_weight(name, kind, precision):
    keras.config.set_dtype_policy(precision)
    method = make(name, kind, drop_path=0.1)
    before = method.segmenter.get_weights()
    logs = fit(method, kind, run_eagerly=True)
    assert all(np.isfinite(values).all() for values in logs.values()), logs
    changed = [not np.array_equal(old, new) for old, new in zip(before, method.segmenter.get_weights(), strict=True)]
    assert np.mean(changed) > 0.8
    assert method(np.zeros((1, 20, 30, 3), np.float32)).dtype == tf.float32


# Three ways to predict: the segmenter, its teacher, a gate. What else a method has is saved in its contract's tests.
@pytest.mark.slow
@pytest.mark.parametrize("name, kind", [("supervised", "hierarchical"), ("unimatch_v2", "plain"), ("mlmt", "plain")])
def test_saved_and_exported_it_gives_the_same_probabilities(name, kind, tmp_path):
    method = make(name, kind, drop_path=0.1)
    fit(method, kind, run_eagerly=True)
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
@pytest.mark.parametrize("kind", KINDS)
def test_two_replicas_follow_the_losses_of_one(kind, two_replicas):
    logs = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            method = make("supervised", kind)
            # The head segformer has batch norm.
            alike = {"run_eagerly": strategy is not two_replicas, "sync_batch_norm": True}
            method.compile({"segmenter": keras.optimizers.SGD(0.01)}, **alike)
        batches = tf.data.Dataset.from_tensor_slices(batch(kind, seed=4, images=4)).repeat().batch(4)
        logs.append(method.fit(batches, steps_per_epoch=1, epochs=5, shuffle=False, verbose=0).history["L_ce"])
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert logs[0][-1] < logs[0][0]
