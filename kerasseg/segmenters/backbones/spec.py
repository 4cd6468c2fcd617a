"""What is known about a backbone before it is built."""

from collections.abc import Callable
from dataclasses import dataclass

import keras

from kerasseg.layers import Border


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a backbone, and what its features are."""

    build: Callable[..., keras.Model]
    """Takes "imagenet" (for the published weights), None or the path of a weights file, and where there is `drop_path`
    its share; gives a functional network from normalised RGB (B,H,W,3), H and W multiples of `stride`, to features."""
    pixels: str
    """`PixelNormalization` scheme that the pretrained weights expect."""
    taps: tuple[str, ...] | None = None
    """Layers of the features that heads read, the finest first; None to find them in the graph (`strides_of_taps`)."""
    stride: int = 32
    """Stride of the last features, pixels; for a plain transformer its patch size."""
    dilates: bool = True
    """Whether strides can be traded for dilation (`dilate`). Otherwise the backbone keeps its own stride."""
    plain: bool = False
    """Whether it is a plain transformer: features of one stride, from four depths, and no pyramid."""
    border: Border = "zeros"
    """How images are padded to the stride (`PadToMultiple`): "repeat" for networks with a layer norm after the first
    convolution. Zeros have no variance there, so that gradients explode (docs/decisions/networks.md)."""
    drop_path: bool = False
    """Whether it has stochastic depth: `build` takes `drop_path`."""
    weights: str = ""
    """Where pretrained weights come from, and their licence."""

    def stride_of(self, output_stride: int) -> int:
        """The stride of the last features where `output_stride` is asked for."""
        return min(output_stride, self.stride) if self.dilates else self.stride
