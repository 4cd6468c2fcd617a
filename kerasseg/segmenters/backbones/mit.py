"""MiT, the hierarchical transformer of SegFormer (Xie et al. 2021, arXiv:2105.15203), for images of any size.

keras-hub's own takes square images of the size that it is built for; the weights and their order are the same.
"""

import keras
import tensorflow as tf
from keras import ops

from kerasseg.keras_internals import parts_of
from kerasseg.layers import register
from kerasseg.segmenters.backbones.tokens import StochasticDepth

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Kernel size and stride of the convolution that each stage begins with, pixels."""


@register
class MixTransformerBlock(keras.layers.Layer):
    """Map (B,H,W,C) to one of the same shape: self-attention to keys and values of a smaller map, then a perceptron
    with a 3x3 depthwise convolution inside, which sees the places of the tokens (equations 1 to 3).

    Dropout within attention, which keras-hub has (0.1) and the paper has not, is left out.

    Args:
        width: C.
        heads: attention heads, a divisor of C.
        reduction: R, a divisor of H and W: attention goes to H/R x W/R positions.
    """

    def __init__(self, width: int, heads: int, reduction: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads, self.reduction = width, heads, reduction
        policy = {"dtype": self.dtype_policy}
        self.norm1 = keras.layers.LayerNormalization(epsilon=1e-6, **policy)
        self.query = keras.layers.Dense(width, **policy)
        self.key = keras.layers.Dense(width, **policy)
        self.value = keras.layers.Dense(width, **policy)
        self.project = keras.layers.Dense(width, **policy)
        if reduction > 1:
            self.reduce = keras.layers.Conv2D(width, reduction, strides=reduction, **policy)
            self.reduced_norm = keras.layers.LayerNormalization(epsilon=1e-5, **policy)
        self.norm2 = keras.layers.LayerNormalization(epsilon=1e-6, **policy)
        self.expand = keras.layers.Dense(4 * width, **policy)
        self.depthwise = keras.layers.DepthwiseConv2D(3, padding="same", **policy)
        self.shrink = keras.layers.Dense(width, **policy)

    def call(self, x_BHWC):
        x_BHWC = x_BHWC + self.attend(self.norm1(x_BHWC))
        hidden = self.depthwise(self.expand(self.norm2(x_BHWC)))
        return x_BHWC + self.shrink(ops.gelu(hidden))

    def attend(self, x_BHWC):
        reduced_BhwC = self.reduced_norm(self.reduce(x_BHWC)) if self.reduction > 1 else x_BHWC
        q_BGNC = self.split(self.query(x_BHWC)) * (self.width // self.heads) ** -0.5
        k_BGnC, v_BGnC = self.split(self.key(reduced_BhwC)), self.split(self.value(reduced_BhwC))
        # Keras' softmax warns where a small image leaves one position to attend to.
        attention_BGNn = tf.nn.softmax(ops.matmul(q_BGNC, ops.transpose(k_BGnC, (0, 1, 3, 2))))
        y_BNGC = ops.transpose(ops.matmul(attention_BGNn, v_BGnC), (0, 2, 1, 3))
        return self.project(ops.reshape(y_BNGC, ops.shape(x_BHWC)))

    def split(self, x_BHWC):
        """(B,H,W,C) to (B,G,N,C/G): G heads, N = HW positions. A product of H and W would not survive the export."""
        x_BNGC = ops.reshape(x_BHWC, (ops.shape(x_BHWC)[0], -1, self.heads, self.width // self.heads))
        return ops.transpose(x_BNGC, (0, 2, 1, 3))

    def build(self, input_shape):
        for layer in parts_of(self):
            hidden = 4 * self.width if layer in (self.depthwise, self.shrink) else self.width
            layer.build((*input_shape[:-1], hidden))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"width": self.width, "heads": self.heads, "reduction": self.reduction}


def build_mit(widths: tuple[int, ...], depths: tuple[int, ...], drop_path: float = 0.0) -> keras.Model:
    """Normalised image (B,H,W,3), H and W multiples of 32, to maps of stride 4, 8, 16 and 32.

    Args:
        widths: channels of each map, multiples of `HEADS`.
        depths: blocks of each stage.
        drop_path: share of the images of a training batch for which the last block is left out. It grows linearly from
            0 at the first block.
    """
    x = image = keras.Input((None, None, 3), name="pixels")
    maps, done = [], 0
    for stage, (width, depth, heads, reduction, (kernel, stride)) in enumerate(
        zip(widths, depths, HEADS, REDUCTIONS, PATCHES, strict=True)
    ):
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"patches_{stage}_pad")(x)
        x = keras.layers.Conv2D(width, kernel, strides=stride, name=f"patches_{stage}")(x)
        x = keras.layers.LayerNormalization(epsilon=1e-5, name=f"patches_{stage}_norm")(x)
        for index in range(depth):
            y = MixTransformerBlock(width, heads, reduction, name=f"block_{stage}_{index}")(x)
            rate = drop_path * done / max(sum(depths) - 1, 1)
            x = StochasticDepth(rate, name=f"drop_{stage}_{index}")([x, y]) if rate else y
            done += 1
        x = keras.layers.LayerNormalization(epsilon=1e-5, name=f"norm_{stage}")(x)
        maps.append(x)
    return keras.Model(image, maps)
