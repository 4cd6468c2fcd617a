"""The image-level discriminator of s4GAN (Mittal et al. 2019, section 4.1.2)."""

import keras

from kerasseg.critics.trunk import CHANNELS, convolution, leaky_relu, widths


def build_image_discriminator(
    num_classes: int,
    dropout: float = 0.5,
    dropout_after_last: bool = True,
    shrink: int = 1,
    channels: int = CHANNELS,
) -> keras.Model:
    """Is this segmentation of this image drawn by a person or predicted?

    Input `[segmentation (B,H,W,K), image (B,H,W,3)]`: class probabilities or one-hot labels, and the image, RGB in
    0..255. Output `[features (B,F), logit (B,1)]`: the pooled features that feature matching compares (the paper's D_k;
    F = 512), and the logit, above 0 for "drawn by a person". Any H and W.

    Args:
        num_classes: K.
        dropout: share of channels (not of values: the reference code drops whole channels) dropped after each
            convolution; "crucial for stable GAN training".
        dropout_after_last: the paper drops after each of the four, the reference code not after the last.
        shrink: side, in pixels, of the squares that are averaged before the first convolution; the paper has 1.
        channels: of the first convolution; those after it have 2, 4 and 8 (F) times as many; the paper has 64.
    """
    segmentation = keras.Input((None, None, num_classes), name="segmentation")
    image = keras.Input((None, None, 3), name="image")
    pixels = keras.layers.Rescaling(1 / 255, name="pixels")(image)
    x = keras.layers.Concatenate(name="join")([segmentation, pixels])
    if shrink > 1:
        x = keras.layers.AveragePooling2D(shrink, padding="same", name="shrink")(x)
    for index, width in enumerate(widths(channels), start=1):
        x = leaky_relu(convolution(x, width, f"conv{index}"))
        if index < len(widths(channels)) or dropout_after_last:
            x = keras.layers.SpatialDropout2D(dropout, name=f"dropout{index}")(x)
    features = keras.layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)
    logit = keras.layers.Dense(1, dtype="float32", name="logit")(features)
    return keras.Model([segmentation, image], [features, logit], name="discriminator")
