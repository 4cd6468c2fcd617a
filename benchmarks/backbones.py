"""`python -m benchmarks.backbones`: how large backbones are, for `training.run --list-backbones`.

It counts parameters and multiply-adds of every backbone and writes them to
kerasseg/segmenters/backbones/figures.tsv and docs/backbones.md. With --names NAME it counts these only, and the other
rows stay.
"""

import concurrent.futures
import csv
import io
import math
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kerasseg  # noqa: F401 (first: it starts TensorFlow)

# isort: split
import keras
import tensorflow as tf
from tqdm import tqdm

from benchmarks.results_file import write_between_markers
from kerasseg.segmenters import BACKBONES, build_backbone
from kerasseg.segmenters.backbones.table import COLUMNS, FIGURES, figures, rows
from serving.common import cli
from serving.common.files import write_atomically

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
SIDE = 321
"""Height and width of the image, pixels, which is padded to the backbone's stride."""


@dataclass(frozen=True, kw_only=True)
class BackbonesConfig:
    """What is measured."""

    names: tuple[str, ...] = ()
    """Which backbones; none for all."""


def multiply_adds(network: keras.Model, side: int) -> int:
    """Multiplications of convolutions and matrix products for one square image."""
    call = tf.function(lambda image: network(image, training=False))
    graph = call.get_concrete_function(tf.TensorSpec((1, side, side, 3))).graph
    return sum(map(multiplications, graph.get_operations()))


def multiplications(op: tf.Operation) -> int:
    """Those of one operation of a graph; 0 for all but convolutions and matrix products."""
    if op.type in ("Conv2D", "DepthwiseConv2dNative"):
        height, width, channels, filters = op.inputs[1].shape
        per_output = height * width * (channels if op.type == "Conv2D" else 1)
        return math.prod(op.outputs[0].shape[1:]) * per_output
    if op.type in ("MatMul", "BatchMatMulV2", "Einsum"):
        shapes = [tuple(tensor.shape) for tensor in op.inputs]
        if op.type == "Einsum":
            labels: dict[str, Any] = {}
            for names, shape in zip(op.get_attr("equation").decode().split("->")[0].split(","), shapes, strict=True):
                labels |= zip(names, shape, strict=True)
            return math.prod(labels.values())
        shared = shapes[0][-2 if op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x") else -1]
        return math.prod(op.outputs[0].shape) * shared
    return 0


def size(name: str) -> dict[str, str]:
    """A row of figures.tsv: of the backbone with its own strides, and features of all of them."""
    spec = BACKBONES[name]
    network = build_backbone(name, 32, maps="pyramid")
    side = -(-SIDE // spec.stride) * spec.stride
    return {
        "parameters": f"{network.count_params() / 1e6:.1f}",
        "multiply_adds": f"{multiply_adds(network, side) / 1e9:.2f}",
        "strides": " ".join(map(str, network.strides)),
    }


def page() -> str:
    """The table of `--list-backbones` as Markdown."""
    head, *body = rows()
    lines = [head, ("---",) * len(head), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(config: BackbonesConfig) -> dict[str, Any]:
    """Counts, and writes figures.tsv; returns how many rows are new."""
    known = figures() if FIGURES.exists() else {}
    names = config.names or tuple(BACKBONES)
    # A process for each: a large network's memory is free before the next is built.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as process:
        sizes = tqdm(process.map(size, names), total=len(names), disable=not sys.stderr.isatty())
        known |= zip(names, sizes, strict=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["backbone", *COLUMNS], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"backbone": name} | known[name] for name in sorted(known) if name in BACKBONES)
    write_atomically(FIGURES, text.getvalue().encode())
    write_between_markers(PAGE, page())
    return {"table": str(FIGURES), "counted": len(names)}


if __name__ == "__main__":
    cli.run(main, BackbonesConfig, __doc__)
