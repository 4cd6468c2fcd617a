"""SegFormer's all-MLP head (Xie et al. 2021, arXiv:2105.15203, section 3.2), on any backbone with a pyramid."""

import keras

from kerasseg.layers import Upsample, register
from kerasseg.segmenters.blocks import conv_bn_relu
from kerasseg.segmenters.segmenter import Segmenter


@register
class SegFormer(Segmenter):
    """Features of every stride to one width, upsampled to the finest of them, joined, and classified.

    Args:
        head_channels: width of the head: 256 in the paper for MiT-B0 and -B1, 768 for larger ones.
        head_dropout: share of the values dropped before the classifier while training: 0.1 in the authors' code.
        Others: `Segmenter`.

    Example:
        >>> segmenter = kerasseg.SegFormer("mobilenet_v2", num_classes=21, head_channels=64)
        >>> segmenter(np.zeros((1, 240, 321, 3))).shape
        TensorShape([1, 240, 321, 21])
    """

    @classmethod
    def build_head(cls, features, strides, num_classes, head_channels: int = 256, head_dropout: float = 0.1):
        inputs = [keras.Input(x.shape[1:]) for x in features]
        levels: list[keras.KerasTensor] = []
        for x, stride in zip(inputs, strides, strict=True):
            # A linear layer for each position is a 1x1 convolution.
            x = keras.layers.Conv2D(head_channels, 1, name=f"linear_{len(levels) + 1}")(x)
            levels.append(x if stride == strides[0] else Upsample(stride // strides[0])(x))
        # The coarsest first, as in the authors' code, so that their weights fit.
        x = keras.layers.Concatenate(name="join")(levels[::-1])
        x = conv_bn_relu(x, head_channels, 1, name="fuse")
        x = keras.layers.Dropout(head_dropout, name="dropout")(x)
        logits = keras.layers.Conv2D(num_classes, 1, name="logits")(x)
        return keras.Model(inputs, logits, name="all_mlp"), strides[0]
