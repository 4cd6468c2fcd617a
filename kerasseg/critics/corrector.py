"""The corrector of ECS (Mendel et al. 2020, section 4.3): a DeepLab-v3+ that reads an image with its segmentation."""

from collections.abc import Sequence

import keras

from kerasseg.layers import CropLike, PadToMultiple, PixelNormalization, Upsample
from kerasseg.segmenters.backbones import backbone_spec, build_backbone, copy_weights
from kerasseg.segmenters.deeplab_v3plus import DeepLabV3Plus
from kerasseg.segmenters.segmenter import scaled_rates

STRIDE = 16


def build_corrector(
    num_classes: int,
    backbone: str | keras.Model = "resnet34",
    weights: str = "none",
    head_channels: int = 256,
    rates: Sequence[int] = (),
) -> keras.Model:
    """Which class belongs here instead?

    Input `[segmentation (B,H,W,K), image (B,H,W,3)]`: class probabilities or one-hot labels, and the image, RGB in
    0..255. Output: logits (B,H,W,K+1), float32; the last class is "right as it is". Any H and W.

    Args:
        num_classes: K.
        backbone: a key of `BACKBONES`, or a model that `build_backbone` made, whose present weights the new one starts
            from. Its first convolution takes 3 + K channels, He-initialised.
        weights: for the rest of the backbone, as `build_backbone` takes them.
        head_channels: width of the head: 256 in the paper.
        rates: dilation of the head's convolutions, for features of stride 16; none for the published ones.

    Raises:
        ValueError: for an unknown backbone or weights that cannot be had.
    """
    segmentation = keras.Input((None, None, num_classes), name="segmentation")
    image = keras.Input((None, None, 3), name="image")
    name = backbone if isinstance(backbone, str) else backbone.name
    # The scale of the class maps it is joined with, whatever the backbone expects: its first convolution is fresh.
    pixels = PixelNormalization("tf", name="pixels")(image)
    x = keras.layers.Concatenate(name="join")([pixels, segmentation])
    stride = DeepLabV3Plus.stride_on(name, STRIDE)
    features = build_backbone(name, stride, weights, extra_channels=num_classes)
    if not isinstance(backbone, str):
        copy_weights(backbone, features)
    head, logits_stride = DeepLabV3Plus.build_head(
        features.outputs, features.strides, num_classes + 1, head_channels, rates=scaled_rates(rates, STRIDE, stride)
    )
    x = PadToMultiple(stride, backbone_spec(name).border, name="pad")(x)
    logits = head(features(x))
    logits = Upsample(logits_stride, dtype="float32", name="upsample")(logits)
    logits_BHWK1 = CropLike(dtype="float32", name="crop")([logits, image])
    corrector = keras.Model([segmentation, image], logits_BHWK1, name="corrector")
    corrector.output_stride = stride
    return corrector
