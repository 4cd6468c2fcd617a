"""`python -m benchmarks.families`: what backbones cost, in training and as ONNX, for a small member of each family.

Each network and mobilenet_v2 take turns, so that other work of the machine slows both: a training step of supervised,
and one image through the exported graph. With --names NAME it measures these only, and the other rows stay.
"""

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import write_between_markers
from benchmarks.turns import (
    Record,
    circumstances,
    hold_to_cores,
    measure,
    processor_seconds,
    require_cores,
    resident_mib,
    spread,
    take_turns,
)
from serving.common import cli
from serving.common.files import write_atomically

STANDARD = "mobilenet_v2"
"""The backbone that the others are measured next to."""
MEMBERS = {
    STANDARD: "deeplab_v3plus",
    "mobilenet": "deeplab_v3plus",
    "mobilenet_v3_small": "deeplab_v3plus",
    "efficientnet_lite0": "deeplab_v3plus",
    "efficientnet_b0": "deeplab_v3plus",
    "efficientnet_v2_b0": "deeplab_v3plus",
    "hgnetv2_b0": "deeplab_v3plus",
    "resnet_18": "deeplab_v3plus",
    "resnet_vd_18": "deeplab_v3plus",
    "resnet34": "deeplab_v3plus",
    "resnet50": "deeplab_v3plus",
    "resnet50_v2": "deeplab_v3plus",
    "csp_darknet_53": "deeplab_v3plus",
    "densenet121": "deeplab_v3plus",
    "nasnet_mobile": "deeplab_v3plus",
    "xception": "deeplab_v3plus",
    "inception_v3": "deeplab_v3plus",
    "vgg16": "deeplab_v3plus",
    "convnext_tiny": "fpn",
    "mit_b0": "segformer",
    "swin_tiny_patch4_window7": "fpn",
    "deit_tiny_distilled_patch16": "dpt",
    "dinov2_small": "dpt",
    "dinov3_vit_small": "dpt",
    "vit_base_patch32_224": "dpt",
    "siglip2_base_patch32": "dpt",
}
"""The head that is measured on a small member of each family."""
COLUMNS = (
    "backbone",
    "head",
    "parameters, millions",
    "a training step, s",
    "to mobilenet_v2's",
    "processor, s",
    "peak memory, GiB",
    "ONNX, MB",
    "an image, ms",
    "to mobilenet_v2's",
)


@dataclass(frozen=True, kw_only=True)
class Families:
    """What to measure, and where the table goes."""

    names: tuple[str, ...] = tuple(MEMBERS)
    """Backbones."""
    side: int = 321
    """Height and width of the images, pixels."""
    labeled: int = 2
    """Images in a training batch."""
    classes: int = 21
    """Number of classes of the segmentation."""
    cores: int = 2
    """Cores that each process may use."""
    steps: int = 2
    """Training steps in one turn."""
    answers: int = 5
    """Images through the graph in one turn."""
    repeats: int = 5
    """Turns; the table has their median, smallest and largest."""
    results: Path = Path("benchmarks/results/families.md")
    """The table is written between the markers of this file; the measured rows are kept next to it as JSON."""
    measured: str | None = None
    """A backbone: be the process that is measured; set by the benchmark itself."""

    def __post_init__(self):
        if unknown := [name for name in self.names if name not in MEMBERS]:
            raise ValueError(f"--names must be of {', '.join(MEMBERS)}; got {', '.join(unknown)}")


def measured_process(config: Families, name: str) -> None:
    """Trains a few steps, exports, then takes turns."""
    hold_to_cores(config.cores)
    import keras

    import kerasseg

    # isort: split
    import onnxruntime
    import tensorflow as tf

    from export.graph import serving_function, to_onnx
    from kerasseg.segmenters import build_segmenter

    keras.utils.set_random_seed(0)
    method = kerasseg.Supervised(build_segmenter(MEMBERS[name], num_classes=config.classes, backbone=name))
    method.compile()
    random = np.random.default_rng(0)
    images_NHW3 = random.integers(0, 256, (config.labeled, config.side, config.side, 3), np.uint8)
    labels_NHW = random.integers(0, config.classes, images_NHW3.shape[:3], np.int32)
    # What tunes an input pipeline sleeps, and the end of `fit` waits until it wakes: as long as a step.
    options = tf.data.Options()
    options.autotune.enabled = False
    batch = (images_NHW3.astype(np.float32), labels_NHW)
    data = tf.data.Dataset.from_tensors(batch).repeat().with_options(options)

    def train(steps: int) -> None:
        method.fit(data, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)

    for steps in (1, 2):
        train(steps)
    peak = resident_mib("self", "VmHWM")
    graph = to_onnx(serving_function(method)).SerializeToString()
    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = config.cores
    session = onnxruntime.InferenceSession(graph, threads, providers=["CPUExecutionProvider"])
    image_1HW3 = images_NHW3[:1]
    session.run(None, {"image": image_1HW3})

    def turn() -> Record:
        began, processor_began = time.perf_counter(), processor_seconds()
        train(config.steps)
        step, processor = time.perf_counter() - began, processor_seconds() - processor_began
        began = time.perf_counter()
        for _ in range(config.answers):
            session.run(None, {"image": image_1HW3})
        image = time.perf_counter() - began
        return {"step": step / config.steps, "processor": processor / config.steps, "image": image / config.answers}

    take_turns({"parameters": method.segmenter.count_params(), "peak": peak, "bytes": len(graph)}, turn)


def row(name: str, facts: dict, turns: list[Record], standard: list[Record]) -> list[str]:
    """The table's line of a backbone.

    Args:
        facts: what its process said when it was ready.
        turns: its turns.
        standard: those of the standard backbone, each measured next to one of `turns`.
    """

    def ratio(of: str) -> str:
        pairs = [one[of] / other[of] for one, other in zip(turns, standard, strict=True)]
        return f"{statistics.median(pairs):.2f}"

    return [
        name,
        MEMBERS[name],
        f"{facts['parameters'] / 1e6:.1f}",
        spread([turn["step"] for turn in turns]),
        ratio("step"),
        spread([turn["processor"] for turn in turns]),
        f"{facts['peak'] / 1024:.1f}",
        f"{facts['bytes'] / 1e6:.0f}",
        spread([1000 * turn["image"] for turn in turns]),
        ratio("image"),
    ]


def table(rows: dict[str, list[str]], words: str) -> str:
    lines = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2))]
    lines += [rows[name] for name in MEMBERS if name in rows]
    return f"{words}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(config: Families) -> dict[str, Any]:
    """Measures, and writes the table after each backbone; returns where it is."""
    if config.measured is not None:
        measured_process(config, config.measured)
        return {}
    require_cores(config.cores)
    kept = config.results.with_suffix(".json")
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    words = (
        f"{circumstances('tensorflow', 'onnxruntime-gpu')}; a batch of {config.labeled} images of {config.side}x"
        f"{config.side}, {config.classes} classes, random weights, {config.cores} of the cores. {config.repeats} turns "
        f"of {config.steps} steps and {config.answers} images: median (smallest to largest). Ratios: the median of "
        f"turns side by side with {STANDARD}. Peak memory is that of the whole process in training."
    )
    flags = ["--side", "--labeled", "--classes", "--cores", "--steps", "--answers"]
    command = [sys.executable, "-m", "benchmarks.families"]
    command += [part for flag in flags for part in (flag, str(getattr(config, flag.strip("-"))))]
    for name in config.names:
        sides = {"standard": [*command, "--measured", STANDARD], name: [*command, "--measured", name]}
        ready, turns = measure(sides, config.repeats)
        rows[name] = row(name, ready[name], turns[name], turns["standard"])
        write_atomically(kept, (json.dumps(rows, indent=2) + "\n").encode())
        write_between_markers(config.results, table(rows, words))  # each takes a minute: keep what there is
        print(" | ".join(rows[name]), file=sys.stderr)
    return {"table": str(config.results), "measured": len(config.names)}


if __name__ == "__main__":
    cli.run(main, Families, __doc__ or "")
