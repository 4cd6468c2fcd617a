"""Layers that Keras lacks, or has in a form that is slow to train or export.

Shapes: B batch, H W height and width, C channels, K classes.
"""

import functools
import platform
from fractions import Fraction
from pathlib import Path
from typing import Literal

import keras
import tensorflow as tf

from kerasseg.checks import require_one_of

register = keras.saving.register_keras_serializable(package="kerasseg")


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels, RGB in 0..1."""
SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))
"""The same of SAT-493M, the satellite images of DINOv3 (Simeoni et al. 2025, arXiv:2508.10104)."""


@register
class PixelNormalization(keras.layers.Layer):
    """RGB pixels in 0..255 to what the backbone was pretrained on.

    It is the first layer inside every segmenter, so that training, evaluation, export and serving cannot disagree.

    Args:
        scheme: `"tf"` for -1..1 (MobileNetV2), `"caffe"` for BGR minus the ImageNet mean (`keras.applications`
            ResNets), `"unit"` for 0..1 (keras-cv ResNets), `"torch"` for RGB with ImageNet's mean 0 and deviation 1
            (ConvNeXt, DenseNet), `"tf128"` for -1..0.99 (EfficientNetV2-S), `"lite"` for
            -0.99..1 (EfficientNet-Lite of TensorFlow's authors), `"satellite"` like `"torch"` by DINOv3's
            satellite images.
    """

    SCHEMES = ("tf", "caffe", "unit", "torch", "tf128", "lite", "satellite")

    def __init__(self, scheme: str, **kwargs):
        super().__init__(**kwargs)
        require_one_of("scheme", scheme, self.SCHEMES)
        self.scheme = scheme

    def call(self, image_BHWC):
        image_BHWC = tf.cast(image_BHWC, self.compute_dtype)
        if self.scheme == "tf":
            return image_BHWC / 127.5 - 1.0
        if self.scheme == "unit":
            return image_BHWC / 255.0
        if self.scheme == "tf128":
            return image_BHWC / 128.0 - 1.0
        if self.scheme == "lite":
            return (image_BHWC - 127.0) / 128.0
        if self.scheme in ("torch", "satellite"):
            mean_RGB, deviation_RGB = (
                tf.constant([255.0 * share for share in shares], self.compute_dtype)
                for shares in (IMAGENET if self.scheme == "torch" else SATELLITE)
            )
            return (image_BHWC - mean_RGB) / deviation_RGB
        mean_BGR = tf.constant([103.939, 116.779, 123.68], self.compute_dtype)
        return image_BHWC[..., ::-1] - mean_BGR

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"scheme": self.scheme}


@functools.cache
def has_dilated_gradient(dtype: str) -> bool:
    """Whether this machine can train a dilated convolution of that type ("float32", ...) as one op.

    GPUs can. A CPU can where TensorFlow uses oneDNN for the type; see `kerasseg.tensorflow_setup`.
    """
    with tf.init_scope():
        ones = tf.ones((1, 4, 4, 1), dtype)
        try:
            tf.raw_ops.Conv2DBackpropFilter(
                input=ones,
                filter_sizes=(2, 2, 1, 1),
                out_backprop=ones[:, :2, :2],
                strides=[1] * 4,
                padding="VALID",
                dilations=[1, 2, 2, 1],
            )
        except tf.errors.OpError:
            return False
    return True


@register
class AtrousConv2D(keras.layers.Conv2D):
    """`Conv2D` of stride 1 whose dilated form is a single op, in the forward pass and in the gradient.

    Off a TPU, `tf.nn.convolution` (which `keras.layers.Conv2D` calls) turns a dilated convolution into
    SpaceToBatch, convolution, BatchToSpace: 1.5 times the time of a training step. It is called here only where the
    single op has no gradient.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.strides != (1, 1):
            raise ValueError(f"AtrousConv2D has stride 1; got strides {self.strides}: use keras.layers.Conv2D")

    def convolution_op(self, inputs_BHWC, kernel):
        padding = self.padding.upper()
        single_op = max(self.dilation_rate) == 1 or has_dilated_gradient(inputs_BHWC.dtype.name)
        if padding == "SAME" and not single_op:
            inputs_BHWC = _pad(inputs_BHWC, self.kernel_size, self.dilation_rate)
            padding = "VALID"
        convolve = tf.nn.conv2d if single_op else tf.nn.convolution
        return convolve(inputs_BHWC, kernel, 1, padding, dilations=self.dilation_rate)


@functools.cache
def slow_kernel_gradients() -> bool:
    """Whether training runs on a CPU without AVX-512, as far as the system says."""
    if tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU"):
        return False
    description = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and description.exists() and "avx512f" not in description.read_text()


@register
class Conv2D(keras.layers.Conv2D):
    """`Conv2D` with padding "same" for large maps of many channels: on CPUs without AVX-512 its training takes half the
    time.

    The slow part there is oneDNN's gradient of the kernel, at a quarter of the speed of a matrix product. Here the
    gradient is made of such products, one for each position in the kernel. (Small maps and the three channels of an
    image gain nothing: use `keras.layers.Conv2D`, `AtrousConv2D`.)
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.padding != "same" or self.dilation_rate != (1, 1) or len({*self.kernel_size}) > 1:
            raise ValueError("Conv2D is square, with padding 'same', not dilated: otherwise use keras.layers.Conv2D")

    def call(self, inputs_BHWC, training=None):
        kernel = tf.convert_to_tensor(self.kernel)  # in the compute type
        by_products = training and kernel.dtype == tf.float32 and slow_kernel_gradients()
        # Elsewhere the plain op, which exporters know.
        outputs_BHWC = (self._convolve_for_training if by_products else self._convolve)(inputs_BHWC, kernel)
        if self.use_bias:
            outputs_BHWC = tf.nn.bias_add(outputs_BHWC, tf.convert_to_tensor(self.bias))
        return self.activation(outputs_BHWC)

    def _convolve(self, inputs_BHWC, kernel):
        return tf.nn.conv2d(inputs_BHWC, kernel, self.strides, "SAME")

    @property
    def _convolve_for_training(self):
        @tf.custom_gradient
        def convolve(inputs_BHWC, kernel):
            def gradient(d_BHWC):
                d_inputs = tf.nn.conv2d_transpose(d_BHWC, kernel, tf.shape(inputs_BHWC), self.strides, "SAME")
                return d_inputs, self._kernel_gradient(inputs_BHWC, d_BHWC)

            return self._convolve(inputs_BHWC, kernel), gradient

        return convolve

    def _kernel_gradient(self, inputs_BHWC, d_BHWC):
        size, stride = self.kernel_size[0], self.strides[0]
        channels, filters = inputs_BHWC.shape[-1], d_BHWC.shape[-1]
        # A kernel of stride s is one of stride 1 on squares of s x s pixels, of `squares` squares.
        squares = -(-size // stride)
        output_hw = tf.shape(d_BHWC)[1:3]
        pad_hw = tf.maximum((output_hw - 1) * stride + size - tf.shape(inputs_BHWC)[1:3], 0)
        before_hw = pad_hw // 2
        after_hw = (output_hw + squares - 1) * stride - tf.shape(inputs_BHWC)[1:3] - before_hw
        x = tf.pad(inputs_BHWC, [(0, 0), *tf.unstack(tf.stack([before_hw, after_hw], axis=1)), (0, 0)])
        if stride > 1:
            x = tf.nn.space_to_depth(x, stride)
        d = tf.pad(d_BHWC, [(0, 0), (0, squares - 1), (0, squares - 1), (0, 0)])
        # In one row, another position in the kernel is another start. The part of d left out at the end is padding.
        width = tf.shape(x)[2]
        x, d = tf.reshape(x, (-1, x.shape[-1])), tf.reshape(d, (-1, filters))
        count = tf.shape(d)[0] - (squares - 1) * (width + 1)
        starts = [row * width + column for row in range(squares) for column in range(squares)]
        products = [tf.matmul(x[start : start + count], d[:count], transpose_a=True) for start in starts]
        kernel = tf.reshape(tf.stack(products), (squares, squares, stride, stride, channels, filters))
        side = squares * stride
        return tf.reshape(tf.transpose(kernel, (0, 2, 1, 3, 4, 5)), (side, side, channels, filters))[:size, :size]


@register
class AtrousDepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Dilated `DepthwiseConv2D` of stride 1 and multiplier 1 that becomes a Pad and a single Conv in an ONNX graph.

    In TensorFlow it is SpaceToBatch, convolution, BatchToSpace: the only form that every machine can train.
    """

    def call(self, inputs_BHWC):
        if self.padding == "same":
            inputs_BHWC = _pad(inputs_BHWC, self.kernel_size, self.dilation_rate)
        kernel_HWC1 = tf.convert_to_tensor(self.kernel)  # in the compute type
        outputs_BHWC = tf.nn.depthwise_conv2d(
            inputs_BHWC, kernel_HWC1, [1, 1, 1, 1], "VALID", dilations=self.dilation_rate
        )
        if self.use_bias:
            outputs_BHWC += self.bias
        return self.activation(outputs_BHWC)


@register
class GroupedConv2D(keras.layers.Conv2D):
    """`Conv2D` with groups, made of ops that a CPU can train and exporters know: one depthwise op where each channel is
    a group (ConvNeXt), otherwise a convolution for each group.

    Keras compiles such a convolution with XLA, which ends in a call that an ONNX graph cannot hold.
    """

    def convolution_op(self, inputs_BHWC, kernel):
        padding, dilations = self.padding.upper(), self.dilation_rate
        if self.groups == inputs_BHWC.shape[-1] == self.filters:
            strides = [1, *self.strides, 1]
            kernel_HWC1 = tf.transpose(kernel, (0, 1, 3, 2))
            return tf.nn.depthwise_conv2d(inputs_BHWC, kernel_HWC1, strides, padding, dilations=dilations)
        parts = zip(*(tf.split(x, self.groups, axis=-1) for x in (inputs_BHWC, kernel)), strict=True)
        return tf.concat(
            [tf.nn.conv2d(x, part, self.strides, padding, dilations=dilations) for x, part in parts], axis=-1
        )


def _pad(inputs_BHWC, kernel_size, dilation_rate):
    """Adds the zeros that a convolution of stride 1 needs to keep the size, half before and half after.

    The ONNX converter joins SpaceToBatch, convolution and BatchToSpace only where the padding is an op of its own.
    """
    total = [rate * (size - 1) for rate, size in zip(dilation_rate, kernel_size, strict=True)]
    return tf.pad(inputs_BHWC, [(0, 0), *((pad // 2, pad - pad // 2) for pad in total), (0, 0)])


@register
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer, computed as one op where it uses the batch's statistics: a training step takes 0.6 of the time on a
    CPU.

    Values, gradients and moving averages are Keras'. Keras' own form, used in inference mode and where batches are
    synchronised, is a series of ops that each read the whole input.
    """

    def call(self, inputs_BHWC, training=None, mask=None):
        by_the_batch = training and self.trainable and len(inputs_BHWC.shape) == 4 and self.axis in (-1, 3)
        if not by_the_batch or mask is not None or self.synchronized or self.renorm or not (self.scale and self.center):
            return super().call(inputs_BHWC, training=training, mask=mask)
        outputs_BHWC, mean_C, variance_C = tf.compat.v1.nn.fused_batch_norm(
            inputs_BHWC,
            tf.convert_to_tensor(self.gamma.value),
            tf.convert_to_tensor(self.beta.value),
            epsilon=self.epsilon,
        )
        # The op's variance is that of a sample; Keras averages that of the values themselves.
        count = tf.cast(tf.reduce_prod(tf.shape(inputs_BHWC)[:-1]), tf.float32)
        variance_C *= tf.maximum(count - 1.0, 1.0) / count
        for moving_C, new_C in ((self.moving_mean, mean_C), (self.moving_variance, variance_C)):
            moving_C.assign(self.momentum * moving_C + (1.0 - self.momentum) * new_C)
        return outputs_BHWC


Border = Literal["zeros", "repeat"]
"""How images are padded: with zeros, or with the values of the last row and column."""


@register
class PadToMultiple(keras.layers.Layer):
    """Pads (B,H,W,C) below and to the right until H and W are multiples of `multiple`.

    Args:
        border: with what.
    """

    def __init__(self, multiple: int, border: Border = "zeros", **kwargs):
        super().__init__(**kwargs)
        self.multiple, self.border = multiple, border

    def call(self, inputs_BHWC):
        height, width = tf.unstack(tf.shape(inputs_BHWC)[1:3])
        below, right = -height % self.multiple, -width % self.multiple
        if self.border == "zeros":
            return tf.pad(inputs_BHWC, [[0, 0], [0, below], [0, right], [0, 0]])
        rows = tf.gather(inputs_BHWC, tf.minimum(tf.range(height + below), height - 1), axis=1)
        return tf.gather(rows, tf.minimum(tf.range(width + right), width - 1), axis=2)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, *(size and size + -size % self.multiple for size in (height, width)), channels)

    def get_config(self):
        return super().get_config() | {"multiple": self.multiple, "border": self.border}


@register
class Upsample(keras.layers.Layer):
    """Bilinear resize of (B,H,W,C), in float32, for sizes known only at run time.

    Args:
        factor: whole, or a fraction such as 14 / 8 that makes whole sizes of those that come; others are rounded down.
    """

    def __init__(self, factor: float, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs_BHWC):
        size = self._enlarged(tf.shape(inputs_BHWC)[1:3])
        outputs_BHWC = tf.image.resize(inputs_BHWC, size, "bilinear")
        return tf.cast(outputs_BHWC, self.compute_dtype)

    def _enlarged(self, size):
        exact = Fraction(self.factor).limit_denominator(64)
        return size * exact.numerator // exact.denominator if exact.denominator > 1 else size * exact.numerator

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, *(size and self._enlarged(size) for size in (height, width)), channels)

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


@register
class ResizeLike(keras.layers.Layer):
    """Bilinear resize of the first input (B,H,W,C) to the height and width of the second, in float32."""

    def call(self, inputs):
        inputs_BHWC, like_BHWC = inputs
        outputs_BHWC = tf.image.resize(inputs_BHWC, tf.shape(like_BHWC)[1:3], "bilinear")
        return tf.cast(outputs_BHWC, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        (batch, _, _, channels), (_, height, width, _) = input_shape
        return (batch, height, width, channels)


@register
class DepthToSpace(keras.layers.Layer):
    """(B,H,W,F*F*C) to (B,H*F,W*F,C): the channels of a position become a square of F x F positions.

    After a 1x1 convolution it is the transposed convolution of size and stride F.
    """

    def __init__(self, factor: int, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs_BHWC):
        return tf.nn.depth_to_space(inputs_BHWC, self.factor)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        factor = self.factor
        return (batch, height and height * factor, width and width * factor, channels // factor**2)

    def get_config(self):
        return super().get_config() | {"factor": self.factor}


@register
class CropLike(keras.layers.Layer):
    """Crops the first input to the height and width of the second: undoes `PadToMultiple`."""

    def call(self, inputs):
        inputs_BHWC, like_BHWC = inputs
        height, width = tf.unstack(tf.shape(like_BHWC)[1:3])
        # Not `[:, :height, :width]`: on a CPU its gradient takes twenty times as long as that of a slice, which pads;
        # and an ONNX graph does arithmetic on sizes in floating point for it.
        return tf.slice(inputs_BHWC, (0, 0, 0, 0), (-1, height, width, inputs_BHWC.shape[-1]))

    def compute_output_shape(self, input_shape):
        (batch, _, _, channels), (_, height, width, _) = input_shape
        return (batch, height, width, channels)
