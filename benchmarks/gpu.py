"""`python -m benchmarks.gpu MODELS`: exported models on an NVIDIA GPU: whether they give the same as on a CPU, then
the time of another batch shape with each of onnxruntime's options, and with a session for each shape.

Checked for each model: its maps against the CPU's, the nodes that onnxruntime runs on the CPU, and the memory still in
use after a large image. Networks and servers are timed by `benchmarks.inference` and `benchmarks.serving` with
`--provider cuda`. Needs `pip install -e ".[serve]"`.
"""

import functools
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import pynvml
import tyro

from benchmarks.inference import random_images
from benchmarks.results_file import write_between_markers
from benchmarks.turns import circumstances, spread
from serving.common import cli
from serving.common.artifact import Artifact, open_artifact, versions
from serving.model.engine import Engine
from serving.model.sessions import CUDA_OPTIONS, session_options

OPTIONS = {
    "the engine's": CUDA_OPTIONS,
    "algorithms by trial": CUDA_OPTIONS | {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "the default algorithm": CUDA_OPTIONS | {"cudnn_conv_algo_search": "DEFAULT"},
    "the default, channels last": CUDA_OPTIONS | {"cudnn_conv_algo_search": "DEFAULT", "prefer_nhwc": "1"},
}
SHAPES = ((1, 321, 321), (1, 350, 333), (8, 321, 321))
"""Batches (N,H,W) that one session gets in turn."""
COUNTS = (1, 2, 4, 8)
"""Numbers of images of `SIZE` that have a session each."""
SIZE = (321, 321)
RUNS = 12
"""Runs of the same shape; their median counts."""
LARGE = (3000, 4000)
"""Size of a phone's photo, pixels."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What to measure, and where the tables go."""

    models: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODELS")]
    """The folder of models, MODELS/name/VERSION."""
    timed: tuple[str, ...] | None = None
    """Models that are timed; all when left out."""
    results: Path = Path("benchmarks/results/gpu.md")
    """The tables are written between the markers of this file."""


def open_session(artifact: Artifact, options: dict[str, str], profile: Path | None = None):
    """A session on the GPU; ValueError where there is none."""
    wanted = session_options(threads=1)
    if profile is not None:
        wanted.enable_profiling = True
        wanted.profile_file_prefix = str(profile / "profile")
    onnxruntime.preload_dlls()
    providers = [("CUDAExecutionProvider", options), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(artifact.graph, wanted, providers)
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise ValueError("CUDA cannot be used; onnxruntime says why above")
    return session


def labels(session: onnxruntime.InferenceSession, images_NHW3: np.ndarray) -> np.ndarray:
    return session.run(["labels"], {session.get_inputs()[0].name: images_NHW3})[0]


def left_to_cpu(artifact: Artifact) -> str:
    """The numbers of nodes that a run computes on the CPU, by op."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(artifact, CUDA_OPTIONS, Path(folder))
        labels(session, random_images((1, 97, 131)))
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = {event["name"]: event["args"] for event in events if event["cat"] == "Node" and "provider" in event["args"]}
    on_cpu = Counter(args["op_name"] for args in nodes.values() if args["provider"] == "CPUExecutionProvider")
    return f"{', '.join(f'{count} {op}' for op, count in sorted(on_cpu.items())) or 'none'} of {len(nodes)}"


def checks_table(artifacts: dict[str, Artifact]) -> list[str]:
    """Markdown, a row a model."""
    lines = [
        "| model | labels as on the CPU | largest difference of a map | nodes on the CPU | "
        f"GPU MiB before and after {LARGE[0]}x{LARGE[1]}, and after small ones again |",
        "| --- | ---: | --- | --- | ---: |",
    ]
    images_NHW3 = np.concatenate([random_images((2, 321, 321)), random_images((2, 321, 321))[:, ::-1]])
    for name, artifact in artifacts.items():
        engine = Engine(artifact, "cuda")
        ours, cpu = engine.predict(images_NHW3), Engine(artifact, "cpu").predict(images_NHW3)
        agree = np.mean(ours["labels"] == cpu["labels"])
        maps = [map_name for map_name in engine.outputs if map_name not in ("labels", "logits")]
        differences = [f"{map_name} {np.abs(ours[map_name] - cpu[map_name]).max():.1e}" for map_name in maps]
        before = used_mib()
        engine.predict(random_images((1, *LARGE)), ["labels"])
        after_large = used_mib()
        engine.predict(images_NHW3)
        cells = [name, f"{agree:.3%}", ", ".join(differences), left_to_cpu(artifact)]
        lines.append(f"| {' | '.join([*cells, f'{before}, {after_large}, {used_mib()}'])} |")
    return lines


def milliseconds(session: onnxruntime.InferenceSession, images_NHW3: np.ndarray) -> float:
    began = time.perf_counter()
    labels(session, images_NHW3)
    return 1000 * (time.perf_counter() - began)


def options_table(name: str, artifact: Artifact) -> list[str]:
    """Markdown, a row for each set of options: one session, and the time of its batches of one shape and another."""
    columns = [f"{'x'.join(map(str, shape))} {which}, ms" for shape in SHAPES for which in ("first", "then")]
    lines = [f"| {name} | {' | '.join(columns)} | the first again, ms |", "| --- |" + " ---: |" * (len(columns) + 1)]
    for option, values in OPTIONS.items():
        session, cells = open_session(artifact, values), [option]
        for shape in SHAPES:
            images_NHW3 = random_images(shape)
            first, *others = (milliseconds(session, images_NHW3) for _ in range(2 + RUNS))
            cells += [f"{first:.0f}", f"{statistics.median(others[1:]):.2f}"]
        cells.append(f"{milliseconds(session, random_images(SHAPES[0])):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sessions_table(artifacts: dict[str, Artifact]) -> list[str]:
    """Markdown, a row for each model: a session for each number of images; the sessions take turns."""
    columns = [f"{count}x{SIZE[0]}x{SIZE[1]}, ms" for count in COUNTS]
    lines = [f"| a session each | {' | '.join(columns)} | MiB each |", "| --- |" + " ---: |" * (len(columns) + 1)]
    for name, artifact in artifacts.items():
        before = used_mib()
        sessions = {count: open_session(artifact, CUDA_OPTIONS) for count in COUNTS}
        times: dict[int, list[float]] = {count: [] for count in COUNTS}
        for _ in range(1 + RUNS):
            for count, session in sessions.items():
                times[count].append(milliseconds(session, random_images((count, *SIZE))))
        cells = [spread(own[1:]) for own in times.values()]
        lines.append(f"| {' | '.join([name, *cells, str((used_mib() - before) // len(COUNTS))])} |")
    return lines


def main(config: Gpu) -> dict:
    first_gpu()  # before anything else: without one nothing here can be done
    names = sorted(child.name for child in config.models.iterdir() if versions(child))
    artifacts = {name: open_artifact(config.models / name) for name in names}
    lines = [f"{circumstances('onnxruntime-gpu')}; {gpu_name()}.", "", *checks_table(artifacts)]
    finish = functools.partial(write_between_markers, config.results)
    finish("\n".join(lines) + "\n")
    timed = {name: artifacts[name] for name in (names if config.timed is None else config.timed)}
    for name, artifact in timed.items():
        lines += ["", *options_table(name, artifact)]
        finish("\n".join(lines) + "\n")
    lines += ["", *sessions_table(timed)]
    finish("\n".join(lines) + "\n")
    print("\n".join(lines))
    return {}


def gpu_name() -> str:
    return f"{pynvml.nvmlDeviceGetName(first_gpu())}, driver {pynvml.nvmlSystemGetDriverVersion()}"


def used_mib() -> int:
    """GPU memory in use, by whatever process."""
    return round(pynvml.nvmlDeviceGetMemoryInfo(first_gpu()).used / 2**20)


def first_gpu():
    """NVML's handle; ValueError where there is none."""
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError as error:
        raise ValueError(f"this benchmark needs an NVIDIA GPU, and none can be used here: {error}") from error


if __name__ == "__main__":
    cli.run(main, Gpu, __doc__ or "")
