"""DeepLab-v3+ (Chen et al. 2018, arXiv:1802.02611): atrous spatial pyramid pooling and a decoder at stride 4."""

import keras

from kerasseg.layers import Conv2D, Upsample, register
from kerasseg.segmenters.blocks import bn_relu, conv_bn_relu
from kerasseg.segmenters.segmenter import Segmenter

LOW_LEVEL_CHANNELS = 48


@register
class DeepLabV3Plus(Segmenter):
    """ASPP with image pooling, then a decoder that joins the stride-4 features.

    Args:
        head_channels: width of ASPP and decoder: 256 in the paper; a quarter of it suits small backbones, where the
            decoder would otherwise cost more than the backbone.
        head_dropout: share of the values dropped after ASPP while training: 0.1 in the authors' code.
        rates: the dilation of ASPP's three 3x3 convolutions, in positions of the backbone's last map; None for the
            published ones. See `fitting_rates`.
        Others: `Segmenter`.

    Example:
        >>> segmenter = kerasseg.DeepLabV3Plus("mobilenet_v2", num_classes=21, head_channels=64)
        >>> segmenter(np.zeros((1, 240, 321, 3))).shape
        TensorShape([1, 240, 321, 21])
    """

    MAPS = "ends"
    DILATES = True
    RATES = (6, 12, 18)
    RATES_STRIDE = 16
    RATES_CROP = 513

    @classmethod
    def build_head(
        cls, features, strides, num_classes, head_channels: int = 256, head_dropout: float = 0.1, rates=None
    ):
        low_level, high_level = [keras.Input(x.shape[1:]) for x in features]

        branches = [conv_bn_relu(high_level, head_channels, 1, name="aspp_1x1")]
        branches += [
            conv_bn_relu(high_level, head_channels, 3, dilation_rate=rate, name=name)
            for name, rate in cls.named_rates(rates, strides[-1]).items()
        ]
        # The image-pooling branch has one value per image and channel. Batch norm over a batch of one would erase it
        # and drive the stored variance to zero; layer norm does the same in training and inference.
        pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="pool")(high_level)
        pooled = keras.layers.Conv2D(head_channels, 1, use_bias=False, name="pool_conv")(pooled)
        pooled = keras.layers.LayerNormalization(name="pool_norm")(pooled)
        pooled = keras.layers.ReLU(name="pool_relu")(pooled)
        # A 1x1 convolution of a concatenation is the sum of the parts' convolutions, so the pooled values need not be
        # spread over the image before.
        x = keras.layers.Conv2D(head_channels, 1, use_bias=False, name="project")(keras.layers.Concatenate()(branches))
        x = keras.layers.Add()([x, keras.layers.Conv2D(head_channels, 1, use_bias=False, name="pool_project")(pooled)])
        x = bn_relu(x, name="project")
        x = keras.layers.Dropout(head_dropout, name="dropout")(x)

        x = Upsample(strides[-1] // strides[0], name="upsample")(x)
        low = conv_bn_relu(low_level, LOW_LEVEL_CHANNELS, 1, name="low_level")
        x = keras.layers.Concatenate()([x, low])
        x = conv_bn_relu(x, head_channels, 3, layer=Conv2D, name="decoder_1")
        x = conv_bn_relu(x, head_channels, 3, layer=Conv2D, name="decoder_2")
        logits = keras.layers.Conv2D(num_classes, 1, name="logits")(x)
        return keras.Model([low_level, high_level], logits, name="decoder"), strides[0]
