"""Layers around the blocks of a plain vision transformer: tokens from patches, their positions, and maps from tokens.

Shapes: B batch, h w patches in height and width, C channels, T class tokens, R registers, N = T + R + h w tokens.
"""

import math

import keras
import tensorflow as tf

from kerasseg.layers import register

POSITIONS = "positions"
"""Scope of the ops that compute positions. Half precision is too coarse for them (`export.precision`)."""


@register
class TokenEmbedding(keras.layers.Layer):
    """Patches (B,h,w,C) to tokens (B,N,C): class tokens, registers, patches row by row, with position embeddings.

    The position embeddings are one variable, float32, at the size of the pretrained images. For another size they are
    interpolated (bicubic, Keys 1981 with a = -0.5), once for all images of a batch.

    Args:
        class_tokens: T, tokens that have a position embedding and no place in the image.
        registers: R, tokens without position embedding (Darcet et al. 2024, arXiv:2309.16588).
        grid: patches in the height, and in the width, of pretrained images; None without position embeddings.
        antialias: whether the cubic is widened where the grid shrinks.
    """

    def __init__(self, class_tokens: int, registers: int, grid: int | None, antialias: bool, **kwargs):
        super().__init__(**kwargs)
        self.class_tokens = class_tokens
        self.registers = registers
        self.grid = grid
        self.antialias = antialias

    def build(self, input_shape):
        channels = input_shape[-1]
        self.tokens = self.registers_1RC = self.position_embeddings = None
        if self.class_tokens:
            self.tokens = self._weight("class_tokens", self.class_tokens, channels)
        if self.registers:
            self.registers_1RC = self._weight("registers", self.registers, channels)
        if self.grid is not None:
            # Without the cast of mixed precision: it is interpolated in float32.
            count = self.class_tokens + self.grid**2
            self.position_embeddings = self._weight("position_embeddings", count, channels, autocast=False)

    def _weight(self, name: str, count: int, channels: int, **options):
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)
        return self.add_weight(shape=(1, count, channels), initializer=initializer, name=name, **options)

    def call(self, patches_BhwC):
        batch, height, width = tf.unstack(tf.shape(patches_BhwC)[:3])
        channels = patches_BhwC.shape[-1]
        class_positions_1TC = 0.0
        if self.position_embeddings is not None:
            positions_1PC = tf.convert_to_tensor(self.position_embeddings)
            class_positions_1TC = tf.cast(positions_1PC[:, : self.class_tokens], self.compute_dtype)
            positions_ggC = tf.reshape(positions_1PC[0, self.class_tokens :], (self.grid, self.grid, channels))
            positions_hwC = interpolated(positions_ggC, height, width, self.antialias)
            patches_BhwC += tf.cast(positions_hwC, self.compute_dtype)
        before = []
        if self.tokens is not None:
            before.append(tf.convert_to_tensor(self.tokens) + class_positions_1TC)
        if self.registers_1RC is not None:
            before.append(tf.convert_to_tensor(self.registers_1RC))
        patches_BPC = tf.reshape(patches_BhwC, (batch, height * width, channels))
        return tf.concat([*(tf.tile(tokens, (batch, 1, 1)) for tokens in before), patches_BPC], axis=1)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        patches = None if height is None or width is None else height * width
        return (batch, patches and self.class_tokens + self.registers + patches, channels)

    def get_config(self):
        names = ("class_tokens", "registers", "grid", "antialias")
        return super().get_config() | {name: getattr(self, name) for name in names}


def interpolated(positions_ggC, height, width, antialias: bool):
    """Position embeddings at another grid, (height,width,C)."""
    grid, _, channels = positions_ggC.shape
    with tf.name_scope(POSITIONS):
        rows_hg, columns_wg = (cubic_weights(size, grid, antialias) for size in (height, width))
        x = tf.matmul(rows_hg, tf.reshape(positions_ggC, (grid, grid * channels)))
        x = tf.reshape(x, (height, grid, channels))
        return tf.matmul(tf.tile(columns_wg[tf.newaxis], (height, 1, 1)), x)


def cubic_weights(size, grid: int, antialias: bool):
    """The matrix (size,grid), float32, that resizes `grid` values to `size` as `tf.image.resize` does by "bicubic".

    A matrix has a gradient on every device and the same values in every runtime, which resizing ops have not. Where the
    sizes are equal it is the identity.
    """
    scale = grid / tf.cast(size, tf.float32)
    centers = (tf.range(tf.cast(size, tf.float32)) + 0.5) * scale - 0.5
    width = tf.maximum(scale, 1.0) if antialias else 1.0
    x = tf.abs(centers[:, tf.newaxis] - tf.range(grid, dtype=tf.float32)) / width
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = tf.where(x < 1.0, near, tf.where(x < 2.0, far, tf.zeros_like(x)))
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)


@register
class RotaryAngles(keras.layers.Layer):
    """Patches (B,h,w,C) to the cosines and sines (h w, D) that turn queries and keys by the place of their patch.

    Places are -1..1 in height and width, whatever the size (Simeoni et al. 2025, arXiv:2508.10104).

    Args:
        channels: D, of one attention head.
        theta: the longest period.
    """

    def __init__(self, channels: int, theta: float = 100.0, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.theta = theta

    def call(self, patches_BhwC):
        with tf.name_scope(POSITIONS):
            sizes = tf.unstack(tf.cast(tf.shape(patches_BhwC)[1:3], tf.float32))
            places = tf.meshgrid(*((2.0 * tf.range(size) + 1.0) / size - 1.0 for size in sizes), indexing="ij")
            periods = [self.theta ** (4 * i / self.channels) for i in range(self.channels // 4)]
            frequencies = tf.constant([2 * math.pi / period for period in periods])
            angles = tf.stack([tf.reshape(place, (-1, 1)) * frequencies for place in places], axis=1)
            angles = tf.tile(tf.reshape(angles, (-1, self.channels // 2)), (1, 2))
            return tf.cast(tf.cos(angles), self.compute_dtype), tf.cast(tf.sin(angles), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        _, height, width, _ = input_shape
        shape = (None if height is None or width is None else height * width, self.channels)
        return shape, shape

    def compute_output_spec(self, patches_BhwC):
        return tuple(
            keras.KerasTensor(shape, self.compute_dtype) for shape in self.compute_output_shape(patches_BhwC.shape)
        )

    def get_config(self):
        return super().get_config() | {"channels": self.channels, "theta": self.theta}


@register
class TokensToMap(keras.layers.Layer):
    """`[tokens (B,N,C), patches (B,h,w,C)]` to the tokens of the patches as a map (B,h,w,C).

    Args:
        others: T + R, tokens before those of the patches.
    """

    def __init__(self, others: int, **kwargs):
        super().__init__(**kwargs)
        self.others = others

    def call(self, inputs):
        tokens_BNC, patches_BhwC = inputs
        batch, height, width = tf.unstack(tf.shape(patches_BhwC)[:3])
        return tf.reshape(tokens_BNC[:, self.others :], (batch, height, width, tokens_BNC.shape[-1]))

    def compute_output_shape(self, input_shape):
        return input_shape[1]

    def get_config(self):
        return super().get_config() | {"others": self.others}


@register
class StochasticDepth(keras.layers.Layer):
    """`[x, y]`, what a residual block takes and gives, (B,...): y, or for some images of a training batch x.

    The change y - x of the other images is divided by the share of them (Huang et al. 2016, arXiv:1603.09382, in the
    form that keeps the mean).

    Args:
        rate: share of the images for which the block is left out, 0..1.
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs, training=None):
        x, y = inputs
        if not training:
            return y
        ones = [1] * (len(x.shape) - 1)
        kept = keras.random.uniform((tf.shape(x)[0], *ones), seed=self.seed_generator) >= self.rate
        return x + (y - x) * tf.cast(kept, x.dtype) / (1.0 - self.rate)

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return super().get_config() | {"rate": self.rate}
