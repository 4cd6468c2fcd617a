"""Layers that Keras does not have, or has in a form that trains or exports slowly.

Shapes: B batch, H W height and width, C channels, K classes.
"""

import keras
import tensorflow as tf

register = keras.saving.register_keras_serializable(package="kerasseg")


@register
class PixelNormalization(keras.layers.Layer):
    """RGB pixels in 0..255 to what the backbone was pretrained on.

    It is the first layer inside every segmenter, so that training, evaluation, export and serving cannot disagree.

    Args:
        scheme: `"tf"` for -1..1 (MobileNetV2), `"caffe"` for BGR less the ImageNet mean (`keras.applications`
            ResNets), `"unit"` for 0..1 (keras-cv ResNets).
    """

    SCHEMES = ("tf", "caffe", "unit")

    def __init__(self, scheme: str, **kwargs):
        super().__init__(**kwargs)
        if scheme not in self.SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(self.SCHEMES)}; got {scheme!r}")
        self.scheme = scheme

    def call(self, image_BHWC):
        image_BHWC = tf.cast(image_BHWC, self.compute_dtype)
        if self.scheme == "tf":
            return image_BHWC / 127.5 - 1.0
        if self.scheme == "unit":
            return image_BHWC / 255.0
        mean_BGR = tf.constant([103.939, 116.779, 123.68], self.compute_dtype)
        return image_BHWC[..., ::-1] - mean_BGR

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"scheme": self.scheme}


@register
class AtrousConv2D(keras.layers.Conv2D):
    """`Conv2D` of stride 1 whose dilated form stays a single op, in the forward pass and in the gradient.

    Off a TPU, `tf.nn.convolution` (which `keras.layers.Conv2D` calls) turns a dilated convolution into
    SpaceToBatch, convolution, BatchToSpace: 1.5 times the time of a training step, twice that of the ONNX graph.

    Args:
        anchor: `"center"` looks to both sides of a pixel, as `padding="same"` does; `"start"` looks only to the right
            and down, as a convolution of stride 2 with `padding="same"` does on an even size: what a convolution whose
            stride was traded for dilation has to do to give the same values.
    """

    def __init__(self, filters, kernel_size, anchor: str = "center", **kwargs):
        if anchor not in ("center", "start"):
            raise ValueError(f"anchor must be 'center' or 'start'; got {anchor!r}")
        super().__init__(filters, kernel_size, **kwargs)
        if self.strides != (1, 1):
            raise ValueError(f"AtrousConv2D has stride 1; got strides {self.strides}: use keras.layers.Conv2D")
        self.anchor = anchor

    def convolution_op(self, inputs_BHWC, kernel):
        padding = self.padding.upper()
        if self.anchor == "start" and padding == "SAME":
            after = [rate * (size - 1) for rate, size in zip(self.dilation_rate, self.kernel_size, strict=True)]
            inputs_BHWC = tf.pad(inputs_BHWC, [[0, 0], [0, after[0]], [0, after[1]], [0, 0]])
            padding = "VALID"
        return tf.nn.conv2d(inputs_BHWC, kernel, 1, padding, dilations=self.dilation_rate)

    def get_config(self):
        return super().get_config() | {"anchor": self.anchor}


def _atrous_depthwise(inputs_BHWC, kernel_HWC1, rate: int):
    """Grouped convolution forward, TensorFlow's own (SpaceToBatch) route backward, which the CPU has a kernel for."""

    @tf.custom_gradient
    def convolve(inputs_BHWC, kernel_HWC1):
        def gradient(upstream):
            with tf.GradientTape() as tape:
                tape.watch([inputs_BHWC, kernel_HWC1])
                outputs = tf.nn.depthwise_conv2d(
                    inputs_BHWC, kernel_HWC1, [1, 1, 1, 1], "VALID", dilations=[rate, rate]
                )
            return tape.gradient(outputs, [inputs_BHWC, kernel_HWC1], upstream)

        grouped_HW1C = tf.transpose(kernel_HWC1, [0, 1, 3, 2])
        return tf.nn.conv2d(inputs_BHWC, grouped_HW1C, 1, "VALID", dilations=rate), gradient

    return convolve(inputs_BHWC, kernel_HWC1)


@register
class AtrousDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Dilated `DepthwiseConv2D` of stride 1 and multiplier 1, a single op in the forward pass and so in the export."""

    def call(self, inputs_BHWC):
        height, width = self.kernel_size
        rate = self.dilation_rate[0]
        if self.padding == "same":
            rows, columns = rate * (height - 1), rate * (width - 1)
            inputs_BHWC = tf.pad(
                inputs_BHWC,
                [[0, 0], [rows // 2, rows - rows // 2], [columns // 2, columns - columns // 2], [0, 0]],
            )
        outputs_BHWC = _atrous_depthwise(inputs_BHWC, tf.convert_to_tensor(self.kernel), rate)
        if self.use_bias:
            outputs_BHWC += self.bias
        return self.activation(outputs_BHWC)


@register
class PadToMultiple(keras.layers.Layer):
    """Pads (B,H,W,C) with zeros below and to the right until H and W are multiples of `multiple`."""

    def __init__(self, multiple: int, **kwargs):
        super().__init__(**kwargs)
        self.multiple = multiple

    def call(self, inputs_BHWC):
        height, width = tf.unstack(tf.shape(inputs_BHWC)[1:3])
        return tf.pad(inputs_BHWC, [[0, 0], [0, -height % self.multiple], [0, -width % self.multiple], [0, 0]])

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, *(size and size + -size % self.multiple for size in (height, width)), channels)

    def get_config(self):
        return super().get_config() | {"multiple": self.multiple}


@register
class Upsample(keras.layers.Layer):
    """Bilinear resize of (B,H,W,C) by a whole factor, in float32, for sizes known only at run time."""

    def __init__(self, factor: int, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs_BHWC):
        size = tf.shape(inputs_BHWC)[1:3] * self.factor
        outputs_BHWC = tf.image.resize(inputs_BHWC, size, "bilinear")
        return tf.cast(outputs_BHWC, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, height and height * self.factor, width and width * self.factor, channels)

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


@register
class CropLike(keras.layers.Layer):
    """Crops the first input to the height and width of the second: undoes `PadToMultiple`."""

    def call(self, inputs):
        inputs_BHWC, like_BHWC = inputs
        height, width = tf.unstack(tf.shape(like_BHWC)[1:3])
        return inputs_BHWC[:, :height, :width]

    def compute_output_shape(self, input_shape):
        (batch, _, _, channels), (_, height, width, _) = input_shape
        return (batch, height, width, channels)
