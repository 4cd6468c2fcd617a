"""`python -m training.run --dry-run`: the time and memory that a training needs, estimated from a few of its steps."""

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import keras
import tensorflow as tf

from kerasseg.data import evenly_spaced
from kerasseg.methods import Method
from training.config import RunConfig
from training.evaluation import Measurement
from training.report_notes import duration
from training.session import Evaluator, Session, Stage, assemble, peak_memory, prepare_backend
from training.workers import make_strategy

STEPS = 5
"""Steps of each stage of the training. The first, which makes the graph, is not counted."""

IMAGES = 4
"""Number of val images for each device, from which the time of an evaluation is estimated."""


class Stopwatch(keras.callbacks.Callback):
    """The seconds of each step."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.began)


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Trains for `STEPS` steps of each stage on the run's own batches, and measures on `IMAGES` val images.

    Returns:
        "parameters" by network; "peak_memory_bytes" of the process, and where there are GPUs "peak_gpu_memory_bytes"
        of the one that used most; "seconds_per_step" by stage; how many "evaluations" there are, the seconds of each
        and of the last, which uses the run's protocol; "seconds" in all; "finished_at", if it started now. stderr gets
        the same in words.

    Raises:
        ValueError: as a training does.
    """
    if config.resume:
        raise ValueError("--dry-run estimates a training from its start: leave --resume out")
    prepare_backend(config)
    session = assemble(dataclasses.replace(config, steps=STEPS), make_strategy(config))
    method, dataset = session.method, session.dataset
    names = [stage.method.registry_name for stage in session.stages]
    planned = {name: config.method_fields[name]["steps"] for name in names}
    total = sum(planned.values())

    print(f"trying {STEPS} steps of {' and '.join(planned)}", file=sys.stderr)
    step = {name: seconds_per_step(session, stage) for name, stage in zip(names, session.stages, strict=True)}

    images = dataset.label_names("val")
    few = evenly_spaced(images, IMAGES * session.strategy.num_replicas_in_sync)
    evaluator = Evaluator(session, few)
    scale = len(images) / len(few)
    measuring = seconds_of(evaluator.measure)
    evaluation = scale * measuring + max(seconds_of(evaluator) - measuring, 0.0)
    evaluations = len({*range(config.evaluate_every, total + 1, config.evaluate_every), total})
    last = evaluation
    if session.protocol != evaluator.measure.protocol:
        last += scale * seconds_of(Measurement(method, dataset, names=few, protocol=session.protocol))

    seconds = sum(planned[stage] * step[stage] for stage in planned) + (evaluations - 1) * evaluation + last
    seconds += evaluation  # the diagnostics at the end use all images once more
    result = {
        "dry_run": True,
        "parameters": {name: network.count_params() for name, network in networks(method)},
        **peak(),
        "seconds_per_step": {stage: round(each, 3) for stage, each in step.items()},
        "evaluations": evaluations,
        "seconds_per_evaluation": round(evaluation, 1),
        "seconds_of_last_evaluation": round(last, 1),
        "seconds": round(seconds),
        "finished_at": (datetime.now() + timedelta(seconds=seconds)).isoformat(timespec="minutes"),
    }
    print(*summary_lines(result, planned), sep="\n", file=sys.stderr)
    return result


def seconds_per_step(session: Session, stage: Stage) -> float:
    """The median over its steps without the first, seconds."""
    stopwatch = Stopwatch()
    stage.method.fit(
        session.batches(stage, stage.begin),
        steps_per_epoch=stage.end - stage.begin,
        epochs=1,
        verbose=0,
        shuffle=False,
        callbacks=[stopwatch],
    )
    return statistics.median(stopwatch.seconds[1:])


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of a second call: the first makes graphs."""
    call()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def networks(method: Method) -> Iterator[tuple[str, keras.Model]]:
    """The networks by name, also those of a method inside it."""
    for name in method.network_names:
        network = getattr(method, name)
        yield from networks(network) if isinstance(network, Method) else [(name, network)]


def peak() -> dict[str, int]:
    """The most memory held so far by the process and on the fullest GPU, bytes."""
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    used = [tf.config.experimental.get_memory_info(name.removeprefix("/device:"))["peak"] for name in gpus]
    return {"peak_memory_bytes": peak_memory()} | ({"peak_gpu_memory_bytes": max(used)} if used else {})


def summary_lines(result: dict[str, Any], planned: dict[str, int]) -> Iterator[str]:
    """The lines for stderr."""
    parameters = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in result["parameters"].items())
    yield f"parameters   {parameters}"
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    on_gpu = result.get("peak_gpu_memory_bytes")
    yield f"memory       {result['peak_memory_bytes'] / 2**30:.1f} GiB at its peak, of {there / 2**30:.1f} GiB" + (
        f"; {on_gpu / 2**30:.1f} GiB on the GPU" if on_gpu else ""
    )
    for stage, each in result["seconds_per_step"].items():
        yield f"{stage:12} {planned[stage]} steps of {each:.3g} s: {duration(planned[stage] * each)}"
    each, last = result["seconds_per_evaluation"], result["seconds_of_last_evaluation"]
    yield f"evaluations  {result['evaluations']} of {each:.3g} s" + ("" if last == each else f", the last {last:.3g} s")
    yield f"in all       {duration(result['seconds'])}; started now, it ends about {result['finished_at']}"
