"""The two discriminators of DualGAN ("Improved GAN with two discriminators"): D1 judges images, D2 pixels."""

from typing import Literal, get_args

import keras

from kerasseg.checks import require_one_of
from kerasseg.critics.trunk import CHANNELS, convolution, leaky_relu, trunk, widths
from kerasseg.layers import Conv2D, CropLike, PadToMultiple, Upsample

Shown = Literal["maps", "maps_rgb", "labels_rgb", "maps_times_rgb"]
Structure = Literal["stride16_up16", "stride4_up4", "stride16_up2", "stride16_up4"]


def build_d1(num_classes: int, channels: int = CHANNELS) -> keras.Model:
    """Is this segmentation drawn by a person? (B,H,W,K), any H and W, to a logit (B,1), above 0 for yes, float32.

    It is the trunk of AdvSemiSeg's discriminator, with the logits averaged over the image. Its first convolution has
    `channels` channels.
    """
    segmentation = keras.Input((None, None, num_classes), name="segmentation")
    *_, x = trunk(segmentation, channels)
    x = convolution(x, 1, "conv5")
    logit_B1 = keras.layers.GlobalAveragePooling2D(dtype="float32", name="logit")(x)
    return keras.Model(segmentation, logit_B1, name="d1")


def build_d2(
    num_classes: int, shown: Shown = "maps", structure: Structure = "stride16_up4", channels: int = CHANNELS
) -> keras.Model:
    """Is this prediction right, pixel by pixel?

    Input `[segmentation (B,H,W,K), image (B,H,W,3)]`: class probabilities, and the image, RGB in 0..255. Output: a
    logit for each pixel (B,H,W,1), above 0 for "right", float32. Any H and W.

    Args:
        num_classes: K.
        shown: what D2 sees (the paper's designs for its input): the K maps; these and the image; the label map, as
            one number 0..1 per pixel, and the image (the segmenter learns nothing through it); or each map times each
            colour.
        structure: the stride, and the steps in which it is undone (the designs for its structure). The steps of 2 and 4
            have skip connections.
        channels: of the first convolution; those after it have 2, 4 and 8 times as many.

    The paper gives the strides and factors; the widths are those of the trunk on the way down, and the same again on
    the way up.

    Raises:
        ValueError: for an unknown input or structure.
    """
    require_one_of("shown", shown, get_args(Shown))
    require_one_of("structure", structure, get_args(Structure))
    segmentation = keras.Input((None, None, num_classes), name="segmentation")
    image = keras.Input((None, None, 3), name="image")
    x = PadToMultiple(16, name="pad")(_shown(segmentation, image, num_classes, shown))

    width2, width4, width8, width16 = widths(channels)

    if structure == "stride4_up4":
        *_, x = trunk(x, channels, depth=2)
        for index, width in enumerate((width8, width16), start=3):
            x = leaky_relu(_same(x, width, f"conv{index}"))
        x = Upsample(4, name="up4")(_same(x, 1, "conv5"))
    elif structure == "stride16_up16":
        *_, x = trunk(x, channels)
        x = Upsample(16, name="up16")(_same(x, 1, "conv5"))
    else:
        stride2, stride4, stride8, x = trunk(x, channels)
        steps = [(2, stride8, width8), (2, stride4, width4), (2, stride2, width2)]
        if structure == "stride16_up4":
            steps = [(4, stride4, width4)]
        for index, (factor, skip, width) in enumerate(steps, start=1):
            x = keras.layers.Concatenate(name=f"skip{index}")([Upsample(factor, name=f"up{index}")(x), skip])
            x = leaky_relu(_same(x, width, f"decoder{index}"))
        x = Upsample(4 if structure == "stride16_up4" else 2, name="up")(_same(x, 1, "conv5"))
    logits_BHW1 = CropLike(dtype="float32", name="crop")([x, segmentation])
    return keras.Model([segmentation, image], logits_BHW1, name="d2")


def _shown(segmentation, image, num_classes: int, shown: Shown):
    rgb = keras.layers.Rescaling(1 / 255, name="rgb")(image)
    if shown == "maps":
        return segmentation
    if shown == "maps_rgb":
        return keras.layers.Concatenate(name="join")([segmentation, rgb])
    if shown == "labels_rgb":
        labels = keras.ops.argmax(segmentation, axis=-1, keepdims=True)
        labels = keras.ops.cast(labels, rgb.dtype) / (num_classes - 1)
        return keras.layers.Concatenate(name="join")([labels, rgb])
    products = [segmentation * rgb[..., channel : channel + 1] for channel in range(3)]
    return keras.layers.Concatenate(name="join")(products)


def _same(x, channels: int, name: str):
    """3x3, stride 1."""
    return Conv2D(channels, 3, padding="same", name=name)(x)
