"""Images are shrunk before a network and its answer brought back after it: values, and the same for every method."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasseg import working_size
from kerasseg.methods import METHODS, MLMT, Supervised
from kerasseg.working_size import enlarge, likeliest, shrink, shrink_by_products, shrink_labels, working_shape
from tests.kerasseg.methods import tiny


@pytest.mark.parametrize(
    ("size", "longer_side", "expected"),
    [
        ((3024, 4032), 480, (360, 480)),
        ((4032, 3024), 480, (480, 360)),
        ((360, 480), 480, (360, 480)),
        ((33, 47), 480, (33, 47)),
        ((1000, 777), 480, (480, 373)),  # 372.96
        ((481, 640), 480, (361, 480)),  # 360.75
        ((10_000, 10), 480, (480, 1)),
        ((178_956_970, 1), 480, (480, 1)),  # the largest image that is read
    ],
)
def test_working_shape(size, longer_side, expected):
    assert tuple(map(int, working_shape(*map(tf.constant, size), longer_side))) == expected


@pytest.mark.parametrize("size", [(61, 83), (200, 90), (40, 30)])
def test_shrink_smooths_as_pillow_does(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    shrunk = shrink(tf.constant(image[None]), 40)[0].numpy()
    height, width = shrunk.shape[:2]
    assert max(height, width) == 40
    expected = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(shrunk, np.asarray(expected), atol=1.01)  # Pillow rounds, twice


@pytest.mark.parametrize("size", [(61, 83), (200, 90), (40, 30), (33, 1)])
def test_products_shrink_alike(size):
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (2, *size, 3)), tf.float32)
    np.testing.assert_allclose(shrink_by_products(images, 40), shrink(images, 40), atol=2e-3)


def test_shrunk_labels_are_those_of_the_nearest_pixels():
    labels = np.random.default_rng(0).choice(np.array([0, 3, 255], np.uint8), (2, 90, 120))
    shrunk = shrink_labels(tf.constant(labels), 40)
    np.testing.assert_array_equal(shrunk, labels[:, 1::3, 1::3])
    assert shrunk.dtype == tf.uint8


@pytest.mark.parametrize("at_once", [2**21, 60])
@pytest.mark.parametrize(
    ("small", "size"),
    [((9, 12), (70, 101)), ((1, 3), (10, 30)), ((5, 4), (5, 4)), ((30, 40), (31, 40)), ((1, 1), (7, 5))],
)
def test_likeliest_is_argmax_and_max_of_what_enlarge_gives(small, size, at_once, monkeypatch):
    monkeypatch.setattr(working_size, "VALUES_AT_ONCE", at_once)
    logits = np.random.default_rng(0).normal(scale=2.0, size=(2, *small, 5)).astype(np.float32)
    probabilities = tf.nn.softmax(logits)
    labels, largest = likeliest(probabilities, tf.constant(size))
    expected = enlarge(probabilities, size)
    np.testing.assert_array_equal(labels, np.argmax(expected, axis=-1))
    np.testing.assert_allclose(largest, np.max(expected, axis=-1), atol=1e-6)
    assert (labels.dtype, largest.dtype) == (tf.uint8, tf.float32)


def test_between_two_labels_a_third_may_be_the_likeliest():
    row = [[0.5, 0.0, 0.5], [0.0, 0.55, 0.45]]
    labels, _ = likeliest(tf.constant([[row, row]]), (2, 20))
    assert set(np.ravel(labels)) == {0, 1, 2}


def test_memory_does_not_grow_with_classes_and_pixels():
    """One network answers for 100 classes at 4 megapixels: 1.6 GB of probabilities."""
    halves = tf.one_hot([[[0] * 20 + [99] * 20] * 30], 100)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 100))])
    def labels(probabilities):
        return likeliest(probabilities, (1500, 2000))[0]

    graph = labels.get_concrete_function().graph
    found = labels(halves).numpy()
    np.testing.assert_array_equal(found[0, :, [0, 999, 1001, 1999]].T, np.repeat([[0, 0, 99, 99]], 1500, axis=0))
    resized = [op.outputs[0].shape[-1] for op in graph.get_operations() if op.type == "ResizeBilinear"]
    assert resized == [1]  # the largest probability, and not all 100


def method_of(name: str, **fields):
    if name == "mlmt":
        student = keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(tiny.K)]
        )
        return MLMT(tiny.segmenter(), student=student, **fields)
    return Supervised(tiny.segmenter(), **fields)


@pytest.mark.parametrize("name", ["supervised", "mlmt"])
def test_a_method_answers_at_the_images_own_size(name, tmp_path):
    plain = method_of(name)
    images = np.random.default_rng(1).integers(0, 256, (2, 45, 60, 3)).astype(np.float32)
    small = shrink(tf.constant(images), 20)
    assert small.shape == (2, 15, 20, 3)
    expected = enlarge(plain(small), (45, 60))

    plain.save(tmp_path / "plain.keras")
    config = plain.get_config() | {"working_size": 20}
    method = type(plain).from_config(config)
    method.set_weights(plain.get_weights())
    method.save(tmp_path / "model.keras")
    for each in (method, keras.models.load_model(tmp_path / "model.keras")):
        np.testing.assert_allclose(each(images), expected, atol=1e-6)
        np.testing.assert_allclose(each.predict(images, verbose=0), expected, atol=1e-6)
        np.testing.assert_allclose(each.predictions(images)[""], expected, atol=1e-6)
        answer = each.infer(images)
        np.testing.assert_allclose(answer.probabilities_BHWK, expected, atol=1e-6)
        assert answer.logits_BHWK.shape == expected.shape
        labels, confidence = answer.label_map()
        np.testing.assert_array_equal(labels, np.argmax(expected, axis=-1))
        np.testing.assert_allclose(confidence, np.max(expected, axis=-1), atol=1e-6)
        np.testing.assert_array_equal(each.label_maps(images)[""], labels)
    assert keras.models.load_model(tmp_path / "plain.keras").config.working_size is None


def test_smaller_images_are_segmented_as_they_are():
    plain, sized = Supervised(tiny.segmenter()), Supervised(tiny.segmenter(), working_size=30)
    sized.set_weights(plain.get_weights())
    images = np.random.default_rng(1).integers(0, 256, (1, 15, 30, 3)).astype(np.float32)
    np.testing.assert_array_equal(sized(images), plain(images))
    np.testing.assert_array_equal(sized.label_maps(images)[""], plain.label_maps(images)[""])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_working_size_of_at_least_a_pixel(name):
    assert METHODS[name].make_config({"working_size": 480}).working_size == 480
    with pytest.raises(ValueError, match="working_size must be at least 1 pixel, or None; got 0"):
        METHODS[name].make_config({"working_size": 0})


def test_xla_is_refused_where_it_cannot_compile_the_working_size():
    method = Supervised(tiny.segmenter(), working_size=32)
    with pytest.raises(ValueError, match="XLA cannot compile .* leave jit_compile out, or make the method with"):
        method.compile(jit_compile=True)
    Supervised(tiny.segmenter()).compile(jit_compile=True)
