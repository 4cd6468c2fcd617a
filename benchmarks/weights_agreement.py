"""`python -m benchmarks.weights_agreement WEIGHTS IMAGES`: whether a file of weights fits photographs.

A batch norm keeps the mean and the variance of what came in while its network was trained. Here photographs go through
the backbone with the file's weights, and what enters each batch norm is compared with the statistics in the file: for
each normalisation of pixels, and, as controls, with layers of equal shapes exchanged and with a layer's channels
shuffled. No label is needed, and no other library.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import kerasseg  # noqa: F401 (first: it starts TensorFlow)

# isort: split
import keras
import numpy as np
import tyro
from PIL import Image

from benchmarks.results_file import write_between_markers
from benchmarks.turns import circumstances
from kerasseg.layers import PixelNormalization
from kerasseg.segmenters import BACKBONES, build_backbone
from serving.common import cli
from serving.common.images import load_image


@dataclass(frozen=True, kw_only=True)
class WeightsAgreement:
    """What is compared, and where the result goes."""

    weights: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")]
    """A file of weights, as `--weights` of training.run takes it."""
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder with photographs (.jpg), such as a dataset's images/train."""
    backbone: str = "tf_efficientnet_lite0"
    """The network that the file is for."""
    images: int = 20
    """How many photographs, spread over the folder."""
    size: int = 224
    """Side of the square in the middle of a photograph after scaling, pixels: a multiple of 32."""
    pixels: tuple[str, ...] = ("lite", "tf", "torch", "unit")
    """Normalisations of pixels to compare, by their names in `kerasseg.layers.PixelNormalization`."""
    results: Path = Path("benchmarks/results/weights_agreement.md")
    """The result is written between the markers of this file."""


class Moments(NamedTuple):
    """Mean and variance of each channel (C,) of what enters a batch norm."""

    mean: np.ndarray
    variance: np.ndarray


class Agreement(NamedTuple):
    """How well the moments of a layer agree with those in the file."""

    mean: float
    """Correlation of the means over channels, -1..1."""
    variance: float
    """Correlation of the logarithms of the variances over channels, -1..1."""
    ratio: float
    """Median over channels of the variance here, divided by the file's."""


def photographs(folder: Path, count: int, size: int) -> np.ndarray:
    """Squares (N,size,size,3) in 0..255 from the middle of that many photographs, spread over the folder.

    Raises:
        ValueError: the folder has fewer.
    """
    paths = sorted(folder.glob("*.jpg"))
    if len(paths) < count:
        raise ValueError(f"{folder} has {len(paths)} photographs (.jpg); give a folder with {count}, or --images N")
    squares = []
    for path in paths[:: len(paths) // count][:count]:
        image = Image.fromarray(load_image(path))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        squares.append(np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box), np.float32))
    return np.stack(squares)


def batch_norms(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The batch norms of a functional network, in its order."""
    return [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


def moments(network: keras.Model, images_NHWC: np.ndarray) -> list[Moments]:
    """What enters each batch norm for normalised images, in inference mode, one image at a time."""
    inputs = keras.Model(network.input, [layer.input for layer in batch_norms(network)])
    sums: list[list[np.ndarray]] = []
    for image_HWC in images_NHWC:
        entering = [np.asarray(x, np.float64) for x in inputs(image_HWC[None], training=False)]
        sums.append([np.stack([x.mean((0, 1, 2)), np.square(x).mean((0, 1, 2))]) for x in entering])
    averages = [np.mean(layer, axis=0) for layer in zip(*sums, strict=True)]
    return [Moments(mean, square - mean**2) for mean, square in averages]


def stored(network: keras.Model) -> list[Moments]:
    """The statistics that each batch norm keeps."""
    return [Moments(np.asarray(each.moving_mean), np.asarray(each.moving_variance)) for each in batch_norms(network)]


def agreement(found: Moments, expected: Moments) -> Agreement:
    """How well one layer agrees. A channel whose variance in the file is 0 does not count: it was constant."""
    used = expected.variance > 1e-5 * expected.variance.max()
    mean, variance, kept_mean, kept = (part[used] for part in (*found, *expected))
    here, there = np.log(variance + 1e-12), np.log(kept)
    return Agreement(
        mean=float(np.corrcoef(mean, kept_mean)[0, 1]),
        variance=float(np.corrcoef(here, there)[0, 1]),
        ratio=float(np.exp(np.median(here - there))),
    )


def exchange_layers(network: keras.Model, rng: np.random.Generator) -> int:
    """Gives layers of equal kind and shapes each other's weights, by chance; returns how many have another's."""
    alike: dict[Any, list[keras.layers.Layer]] = {}
    for layer in network.layers:
        if layer.weights:
            alike.setdefault((type(layer), *(tuple(weight.shape) for weight in layer.weights)), []).append(layer)
    moved = 0
    for layers in alike.values():
        values = [layer.get_weights() for layer in layers]
        for place, other in enumerate(rng.permutation(len(layers))):
            layers[place].set_weights(values[other])
            moved += place != other
    return moved


def row(name: str, found: Sequence[Moments], expected: Sequence[Moments]) -> dict[str, Any]:
    """A row of the table: medians over layers, and the least correlations."""
    layers = [agreement(*pair) for pair in zip(found, expected, strict=True)]
    return {
        "case": name,
        "mean": statistics.median(layer.mean for layer in layers),
        "least_mean": min(layer.mean for layer in layers),
        "variance": statistics.median(layer.variance for layer in layers),
        "least_variance": min(layer.variance for layer in layers),
        "ratio": statistics.median(layer.ratio for layer in layers),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    text = "| pixels | means: correlation | least of a layer | variances: correlation | least of a layer | ratio |\n"
    text += "| --- | ---: | ---: | ---: | ---: | ---: |\n"
    for each in rows:
        figures = [f"{each[name]:.3f}" for name in ("mean", "least_mean", "variance", "least_variance")]
        text += f"| {each['case']} | {' | '.join(figures)} | {each['ratio']:.2f} |\n"
    return text


def main(config: WeightsAgreement) -> dict[str, Any]:
    """Compares; returns the rows."""
    before = circumstances("tensorflow", "keras")
    images = photographs(config.folder, config.images, config.size)
    network = build_backbone(config.backbone, 32, str(config.weights), maps="pyramid")
    expected = stored(network)
    if not expected:
        raise ValueError(f"{config.backbone} has no batch norms, so its file says nothing about what entered them")
    rng = np.random.default_rng(0)
    own = BACKBONES[config.backbone].pixels
    found = {
        pixels: moments(network, PixelNormalization(pixels)(images))
        for pixels in {own: 0} | dict.fromkeys(config.pixels)
    }
    rows = [row(pixels + ", its own" * (pixels == own), found[pixels], expected) for pixels in found]
    shuffled = [Moments(*(part[rng.permutation(len(part))] for part in each)) for each in found[own]]
    rows.append(row(f"{own}, a layer's channels shuffled", shuffled, expected))
    moved = exchange_layers(network, rng)
    exchanged = moments(network, PixelNormalization(own)(images))
    rows.append(row(f"{own}, {moved} layers exchanged with others of their shapes", exchanged, stored(network)))
    text = f"{before}; `{config.backbone}`, {config.weights.name}, {len(expected)} batch norms; {config.images} "
    text += f"photographs of {config.size}x{config.size} pixels. Medians over batch norms.\n\n"
    write_between_markers(config.results, text + table(rows))
    return {"rows": rows}


if __name__ == "__main__":
    cli.run(main, WeightsAgreement, __doc__)
