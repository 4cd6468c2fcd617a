"""The fully convolutional discriminator of AdvSemiSeg (Hung et al. 2018, section 3.2), which latent classes use too."""

from collections.abc import Sequence

import keras

from kerasseg.critics.trunk import CHANNELS, convolution, trunk
from kerasseg.layers import CropLike, PadToMultiple, Upsample
from kerasseg.segmenters.backbones import build_backbone
from kerasseg.segmenters.deeplab_v3plus import DeepLabV3Plus
from kerasseg.segmenters.segmenter import scaled_rates

STRIDE = 16
RGB = 3


def build_pixel_discriminator(num_classes: int, convolutional: bool = True, channels: int = CHANNELS) -> keras.Model:
    """Which pixels of this segmentation look drawn by a person?

    Input: class probabilities or one-hot labels (B,H,W,K), any H and W. Output: a logit for each pixel (B,H,W,1), above
    0 for "drawn by a person", float32.

    Args:
        num_classes: K.
        convolutional: False for table 6's discriminator, which gives one logit for the whole image (here repeated for
            all its pixels, so that it can replace the other). Its last layer is dense, on the features' mean over the
            image; the paper's reads all features, which fixes the image size.
        channels: of the first convolution; those after it have 2, 4 and 8 times as many; the paper has 64.
    """
    segmentation = keras.Input((None, None, num_classes), name="segmentation")
    *_, x = trunk(segmentation, channels)
    if convolutional:
        x = Upsample(32, dtype="float32", name="upsample")(convolution(x, 1, "conv5"))
    else:
        x = keras.layers.GlobalAveragePooling2D(keepdims=True, dtype="float32", name="pool")(x)
        x = keras.layers.Dense(1, dtype="float32", name="dense")(x)
        x = x + keras.ops.zeros_like(segmentation[..., :1], dtype="float32")
    logits_BHW1 = CropLike(dtype="float32", name="crop")([x, segmentation])
    return keras.Model(segmentation, logits_BHW1, name="discriminator")


def build_deeplab_discriminator(
    num_classes: int, backbone: str = "resnet34", head_channels: int = 256, rates: Sequence[int] = ()
) -> keras.Model:
    """A DeepLab-v3+ with the same inputs and outputs (Mendel et al. 2020, section 4.7).

    It sees a segmentation and no image, like the discriminator that it replaces, and starts from random weights: the
    paper is silent about both.

    Args:
        num_classes: K.
        backbone: a key of `BACKBONES`; its first convolution takes K channels.
        head_channels: width of the head.
        rates: dilation of the head's convolutions, for features of stride 16; none for the published ones.

    Raises:
        ValueError: for an unknown backbone.
    """
    segmentation = keras.Input((None, None, num_classes), name="segmentation")
    stride = DeepLabV3Plus.stride_on(backbone, STRIDE)
    features = build_backbone(backbone, stride, extra_channels=num_classes - RGB)
    head, logits_stride = DeepLabV3Plus.build_head(
        features.outputs, features.strides, 1, head_channels, rates=scaled_rates(rates, STRIDE, stride)
    )
    logits = head(features(PadToMultiple(stride, name="pad")(segmentation)))
    logits = Upsample(logits_stride, dtype="float32", name="upsample")(logits)
    logits_BHW1 = CropLike(dtype="float32", name="crop")([logits, segmentation])
    discriminator = keras.Model(segmentation, logits_BHW1, name="discriminator")
    discriminator.output_stride = stride
    return discriminator
