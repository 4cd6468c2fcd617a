"""The models that `benchmarks.inference` measures: one network by every route out of Keras. Needs TensorFlow.

All but keras-hub's take uint8 images (N,H,W,3) and give labels and confidence. Weights are random; times do not depend
on them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import kerasseg  # noqa: F401  before TensorFlow, which it starts with oneDNN

# isort: off
import keras
import numpy as np
import onnx

from benchmarks.inference import CLASSES, NETWORKS
from export.graph import (
    INPUTS,
    OUTPUTS,
    serving_function,
    to_onnx,
    write_onnx,
    write_saved_model,
)
from export.precision import to_fp16, to_int8
from kerasseg.data import open_dataset
from kerasseg.layers import AtrousConv2D, AtrousDepthwiseConv2D
from kerasseg.methods import Supervised
from kerasseg.segmenters import build_segmenter
from serving.common import cli
from serving.common.artifact import GRAPH_FILE, INFO_FILE, ModelInfo, sha256_of


def build(network: str) -> Supervised:
    """The network with seeded random weights."""
    keras.utils.set_random_seed(0)
    segmenter, backbone, head_channels, _ = NETWORKS[network]
    return Supervised(
        build_segmenter(segmenter, num_classes=CLASSES, backbone=backbone, head_channels=head_channels), name="method"
    )


def write_models(network: str, sizes: list[tuple[int, int]], folder: Path) -> None:
    """Writes `folder/fp32` and so on, artifacts and other graphs, each unless it is there already.

    Args:
        network: a key of `NETWORKS`.
        sizes: the sizes (H,W) of the images to come: each of keras-hub's graphs is for one size.
    """
    missing = [name for name in ("fp32", "fp16", "int8") if not (folder / name / INFO_FILE).exists()]
    if missing or not (folder / "saved_model").exists():
        method = build(network)
        serve = serving_function(method)
        shapes = open_dataset("shapes")
        for precision in missing:
            graph = to_onnx(serve)
            if precision == "fp16":
                graph = to_fp16(graph)
            elif precision == "int8":
                names = shapes.image_names("train")[:8]
                graph = to_int8(graph, (shapes.load_image("train", name) for name in names), method.segmenter.name)
            _write_artifact(graph, precision, folder / precision)
        if not (folder / "saved_model").exists():
            write_saved_model(serve, folder / "saved_model")
    if not (folder / "naive.onnx").exists():
        with keras_convolutions():
            onnx.save(to_onnx(serving_function(build(network)), refused=()), folder / "naive.onnx")
    if NETWORKS[network].keras_hub:
        for size in {keras_hub_size(size) for size in sizes}:
            path = folder / f"keras_hub-{size[0]}x{size[1]}.onnx"
            if not path.exists():
                write_keras_hub(size, path)


def _write_artifact(graph: onnx.ModelProto, precision: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(graph, folder / GRAPH_FILE, {})
    info = ModelInfo(
        name=precision,
        version=1,
        classes=tuple(str(index) for index in range(CLASSES)),
        palette=((0, 0, 0),) * CLASSES,
        inputs=INPUTS,
        outputs=tuple(OUTPUTS[output.name] for output in graph.graph.output),
        precision=precision,
        evaluation={},
        provenance={},
        sha256=sha256_of(folder / GRAPH_FILE),
        parity={},
    )
    (folder / INFO_FILE).write_text(info.to_json())


@contextlib.contextmanager
def keras_convolutions() -> Iterator[None]:
    """Keras' own dilated convolutions instead of `kerasseg.layers`."""
    ours = AtrousConv2D.convolution_op, AtrousDepthwiseConv2D.call
    AtrousConv2D.convolution_op = keras.layers.Conv2D.convolution_op
    AtrousDepthwiseConv2D.call = keras.layers.DepthwiseConv2D.call
    try:
        yield
    finally:
        AtrousConv2D.convolution_op, AtrousDepthwiseConv2D.call = ours


def keras_hub_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size padded to a multiple of the stride: its network takes no others."""
    height, width = (side + -side % 32 for side in size)
    return height, width


def write_keras_hub(size: tuple[int, int], path: Path) -> None:
    """keras-hub's DeepLab-v3+ with ResNet-50, output stride 32, by its own export: float32 images to logits.

    Each file is for one size: with a size that is known only at run time its UpSampling2D cannot be traced.
    """
    from keras_hub.models import DeepLabV3Backbone, DeepLabV3ImageSegmenter, ResNetBackbone

    shape = (*size, 3)
    encoder = ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
        image_shape=shape,
    )
    backbone = DeepLabV3Backbone(
        image_encoder=encoder,
        projection_filters=48,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
        image_shape=shape,
    )
    model = DeepLabV3ImageSegmenter(backbone=backbone, num_classes=CLASSES, activation=None)
    model(np.zeros((1, *shape), np.float32))  # it is exported only after a call
    model.export(str(path), format="onnx", verbose=False)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to write, and where."""

    network: str
    """Segmenter and backbone."""
    folder: Path
    """Where the files go."""
    sizes: tuple[tuple[int, int], ...]
    """Sizes of the images to come, pixels: H W H W ..."""


def main(config: Config) -> dict:
    write_models(config.network, list(config.sizes), config.folder)
    return {}


if __name__ == "__main__":
    cli.run(main, Config, __doc__ or "")
