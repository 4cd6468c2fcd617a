"""Random views of images (B,H,W,3) in 0..255 that a method makes itself, besides those of the input pipeline."""

import keras


def color_jitter(amount: float, hue: float) -> keras.layers.Layer:
    """Other brightness, contrast and saturation (each by up to `amount`, below 1) and hue (a share of the circle).

    The amounts are those of torchvision, which the reference codes use. Keras adds brightness where torchvision
    multiplies by it (0.4 of a middle grey is 0.2), gives a saturation s as s / (1 + s), and halves the hue.
    """
    saturation = ((1 - amount) / (2 - amount), (1 + amount) / (2 + amount))
    return keras.layers.RandomColorJitter((0, 255), amount / 2, amount, saturation, 2 * hue, dtype="float32")


def blur(probability: float) -> keras.layers.Layer:
    """Gaussian blur of this share of the images, by 0.1 to 2 pixels, drawn anew for each batch."""
    return keras.layers.RandomGaussianBlur(
        (probability, probability),  # one number would be the largest of a range that the share is drawn from
        kernel_size=13,
        sigma=(0.1, 2.0),
        value_range=(0, 255),
        dtype="float32",
    )
