"""Each protocol against NumPy, for a segmenter that looks at single pixels and one that looks around."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasseg.data import open_dataset
from kerasseg.methods import MLMT, Supervised
from kerasseg.metrics import scores
from serving.common.windows import corners
from tests.kerasseg.data.folders import make_folder, save, write_classes
from tests.kerasseg.methods import tiny
from training.evaluation import Measurement, evaluate, find_min_pixels
from training.protocols import MultiscaleFlip, Native, Protocol, Resized, SlidingWindow, make_protocol, recorded

SIZES = [(6, 8), (10, 7), (9, 9), (5, 12), (8, 8)]
PROTOCOLS = [
    Native(),
    MultiscaleFlip(scales=(0.5, 1.0, 1.75)),
    SlidingWindow(window=(6, 7), window_batch_size=2),
    Resized(resized_to=(7, 9)),
    Resized(resized_to=(7, 9), labels="native"),
]


def names(protocol: Protocol) -> str:
    return protocol.name


@pytest.fixture
def dataset(tmp_path):
    """Five images of five sizes, some of their pixels ignored."""
    rng = np.random.default_rng(1)
    root = make_folder(tmp_path / "pets", val=0)
    for index, size in enumerate(SIZES):
        label = rng.integers(0, tiny.K, size)
        label[rng.random(size) < 0.1] = 255
        save(root / f"images/val/{index}.png", rng.integers(0, 255, (*size, 3)))
        save(root / f"labels/val/{index}.png", label)
    write_classes(root, classes=["a", "b", "c"])
    return open_dataset(str(root))


class Around(keras.layers.Layer):
    """What is right and below of a pixel counts too: mirroring and borders then change the result."""

    def call(self, x):
        return x + 0.5 * tf.roll(x, -1, axis=1) + 0.25 * tf.roll(x, -1, axis=2)


def segmenter() -> keras.Model:
    image = keras.Input((None, None, 3))
    logits = keras.layers.Dense(tiny.K, use_bias=False, dtype="float32")(keras.layers.Rescaling(0.02)(image))
    return keras.Model(image, Around()(logits))


def method() -> Supervised:
    keras.utils.set_random_seed(3)
    made = Supervised(segmenter())
    made.compile()
    return made


def numpy_probabilities(made: Supervised, image_HW3: np.ndarray) -> np.ndarray:
    z = image_HW3.astype(np.float64) * 0.02 @ made.segmenter.get_weights()[0].astype(np.float64)
    return tiny.softmax(z + 0.5 * np.roll(z, -1, axis=0) + 0.25 * np.roll(z, -1, axis=1))


def resized(image_HWC: np.ndarray, size: tuple[int, int], smooth: bool = False) -> np.ndarray:
    """Bilinear, pixels being areas; or as Pillow does it, smoothed."""
    if smooth:
        channels = [
            np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR))
            for channel in np.moveaxis(image_HWC, -1, 0)
        ]
        return np.stack(channels, axis=-1)
    out = image_HWC.astype(np.float64)
    for axis, length in enumerate(size):
        before = out.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * before / length - 0.5, 0, before - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, before - 1)
        out = np.take(out, low, axis) * (1 - share) + np.take(out, high, axis) * share
    return out


def test_multiscale_flip_averages_softmax_of_all_views():
    made, image = method(), np.random.default_rng(0).uniform(0, 255, (7, 10, 3)).astype(np.float32)
    protocol = MultiscaleFlip(scales=(0.5, 1.0, 1.75))
    expected = np.zeros((7, 10, tiny.K))
    for size in ((4, 5), (7, 10), (12, 18)):  # 3.5 and 12.25 and 17.5, rounded to even
        view = resized(image, size)
        S = (numpy_probabilities(made, view) + numpy_probabilities(made, view[:, ::-1])[:, ::-1]) / 2
        expected += resized(S, (7, 10)) / 3
    np.testing.assert_allclose(protocol.segment(made, image[None])[0], expected, atol=1e-5)
    assert np.abs(expected - numpy_probabilities(made, image)).max() > 0.05  # it is not the native result

    one = MultiscaleFlip(scales=(1.0,)).segment(made, image[None])[0]
    mirrored = (numpy_probabilities(made, image) + numpy_probabilities(made, image[:, ::-1])[:, ::-1]) / 2
    np.testing.assert_allclose(one, mirrored, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
@pytest.mark.parametrize("size", [(13, 17), (4, 17), (4, 5)])
def test_windows_are_averaged_where_they_overlap(size, batch_size):
    made, image = method(), np.random.default_rng(0).uniform(0, 255, (*size, 3)).astype(np.float32)
    protocol = SlidingWindow(window=(6, 7), window_batch_size=batch_size)
    assert protocol.step == (4, 5)
    padded = np.full((max(size[0], 6), max(size[1], 7), 3), 127.5)  # mean grey below and to the right
    padded[: size[0], : size[1]] = image
    total, count = np.zeros((*padded.shape[:2], tiny.K)), np.zeros((*padded.shape[:2], 1))
    for y, x in corners(padded.shape[:2], (6, 7), (4, 5)):
        total[y : y + 6, x : x + 7] += numpy_probabilities(made, padded[y : y + 6, x : x + 7])
        count[y : y + 6, x : x + 7] += 1
    expected = (total / count)[: size[0], : size[1]]
    np.testing.assert_allclose(protocol.segment(made, image[None])[0], expected, atol=1e-5)
    graph = tf.function(lambda x: protocol.segment(made, x), input_signature=[tf.TensorSpec((1, None, None, 3))])
    np.testing.assert_allclose(graph(image[None])[0], expected, atol=1e-5)


def test_a_window_as_large_as_the_image_is_the_native_result():
    made, image = method(), np.random.default_rng(0).uniform(0, 255, (1, 13, 17, 3)).astype(np.float32)
    found = SlidingWindow(window=(13, 17)).segment(made, image)
    np.testing.assert_allclose(found, Native().segment(made, image), atol=1e-6)


def test_resized_compares_at_its_size_or_at_the_images_own():
    made, rng = method(), np.random.default_rng(0)
    image, labels = rng.uniform(0, 255, (13, 17, 3)).astype(np.float32), rng.integers(0, 3, (13, 17)).astype(np.int32)
    labels[0] = 255
    small = resized(image, (6, 10), smooth=True)

    protocol = Resized(resized_to=(6, 10))
    images, there = protocol.prepare(image[None], labels[None])
    np.testing.assert_allclose(images[0], small, atol=1e-3)
    nearest = np.ix_(np.floor((np.arange(6) + 0.5) * 13 / 6).astype(int), ((np.arange(10) + 0.5) * 1.7).astype(int))
    np.testing.assert_array_equal(there[0], labels[nearest])
    np.testing.assert_allclose(protocol.segment(made, images)[0], numpy_probabilities(made, small), atol=1e-4)

    protocol = Resized(resized_to=(6, 10), labels="native")
    images, there = protocol.prepare(image[None], labels[None])
    np.testing.assert_array_equal(images[0], image)
    np.testing.assert_array_equal(there[0], labels)
    expected = resized(numpy_probabilities(made, small), (13, 17))
    np.testing.assert_allclose(protocol.segment(made, images)[0], expected, atol=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=names)
def test_scores_are_those_of_the_protocols_segmentation(dataset, protocol):
    made = method()
    confusion = np.zeros((3, 3), np.int64)
    for name in dataset.label_names("val"):
        image, truth = dataset.load_image("val", name), dataset.load_label("val", name).astype(np.int32)
        image, truth = protocol.prepare(image[None].astype(np.float32), truth[None])
        prediction = np.argmax(protocol.segment(made, image), axis=-1)
        known = np.asarray(truth) != 255
        np.add.at(confusion, (np.asarray(truth)[known], prediction[known]), 1)
    expected = scores(confusion)
    result = evaluate(made, dataset, protocol=protocol)
    assert (result["mIoU"], result["mIoU_reference"]) == (expected.mean_iou, expected.mean_iou_reference)
    assert result["per_class_IoU"] == dict(zip("abc", expected.iou, strict=True))
    said = result["protocol"]
    assert (said["name"], said["split"], said["images"]) == (protocol.name, "val", 5)
    assert {"name", "split", "images", "description", *protocol.settings()} == said.keys()
    if protocol.name == "native":
        made.evaluate(Measurement(made, dataset).images, verbose=0)
        np.testing.assert_array_equal(made.confusion["mIoU"].matrix, confusion)


def classifier(name: str) -> keras.Model:
    image = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.BatchNormalization(name="bn")(pooled)
    return keras.Model(image, keras.layers.Dense(tiny.K, dtype="float32")(x), name=name)


def make_mlmt(**fields) -> MLMT:
    keras.utils.set_random_seed(3)
    made = MLMT(Supervised(segmenter()), classifier("student"), classifier("teacher"), tau=0.5, **fields)
    made.compile()
    return made


def test_the_gate_judges_the_whole_image_once_and_the_average_is_gated(dataset):
    made, seen = make_mlmt(), []
    teacher = made.teacher

    def judge(images, training):
        seen.append(np.asarray(images))
        return teacher(images, training=training)

    made._tracker.unlock()
    made.teacher = judge
    protocol = MultiscaleFlip(scales=(0.5, 1.0))
    image = dataset.load_image("val", "1")[None].astype(np.float32)
    S = np.asarray(protocol.segment(made.class_probabilities, image))
    assert not seen
    found = made.variants_from(image, S)
    np.testing.assert_array_equal(seen, [image])
    on = 1 / (1 + np.exp(-np.asarray(teacher(image)))) > 0.5
    assert on.any() and not on.all()
    np.testing.assert_array_equal(found["without_gate"], S)
    np.testing.assert_allclose(found[""], S * on[:, None, None])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [Native(), SlidingWindow(window=(6, 7), window_batch_size=2)], ids=names)
def test_two_replicas_count_the_same_integers_as_one(dataset, two_replicas, protocol):
    """Five images of five sizes on two replicas, whose batch-norm statistics have drifted apart."""
    one = make_mlmt()
    with two_replicas.scope():
        two = make_mlmt()
    copies = two_replicas.experimental_local_results(two.teacher.get_layer("bn").moving_mean.value)
    drifted = [np.array([0.2, 0.9, 0.4], np.float32), np.array([0.9, 0.1, 0.4], np.float32)]
    for copy, value in zip(copies, drifted, strict=True):
        copy.assign(value)
    one.teacher.get_layer("bn").moving_mean.assign(drifted[0])  # as a saved model has it
    expected = Measurement(one, dataset, protocol=protocol).confusion()
    measure = Measurement(two, dataset, protocol=protocol)
    for _ in range(2):  # once more, as a training does
        found = measure.confusion()
        assert found.keys() == expected.keys() == {"", "without_gate"}
        for variant in expected:
            np.testing.assert_array_equal(found[variant], expected[variant])
    assert np.any(expected[""] != expected["without_gate"])
    for copy, value in zip(copies, drifted, strict=True):
        np.testing.assert_array_equal(copy, value)


def test_pixel_thresholds_are_found_under_the_protocol(dataset):
    made, protocol = method(), MultiscaleFlip(scales=(0.5, 1.5))
    found = find_min_pixels(made, dataset, candidates=(0,), protocol=protocol)
    assert found["mIoU"]["0"] == evaluate(made, dataset, protocol=protocol)["mIoU"]
    assert found["mIoU"]["0"] != evaluate(made, dataset)["mIoU"]


def test_names_settings_and_defaults():
    assert make_protocol("native", (321, 321)) == Native()
    assert make_protocol("sliding_window", [321, 240]).settings() == {"window": [321, 240], "stride": [214, 160]}
    given = make_protocol("sliding_window", (321, 321), window=(713, 713))
    assert given.settings() == {"window": [713, 713], "stride": [476, 476]}  # PSPNet's, rounded up
    assert make_protocol("resized", (1, 1)).settings() == {"resized_to": [512, 1024], "labels": "resized"}
    scales = make_protocol("multiscale_flip", (1, 1)).settings()["scales"]
    assert scales == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


@pytest.mark.parametrize(
    "protocol", [*PROTOCOLS, *(SlidingWindow(window=(h, 799), stride=s) for h in (321, 713) for s in (0.5, 2 / 3, 0.9))]
)
def test_what_a_result_says_of_its_protocol_makes_it_again(protocol):
    said = json.loads(json.dumps(protocol.describe()))
    name, settings = recorded(said)
    assert make_protocol(name, (1, 1), **settings).describe() == protocol.describe()


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("sliding", {}, "--protocol must be one of native, multiscale_flip, sliding_window, resized; got 'sliding'"),
        ("native", {"window": (3, 3)}, "--window is a setting of --protocol sliding_window, not of native"),
        ("resized", {"window_batch_size": 3}, "--window-batch-size is a setting of --protocol sliding_window, not"),
        ("multiscale_flip", {"scales": (1.0, 0.0)}, "--scales must be factors above 0.*; got 1 0"),
        ("sliding_window", {"stride": 1.5}, "--stride is a share of the window.*; got 1.5"),
        ("sliding_window", {"window": (0, 3)}, "--window must be two positive numbers of pixels; got 0 3"),
        ("resized", {"labels": "half"}, "--labels must be one of resized, native; got 'half'"),
    ],
)
def test_impossible_protocols(name, given, message):
    with pytest.raises(ValueError, match=message):
        make_protocol(name, (32, 32), **given)
