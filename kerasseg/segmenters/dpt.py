"""The dense prediction transformer's head (DPT, Ranftl et al. 2021, arXiv:2103.13413) on a plain vision transformer.

It is the form of Depth Anything (Yang et al. 2024, arXiv:2401.10891) and UniMatch V2 (Yang et al. 2025,
arXiv:2410.10777): no class token, no batch norm. Where they resize with aligned corners, all resizing here is by
half-pixel centres, as everywhere in this package.
"""

import keras

from kerasseg.layers import Conv2D, DepthToSpace, ResizeLike, Upsample, register
from kerasseg.segmenters.segmenter import Segmenter

WIDTHS = {
    384: (64, (48, 96, 192, 384)),
    768: (128, (96, 192, 384, 768)),
    1024: (256, (256, 512, 1024, 1024)),
    1536: (384, (1536, 1536, 1536, 1536)),
}
"""UniMatch V2's channels by the backbone's: those of the fusion, and those that the four maps are reassembled to."""
FACTORS = (4, 2, 1, 1)
"""How much larger than the map of patches the four maps are reassembled. The last one is then halved."""
RESOLUTION = 8
"""Logits in the height, and in the width, of a patch."""


@register
class DPT(Segmenter):
    """Four maps, reassembled at 4, 2, 1 and 1/2 times the size of the map of patches, and fused from the coarsest to
    the finest by residual convolutions.

    Args:
        head_channels: width of the fusion; None for UniMatch V2's: 64 on a backbone of 384 channels (small), 128 on 768
            (base), 256 on 1024 (large), and in proportion on others.
        Others: `Segmenter`.

    Example:
        >>> segmenter = kerasseg.DPT("dinov2_small", num_classes=21)
        >>> segmenter(np.zeros((1, 60, 80, 3))).shape
        TensorShape([1, 60, 80, 21])
    """

    FITS = "plain"

    @classmethod
    def build_head(cls, features, strides, num_classes, head_channels: int | None = None):
        maps = [keras.Input(x.shape[1:]) for x in features]
        published, reassembled = widths(features[0].shape[-1])
        width = head_channels or published

        # === Reassemble ===
        layers = []
        for number, (x, channels, factor) in enumerate(zip(maps, reassembled, FACTORS, strict=True), start=1):
            x = keras.layers.Conv2D(channels, 1, name=f"project_{number}")(x)
            if factor > 1:
                # A transposed convolution, in a form that every runtime has.
                many = channels * factor**2
                x = keras.layers.Conv2D(many, 1, kernel_initializer="lecun_normal", name=f"enlarge_{number}")(x)
                x = DepthToSpace(factor, name=f"spread_{number}")(x)
            if number == len(maps):
                x = keras.layers.ZeroPadding2D(1, name=f"border_{number}")(x)
                x = keras.layers.Conv2D(channels, 3, strides=2, name=f"shrink_{number}")(x)
            layers.append(Conv2D(width, 3, padding="same", use_bias=False, name=f"layer_{number}")(x))

        # === Fuse ===
        x = None
        for number in range(len(layers), 0, -1):
            layer = layers[number - 1]
            x = layer if x is None else keras.layers.Add()([x, _residual(layer, f"fuse_{number}_layer")])
            x = _residual(x, f"fuse_{number}")
            if number > 1:
                x = ResizeLike(name=f"resize_{number}")([x, layers[number - 2]])
            else:
                x = Upsample(2, name="resize_1")(x)
            x = keras.layers.Conv2D(width, 1, name=f"fused_{number}")(x)

        x = keras.layers.ReLU(name="output_relu")(Conv2D(width, 3, padding="same", name="output")(x))
        logits = keras.layers.Conv2D(num_classes, 1, name="logits")(x)
        return keras.Model(maps, logits, name="dpt"), strides[0] / RESOLUTION


def widths(channels: int) -> tuple[int, tuple[int, ...]]:
    """`WIDTHS` of a backbone of so many channels: the published ones, or in proportion to those of the next narrower
    published backbone (the narrowest for those below it)."""
    known = max((width for width in WIDTHS if width <= channels), default=min(WIDTHS))
    fusion, reassembled = WIDTHS[known]

    def scaled(width: int) -> int:
        return max(1, round(width * channels / known))

    return scaled(fusion), tuple(map(scaled, reassembled))


def _residual(x, name: str):
    """x and two 3x3 convolutions of it, each after a ReLU."""
    y = x
    for number in (1, 2):
        y = keras.layers.ReLU(name=f"{name}_relu{number}")(y)
        y = Conv2D(x.shape[-1], 3, padding="same", kernel_initializer="he_normal", name=f"{name}_conv{number}")(y)
    return keras.layers.Add(name=f"{name}_sum")([x, y])
