"""`python -m benchmarks.train_step`: training steps, against PyTorch and against the passes of their networks.

Three processes take turns, each limited to the same cores: the step as `fit` runs it; the same step in PyTorch; and the
floor, the forward and backward passes that the step needs from each network, without losses and updates. Before
anything is timed, both sides must have networks of equal parameter counts, outputs of one shape, and similar first
losses. Needs `pip install -e ".[train,bench]"`.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.results_file import write_between_markers
from benchmarks.turns import (
    Record,
    circumstances,
    hold_to_cores,
    measure,
    processor_seconds,
    require_cores,
    spread,
    take_turns,
)
from serving.common import cli

IGNORE_LABEL = 255
SIDES = ("kerasseg", "floor", "pytorch")
ALIKE = ("L_ce", "L_D", "L_cor")
"""Losses that begin near a fixed value; the others depend on how an untrained network sees noise."""

SEGMENTERS: dict[str, dict] = {
    "deeplab_v2-resnet50": {"segmenter": "deeplab_v2", "backbone": "resnet50"},
    # A quarter of the paper's width suits a small backbone.
    "deeplab_v3plus-mobilenet_v2": {"segmenter": "deeplab_v3plus", "backbone": "mobilenet_v2", "head_channels": 64},
}
CORRECTORS: dict[str, dict] = {
    "deeplab_v2-resnet50": {"corrector_backbone": "resnet34", "corrector_head_channels": 256},
    "deeplab_v3plus-mobilenet_v2": {"corrector_backbone": None, "corrector_head_channels": 64},
}


class Pass(NamedTuple):
    """One forward pass of a network in train mode, and the backward passes that follow it."""

    batches: tuple[str, ...]
    """The batches that it takes, among "labeled" and "unlabeled"."""
    weights: bool = False
    """Whether it needs a gradient of the network's weights."""
    segmentation: bool = False
    """Whether it needs a gradient of the segmentation that the network judges, by a pass of its own."""


SUPERVISED = {"segmenter": [Pass(("labeled",), weights=True)]}
JOINT = [Pass(("labeled", "unlabeled"), weights=True)]
PASSES: dict[str, dict[str, list[Pass]]] = {
    "supervised": SUPERVISED,
    "advsemiseg": {
        "segmenter": JOINT,
        "discriminator": [
            Pass(("labeled",), weights=True),  # label maps
            Pass(("labeled",), weights=True, segmentation=True),
            Pass(("unlabeled",), segmentation=True),
        ],
    },
    "s4gan": {
        "segmenter": JOINT,
        "discriminator": [
            Pass(("labeled",), weights=True),  # label maps
            Pass(("unlabeled",), weights=True, segmentation=True),
        ],
    },
    "ecs": {
        "segmenter": [Pass(("labeled",), weights=True), Pass(("unlabeled",), weights=True)],
        "corrector": [
            Pass(("labeled",), weights=True),
            Pass(("labeled",), weights=True),  # label maps
            Pass(("labeled",), segmentation=True),
            Pass(("unlabeled",)),
        ],
    },
}
"""The passes that a step needs from each network: the floor."""


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """What to measure, and where the table goes."""

    networks: tuple[str, ...] = tuple(SEGMENTERS)
    """Segmenter and backbone."""
    methods: tuple[str, ...] = tuple(PASSES)
    """Names of methods."""
    crop: tuple[int, int] = (321, 321)
    """Height and width of the images."""
    labeled: int = 2
    """Labelled images in a batch."""
    unlabeled: int = 2
    """Unlabelled images in a batch."""
    classes: int = 21
    """Number of classes of the segmentation."""
    cores: int = 2
    """Cores that each process may use."""
    steps: int = 3
    """Steps in one turn."""
    repeats: int = 5
    """Turns of each side; the table has their median, smallest and largest."""
    pad: bool = True
    """Whether PyTorch's networks pad images to a multiple of 16 as kerasseg's do; for 321 they need not."""
    compile: bool = False
    """Whether PyTorch compiles its networks with `torch.compile`."""
    results: Path = Path("benchmarks/results/train_step.md")
    """The table is written between the markers of this file."""
    side: str | None = None
    """kerasseg, floor or pytorch: be the process that is measured; set by the benchmark itself."""

    def __post_init__(self):
        for flag, chosen, known in (("networks", self.networks, SEGMENTERS), ("methods", self.methods, PASSES)):
            if unknown := [name for name in chosen if name not in known]:
                raise ValueError(f"--{flag} must be of {', '.join(known)}; got {', '.join(unknown)}")


def make_batch(config: TrainStep) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`({"labeled", "unlabeled", "unlabeled_valid"}, labels)` of noise: times do not depend on the images."""
    rng = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        return rng.uniform(0, 255, (count, *config.crop, 3)).astype(np.float32)

    labels = rng.integers(0, config.classes, (config.labeled, *config.crop), dtype=np.int32)
    labels[:, :: config.crop[0] - 1] = IGNORE_LABEL
    valid = np.ones((config.unlabeled, *config.crop), bool)
    valid[:, -config.crop[0] // 10 :] = False
    x = {"labeled": images(config.labeled), "unlabeled": images(config.unlabeled), "unlabeled_valid": valid}
    return x, labels


def fields_of(config: TrainStep) -> dict:
    """The method's fields that are not the defaults: every term of a loss counts from the first step on."""
    fields = {"advsemiseg": {"adv_unlabeled_start": 0.0, "semi_start": 0.0}, "ecs": CORRECTORS[config.networks[0]]}
    return fields.get(config.methods[0], {})


def make_method(config: TrainStep):
    """kerasseg's method, compiled."""
    import keras

    from kerasseg.methods import METHODS
    from kerasseg.segmenters import build_segmenter

    keras.utils.set_random_seed(0)
    segmenter = dict(SEGMENTERS[config.networks[0]])
    network = build_segmenter(segmenter.pop("segmenter"), num_classes=config.classes, **segmenter)
    method = METHODS[config.methods[0]](network, **fields_of(config))
    method.compile()
    return method


Run = Callable[[int], Record]
"""Runs so many steps; returns the facts of the last one."""


def kerasseg_run(config: TrainStep) -> tuple[dict, Run]:
    """The facts that `check` compares, and a function that runs steps as `fit` does and returns their losses."""
    import tensorflow as tf

    method = make_method(config)
    # What tunes an input pipeline sleeps, and the end of `fit` waits until it wakes: as long as a step.
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensors(make_batch(config)).repeat().with_options(options)

    def run(steps: int) -> Record:
        history = method.fit(data, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0).history
        return {name: values[-1] for name, values in history.items() if name.startswith("L_")}

    counts = {
        name: sum(math.prod(variable.shape) for variable in getattr(method, name).trainable_variables)
        for name in method.network_names
    }
    shape = method.segmenter.compute_output_shape((config.labeled, *config.crop, 3))
    return {"parameters": counts, "shape": list(shape)}, run


def pytorch_run(config: TrainStep) -> tuple[dict, Run]:
    """The same for PyTorch."""
    import torch

    from benchmarks.pytorch_steps import make_step

    step, take = make_step(config, SEGMENTERS[config.networks[0]], fields_of(config), make_batch(config))
    counts = {name: sum(each.numel() for each in parameters) for name, parameters in step.parameters.items()}
    with torch.no_grad():
        batch, channels, height, width = step.segmenter(torch.zeros(config.labeled, 3, *config.crop)).shape
    facts = {"parameters": counts, "shape": [batch, height, width, channels]}

    def run(steps: int) -> Record:
        for _ in range(steps):
            losses = take()
        return {name: loss.item() for name, loss in losses.items()}

    return facts, run


def floor_run(config: TrainStep) -> tuple[dict, Run]:
    """No facts, and a function that runs the passes of `PASSES`, network by network, and returns the seconds."""
    method = make_method(config)
    x, _ = make_batch(config)
    passes = PASSES[config.methods[0]]
    graphs = {name: network_passes(getattr(method, name), x, passes[name]) for name in passes}

    def run(steps: int) -> Record:
        seconds = {}
        for name, graph in graphs.items():
            began = time.perf_counter()
            for _ in range(steps):
                graph()
            seconds[name] = (time.perf_counter() - began) / steps
        return seconds

    return {}, run


def network_passes(network, x: dict[str, np.ndarray], passes: list[Pass]) -> Callable[[], list]:
    """A graph of these passes of one network, which returns outputs and gradients."""
    import tensorflow as tf

    rng = np.random.default_rng(1)
    takes_image = network.inputs[-1].shape[-1] == 3

    def noise(shape) -> tf.Tensor:
        return tf.constant(rng.uniform(size=shape).astype(np.float32))

    def given(each: Pass) -> tuple[list[tf.Tensor], list[list[tf.Tensor]]]:
        """The inputs, and for each backward pass gradients of the outputs."""
        image = tf.constant(np.concatenate([x[name] for name in each.batches]))
        inputs = [noise((*image.shape[:3], part.shape[-1])) for part in network.inputs]
        if takes_image:
            inputs[-1] = image
        shapes = [part.shape for part in inputs]
        shapes = network.compute_output_shape(shapes if len(shapes) > 1 else shapes[0])
        shapes = shapes if isinstance(shapes, list) else [shapes]
        # Different for both, or they would be one pass.
        return inputs, [[noise(shape) for shape in shapes] for _ in range(each.weights + each.segmentation)]

    @tf.function
    def run(tensors):
        results = []
        for each, (inputs, gradients) in zip(passes, tensors, strict=True):
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(inputs[0])
                outputs = tf.nest.flatten(network(inputs if len(inputs) > 1 else inputs[0], training=True))
            sources = [network.trainable_variables] * each.weights + [inputs[0]] * each.segmentation
            results.append(outputs)
            for source, gradient in zip(sources, gradients, strict=True):
                results.append(tape.gradient(outputs, source, output_gradients=gradient))
        return results

    tensors = [given(each) for each in passes]
    return lambda: run(tensors)


def measured_process(config: TrainStep) -> None:
    """Takes its first steps, then turns."""
    hold_to_cores(config.cores)
    if config.side != "pytorch":
        import kerasseg  # noqa: F401  before TensorFlow, which it starts with oneDNN
    make = {"kerasseg": kerasseg_run, "floor": floor_run, "pytorch": pytorch_run}[config.side or ""]
    facts, run = make(config)
    facts["losses"] = run(1)
    run(2)

    def turn() -> Record:
        began, processor_began = time.perf_counter(), processor_seconds()
        parts = run(config.steps)
        seconds, processor = time.perf_counter() - began, processor_seconds() - processor_began
        times = {"clock": seconds / config.steps, "processor": processor / config.steps}
        return times | {"load": os.getloadavg()[0]} | parts

    take_turns(facts, turn)


def check(ours: dict, theirs: dict) -> None:
    """ValueError unless both sides do the same, by the facts they gave before their first turn."""
    for name in ("parameters", "shape"):
        if ours[name] != theirs[name]:
            raise ValueError(f"the sides do not do the same: {name} {ours[name]} and {theirs[name]}")
    if ours["losses"].keys() != theirs["losses"].keys():
        raise ValueError(f"the sides do not have the same losses: {sorted(ours['losses'])}, {sorted(theirs['losses'])}")
    for name in ours["losses"]:
        pair = ours["losses"][name], theirs["losses"][name]
        alike = abs(pair[0] - pair[1]) <= 0.5 * max(pair)
        if not all(map(math.isfinite, pair)) or (name in ALIKE and not alike):
            raise ValueError(f"the sides begin with different losses: {name} is {pair[0]:.3g} and {pair[1]:.3g}")


def compared(turns: dict[str, list[Record]], of: str) -> tuple[list[str], dict[str, float]]:
    """Cells of the table for one kind of time, and the ratios in them."""
    times = {side: [turn[of] for turn in turns[side]] for side in SIDES}
    cells, ratios = [spread(times["kerasseg"])], {}
    for side in ("pytorch", "floor"):
        # Each turn against its neighbour: other work of the machine slows both.
        pairs = [ours / others for ours, others in zip(times["kerasseg"], times[side], strict=True)]
        ratios[side] = statistics.median(times["kerasseg"]) / statistics.median(times[side])
        cells += [spread(times[side]), spread(pairs, ratios[side])]
    return cells, ratios


def main(config: TrainStep) -> dict:
    if config.side is not None:
        measured_process(config)
        return {}
    require_cores(config.cores)
    compiled, padded = ("with" if given else "without" for given in (config.compile, config.pad))
    lines = [
        f"{circumstances('tensorflow', 'torch')}; {config.labeled} labelled and {config.unlabeled} unlabelled images "
        f"of {config.crop[0]}x{config.crop[1]}, {config.classes} classes, {config.cores} of the cores; PyTorch "
        f"{compiled} torch.compile, {padded} padding. Seconds of a step, {config.repeats} turns of {config.steps}: "
        "median (smallest to largest). Ratios: of the medians (smallest to largest of turns side by side).",
        "",
        "| networks | method | time | kerasseg | pytorch | ratio | floor | ratio | load |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    flags = ["--crop", *map(str, config.crop)]
    for name in ("labeled", "unlabeled", "classes", "cores", "steps"):
        flags += [f"--{name}", str(getattr(config, name))]
    flags += [f"--{'' if getattr(config, name) else 'no-'}{name}" for name in ("pad", "compile")]
    ratios: dict[str, dict] = {}
    for network in config.networks:
        for method in config.methods:
            command = [sys.executable, "-m", "benchmarks.train_step", *flags]
            command += ["--networks", network, "--methods", method]
            ready, turns = measure({side: [*command, "--side", side] for side in SIDES}, config.repeats)
            check(ready["kerasseg"], ready["pytorch"])
            load = statistics.median(turn["load"] for turn in turns["kerasseg"])
            for of in ("clock", "processor"):
                cells, ratios[f"{network} {method} {of}"] = compared(turns, of)
                lines.append(f"| {' | '.join([network, method, of, *cells, f'{load:.1f}'])} |")
            print("\n".join(lines[-2:]), file=sys.stderr)
            write_between_markers(config.results, "\n".join(lines) + "\n")  # each takes minutes: keep what there is
    return ratios


if __name__ == "__main__":
    cli.run(main, TrainStep, __doc__ or "")
