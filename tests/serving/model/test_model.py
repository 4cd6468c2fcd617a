"""A model: warm before it answers, its images padded to buckets and batched by size."""

import gc
import json
import weakref

import numpy as np

from serving.common.artifact import INFO_FILE
from serving.model.engine import Engine
from serving.model.model import Model, ModelSettings, pad
from tests.serving.model.repositories import random_images, refusal, segment


def noting_sizes(monkeypatch):
    sizes, predict = [], Engine.predict
    monkeypatch.setattr(
        Engine,
        "predict",
        lambda self, images, outputs=None: sizes.append(images.shape[:3]) or predict(self, images, outputs),
    )
    return sizes


def test_warm_before_ready(toy_model, opened, monkeypatch):
    sizes = noting_sizes(monkeypatch)
    opened(toy_model.parent, warm_up=((8, 6), (4, 4)))
    assert sizes == [(1, 4, 4), (8, 4, 4), (1, 8, 6), (8, 8, 6)]
    sizes.clear()


def test_a_gpu_stays_warm_for_what_was_asked_for(toy_model, opened, gpu):
    """It prepares itself for each number of images when it comes first, and forgets none for a size between."""
    repository = opened(toy_model.parent, provider="cuda", warm_up=((4, 4), (5, 5), (6, 6)))
    warm = [(count, side, side) for side in (4, 5, 6) for count in (1, 2, 4, 8)]
    assert [session.shapes for session in gpu] == [[shape] for shape in warm]
    for count, side in ((3, 7), (1, 4), (3, 5)):
        segment(repository, random_images(side, side, count=count)).result(60)
    again = [(1, 4, 4), (4, 5, 5)]
    assert [session.shapes[1:] for session in gpu] == [[shape] if shape in again else [] for shape in warm] + [[]]


def test_a_model_that_has_ended_is_let_go_at_once(toy_model):
    """With its sessions and their memory: a steady server seldom looks for reference cycles."""
    model = Model(toy_model / "1", ModelSettings(warm_up=((4, 4),)))
    alive = weakref.ref(model._engine)
    gc.disable()
    try:
        model.close()
        model.join()
        del model
        assert alive() is None
    finally:
        gc.enable()


SAMPLES = tuple(random_images(height, 7, seed=height)[0] for height in (3, 5, 8))


def test_mixed_sizes_share_a_padded_bucket(toy_model, opened, monkeypatch):
    repository = opened(toy_model.parent, buckets=((16, 16), (8, 8)), samples=SAMPLES, max_delay=3600, batch_size=3)
    assert repository.get("toy").buckets == ((8, 8), (16, 16))
    sizes = noting_sizes(monkeypatch)
    images = [random_images(3, 4, seed=1), random_images(8, 8, seed=2), random_images(5, 2, seed=3)]
    futures = [segment(repository, image, ("labels", "confidence")) for image in images]
    for image, future in zip(images, futures, strict=True):
        outputs = future.result(60).outputs
        np.testing.assert_array_equal(outputs["labels"], image[..., 0] // 64)
        np.testing.assert_allclose(outputs["confidence"], image[..., 1] / 255, rtol=1e-6)
    assert sizes == [(3, 8, 8)]
    sizes.clear()
    # Alone an image is padded as well: what it is answered does not depend on its company.
    futures = [segment(repository, random_images(9, 2, 3)), segment(repository, random_images(17, 2, 3))]
    assert [future.result(60).outputs["labels"].shape for future in futures] == [(3, 9, 2), (3, 17, 2)]
    assert sizes == [(3, 16, 16), (3, 17, 2)]  # too large for every bucket: at its own size


def test_buckets_are_off_where_padding_changes_labels(toy_model, opened, monkeypatch, caplog):
    """As in a model whose image pooling sees the padding."""
    predict = Engine.predict

    def pooled(self, images_NHWC, outputs=None):
        result = predict(self, images_NHWC, outputs)
        dark = images_NHWC.mean(axis=(1, 2, 3), keepdims=True)[..., 0] < 128
        return result | {"labels": np.where(dark, 0, result["labels"])}

    monkeypatch.setattr(Engine, "predict", pooled)
    # Bright above and dark in its last row, of which padding makes more.
    image_HWC = np.full((4, 4, 3), 200, np.uint8)
    image_HWC[3] = 0
    model = opened(toy_model.parent, buckets=((8, 8),), samples=[image_HWC]).get("toy")
    assert model.buckets == ()
    [record] = [record for record in caplog.records if record.message == "images are not padded to buckets"]
    assert (record.model, record.size, record.bucket, record.labels_changed) == ("toy", (4, 4), (8, 8), 0.75)


def test_buckets_need_an_image_that_shows_something(toy_model):
    said = refusal(toy_model.parent, buckets=((8, 8),), samples=[np.zeros((8, 8, 3), np.uint8)])
    assert "none of the bucket images is smaller than a bucket" in said


def test_padding_repeats_the_edge():
    padded = pad(np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), (3, 4))
    assert padded[0, :, :, 0].tolist() == [[0, 3, 3, 3], [6, 9, 9, 9], [6, 9, 9, 9]]
    image = random_images(2, 2)
    assert pad(image, (2, 2)) is image


def test_large_images_go_alone(toy_model, opened, monkeypatch):
    monkeypatch.setattr("serving.model.engine.MAX_BATCH_PIXELS", 20)
    repository = opened(toy_model.parent, max_delay=3600)
    sizes = noting_sizes(monkeypatch)
    futures = [segment(repository, random_images(4, 5)) for _ in range(3)]
    assert [future.result(60).outputs["labels"].shape for future in futures] == [(1, 4, 5)] * 3
    assert sizes == [(1, 4, 5)] * 3


def test_workers_share_the_threads(toy_model, opened):
    for workers, threads, own in ((1, 4, 4), (3, 4, 2), (4, 4, 1)):
        model = opened(toy_model.parent, workers=workers, threads=threads).get("toy")
        assert model._engine.threads == own


def test_an_artifact_with_another_output(toy_model, opened):
    """Whatever model.json lists can be asked for; here the confidence, under a second name."""
    file = toy_model / "1" / INFO_FILE
    fields = json.loads(file.read_text())
    fields["outputs"].reverse()
    file.write_text(json.dumps(fields))
    answer = segment(opened(toy_model.parent), np.full((1, 1, 1, 3), 255), ("confidence",)).result(60)
    assert {name: array.tolist() for name, array in answer.outputs.items()} == {"confidence": [[[1.0]]]}
