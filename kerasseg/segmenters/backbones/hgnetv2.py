"""PP-HGNetV2 of PaddleClas, of plain layers, so that strides can be traded for dilation.

keras-hub's own has its convolutions inside of other layers; the weights and their order are the same.
"""

import keras

from kerasseg.layers import register

KERNELS = (3, 3, 5, 5)
LIGHT = (False, False, True, True)
"""Kernel size of the convolutions of each stage, and whether each is a 1x1 and a depthwise one instead."""


@register
class ScaleAndShift(keras.layers.Layer):
    """Any tensor times a learned number, plus another one."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")
        self.shift = self.add_weight(name="shift", shape=(), initializer="zeros")

    def call(self, x):
        return self.scale * x + self.shift

    def compute_output_shape(self, input_shape):
        return input_shape


def build_hgnetv2(
    stem: tuple[int, int],
    hidden: tuple[int, ...],
    outputs: tuple[int, ...],
    blocks: tuple[int, ...],
    layers: int,
    affine: bool,
) -> keras.Model:
    """Normalised image (B,H,W,3), H and W multiples of 32, to maps of stride 4, 8, 16 and 32.

    Args:
        stem: channels of the first convolutions, and of the last one before the first stage.
        hidden: channels of the convolutions in the blocks of each stage.
        outputs: channels of each map.
        blocks: of each stage.
        layers: convolutions of a block, all of which its end reads.
        affine: whether a learned scale and shift follow each ReLU.
    """

    def convolution(x, channels: int, kernel: int, name: str, stride: int = 1, relu: bool = True, depthwise=False):
        if stride > 1:
            x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        options = {
            "strides": stride,
            "padding": "valid" if stride > 1 else "same",
            "use_bias": False,
            "name": f"{name}_conv",
        }
        if depthwise:
            x = keras.layers.DepthwiseConv2D(kernel, **options)(x)
        else:
            x = keras.layers.Conv2D(channels, kernel, **options)(x)
        x = keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=f"{name}_bn")(x)
        if relu:
            x = keras.layers.ReLU(name=f"{name}_relu")(x)
        return ScaleAndShift(name=f"{name}_affine")(x) if relu and affine else x

    # === Stem ===
    image = keras.Input((None, None, 3), name="pixels")
    x = convolution(image, stem[0], 3, "stem1", stride=2)
    y = convolution(x, stem[0] // 2, 2, "stem2a")
    y = convolution(y, stem[0], 2, "stem2b")
    # Zeros at the lower and the right border, as the published weights had them.
    x = keras.layers.ZeroPadding2D(((0, 1), (0, 1)), name="stem_pool_pad")(x)
    x = keras.layers.MaxPooling2D(2, strides=1, name="stem_pool")(x)
    x = keras.layers.Concatenate(name="stem_concat")([x, y])
    x = convolution(x, stem[0], 3, "stem3", stride=2)
    x = convolution(x, stem[1], 1, "stem4")

    # === Stages ===
    maps = []
    for stage, (kernel, light) in enumerate(zip(KERNELS, LIGHT, strict=True)):
        if stage > 0:
            x = convolution(x, x.shape[-1], 3, f"stage{stage}_down", stride=2, relu=False, depthwise=True)
        for block in range(blocks[stage]):
            name = f"stage{stage}_block{block}"
            before, y, read = x, x, [x]
            for index in range(layers):
                if light:
                    y = convolution(y, hidden[stage], 1, f"{name}_{index}_point", relu=False)
                    y = convolution(y, hidden[stage], kernel, f"{name}_{index}", depthwise=True)
                else:
                    y = convolution(y, hidden[stage], kernel, f"{name}_{index}")
                read.append(y)
            x = keras.layers.Concatenate(name=f"{name}_concat")(read)
            x = convolution(x, outputs[stage] // 2, 1, f"{name}_squeeze")
            x = convolution(x, outputs[stage], 1, f"{name}_excite")
            if block > 0:
                x = keras.layers.Add(name=f"{name}_add")([x, before])
        maps.append(x)
    return keras.Model(image, maps)
