"""`python -m benchmarks.inference`: one network by every route out of Keras, and in PyTorch, image in and labels out.

Each side is a process, held to the same cores, and they take turns. Sides: this project's artifacts (`fp32`, `fp16`,
`int8`, and `fp16_graphs`, as CUDA graphs) in onnxruntime; its SavedModel; Keras' `predict`; the graph that the
converter makes without `kerasseg.layers` (`naive`); keras-hub's DeepLab-v3+ by its own export; PyTorch, channels last,
plain and compiled. Before anything is timed, sides with the same weights must agree, and PyTorch must have as many
weights. Needs `pip install -e ".[train,export,bench]"`, and for keras-hub's side keras-hub with what it imports:
sentencepiece, tokenizers, regex, kagglehub (`pip install --no-deps`, since tensorflow-text is not among them). With
--models from an earlier run, the sides without TensorFlow need only `.[serve,bench]`.
"""

import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from benchmarks.results_file import write_between_markers
from benchmarks.turns import Record, circumstances, hold_to_cores, measure, require_cores, spread, take_turns
from serving.common import cli

SIDES = {
    "cpu": ("fp32", "int8", "saved_model", "keras", "naive", "keras_hub", "pytorch", "pytorch_compiled"),
    "cuda": ("fp32", "fp16", "fp16_graphs", "naive", "keras_hub", "pytorch", "pytorch_fp16", "pytorch_fp16_compiled"),
}
SAME_WEIGHTS = ("saved_model", "keras", "naive")
"""Sides whose labels must be those of `fp32`."""
NEED_TENSORFLOW = ("saved_model", "keras")


class Network(NamedTuple):
    """A segmenter, as `kerasseg.segmenters.build_segmenter` takes it."""

    segmenter: str
    backbone: str
    head_channels: int
    keras_hub: bool = False
    """Whether keras-hub has the same network."""


NETWORKS = {
    # A quarter of the paper's width suits a small backbone.
    "deeplab_v3plus-mobilenet_v2": Network("deeplab_v3plus", "mobilenet_v2", 64),
    "deeplab_v3plus-resnet50": Network("deeplab_v3plus", "resnet50", 256, keras_hub=True),
}
CLASSES = 21

CHECKED_SIZE = (97, 131)
"""Size of the image on which sides are compared, pixels."""

Predictor = Callable[[np.ndarray], np.ndarray]
"""Images uint8 (N,H,W,3) to labels (N,H,W); the side's other outputs are computed too."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What to measure, and where the tables go."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Segmenter and backbone."""
    provider: Literal["cpu", "cuda"] = "cpu"
    """Where to run."""
    sides: tuple[str, ...] | None = None
    """Which sides, of those that the provider has; all when left out."""
    sizes: tuple[tuple[int, int], ...] = ((321, 321), (512, 1024))
    """Sizes of the images, pixels: H W H W ..."""
    batches: tuple[int, ...] = (1, 8)
    """Images predicted together."""
    cores: int = 2
    """Cores that each process may use."""
    seconds: float = 0.5
    """A turn predicts each batch for this time, and at least once."""
    repeats: int = 5
    """Turns of each side; the table has their median, smallest and largest."""
    models: Path = Path("runs/inference")
    """Where the exported networks are kept; made where they are missing."""
    results: Path = Path("benchmarks/results/inference.md")
    """The tables are written between the markers of this file."""
    side: str | None = None
    """Be the process that is measured; set by the benchmark itself."""

    def __post_init__(self):
        if unknown := set(self.sides or ()) - set(SIDES[self.provider]):
            known = ", ".join(SIDES[self.provider])
            raise ValueError(f"--sides must be of {known} with --provider {self.provider}; got {', '.join(unknown)}")

        if unknown := set(self.networks) - set(NETWORKS):
            raise ValueError(f"--networks must be of {', '.join(NETWORKS)}; got {', '.join(unknown)}")

    @property
    def cases(self) -> list[tuple[int, int, int]]:
        """(N,H,W), the smallest first."""
        return sorted(((batch, *size) for size in self.sizes for batch in self.batches), key=math.prod)


def random_images(case: tuple[int, int, int]) -> np.ndarray:
    """uint8 (N,H,W,3), smooth as photographs are: large shapes with a little noise."""
    rng = np.random.default_rng(0)
    batch, height, width = case
    coarse = rng.integers(0, 256, (batch, -(-height // 32), -(-width // 32), 3))
    fine = coarse.repeat(32, axis=1).repeat(32, axis=2)[:, :height, :width]
    return np.clip(fine + rng.integers(-20, 21, fine.shape), 0, 255).astype(np.uint8)


def make_predictor(config: Inference, folder: Path) -> tuple[dict, Predictor]:
    """Facts of a side ("bytes" of its file or "parameters"), and how it predicts."""
    side = config.side or ""
    if side.startswith("pytorch"):
        return pytorch_predictor(config)
    if side == "keras_hub":
        return {"bytes": max(path.stat().st_size for path in folder.glob("keras_hub*"))}, keras_hub_predictor(
            config, folder
        )
    if side == "naive":
        path = folder / "naive.onnx"
        session = plain_session(config, path)
        return {"bytes": path.stat().st_size}, lambda images: session.run(None, {"image": images})[0]
    if side in NEED_TENSORFLOW:
        return tensorflow_predictor(config, folder)

    from serving.common.artifact import Artifact, ModelInfo
    from serving.model.engine import Engine

    place = folder / side.removesuffix("_graphs")
    artifact = Artifact(place, ModelInfo.from_json((place / "model.json").read_text()))
    facts = {"bytes": artifact.graph.stat().st_size}
    if side.endswith("_graphs"):
        return facts, cuda_graphs_predictor(artifact.graph)
    engine = Engine(artifact, config.provider)
    return facts, lambda images: engine.predict(images)["labels"]


def cuda_graphs_predictor(path: Path) -> Predictor:
    """A CUDA graph for each shape, launched as a whole and not kernel by kernel, between inputs and outputs at fixed
    places on the GPU. It is not in `Engine` until a figure shows a gain."""
    import onnxruntime

    onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(path, providers=[("CUDAExecutionProvider", {"enable_cuda_graph": "1"})])
    captured: dict[tuple[int, ...], tuple] = {}

    def options(number: int) -> onnxruntime.RunOptions:
        run = onnxruntime.RunOptions()
        run.add_run_config_entry("gpu_graph_id", str(number))
        return run

    def capture(images: np.ndarray) -> tuple:
        binding = session.io_binding()
        held = [onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0)]
        binding.bind_ortvalue_input("image", held[0])
        # A first run, which is not captured, gives the outputs' shapes.
        for output, answer in zip(
            session.get_outputs(), session.run(None, {"image": images}, options(-1)), strict=True
        ):
            held.append(onnxruntime.OrtValue.ortvalue_from_shape_and_type(answer.shape, answer.dtype, "cuda", 0))
            binding.bind_ortvalue_output(output.name, held[-1])
        return binding, options(len(captured)), held

    def predict(images: np.ndarray) -> np.ndarray:
        if images.shape not in captured:
            captured[images.shape] = capture(images)
        binding, run, [taken, *given] = captured[images.shape]
        taken.update_inplace(images)
        session.run_with_iobinding(binding, run)
        return [output.numpy() for output in given][0]

    return predict


def plain_session(config: Inference, path: Path):
    """onnxruntime with its defaults, except for the number of threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.cores
    if config.provider == "cuda":
        onnxruntime.preload_dlls()
        return onnxruntime.InferenceSession(path, options, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])


def keras_hub_predictor(config: Inference, folder: Path) -> Predictor:
    sessions = {}
    for path in folder.glob("keras_hub*"):
        height, width = map(int, path.stem.partition("-")[2].split("x"))
        sessions[height, width] = plain_session(config, path)

    def predict(images_NHW3: np.ndarray) -> np.ndarray:
        height, width = images_NHW3.shape[1:3]
        own = next(size for size in sorted(sessions) if size[0] >= height and size[1] >= width)
        padding = [(0, 0), (0, own[0] - height), (0, own[1] - width), (0, 0)]
        session = sessions[own]
        padded = np.pad(images_NHW3.astype(np.float32), padding)
        [logits] = session.run(None, {session.get_inputs()[0].name: padded})
        return logits.argmax(-1)[:, :height, :width]

    return predict


def tensorflow_predictor(config: Inference, folder: Path) -> tuple[dict, Predictor]:
    from benchmarks.inference_models import build
    from export.graph import load_saved_model

    if config.side == "saved_model":
        predict = load_saved_model(folder / "saved_model")
        size = sum(file.stat().st_size for file in (folder / "saved_model").rglob("*") if file.is_file())
        return {"bytes": size}, lambda images: predict(images)["labels"]
    segmenter = build(config.networks[0]).segmenter

    def in_batch(images_NHW3: np.ndarray) -> np.ndarray:
        return segmenter.predict(images_NHW3, batch_size=len(images_NHW3), verbose=0).argmax(-1)

    return {"parameters": segmenter.count_params()}, in_batch


def pytorch_predictor(config: Inference) -> tuple[dict, Predictor]:
    import torch

    from benchmarks.pytorch_networks import build_segmenter

    side = config.side or ""
    torch.set_num_threads(config.cores)
    torch.backends.cudnn.benchmark = True
    half = torch.float16 if "fp16" in side else torch.float32
    segmenter, backbone, head_channels, _ = NETWORKS[config.networks[0]]
    network = build_segmenter(segmenter, backbone, classes=CLASSES, pad=True, head_channels=head_channels)
    count = sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point())
    network = network.to(config.provider, half, memory_format=torch.channels_last).eval()

    def segment(images_NHW3):
        logits = network(images_NHW3.permute(0, 3, 1, 2).to(half))  # a view: NHWC is what channels last means
        confidence, labels = logits.float().softmax(1).max(1)
        return labels.to(torch.uint8), confidence

    if side.endswith("compiled"):
        if config.provider == "cpu":
            torch._inductor.config.freezing = True
        mode = "reduce-overhead" if config.provider == "cuda" else None  # CUDA graphs
        segment = torch.compile(segment, dynamic=False, mode=mode)

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            labels, confidence = segment(torch.from_numpy(images).to(config.provider))
            confidence.cpu()
            return labels.cpu().numpy()

    # Normalisation has three numbers of its own in PyTorch.
    return {"parameters": count - 3}, predict


def measured_process(config: Inference) -> None:
    hold_to_cores(config.cores)
    facts, predict = make_predictor(config, config.models / config.networks[0])
    if config.side != "keras_hub":
        facts["labels"] = predict(random_images((1, *CHECKED_SIZE))).ravel().tolist()
    inputs = {"x".join(map(str, case)): random_images(case) for case in config.cases}
    for images in inputs.values():
        for _ in range(3):  # compiles, chooses algorithms, takes memory
            predict(images)

    def turn() -> Record:
        record: Record = {"load": os.getloadavg()[0]}
        for name, images in inputs.items():
            times: list[float] = []
            while not times or sum(times) < config.seconds:
                began = time.perf_counter()
                predict(images)
                times.append(time.perf_counter() - began)
            record[name] = statistics.median(times)
        return record | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}

    take_turns(facts, turn)


def check(ready: dict[str, dict]) -> None:
    """ValueError unless the sides do the same, by the facts they gave before their first turn."""
    first = ready["fp32"]["labels"]
    for side in SAME_WEIGHTS:
        if side in ready:
            agreement = statistics.mean(a == b for a, b in zip(first, ready[side]["labels"], strict=True))
            if agreement < 0.999:
                raise ValueError(f"{side} gives the labels of fp32 on only {agreement:.2%} of the pixels")
    counts = {side: facts["parameters"] for side, facts in ready.items() if "parameters" in facts}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the networks do not have the same number of weights: {counts}")


def table(config: Inference, network: str, ready: dict[str, dict], turns: dict[str, list[Record]]) -> list[str]:
    """Markdown, a row a side."""
    names = ["x".join(map(str, case)) for case in config.cases]
    lines = [
        f"| {network}, {config.provider} | {' | '.join(f'{name}, ms | to fp32' for name in names)} | MiB | file MB |",
        "| --- |" + " ---: | ---: |" * len(names) + " ---: | ---: |",
    ]
    for side, records in turns.items():
        cells = [side]
        for name in names:
            own, fp32 = ([1000 * record[name] for record in each] for each in (records, turns["fp32"]))
            # Each turn against its neighbour: other work of the machine slows both.
            pairs = [mine / other for mine, other in zip(own, fp32, strict=True)]
            cells += [spread(own), spread(pairs, statistics.median(own) / statistics.median(fp32))]
        size = ready[side].get("bytes")
        cells += [f"{max(record['peak'] for record in records):.0f}", f"{size / 1e6:.1f}" if size else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(config: Inference) -> dict:
    if config.side is not None:
        measured_process(config)
        return {}
    require_cores(config.cores)
    sides = ("fp32", *(side for side in config.sides or SIDES[config.provider] if side != "fp32"))
    lines = [
        f"{circumstances('onnxruntime-gpu', 'torch')}; {config.cores} of the cores. Milliseconds of a batch NxHxW, "
        f"{config.repeats} turns: median (smallest to largest); its ratio to fp32's, of the medians and (of turns side "
        "by side).",
        "",
    ]
    flags = ["--models", str(config.models), "--provider", config.provider, "--cores", str(config.cores)]
    flags += ["--sizes", *(str(length) for size in config.sizes for length in size)]
    flags += ["--batches", *map(str, config.batches), "--seconds", str(config.seconds)]
    ratios: dict[str, dict] = {}
    for network in config.networks:
        write_missing(config, network)
        there = [side for side in sides if side != "keras_hub" or any((config.models / network).glob("keras_hub*"))]
        command = [sys.executable, "-m", "benchmarks.inference", *flags, "--networks", network]
        ready, turns = measure({side: [*command, "--side", side] for side in there}, config.repeats)
        check(ready)
        lines += [*table(config, network, ready, turns), ""]
        print("\n".join(lines), file=sys.stderr)
        write_between_markers(config.results, "\n".join(lines))  # each takes minutes: keep what there is
        fp32 = turns["fp32"]
        ratios[network] = {
            side: {
                name: round(statistics.median(r[name] for r in records) / statistics.median(r[name] for r in fp32), 3)
                for name in ("x".join(map(str, case)) for case in config.cases)
            }
            for side, records in turns.items()
        }
    return ratios


def write_missing(config: Inference, network: str) -> None:
    """Makes the exported networks in a process of its own, unless all are there: TensorFlow keeps its memory."""
    folder = config.models / network
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.inference_models", "--network", network, "--folder", str(folder)]
    command += ["--sizes", *(str(length) for size in config.sizes for length in size)]
    if subprocess.run(command).returncode:
        raise ValueError(f"{network} could not be exported; what went wrong is above")
    (folder / "complete").touch()


if __name__ == "__main__":
    cli.run(main, Inference, __doc__ or "")
