"""Swin, the hierarchical transformer with shifted windows (Liu et al. 2021, arXiv:2103.14030), for images of any size.

keras-hub's own is built for one size of images; the weights and their order are the same.

Shapes: B batch, H W height and width of a map, C channels, G heads, M side of a window, N = M M positions of a window.
"""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.keras_internals import parts_of
from kerasseg.layers import CropLike, register
from kerasseg.segmenters.backbones.tokens import StochasticDepth

EPSILON = 1e-5
"""Added to the variance by the layer norms."""
MASKED = -100.0
"""Added to the attention between positions that are no neighbours."""


@register
class WindowAttention(keras.layers.Layer):
    """Windows (B n,N,C) to windows of the same shape: self-attention within each, with a learned bias for each offset
    between two positions (equation 4).

    Args:
        width: C.
        heads: G, a divisor of C.
        window: M.
    """

    def __init__(self, width: int, heads: int, window: int, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads, self.window = width, heads, window
        self.query_key_value = keras.layers.Dense(3 * width, dtype=self.dtype_policy)
        self.project = keras.layers.Dense(width, dtype=self.dtype_policy)
        rows_N, columns_N = np.divmod(np.arange(window**2), window)
        down_NN, right_NN = (places[:, np.newaxis] - places + window - 1 for places in (rows_N, columns_N))
        self.offsets_NN = down_NN * (2 * window - 1) + right_NN

    def build(self, input_shape):
        self.bias_OG = self.add_weight(
            shape=((2 * self.window - 1) ** 2, self.heads),
            initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="relative_position_bias",
        )
        for layer in parts_of(self):
            layer.build(input_shape)

    def call(self, windows_VNC, mask_nNN=None):
        """With a mask (n,N,N), which is added to the attention of each of an image's n windows."""
        positions = self.window**2
        split = (-1, positions, 3, self.heads, self.width // self.heads)
        x_3VGNc = tf.transpose(tf.reshape(self.query_key_value(windows_VNC), split), (2, 0, 3, 1, 4))
        q_VGNc, k_VGNc, v_VGNc = tf.unstack(x_3VGNc)
        attention_VGNN = tf.matmul(q_VGNc * (self.width // self.heads) ** -0.5, k_VGNc, transpose_b=True)
        bias_NNG = tf.gather(tf.convert_to_tensor(self.bias_OG), self.offsets_NN)
        attention_VGNN += tf.transpose(bias_NNG, (2, 0, 1))
        if mask_nNN is not None:
            each = (-1, tf.shape(mask_nNN)[0], self.heads, positions, positions)
            attention_BnGNN = tf.reshape(attention_VGNN, each) + mask_nNN[:, tf.newaxis]
            attention_VGNN = tf.reshape(attention_BnGNN, (-1, self.heads, positions, positions))
        y_VNGc = tf.transpose(tf.matmul(tf.nn.softmax(attention_VGNN), v_VGNc), (0, 2, 1, 3))
        return self.project(tf.reshape(y_VNGc, (-1, positions, self.width)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return super().get_config() | {"width": self.width, "heads": self.heads, "window": self.window}


@register
class SwinBlock(keras.layers.Layer):
    """Map (B,H,W,C) to one of the same shape: attention within windows, then a perceptron at each position (equation
    3). Maps that windows do not fill are padded with zeros, as in the authors' code for detection.

    Args:
        width: C.
        heads: G, a divisor of C.
        window: M.
        shifted: whether windows are moved by half their side in both directions, so that they join those of the block
            before; in a direction with one window they stay.
    """

    def __init__(self, width: int, heads: int, window: int, shifted: bool, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads, self.window, self.shifted = width, heads, window, shifted
        policy = {"dtype": self.dtype_policy}
        self.norm1 = keras.layers.LayerNormalization(epsilon=EPSILON, **policy)
        self.attention = WindowAttention(width, heads, window, **policy)
        self.norm2 = keras.layers.LayerNormalization(epsilon=EPSILON, **policy)
        self.expand = keras.layers.Dense(4 * width, **policy)
        self.shrink = keras.layers.Dense(width, **policy)
        self.crop = CropLike(**policy)

    def build(self, input_shape):
        for layer in parts_of(self):
            width = 4 * self.width if layer is self.shrink else self.width
            if layer is not self.crop:
                layer.build((*input_shape[:-1], width))

    def call(self, x_BHWC):
        x_BHWC = x_BHWC + self.attend(self.norm1(x_BHWC))
        return x_BHWC + self.shrink(keras.activations.gelu(self.expand(self.norm2(x_BHWC))))

    def attend(self, x_BHWC):
        height, width = tf.unstack(tf.shape(x_BHWC)[1:3])
        below, right = -height % self.window, -width % self.window
        y_BHWC = tf.pad(x_BHWC, [[0, 0], [0, below], [0, right], [0, 0]])
        if not self.shifted:
            return self.crop([self.within_windows(y_BHWC), x_BHWC])
        sizes = tf.stack([height + below, width + right])
        shifts = tf.where(sizes > self.window, self.window // 2, 0)
        y_BHWC = tf.roll(y_BHWC, -shifts, axis=(1, 2))
        y_BHWC = self.within_windows(y_BHWC, self.mask(sizes, shifts))
        return self.crop([tf.roll(y_BHWC, shifts, axis=(1, 2)), x_BHWC])

    def within_windows(self, x_BHWC, mask_nNN=None):
        """Attention within each window of a map that they fill."""
        batch, height, width = tf.unstack(tf.shape(x_BHWC)[:3])
        windows_VNC = tf.reshape(self.windows(x_BHWC), (-1, self.window**2, self.width))
        y_VNC = self.attention(windows_VNC, mask_nNN)
        down, across = height // self.window, width // self.window
        y_BdaMMC = tf.reshape(y_VNC, (batch, down, across, self.window, self.window, self.width))
        return tf.reshape(tf.transpose(y_BdaMMC, (0, 1, 3, 2, 4, 5)), (batch, height, width, self.width))

    def windows(self, x_BHWC):
        """(B,H,W,C) to its windows, row by row, (B,H/M,W/M,M,M,C)."""
        batch, height, width = tf.unstack(tf.shape(x_BHWC)[:3])
        side = self.window
        split = (batch, height // side, side, width // side, side, x_BHWC.shape[-1])
        return tf.transpose(tf.reshape(x_BHWC, split), (0, 1, 3, 2, 4, 5))

    def mask(self, sizes, shifts):
        """(n,N,N): 0 between positions of a rolled map that are neighbours in the image, else `MASKED`."""
        # After rolling, the last window of a row or a column holds both ends of the map.
        rows, columns = (
            tf.cast(tf.range(size) >= size - self.window, tf.int32) + tf.cast(tf.range(size) >= size - shift, tf.int32)
            for size, shift in zip(tf.unstack(sizes), tf.unstack(shifts), strict=True)
        )
        parts_1HW1 = (3 * rows[:, tf.newaxis] + columns)[tf.newaxis, :, :, tf.newaxis]
        parts_nN = tf.reshape(self.windows(parts_1HW1), (-1, self.window**2))
        apart = tf.not_equal(parts_nN[:, tf.newaxis], parts_nN[:, :, tf.newaxis])
        return tf.where(apart, tf.cast(MASKED, self.compute_dtype), tf.cast(0.0, self.compute_dtype))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        names = ("width", "heads", "window", "shifted")
        return super().get_config() | {name: getattr(self, name) for name in names}


@register
class PatchMerging(keras.layers.Layer):
    """Map (B,H,W,C), H and W even, to (B,H/2,W/2,2C): a linear layer on the values of 2x2 positions together."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.LayerNormalization(epsilon=EPSILON, dtype=self.dtype_policy)

    def build(self, input_shape):
        channels = input_shape[-1]
        self.reduce = keras.layers.Dense(2 * channels, use_bias=False, dtype=self.dtype_policy)
        for layer in (self.norm, self.reduce):
            layer.build((*input_shape[:-1], 4 * channels))

    def call(self, x_BHWC):
        parts = [x_BHWC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduce(self.norm(tf.concat(parts, axis=-1)))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        return (batch, height and height // 2, width and width // 2, 2 * channels)


def build_swin(
    width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int, drop_path: float = 0.0
) -> keras.Model:
    """Normalised image (B,H,W,3), H and W multiples of 32, to maps of stride 4, 8, 16 and 32.

    Each map has gone through a layer norm of its own, as in the authors' code for segmentation.

    Args:
        width: channels of the first map; each further one has twice as many.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of a window, positions.
        drop_path: share of the images of a training batch for which the last block is left out. It grows linearly from
            0 at the first block.
    """
    image = keras.Input((None, None, 3), name="pixels")
    x = keras.layers.Conv2D(width, 4, strides=4, name="patches")(image)
    x = keras.layers.LayerNormalization(epsilon=EPSILON, name="patches_norm")(x)
    maps, done = [], 0
    for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        for index in range(depth):
            block = SwinBlock(width * 2**stage, count, window, shifted=index % 2 == 1, name=f"block_{stage}_{index}")
            y = block(x)
            rate = drop_path * done / max(sum(depths) - 1, 1)
            x = StochasticDepth(rate, name=f"drop_{stage}_{index}")([x, y]) if rate else y
            done += 1
        maps.append(keras.layers.LayerNormalization(epsilon=EPSILON, name=f"norm_{stage}")(x))
        if stage < len(depths) - 1:
            x = PatchMerging(name=f"merge_{stage}")(x)
    return keras.Model(image, maps)


def published_weights(network: keras.Model) -> list:
    """The weights of `build_swin` that a classifier has too, in keras-hub's order: all but those of the first three
    maps' norms."""
    last = len(network.outputs) - 1
    layers = [layer for layer in network.layers if layer.name not in {f"norm_{stage}" for stage in range(last)}]
    found = []
    for layer in layers:
        if isinstance(layer, PatchMerging):
            found += [*layer.reduce.weights, *layer.norm.weights]
        elif isinstance(layer, SwinBlock):
            found += [*layer.norm1.weights, *layer.attention.weights, *layer.norm2.weights]
            found += [*layer.expand.weights, *layer.shrink.weights]
        else:
            found += layer.weights
    return found
