"""Colours by their definitions, pixel by pixel in Python, and blur by its kernel in NumPy."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.colors import GREY, adjust_colors, gaussian_blur, jitter_colors

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (3, 7, 9, 3)).astype(np.float32)
SAME = [1.0, 1.0, 1.0]


def adjusted(brightness=SAME, contrast=SAME, saturation=SAME, hue=(0.0, 0.0, 0.0), images=IMAGES):
    factors = (tf.constant(values, tf.float32) for values in (brightness, contrast, saturation, hue))
    return adjust_colors(tf.constant(images), *factors).numpy()


def test_brightness_is_a_factor_of_every_value():
    factors = [0.5, 1.0, 1.5]
    for image, result, factor in zip(IMAGES, adjusted(brightness=factors), factors, strict=True):
        np.testing.assert_allclose(result, np.minimum(image * factor, 255), rtol=1e-4, atol=1e-2)


def test_brightness_leaves_black_black_and_clips_no_more_than_torchvision():
    """It adds nothing: half of a dark grey is a darker grey."""
    dark = np.full((3, 2, 2, 3), 20, np.float32)
    np.testing.assert_allclose(adjusted(brightness=[0.5] * 3, images=dark), 10, atol=1e-3)
    np.testing.assert_array_equal(adjusted(brightness=[1.5] * 3, images=0 * dark), 0)


def test_contrast_goes_around_the_mean_grey_of_the_image():
    factors = [0.5, 1.2, 0.0]
    for image, result, factor in zip(IMAGES, adjusted(contrast=factors), factors, strict=True):
        mean = (image @ np.array([0.2989, 0.587, 0.114])).mean()
        np.testing.assert_allclose(result, np.clip(factor * image + (1 - factor) * mean, 0, 255), atol=1e-2)


def test_saturation_goes_towards_the_grey_of_the_pixel():
    factors = [0.5, 1.3, 0.0]
    for image, result, factor in zip(IMAGES, adjusted(saturation=factors), factors, strict=True):
        grey = (image @ np.array([0.2989, 0.587, 0.114]))[..., None]
        np.testing.assert_allclose(result, np.clip(factor * image + (1 - factor) * grey, 0, 255), atol=1e-2)
    assert sum(GREY) == pytest.approx(1, abs=1e-3)


def test_hue_turns_in_hsv():
    turns = [0.25, -0.1, 0.5]
    for image, result, turn in zip(IMAGES, adjusted(hue=turns), turns, strict=True):
        for pixel, new in zip(image.reshape(-1, 3), result.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255).tolist())
            np.testing.assert_allclose(new / 255, colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), atol=1e-4)


def test_the_changes_follow_each_other_and_each_clips():
    """torchvision's functions one after the other: 200 * 1.5 is 255 before the contrast comes."""
    flat = np.full((1, 2, 2, 3), 200, np.float32)
    flat[0, 0, 0] = 100
    result = adjusted([1.5], [0.5], [1.0], [0.0], flat)
    mean = (3 * 255 + 150) / 4 * sum(GREY)
    np.testing.assert_allclose(result[0, 1, 1], (255 + mean) / 2, atol=1e-2)
    np.testing.assert_allclose(result[0, 0, 0], (150 + mean) / 2, atol=1e-2)


def test_draws_cover_the_range_of_torchvisions_color_jitter():
    ends = jitter_colors(tf.constant(IMAGES), tf.constant([[0.0, 0.5, 1.0]] * 4), 0.4, 0.1).numpy()
    expected = adjusted([0.6, 1.0, 1.4], [0.6, 1.0, 1.4], [0.6, 1.0, 1.4], [-0.1, 0.0, 0.1])
    np.testing.assert_allclose(ends, expected, atol=1e-3)
    np.testing.assert_allclose(ends[1], IMAGES[1], atol=1e-2)


def test_blur_is_gaussian_with_a_width_for_each_image():
    dots = np.zeros((2, 15, 15, 3), np.float32)
    dots[:, 7, 7] = [1.0, 2.0, 3.0]
    blurred = gaussian_blur(tf.constant(dots), tf.constant([1.5, 0.7]), 2.0).numpy()
    x = np.arange(-6, 7)
    for image, sigma in zip(blurred, (1.5, 0.7), strict=True):
        kernel = np.exp(-0.5 * (x / sigma) ** 2)
        expected = np.zeros((15, 15))
        expected[1:14, 1:14] = np.outer(kernel, kernel) / kernel.sum() ** 2
        np.testing.assert_allclose(image, expected[..., None] * [1.0, 2.0, 3.0], atol=1e-6)


def test_blur_repeats_the_border_and_a_width_of_0_changes_nothing():
    flat = tf.fill((2, 5, 4, 3), 200.0)
    np.testing.assert_allclose(gaussian_blur(flat, tf.constant([2.0, 0.5]), 2.0), flat, atol=1e-3)
    np.testing.assert_allclose(gaussian_blur(tf.constant(IMAGES), tf.zeros(3), 2.0), IMAGES, atol=1e-3)
