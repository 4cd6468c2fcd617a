"""What methods show their networks: colours, boxes, classes to paste."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods.views import StrongView, StrongViewConfig, random_boxes, random_classes

OFF = {"jitter": 0.0, "hue": 0.0, "grey_probability": 0.0, "blur_probability": 0.0}


def view(images, **fields):
    return StrongView(StrongViewConfig(**fields))(tf.constant(images, tf.float32)).numpy()


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(40, 210, (400, 8, 8, 3)).astype(np.float32)


def test_each_part_has_its_own_probability(images):
    np.testing.assert_array_equal(view(images, **OFF), images)
    grey = view(images, **OFF | {"grey_probability": 0.3})
    is_grey = np.ptp(grey, axis=-1).max(axis=(1, 2)) < 1e-3
    assert 0.2 < is_grey.mean() < 0.4
    np.testing.assert_array_equal(grey[~is_grey], images[~is_grey])
    np.testing.assert_allclose(grey[is_grey][..., 0], images[is_grey] @ [0.2989, 0.587, 0.114], rtol=1e-4)

    blurred = np.abs(view(images, **OFF | {"blur_probability": 0.5}) - images).max(axis=(1, 2, 3)) > 1
    assert 0.35 < blurred.mean() < 0.6  # a width of 0.1 pixels is not seen
    jittered = np.abs(view(images, **OFF | {"jitter": 0.5, "jitter_probability": 0.8}) - images).max(axis=(1, 2, 3)) > 1
    assert 0.7 < jittered.mean() < 0.9


def test_each_image_draws_its_own_colors_and_blur():
    """A batch of one image many times over: its views differ."""
    image = np.random.default_rng(1).uniform(0, 255, (1, 8, 8, 3)).repeat(50, axis=0)
    for fields in ({"jitter": 0.5, "jitter_probability": 1.0}, {"hue": 0.25}, {"blur_probability": 1.0}):
        views = view(image, **OFF | fields).reshape(50, -1)
        assert len(np.unique(views.round(2), axis=0)) > 30, fields


def test_a_blurred_view_of_a_flat_image_is_flat():
    flat = np.full((20, 9, 9, 3), 200.0)
    np.testing.assert_allclose(view(flat, **OFF | {"blur_probability": 1.0}), 200, atol=1e-2)


@pytest.mark.parametrize(
    "field, value", [("jitter", 1.5), ("hue", 0.6), ("grey_probability", 2), ("blur_probability", -1)]
)
def test_impossible_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} .*got"):
        StrongViewConfig(**{field: value})


def test_boxes_have_the_area_and_the_form_that_are_asked_for():
    random = keras.random.SeedGenerator(0)
    boxes = random_boxes(tf.constant([400, 60, 80, 3]), (0.1, 0.5), (0.4, 2.5), random).numpy()
    areas = boxes.mean(axis=(1, 2))
    assert 0.08 < areas.min() < 0.14 and 0.44 < areas.max() < 0.53
    for box in boxes:
        rows, columns = np.nonzero(box.any(axis=1))[0], np.nonzero(box.any(axis=0))[0]
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0.35 < len(rows) / len(columns) < 2.8
    centres = np.array([[index.mean() for index in np.nonzero(box)] for box in boxes])
    np.testing.assert_allclose(centres.mean(axis=0), [29.5, 39.5], atol=2)


def test_half_of_the_classes_of_an_image_are_drawn():
    labels = np.zeros((200, 4, 6), np.int32)
    labels[:, :2, :2], labels[:, 2:, :2], labels[:, 3:, 4:] = 1, 2, 5
    labels[100:] = np.where(labels[100:] == 5, 0, labels[100:])  # three classes: two of them are drawn
    random = keras.random.SeedGenerator(0)
    chosen = random_classes(tf.constant(labels), 7, random).numpy()
    drawn = []
    for pixels, image in zip(chosen, labels, strict=True):
        inside = set(image[pixels].tolist())
        assert len(inside) == 2
        assert pixels.sum() == np.isin(image, list(inside)).sum()  # whole classes
        drawn.append(tuple(sorted(inside)))
    assert len(set(drawn[:100])) == 6 and len(set(drawn[100:])) == 3
