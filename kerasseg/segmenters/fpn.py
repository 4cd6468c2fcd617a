"""The segmentation branch of Panoptic FPN (Kirillov et al. 2019, arXiv:1901.02446), on any backbone with a pyramid."""

import keras

from kerasseg.layers import Conv2D, Upsample, register
from kerasseg.segmenters.segmenter import Segmenter

GROUPS = 32
"""Groups of a group normalisation (Wu and He 2018), where the width has so many."""


@register
class FPN(Segmenter):
    """Features of every stride, each joined with the coarser ones, brought to the finest stride, and summed.

    Args:
        head_channels: width of the pyramid: 256 in the paper. The branch after it has half of it.
        head_dropout: share of the values dropped before the classifier while training.
        Others: `Segmenter`.

    Example:
        >>> segmenter = kerasseg.FPN("mobilenet_v2", num_classes=21, head_channels=64)
        >>> segmenter(np.zeros((1, 240, 321, 3))).shape
        TensorShape([1, 240, 321, 21])
    """

    @classmethod
    def build_head(cls, features, strides, num_classes, head_channels: int = 256, head_dropout: float = 0.1):
        inputs = [keras.Input(x.shape[1:]) for x in features]
        summed, levels = None, []
        for level in reversed(range(len(inputs))):
            x = keras.layers.Conv2D(head_channels, 1, name=f"lateral_{level + 1}")(inputs[level])
            if summed is not None:
                factor = strides[level + 1] // strides[level]
                coarser = keras.layers.UpSampling2D(factor, name=f"top_down_{level + 1}")(summed)
                x = keras.layers.Add(name=f"add_{level + 1}")([x, coarser])
            summed = x
            levels.append(_branch(x, strides[level] // strides[0], head_channels // 2, f"branch_{level + 1}"))
        x = keras.layers.Add(name="sum")(levels)
        x = keras.layers.Dropout(head_dropout, name="dropout")(x)
        logits = keras.layers.Conv2D(num_classes, 1, name="logits")(x)
        return keras.Model(inputs, logits, name="fpn"), strides[0]


def _branch(x, factor: int, channels: int, name: str):
    """3x3 convolutions, with an upsampling by two after each one until the factor is reached; one for a factor of 1."""
    step = 0
    while step == 0 or factor > 1:
        step += 1
        x = Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}_conv_{step}")(x)
        groups = GROUPS if channels % GROUPS == 0 else 1
        x = keras.layers.GroupNormalization(groups, name=f"{name}_norm_{step}")(x)
        x = keras.layers.ReLU(name=f"{name}_relu_{step}")(x)
        if factor > 1:
            x = Upsample(2, name=f"{name}_upsample_{step}")(x)
            factor //= 2
    return x
