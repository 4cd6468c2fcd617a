"""Colour jitter and blur: one implementation for the input pipeline and for the views that methods make themselves.

Legend: B images, H and W their height and width. Images are float32 RGB in 0..255.
"""

import tensorflow as tf

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a pixel's grey (ITU-R BT.601), as torchvision has them."""


def grey(images_BHW3: tf.Tensor) -> tf.Tensor:
    """The grey of each pixel, (B,H,W,1)."""
    return tf.tensordot(images_BHW3, tf.constant(GREY), axes=1)[..., tf.newaxis]


def adjust_colors(
    images_BHW3: tf.Tensor, brightness_B: tf.Tensor, contrast_B: tf.Tensor, saturation_B: tf.Tensor, hue_B: tf.Tensor
) -> tf.Tensor:
    """Each image in other colours, with the values of torchvision's `adjust_brightness`, `adjust_contrast`,
    `adjust_saturation` and `adjust_hue`, one after the other in this order; clipped to 0..255 after each.

    Args:
        brightness_B: factor of all values, 0 or more.
        contrast_B: factor of the differences to the mean grey of the image, 0 or more.
        saturation_B: factor of the differences to the pixel's own grey, 0 or more.
        hue_B: turn of the hue, as a share of the circle.
    """
    brightness, contrast, saturation, hue = (
        tf.reshape(factor, (-1, 1, 1, 1)) for factor in (brightness_B, contrast_B, saturation_B, hue_B)
    )
    images = tf.clip_by_value(images_BHW3 * brightness, 0.0, 255.0)
    mean_grey = tf.reduce_mean(grey(images), axis=(1, 2), keepdims=True)
    images = tf.clip_by_value(mean_grey + contrast * (images - mean_grey), 0.0, 255.0)
    pixel_grey = grey(images)
    images = tf.clip_by_value(pixel_grey + saturation * (images - pixel_grey), 0.0, 255.0)
    turned, *rest = tf.split(tf.image.rgb_to_hsv(images), 3, axis=-1)  # the value keeps its unit
    return tf.image.hsv_to_rgb(tf.concat([tf.math.floormod(turned + hue, 1.0), *rest], axis=-1))


def jitter_colors(images_BHW3: tf.Tensor, draws_4B: tf.Tensor, amount: float, hue: float) -> tf.Tensor:
    """`adjust_colors` by random numbers, as torchvision's `ColorJitter(amount, amount, amount, hue)` draws them.

    Args:
        draws_4B: uniform in 0..1, for brightness, contrast, saturation and hue of each image.
        amount: the three factors are in 1 - amount .. 1 + amount; 0..1.
        hue: the turn is in -hue .. hue; 0..0.5.
    """
    brightness_B, contrast_B, saturation_B = tf.unstack(1.0 + amount * (2.0 * draws_4B[:3] - 1.0), num=3)
    return adjust_colors(images_BHW3, brightness_B, contrast_B, saturation_B, hue * (2.0 * draws_4B[3] - 1.0))


def gaussian_blur(images_BHW3: tf.Tensor, sigma_B: tf.Tensor, largest_sigma: float) -> tf.Tensor:
    """Each image blurred by its own standard deviation, `sigma_B` <= `largest_sigma` pixels; 0 changes nothing. Outside
    of an image its border pixels are repeated."""
    radius = max(1, round(3 * largest_sigma))
    offsets = tf.range(-radius, radius + 1, dtype=tf.float32)
    # Below 1e-3 the kernel is the identity, and 0 would divide by 0.
    kernel_OB = tf.nn.softmax(-0.5 * (offsets[:, tf.newaxis] / tf.maximum(sigma_B, 1e-3)) ** 2, axis=0)
    kernel_OC = tf.repeat(kernel_OB, 3, axis=1)
    batch, height, width, _ = tf.unstack(tf.shape(images_BHW3))
    # A depthwise convolution has a kernel for each channel: here for each channel of each image.
    x = tf.reshape(tf.transpose(images_BHW3, (1, 2, 0, 3)), (1, height, width, 3 * batch))
    for axis, kernel in ((1, kernel_OC[:, tf.newaxis, :, tf.newaxis]), (2, kernel_OC[tf.newaxis, :, :, tf.newaxis])):
        length = tf.shape(x)[axis]
        x = tf.gather(x, tf.clip_by_value(tf.range(-radius, length + radius), 0, length - 1), axis=axis)
        x = tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "VALID")
    blurred = tf.transpose(tf.reshape(x, (height, width, batch, 3)), (2, 0, 1, 3))
    return tf.ensure_shape(blurred, images_BHW3.shape)
