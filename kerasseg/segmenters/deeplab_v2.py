"""DeepLab-v2 (Chen et al. 2017, arXiv:1606.00915), the single-scale form that semi-supervised papers use."""

import keras

from kerasseg.layers import AtrousConv2D, register
from kerasseg.segmenters.segmenter import Segmenter


@register
class DeepLabV2(Segmenter):
    """Four parallel 3x3 convolutions of different dilation to K channels, summed.

    Args:
        rates: the dilation of the four, in positions of the backbone's last map; None for the published ones. See
            `fitting_rates`.
        Others: `Segmenter`.

    Example:
        >>> segmenter = kerasseg.DeepLabV2("mobilenet_v2", num_classes=21, output_stride=8)
        >>> segmenter(np.zeros((1, 240, 321, 3))).shape
        TensorShape([1, 240, 321, 21])
    """

    MAPS = "ends"
    FITS = "any"
    DILATES = True
    RATES = (6, 12, 18, 24)
    RATES_STRIDE = 8
    RATES_CROP = 321

    @classmethod
    def build_head(cls, features, strides, num_classes, rates=None):
        _, high_level = [keras.Input(x.shape[1:]) for x in features]
        branches = [
            AtrousConv2D(
                num_classes,
                3,
                padding="same",
                dilation_rate=rate,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
                name=name,
            )(high_level)
            for name, rate in cls.named_rates(rates, strides[-1]).items()
        ]
        logits = keras.layers.Add(name="logits")(branches)
        return keras.Model([_, high_level], logits, name="aspp"), strides[-1]
