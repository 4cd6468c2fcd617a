"""`python -m benchmarks.batch MODELS/NAME IMAGES`: a batch job against the bare engine, and its memory over files.

The engine predicts the same images, already decoded, in the same batches; the job reads, decodes, predicts, encodes and
writes. Each has a process of its own, and they take turns. For the memory, a job with the tests' model, which takes
hardly any time, segments 100,000 files (links to a few).
"""

import contextlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks.load import jpegs
from benchmarks.results_file import write_between_markers
from benchmarks.turns import Record, circumstances, measure, resident_mib, spread, take_turns
from serving.batch import command as batch
from serving.batch.jobs import find_jobs
from serving.common import cli
from serving.common.artifact import open_artifact
from serving.common.images import load_image
from serving.model.engine import Engine, Provider
from tests.serving.toy_model import write_toy_model

JOBS = {
    "job: labels": ("labels",),
    "job: labels, overlay": ("labels", "overlay"),
    "job: labels, confidence, rle": ("labels", "confidence", "rle"),
}
"""What is written, by side."""

ENGINE = "engine"
SHARES = (0.01, 0.1, 0.5, 0.99)
"""Shares of the files after which the memory is measured."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What to measure, and where the table goes."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """MODELS/name."""
    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES")]
    """A folder."""
    provider: Provider = "auto"
    """Where to run."""
    batch_size: int = 4
    """Images predicted together."""
    repeats: int = 5
    """Turns of each side; the table has their median, smallest and largest."""
    files: int = 100_000
    """Number of files for the memory measurement."""
    results: Path = Path("benchmarks/results/batch.md")
    """The tables are written between the markers of this file."""
    side: str | None = None
    """Be the process that is measured; set by the benchmark itself."""


def engine_process(config: Batch) -> None:
    """Predicts the images, decoded before, in batches of one size."""
    engine = Engine(open_artifact(config.model), config.provider)
    jobs = find_jobs(str(config.images), Path("nowhere"), recursive=False)
    images = sorted((load_image(job.source) for job in jobs), key=lambda image_HWC: image_HWC.shape)
    batches = []
    for _, alike in itertools.groupby(images, key=lambda image_HWC: image_HWC.shape):
        group = list(alike)
        starts = range(0, len(group), config.batch_size)
        batches += [np.stack(group[start : start + config.batch_size]) for start in starts]
    maps = [name for name in ("labels", "confidence", "reliability") if name in engine.outputs]
    engine.predict(batches[0], maps)

    def turn() -> Record:
        start = time.perf_counter()
        for images_NHWC in batches:
            engine.predict(images_NHWC, maps)
        return {"rate": len(images) / (time.perf_counter() - start)}

    take_turns({"images": len(images)}, turn)


def job_process(config: Batch, side: str) -> None:
    """Runs the whole command, into an empty folder each time."""

    def turn() -> Record:
        with tempfile.TemporaryDirectory() as output, contextlib.redirect_stderr(io.StringIO()):
            result = batch.main(
                batch.BatchConfig(
                    model=config.model,
                    input=str(config.images),
                    output=Path(output),
                    provider=config.provider,
                    batch_size=config.batch_size,
                    write=JOBS[side],
                )
            )
        return {"rate": result["images_per_second"]}

    turn()
    take_turns({}, turn)


def throughput(config: Batch) -> list[str]:
    """The table of the engine and what a job writes."""
    own = [str(config.model), str(config.images), "--provider", config.provider]
    own += ["--batch-size", str(config.batch_size)]
    command = [sys.executable, "-m", "benchmarks.batch", *own, "--side"]
    ready, turns = measure({side: [*command, side] for side in (ENGINE, *JOBS)}, config.repeats)
    rows = []
    for side, records in turns.items():
        rates = [record["rate"] for record in records]
        ratios = [rate / record["rate"] for rate, record in zip(rates, turns[ENGINE], strict=True)]
        rows.append(f"| {side} | {spread(rates)} | {spread(ratios)} |")
    return [
        f"{ready[ENGINE]['images']} images, batches of {config.batch_size}; median of {config.repeats} turns, "
        "smallest and largest.",
        "",
        "| | images a second | to the engine, by turn |",
        "| --- | ---: | ---: |",
        *rows,
    ]


def memory(config: Batch) -> str:
    """The memory of a job over many files, at `SHARES` of them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = write_toy_model(folder / "models/toy", 1)
        (folder / "few").mkdir()
        few = [folder / "few" / f"{number}.jpg" for number in range(16)]
        for path, contents in zip(few, jpegs((240, 320), len(few)), strict=True):
            path.write_bytes(contents)
        (folder / "many").mkdir()
        for number in range(config.files):
            os.link(few[number % len(few)], folder / "many" / f"{number:06}.jpg")
        output = folder / "output"
        flags = ["--provider", "cpu", "--write", "labels"]
        command = [sys.executable, "-m", "serving.batch", str(model), str(folder / "many"), str(output), *flags]
        start = time.perf_counter()
        job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        lines, found = output / "manifest.jsonl", []
        for share in SHARES:
            while (done := count_lines(lines)) < share * config.files and job.poll() is None:
                time.sleep(0.5)
            if job.poll() is None:
                found.append((done, resident_mib(job.pid)))
        job.wait()
        if job.returncode or len(found) < len(SHARES):
            raise ValueError(f"the job over {config.files} files ended with status {job.returncode}")
        seconds = time.perf_counter() - start
    said = ", ".join(f"{mib:.0f} MiB after {count:,}" for count, mib in found)
    return f"{config.files:,} files of 320x240 in {seconds:.0f} s, with the tests' model, labels only: {said}."


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main(config: Batch) -> dict:
    if config.side:
        engine_process(config) if config.side == ENGINE else job_process(config, config.side)
        return {}
    about = circumstances("onnxruntime-gpu", "pillow", "numpy")
    text = "\n".join([f"{about}.", "", *throughput(config), "", memory(config)])
    write_between_markers(config.results, text + "\n")
    return {"results": str(config.results)}


if __name__ == "__main__":
    cli.run(main, Batch, __doc__ or "")
