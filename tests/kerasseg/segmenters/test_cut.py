"""A user's own U-Net, in every method."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401 (the backbone tiny)
from kerasseg import accumulation
from kerasseg.methods import ECS, METHODS, MLMT, Latent, Supervised, UniMatch, UniMatchV2
from kerasseg.segmenters import cut
from tests.kerasseg.methods import tiny

CUTS = ("skip", "bottom")


def u_net() -> keras.Model:
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255, name="pixels")(image)
    skip = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="skip")(x)
    x = keras.layers.MaxPooling2D(name="down")(skip)
    x = keras.layers.Conv2D(6, 3, padding="same", activation="relu", name="bottom")(x)
    x = keras.layers.UpSampling2D(name="up")(x)
    x = keras.layers.Concatenate(name="join")([x, skip])
    return keras.Model(image, keras.layers.Conv2D(tiny.K, 1, dtype="float32", name="logits")(x), name="u_net")


def test_backbone_and_head_are_the_network():
    network = u_net()
    segmenter = cut(network, *CUTS)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 10, 3)).astype(np.float32)
    logits = network(images)
    np.testing.assert_array_equal(segmenter(images), logits)
    features = segmenter.encode(images)
    assert [each.shape for each in features] == [(2, 8, 10, 4), (2, 4, 5, 6)]
    np.testing.assert_allclose(segmenter.decode(features, images), logits, rtol=1e-5)
    network.get_layer("bottom").kernel.assign(0 * network.get_layer("bottom").kernel)
    assert not np.allclose(segmenter(images), logits)


def test_a_description_of_images_is_the_mean_of_the_deepest_features():
    """Over height and width, or over tokens; of the network that predicts."""
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 10, 3)).astype(np.float32)
    segmenter = cut(u_net(), *CUTS)
    method = Supervised(segmenter, average_weights=True)
    answer = method.infer(images, features=True)
    np.testing.assert_allclose(answer.features_BD, np.mean(segmenter.encode(images)[-1], axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(answer.logits_BhwK, segmenter(images), rtol=1e-4, atol=1e-5)
    assert method.infer(images).features_BD is None
    assert Supervised(u_net()).infer(images, features=True).features_BD is None

    image = keras.Input((8, 8, 3))
    tokens = keras.layers.Reshape((4, 48), name="tokens")(image)
    logits = keras.layers.Dense(16 * tiny.K, name="logits")(tokens)
    network = cut(keras.Model(image, keras.layers.Reshape((8, 8, tiny.K))(logits)), "tokens")
    found = Supervised(network).infer(images[:, :, :8], features=True).features_BD
    np.testing.assert_allclose(found, images[:, :, :8].reshape(2, 4, 48).mean(axis=1), rtol=1e-5)


def nested() -> keras.Model:
    """A network inside a network, and a layer that is used twice."""
    image = keras.Input((None, None, 3))
    inside = keras.Input((None, None, 3))
    down = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="down")(inside)
    backbone = keras.Model(inside, down, name="backbone_of_keras")
    refine = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="refine")
    x = refine(backbone(keras.layers.Rescaling(1 / 255)(image)))
    x = keras.layers.Add()([x, refine(x)])
    x = keras.layers.UpSampling2D()(x)
    return keras.Model(image, keras.layers.Conv2D(tiny.K, 1, dtype="float32")(x), name="nested")


@pytest.mark.parametrize("feature, shapes", [("backbone_of_keras", [(1, 4, 4, 4)]), ("refine", [(1, 4, 4, 4)] * 2)])
def test_a_network_inside_and_a_layer_used_twice_can_be_cut_at(feature, shapes, tmp_path):
    network = nested()
    segmenter = cut(network, feature)
    images = np.random.default_rng(0).uniform(0, 255, (1, 8, 8, 3)).astype(np.float32)
    features = segmenter.encode(images)
    assert [each.shape for each in features] == shapes
    np.testing.assert_allclose(segmenter.decode(features, images), network(images), rtol=1e-5)
    segmenter.save(tmp_path / "cut.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "cut.keras")(images), segmenter(images))


def test_a_second_head_is_untrained_and_has_classes_of_its_own():
    segmenter = cut(u_net(), *CUTS)
    images = np.zeros((1, 8, 8, 3), np.float32)
    other = segmenter.second_head(5, name="other")
    assert segmenter.decode(segmenter.encode(images), images, head=other).shape == (1, 8, 8, 5)
    assert other.name == "other" and not set(map(id, other.weights)) & set(map(id, segmenter.weights))


@pytest.mark.parametrize(
    "features, message",
    [
        (("bottom",), "logits of u_net avoids bottom; it goes through skip and pixels and "),
        ((), r"avoids the cut \(at no layer\); it goes through "),
        (("skip", "bottom", "pixels"), "the head of u_net takes nothing from 'pixels': leave it out"),
        (("middle",), "u_net has no layer 'middle' to cut at; its layers: .*pixels, skip, down, bottom"),
    ],
)
def test_a_cut_that_leaves_a_way_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        cut(u_net(), *features)


FIELDS = {
    "advsemiseg": {"discriminator_channels": 4},
    "s4gan": {"discriminator_channels": 4},
    "mlmt": {"branch": "supervised", "train_branch": False},
    "latent": {"discriminator_channels": 4, "labeled_images": 2},
    "ecs": {"corrector_backbone": "tiny", "corrector_head_channels": 8},
    "dualgan": {"discriminator_channels": 4},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_it_and_is_saved_with_it(name, tmp_path):
    segmenter = cut(u_net(), *CUTS) if name in ("mlmt", "latent", "unimatch", "unimatch_v2") else u_net()
    method = METHODS[name](segmenter, steps=10, **FIELDS.get(name, {}))
    method.compile(run_eagerly=True)
    before = method.get_weights()
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0), height=32, width=32)).repeat()
    method.fit(data, steps_per_epoch=1, verbose=0)
    assert any(not np.array_equal(a, b) for a, b in zip(before, method.get_weights(), strict=True))
    method.save(tmp_path / "model.keras")
    images = np.random.default_rng(1).uniform(0, 255, (1, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(images), method(images))


def test_methods_ask_for_the_cut_by_name():
    for method in (Latent, UniMatch, UniMatchV2, MLMT):
        with pytest.raises(ValueError, match=r"must know where the head begins: give it kerasseg.segmenters.cut\("):
            method(u_net())
    with pytest.raises(ValueError, match="corrector_backbone must name .*: the segmenter's own is none"):
        ECS(u_net(), corrector_backbone=None)


def test_the_classifier_of_mlmt_starts_from_the_backbone():
    segmenter = cut(u_net(), *CUTS)
    student = MLMT(segmenter).student.get_layer("backbone")
    for ours, theirs in zip(student.get_weights(), segmenter.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not set(map(id, student.weights)) & set(map(id, segmenter.weights))


def test_a_batch_in_parts_passes_the_network_in_parts(monkeypatch):
    seen = []
    in_parts = accumulation._in_parts
    monkeypatch.setattr(accumulation, "_in_parts", lambda *args: seen.append(args[0].name) or in_parts(*args))
    segmenter = cut(u_net(), *CUTS)
    images = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
    whole = segmenter(images)
    accumulation.accumulate(segmenter)
    with accumulation.batches_in_parts(2):
        np.testing.assert_allclose(segmenter(images), whole, rtol=1e-4, atol=1e-5)
        segmenter.decode(segmenter.encode(images), images)
    assert seen == ["u_net", "backbone", "head"]
