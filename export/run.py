"""Run folder to model artifact: `python -m export.run RUN --out MODELS/name`."""

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

# isort: off
import kerasseg  # noqa: F401 (first: it prepares the start of TensorFlow, and registers what model.keras is made of)

# isort: on
import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx
import tyro

from export.graph import (
    INPUTS,
    OPSET,
    features_of,
    load_openvino,
    load_saved_model,
    outputs_of,
    serving_function,
    to_onnx,
    write_onnx,
    write_openvino,
    write_saved_model,
)
from export.parity import LIMITS, Limits, Precision, Predictor, Sample, parity_report
from export.precision import to_fp16, to_int8
from kerasseg.data import evenly_spaced, open_dataset
from kerasseg.methods import Method
from serving.common import cli
from serving.common.artifact import (
    FEATURES,
    GRAPH_FILE,
    INFO_FILE,
    MAX_CLASSES,
    Artifact,
    ModelInfo,
    sha256_of,
    versions,
)
from serving.common.images import load_image, load_labels
from serving.model.engine import Engine
from training.checkpoints import CheckpointName, open_method
from training.run_folder import Run

Format = Literal["onnx", "saved_model", "openvino"]
"""LiteRT, which Keras writes too, is not among them: docs/decisions/export.md says why."""
DEFAULT_FORMATS: tuple[Format, ...] = ("onnx", "saved_model")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What is exported, and how."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""
    out: Path
    """MODELS/name: the folder of the model's versions; this export becomes the next numbered one."""
    formats: tuple[Format, ...] | None = None
    """Formats to write. ONNX is served, so it must be among them. None is onnx and saved_model with fp32, and only onnx
    with another precision."""
    checkpoint: CheckpointName = "last"
    """The state at the end of the training, or the one with the best score on val during it."""
    precision: Precision = "fp32"
    """Precision of the graph's arithmetic: fp16 is for GPUs, int8 for CPUs: the segmenter in 8-bit integers, calibrated
    on the run's training images."""
    max_miou_loss: float | None = None
    """Refuse a graph that loses more mIoU than this, in points; None for 0.1 with fp32 and 0.5 otherwise."""
    logits: bool = False
    """The graph also gives the logits of each class, with which images too large for one piece are put together."""
    images: Annotated[int | None, tyro.conf.arg(name="parity-images")] = None
    """How many validation images the exported graphs are compared on; None for 20 with fp32 and 100 otherwise."""
    calibration_images: int = 64
    """How many training images int8 is calibrated on."""

    @property
    def wanted_formats(self) -> tuple[Format, ...]:
        return self.formats or (DEFAULT_FORMATS if self.precision == "fp32" else DEFAULT_FORMATS[:1])

    @property
    def limits(self) -> Limits:
        limits = LIMITS[self.precision]
        if self.max_miou_loss is None:
            return limits
        return dataclasses.replace(limits, miou_loss=self.max_miou_loss / 100)


def main(config: ExportConfig) -> dict[str, Any]:
    """Exports the run; returns the figures printed at the end."""
    check(config)
    run = read_run(config.run)
    samples = parity_samples(run, config.images or (20 if config.precision == "fp32" else 100))
    calibration = calibration_images(run, config.calibration_images) if config.precision == "int8" else None
    number = max(versions(config.out), default=0) + 1
    folder = config.out / str(number)

    made = [parent for parent in (config.out, *config.out.parents) if not parent.exists()]
    beside = config.out / f".{number}-{os.getpid()}.tmp"
    beside.mkdir(parents=True)
    try:
        info = write_artifact(beside, config, run, number, samples, calibration)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: the export succeeded
                parent.rmdir()
    onnx = info.parity["formats"]["onnx"]
    return {
        "artifact": str(folder),
        "formats": list(info.parity["formats"]),
        "mIoU": info.parity["mIoU"],
        "agreement": onnx["agreement"],
        "largest_confidence_error": onnx["largest_confidence_error"],
        "bytes": (folder / GRAPH_FILE).stat().st_size,
    }


def check(config: ExportConfig) -> None:
    """Raises ValueError for impossible flags, before anything slow begins."""
    if "onnx" not in config.wanted_formats:
        raise ValueError("--formats must name onnx: it is the graph that is served")
    if set(config.wanted_formats) - {"onnx"} and config.precision != "fp32":
        raise ValueError(f"other formats compute in fp32: give --formats onnx with --precision {config.precision}")
    if "openvino" in config.wanted_formats and find_spec("openvino") is None:
        raise ValueError('--formats openvino needs OpenVINO: pip install "kerasseg[openvino]"')
    if config.images is not None and config.images < 1:
        raise ValueError(f"--parity-images must be at least 1, got {config.images}")
    if config.calibration_images < 1:
        raise ValueError(f"--calibration-images must be at least 1, got {config.calibration_images}")
    if config.max_miou_loss is not None and not 0 <= config.max_miou_loss <= 100:
        raise ValueError(f"--max-miou-loss is in points of mIoU, 0 to 100; got {config.max_miou_loss}")
    out = config.out.resolve()
    if out.name.isdecimal():
        raise ValueError(f"--out {config.out} names a version: give MODELS/name, the next version is chosen for you")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {config.out} is a file: give a folder, MODELS/name")
    strangers = sorted(child.name for child in out.iterdir() if not child.name.isdecimal()) if out.exists() else []
    if visible := [child for child in strangers if not child.startswith(".")]:
        raise ValueError(f"--out {config.out} holds {visible[0]}, which is no model version: give a new MODELS/name")


def read_run(folder: Path) -> Run:
    """A finished run whose classes a label map of bytes can hold.

    Raises:
        ValueError: no run folder, an unfinished run, or more than `MAX_CLASSES` classes.
    """
    run = Run.read_finished(folder)
    if len(run.classes) > MAX_CLASSES:
        raise ValueError(f"labels are bytes and 255 is no class, so {len(run.classes)} classes are too many")
    return run


def parity_samples(run: Run, count: int) -> list[Sample]:
    """Up to `count` labelled validation images of the run's dataset, spread evenly over their names.

    Where the dataset no longer exists, the example images of the run folder.

    Raises:
        ValueError: there are neither.
    """
    try:
        dataset = open_dataset(run.config["dataset"])
        names = dataset.label_names("val")
        return [
            Sample(dataset.load_image("val", name), dataset.load_label("val", name))
            for name in evenly_spaced(names, count)
        ]
    except (ValueError, OSError) as error:
        kept = sorted(path.parent for path in (run.folder / "examples").glob("*/truth.png"))
        if not kept:
            raise ValueError(
                f"no images to compare the exported graph on: {error}; and {run.folder / 'examples'} has none"
            ) from error
        print(f"{error}; comparing on the run's {len(kept)} example images instead", file=sys.stderr)
        return [
            Sample(load_image(example / "image.png"), load_labels(example / "truth.png"))
            for example in evenly_spaced(kept, count)
        ]


def calibration_images(run: Run, count: int) -> Iterator[np.ndarray]:
    """Training images of the run, uint8 (H,W,3).

    Raises:
        ValueError: they no longer exist.
    """
    names = sorted(name for role in run.split.values() for name in role)
    try:
        dataset = open_dataset(run.config["dataset"])
        names = names or list(dataset.image_names("train"))
        if missing := set(names) - set(dataset.image_names("train")):
            raise ValueError(f"{min(missing)} is not there")
    except ValueError as error:
        raise ValueError(f"int8 is calibrated on the run's training images, which are missing: {error}") from error
    return (dataset.load_image("train", name) for name in evenly_spaced(names, count))


def reference(method: Method, logits: bool) -> Predictor:
    """The trained model, as `parity_report` needs it."""

    def predict(images_NHWC: np.ndarray) -> dict[str, np.ndarray]:
        answer = method.infer(images_NHWC.astype(np.float32), features=True)
        labels_NHW = np.zeros(images_NHWC.shape[:3], np.uint8)
        first_NHW, second_NHW = np.zeros(labels_NHW.shape, np.float32), np.zeros(labels_NHW.shape, np.float32)
        for k in range(method.num_classes):  # all at once are gigabytes for 12 megapixels
            p_NHW = answer.at_own_size(answer.variants[""][..., k : k + 1])[..., 0].numpy()
            labels_NHW[p_NHW > first_NHW] = k
            second_NHW = np.maximum(second_NHW, np.minimum(first_NHW, p_NHW))
            first_NHW = np.maximum(first_NHW, p_NHW)
        said: dict[str, np.ndarray] = {"labels": labels_NHW, "confidence": first_NHW, "margin": first_NHW - second_NHW}
        said |= {} if answer.reliability_BHW is None else {"reliability": answer.reliability_BHW.numpy()}
        said |= {} if answer.features_BD is None else {FEATURES: answer.features_BD.numpy()}
        return said | ({"logits": answer.logits_BHWK.numpy()} if logits else {})

    return predict


def write_artifact(
    folder: Path,
    config: ExportConfig,
    run: Run,
    number: int,
    samples: list[Sample],
    calibration: Iterator[np.ndarray] | None = None,
) -> ModelInfo:
    """Writes graph, report and `model.json` into `folder`; int8 where there are images for calibration.

    Raises:
        ValueError: the method cannot be converted, or the graphs differ from it by more than the limits.
    """
    say = partial(print, file=sys.stderr)
    method, evaluation = open_method(run, config.checkpoint)
    size = method.config.working_size
    if size is not None and config.logits:
        raise ValueError(
            f"the run's model shrinks larger images to {size} pixels by itself, so it needs no logits to put windows "
            "together: leave --logits out, or train with --size native"
        )
    serve = serving_function(method, config.logits)
    name = config.out.resolve().name
    provenance = {
        "run": {key: value for key, value in run.config.items() if key not in ("classes", "palette")},
        "commit": run.config.get("commit"),
        "split_fingerprint": run.config.get("split_fingerprint"),
        "checkpoint": config.checkpoint,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {module.__name__: module.__version__ for module in (tf, keras, np, onnx, onnxruntime, tf2onnx)},
    }
    metadata = {
        "name": name,
        "version": number,
        "classes": run.classes,
        "palette": run.config["palette"],
        "precision": config.precision,
        "provenance": provenance,
    }
    say(f"writing {name}/{number}: {', '.join(config.wanted_formats)}")
    graph = to_onnx(serve)
    if config.precision == "fp16":
        graph = to_fp16(graph, kept=[getattr(method, network).name for network in method.gating])
    elif calibration is not None:
        graph = to_int8(graph, calibration, method.predictor.name)
    nodes = write_onnx(graph, folder / GRAPH_FILE, metadata)
    info = ModelInfo(
        **metadata | {"provenance": provenance | {"opset": OPSET, "nodes": nodes}},
        inputs=INPUTS,
        outputs=outputs_of(serve),
        working_size=size,
        features=features_of(serve),
        evaluation=evaluation,
        sha256=sha256_of(folder / GRAPH_FILE),
        parity={},
    )
    predict = Engine(Artifact(folder, info), "cpu").predict
    formats: dict[str, Predictor] = {"onnx": partial(predict, outputs=info.all_outputs)}
    if "saved_model" in config.wanted_formats:
        write_saved_model(serve, folder / "saved_model")
        formats["saved_model"] = load_saved_model(folder / "saved_model")
    if "openvino" in config.wanted_formats:
        with tempfile.TemporaryDirectory() as apart:
            source = folder / GRAPH_FILE
            if size is not None:
                source = Path(apart) / GRAPH_FILE
                write_onnx(to_onnx(serving_function(method, for_openvino=True)), source, metadata)
            write_openvino(source, folder / "openvino")
        formats["openvino"] = load_openvino(folder / "openvino")

    say(f"comparing with the trained model on {len(samples)} images")
    report = parity_report(
        reference(method, config.logits), formats, samples, len(run.classes), config.limits, working_size=size
    )
    if not report["passed"]:
        failed = {name: result for name, result in report["formats"].items() if not result["passed"]}
        figures = "; ".join(
            f"{name}: labels agree on {result['agreement_where_clear']:.4%} of clear pixels, confidence is off by "
            f"{result['largest_confidence_error']:.2g}, mIoU by {100 * (result['mIoU_change'] or 0.0):+.2f} points"
            for name, result in failed.items()
        )
        more = "" if config.precision == "fp32" else "; --max-miou-loss allows more, fp32 loses nothing"
        raise ValueError(f"the exported graph differs from the trained model, so nothing is written ({figures}){more}")
    info = dataclasses.replace(info, parity=report)
    (folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")
    return info


COMMAND = cli.Command(
    main, ExportConfig, "Exports a finished run as a model artifact: ONNX, SavedModel and parity report."
)

if __name__ == "__main__":
    COMMAND.run()
