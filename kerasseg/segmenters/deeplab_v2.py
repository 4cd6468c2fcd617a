"""DeepLab-v2 (Chen et al. 2017, arXiv:1606.00915), the single-scale form that semi-supervised papers use."""

import keras

from kerasseg.layers import AtrousConv2D, register
from kerasseg.segmenters.segmenter import Segmenter


@register
class DeepLabV2(Segmenter):
    """Four parallel 3x3 convolutions of different dilation to K channels, summed. Arguments: `Segmenter`."""

    @staticmethod
    def build_head(features, num_classes, output_stride):
        _, high_level = [keras.Input(x.shape[1:]) for x in features]
        rates = [rate * 8 // output_stride for rate in (6, 12, 18, 24)]
        branches = [
            AtrousConv2D(
                num_classes,
                3,
                padding="same",
                dilation_rate=rate,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
                name=f"aspp_rate{rate}",
            )(high_level)
            for rate in rates
        ]
        logits = keras.layers.Add(name="logits")(branches)
        return keras.Model([_, high_level], logits, name="aspp"), output_stride
