import numpy as np
import pytest
import tensorflow as tf

from kerasseg.colors import gaussian_blur, jitter_colors
from kerasseg.data import Augmentation
from kerasseg.data.augment import PAD_VALUE, augment

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 56, 3)).astype(np.uint8)
# Blocks of 8 x 8, so that scaling leaves most pixels inside of a block.
LABEL = RNG.integers(0, 5, (5, 7)).repeat(8, 0).repeat(8, 1).astype(np.uint8)


def views(count: int, image=IMAGE, label=LABEL, first=0, **fields):
    """Views for `count` seeds, as numpy arrays."""
    augmentation = Augmentation(**fields)
    seeds = tf.data.Dataset.range(first, first + count).map(lambda i: tf.stack([i, 1]))
    if label is None:
        rows = seeds.map(lambda seed: augment(tf.constant(image), None, seed, augmentation)[0])
    else:
        rows = seeds.map(lambda seed: augment(tf.constant(image), tf.constant(label), seed, augmentation))
    return list(rows.as_numpy_iterator())


def test_without_scale_and_flip_the_crop_is_a_piece_of_the_image():
    places = set()
    for image, label in views(20, crop=(16, 24), scale=(1, 1), flip=False):
        found = [
            (y, x)
            for y in range(40 - 16 + 1)
            for x in range(56 - 24 + 1)
            if np.array_equal(IMAGE[y : y + 16, x : x + 24], image)
        ]
        (place,) = found
        y, x = place
        np.testing.assert_array_equal(label, LABEL[y : y + 16, x : x + 24])
        places.add(place)
    assert len(places) > 15


def test_the_whole_image_is_reached():
    places = np.zeros((40, 56))
    image = np.arange(40 * 56).reshape(40, 56, 1).repeat(3, -1).astype(np.float32)
    for piece in views(300, image, None, crop=(36, 52), scale=(1, 1), flip=False):
        places[np.isin(image[..., 0], piece[..., 0])] += 1
        assert piece[0, 0, 0] in image[:5, :5, 0]
    assert places.min() > 0
    corners = places[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 2).all() and (corners < 30).all()  # 12 of 300 in theory: one of 5 places along each axis


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.31, 2.0])
def test_scale_and_crop_equal_resize_then_crop(scale):
    size = (round(40 * scale), round(56 * scale))
    resized = tf.image.resize(IMAGE, size).numpy()
    resized_label = tf.image.resize(LABEL[..., None], size, "nearest").numpy()[..., 0]
    for image, label in views(5, crop=(16, 20), scale=(scale, scale), flip=False):
        errors = {
            (y, x): np.abs(resized[y : y + 16, x : x + 20] - image).max()
            for y in range(size[0] - 15)
            for x in range(size[1] - 19)
        }
        (y, x), error = min(errors.items(), key=lambda item: item[1])
        assert error < 0.01  # of 255
        assert (resized_label[y : y + 16, x : x + 20] == label).all()


@pytest.mark.parametrize("crop", [(16, 20), (40, 56), (61, 70)])
def test_a_whole_image_is_squeezed(crop):
    """Antialiased where it gets smaller: every pixel counts. The scale does not."""
    squeezed = tf.image.resize(IMAGE, crop, antialias=True).numpy()
    rows, columns = ((np.arange(to) + 0.5) * of / to for to, of in zip(crop, LABEL.shape, strict=True))
    nearest = LABEL[rows.astype(int)][:, columns.astype(int)]
    for scale in ((0.5, 1.5), (3.0, 3.0)):
        for image, label in views(3, crop=crop, whole=True, flip=False, scale=scale):
            np.testing.assert_allclose(image, squeezed, atol=1e-3)
            np.testing.assert_array_equal(label, nearest)
    mirrored = [
        np.allclose(image, squeezed[:, ::-1], atol=1e-3) and np.array_equal(label, nearest[:, ::-1])
        for image, label in views(100, crop=crop, whole=True)
    ]
    assert 30 < sum(mirrored) < 70
    image, _ = views(1, crop=crop, whole=True, flip=False, color_jitter=0.5, blur=2.0)[0]
    assert np.abs(image - squeezed).mean() > 5


def test_image_and_label_stay_together():
    """The label's value is painted into the image: wherever both are sharp, they must agree."""
    painted = (LABEL * 50)[..., None].repeat(3, -1)
    agree = []
    for image, label in views(40, painted, crop=(48, 64)):
        inside = label != 255
        assert (image[~inside] == PAD_VALUE).all()
        sharp = inside & (np.abs(image[..., 0] / 50 - np.round(image[..., 0] / 50)) < 1e-3)
        agree.append((np.round(image[..., 0] / 50) == label)[sharp].mean())
        # Blended pixels lie next to a border; a shift by one pixel would cost a sharp pixel in about eight.
        assert (np.abs(image[..., 0] / 50 - label)[inside] < 1).mean() > 0.8
    assert min(agree) > 0.99


def test_padding_is_grey_and_ignored():
    padded = views(10, crop=(64, 96), scale=(1, 1), color_jitter=0.5, blur=1.0)
    for image, label in padded:
        inside = label != 255
        assert inside.sum() == 40 * 56
        ys, xs = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
        assert inside[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].all()
        assert (image[~inside] == PAD_VALUE).all()
    assert len({label.tobytes() for _, label in padded}) > 5


def test_the_scale_covers_its_range():
    shares = [(label != 255).sum() / LABEL.size for _, label in views(100, crop=(90, 90), scale=(0.5, 1.5))]
    assert 0.24 < min(shares) < 0.35 and 1.9 < max(shares) < 2.27


def test_half_of_the_views_are_mirrored():
    rows = views(200, crop=(40, 56), scale=(1, 1))
    straight = [np.array_equal(image, IMAGE) and np.array_equal(label, LABEL) for image, label in rows]
    mirrored = [
        np.array_equal(image, IMAGE[:, ::-1]) and np.array_equal(label, LABEL[:, ::-1]) for image, label in rows
    ]
    assert all(a != b for a, b in zip(straight, mirrored, strict=True))
    assert 70 < sum(mirrored) < 130


def test_the_seed_decides_and_the_label_map_does_not():
    fields = {"crop": (32, 32), "color_jitter": 0.4, "blur": 1.0}
    (image, label), (other, _) = views(2, **fields)
    ((again, _),) = views(1, **fields)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(views(1, label=None, **fields)[0], image)
    assert not np.array_equal(other, image)
    np.testing.assert_array_equal(views(1, crop=(32, 32))[0][1], label)  # colour and blur move nothing
    assert image.dtype == np.float32 and label.dtype == np.int32


def test_contrast_changes_around_the_mean_of_the_image_and_not_of_its_padding():
    """Of an image of one grey it changes nothing: only its brightness may be another one."""
    grey = np.full((8, 8, 3), 40, np.uint8)
    for image, label in views(20, grey, np.zeros((8, 8), np.uint8), crop=(16, 16), scale=(1, 1), color_jitter=0.5):
        (value,) = {round(float(v), 3) for v in image[label == 0].ravel()}
        assert 20 <= value <= 60 and (image[label == 255] == PAD_VALUE).all()


def test_colours_and_blur_are_those_of_the_views_of_methods():
    """One implementation: kerasseg.colors."""
    fields = {"crop": (40, 56), "scale": (1, 1), "flip": False}
    draws = tf.random.stateless_uniform((4, 1), tf.random.experimental.stateless_split(tf.constant([0, 0]), 6)[4])
    expected = jitter_colors(tf.constant(IMAGE, tf.float32)[None], draws, 0.4, 0.1)[0]
    image, _ = augment(tf.constant(IMAGE), None, tf.constant([0, 0]), Augmentation(color_jitter=0.4, **fields))
    np.testing.assert_allclose(image, expected, atol=1e-3)
    sigma = tf.random.stateless_uniform((1,), tf.random.experimental.stateless_split(tf.constant([0, 0]), 6)[5], 0, 2.0)
    expected = gaussian_blur(tf.constant(IMAGE, tf.float32)[None], sigma, 2.0)[0]
    image, _ = augment(tf.constant(IMAGE), None, tf.constant([0, 0]), Augmentation(blur=2.0, **fields))
    np.testing.assert_allclose(image, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": (0, 8)}, "crop must be two positive numbers"),
        ({"scale": (1.5, 0.5)}, "scale must be two positive factors, the smaller first"),
        ({"scale": (0.0, 1.0)}, "scale must be two positive factors"),
        ({"color_jitter": 1.5}, r"color_jitter must lie in 0..1, got 1.5"),
        ({"blur": -1.0}, "blur must be a number of pixels >= 0"),
    ],
)
def test_impossible_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"crop": (8, 8)} | fields)
