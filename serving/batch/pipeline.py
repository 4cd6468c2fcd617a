"""The worker of a batch job: images in, files and records out.

    images --> decoding threads --> batches of one size --> engine --> writing threads --> files, records

Decoding, prediction and writing overlap. Every stage holds a bounded number of images, fewer of large ones, so memory
does not grow with their number.
"""

import errno
import hashlib
import io
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from serving.batch.annotations import labelme
from serving.batch.annotations.contract import Segmented
from serving.batch.annotations.job_files import TOOLS
from serving.batch.jobs import FILES, Job, Kind
from serving.common.areas import areas
from serving.common.artifact import FEATURES, Artifact
from serving.common.files import write_atomically
from serving.common.images import index_png, jpeg, load_image, map_png, overlay, read_file
from serving.model.engine import Engine, batch_limit, usable_cpus

WAITING_PIXELS = 2**26
"""Pixels of decoded images that wait for the engine, or of results that wait to be written, about: 200 and 800 MB."""

T = TypeVar("T")
R = TypeVar("R")

FindRecord = Callable[[str], dict[str, Any]]
"""The record that an earlier job wrote of an image; an empty one if there is none."""


@dataclass(frozen=True, kw_only=True)
class SegmentOptions:
    """How images are segmented, and what is written of them."""

    output: Path
    write: tuple[Kind, ...]
    runs_file: str
    """Where in `output` run lengths go."""
    batch_size: int
    max_pixels: int
    """Larger images fail."""
    window: tuple[int, int] | None
    """Height and width, pixels, of the windows by which larger images are segmented; None: all in one piece."""
    stride: float
    polygons: float | None = None
    """The tolerance of polygons for annotation tools, pixels; None for masks."""

    @property
    def affecting_results(self) -> dict[str, Any]:
        """Those that change what is found in an image, or said of it."""
        windows = {"window": list(self.window), "stride": self.stride} if self.window else {}
        return windows | ({} if self.polygons is None else {"polygons": self.polygons})


@dataclass
class DecodedImage:
    job: Job
    image_HWC: np.ndarray
    record: dict[str, Any]

    @property
    def pixels(self) -> int:
        return self.image_HWC.shape[0] * self.image_HWC.shape[1]


def segment(engine: Engine, options: SegmentOptions, jobs: Iterable[Job], find: FindRecord) -> Iterator[dict[str, Any]]:
    """Segments the images and writes the results; yields a manifest record for each, in any order.

    What is done already, with the same image, model and options, is yielded as `{"status": "skipped"}`. A record may
    have an entry `"runs"`, its line in the file of run lengths, and `"pieces"`, by tool its line in the tool's file.

    Raises:
        OSError: a result cannot be written; after the records of those that could.
    """
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is for what strangers send; ours is `options.max_pixels`
    workers = usable_cpus()
    writing: deque[tuple[int, Future[dict[str, Any]]]] = deque()
    writing_pixels = 0
    most = 2 * options.batch_size + workers
    ahead = workers  # until it is known how large the images are
    failure: OSError | None = None

    def written() -> dict[str, Any]:
        nonlocal writing_pixels
        pixels, future = writing.popleft()
        writing_pixels -= pixels
        return future.result()

    with ThreadPoolExecutor(workers, "decode") as decoders, ThreadPoolExecutor(workers, "write") as writers:
        decoded = bounded_map(decoders, lambda job: decode(job, engine.artifact, options, find), jobs, lambda: ahead)
        try:
            for batch in group_by_size(decoded, options.batch_size):
                if isinstance(batch, dict):
                    yield batch
                    continue
                ahead = max(2, min(most, WAITING_PIXELS // batch[0].pixels))
                for image, outputs in predict(engine, batch, options):
                    if "error" in image.record:
                        yield image.record
                        continue
                    while writing and (writing_pixels > WAITING_PIXELS or len(writing) > 2 * workers):
                        yield written()
                    writing.append((image.pixels, writers.submit(write, image, outputs, engine.artifact, options)))
                    writing_pixels += image.pixels
                while writing and writing[0][1].done():
                    yield written()
        except OSError as error:
            failure = error
        while writing:
            try:
                yield written()
            except OSError as error:
                failure = failure or error
    if failure:
        raise failure


def bounded_map(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: Callable[[], int]
) -> Iterator[R]:
    """`pool.map` with at most `ahead()` items begun and not yet taken: the input may be longer than memory."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            while len(pending) >= ahead():
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def decode(job: Job, artifact: Artifact, options: SegmentOptions, find: FindRecord) -> DecodedImage | dict[str, Any]:
    """Reads one image, or returns the record that says why it need not, or cannot, be segmented."""
    start = time.perf_counter()
    record: dict[str, Any] = {
        "input": job.name,
        "status": "error",
        "key": None,
        "sha256": None,
        "model": f"{artifact.info.name}/{artifact.info.version}",
        "model_sha256": artifact.info.sha256,
        "options": options.affecting_results,
    }
    try:
        contents = read_file(job.source, options.max_pixels)
        record["sha256"] = hashlib.sha256(contents).hexdigest()
        record["key"] = key_of(record["sha256"], artifact, options)
        outputs = outputs_of(job, options)
        if is_done(find(job.name), record["key"], outputs, options.output):
            return {"status": "skipped"}
        image_HWC = load_image(contents, name=job.source, max_pixels=options.max_pixels)
    except (OSError, ValueError) as error:
        return failed(record, str(error))
    except MemoryError:
        return failed(record, f"{job.source} cannot be read: out of memory")
    height, width = image_HWC.shape[:2]
    seconds = time.perf_counter() - start
    return DecodedImage(
        job, image_HWC, record | {"outputs": outputs, "height": height, "width": width, "seconds": seconds}
    )


def failed(record: dict[str, Any], error: str) -> dict[str, Any]:
    """The record of an image of which nothing came."""
    return record | {"status": "error", "error": error, "finished": time.time()}


def key_of(sha256: str, artifact: Artifact, options: SegmentOptions) -> str:
    """What results depend on, as one hash: the image's contents, the model and its colours, and the options."""
    info = artifact.info
    parts = json.dumps([sha256, info.sha256, info.classes, info.palette, options.affecting_results])
    return hashlib.sha256(parts.encode()).hexdigest()


def outputs_of(job: Job, options: SegmentOptions) -> dict[str, str]:
    """By kind, the image's files, below the output folder."""
    shared = {"rle": options.runs_file} | {kind: tool.FILE for kind, tool in TOOLS.items()}
    return {kind: shared.get(kind) or FILES[kind].format(job.output_name) for kind in options.write}


def is_done(record: dict[str, Any], key: str, outputs: dict[str, str], folder: Path) -> bool:
    """Whether an earlier job's record, and its files, are what would be made now."""
    return (
        (record.get("status"), record.get("key")) == ("ok", key)
        and outputs.items() <= record["outputs"].items()
        and all(
            stamp_of(folder / outputs[kind]) == record["stamps"].get(kind) or is_kept(kind, folder / outputs[kind])
            for kind in outputs
            if kind in FILES
        )
    )


def is_kept(kind: str, path: Path) -> bool:
    """Whether a file is there that a person has corrected, which no job writes over."""
    return kind == "labelme" and labelme.is_edited(path)


def stamp_of(path: Path) -> list[int] | None:
    """Size, bytes, and time of a file, nanoseconds: whether it is still the one that was written; None without one."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def group_by_size(
    images: Iterable[DecodedImage | dict[str, Any]], batch_size: int
) -> Iterator[list[DecodedImage] | dict[str, Any]]:
    """Collects images of one size into batches; records pass through.

    Holds at most `2 * batch_size` images back: where every image has its own size, the batches are
    smaller.
    """
    groups: dict[tuple[int, ...], list[DecodedImage]] = {}
    waiting = 0
    for image in images:
        if isinstance(image, dict):
            yield image
            continue
        size = image.image_HWC.shape[:2]
        groups.setdefault(size, []).append(image)
        waiting += 1
        if len(groups[size]) < batch_limit(size, batch_size):
            if waiting < 2 * batch_size:
                continue
            size = max(groups, key=lambda size: len(groups[size]))  # of equals, the one that has waited longest
        batch = groups.pop(size)
        waiting -= len(batch)
        yield batch
    yield from groups.values()


def predict(
    engine: Engine, batch: list[DecodedImage], options: SegmentOptions
) -> Iterator[tuple[DecodedImage, dict[str, np.ndarray]]]:
    """Segments images of one size, one by one if the batch fails; what still fails gets an error record."""
    start = time.perf_counter()
    try:
        outputs = _predict([image.image_HWC for image in batch], engine, options)
    except Exception as error:  # out of memory, most likely; onnxruntime's exceptions have no public base class
        if len(batch) > 1:
            for image in batch:
                yield from predict(engine, [image], options)
            return
        message = f"{batch[0].job.source} cannot be segmented: {error}"
        batch[0].record = failed(batch[0].record, message)
        yield batch[0], {}
        return
    seconds = (time.perf_counter() - start) / len(batch)
    for index, image in enumerate(batch):
        image.record["seconds"] += seconds
        image.record["provider"] = engine.provider
        yield image, {name: output[index] for name, output in outputs.items()}


def _predict(images_HWC: list[np.ndarray], engine: Engine, options: SegmentOptions) -> dict[str, Any]:
    height, width = images_HWC[0].shape[:2]
    if options.window and (height > options.window[0] or width > options.window[1]):
        found = [
            engine.predict_large(
                image_HWC, options.window, options.stride, options.batch_size, FEATURES in options.write
            )
            for image_HWC in images_HWC
        ]
        return {name: [each[name] for each in found] for name in found[0]}
    # Images segmented by windows have no reliability, so it would be no measure for all.
    maps = ["labels", "confidence"] if options.window else ["labels", "confidence", "reliability"]
    wanted = [name for name in maps if name in engine.outputs] + [FEATURES] * (FEATURES in options.write)
    return engine.predict(np.stack(images_HWC), wanted)


def _npy(array: np.ndarray) -> bytes:
    """A NumPy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write(
    image: DecodedImage, outputs: dict[str, np.ndarray], artifact: Artifact, options: SegmentOptions
) -> dict[str, Any]:
    """Writes the files of one image and returns its finished record.

    What a format cannot hold, or a name that is too long, is the image's fault. That a file cannot be written (a full
    disk, a forbidden folder) is not: the OSError ends the job.
    """
    start = time.perf_counter()
    info, labels_HW, record = artifact.info, outputs["labels"], image.record
    means = {
        f"mean_{name}": round(float(outputs[name].mean()), 6)
        for name in ("confidence", "reliability")
        if name in outputs
    }
    segmented = Segmented(
        source=image.job.source,
        name=image.job.name,
        labels_HW=labels_HW,
        classes=info.classes,
        model=f"{info.name}/{info.version}",
        confidence=means.get("mean_confidence"),
        polygons=options.polygons,
    )
    encode: dict[str, Callable[[], bytes]] = {
        "labels": lambda: index_png(labels_HW, info.palette),
        "overlay": lambda: jpeg(overlay(image.image_HWC, labels_HW, info.palette)),
        "confidence": lambda: map_png(outputs["confidence"]),
        "reliability": lambda: map_png(outputs["reliability"]),
        "features": lambda: _npy(outputs[FEATURES]),
        "labelme": lambda: labelme.contents(segmented, options.output / record["outputs"]["labelme"]),
    }
    try:
        files = {kind: encode[kind]() for kind in options.write if kind in FILES}
        pieces = {kind: TOOLS[kind].piece(segmented) for kind in options.write if kind in TOOLS}
    except (OSError, ValueError, MemoryError) as error:
        reason = str(error) or "out of memory"
        return failed(record, f"the result of {image.job.source} cannot be written as an image: {reason}")
    stamps = {}
    for kind, contents in files.items():
        path = options.output / record["outputs"][kind]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not is_kept(kind, path):
                write_atomically(path, contents)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return failed(record, str(error))
        stamps[kind] = stamp_of(path)
    found = areas(labels_HW, info.classes, runs="rle" in options.write)
    size = {"height": record["height"], "width": record["width"]}
    runs = {"input": image.job.name, "key": record["key"], **size, "classes": found}
    finished = time.time()
    lines = {
        tool: {"input": image.job.name, "key": record["key"], "finished": finished, "piece": piece}
        for tool, piece in pieces.items()
    }
    return (
        record
        | {"status": "ok", "stamps": stamps, "classes": {each["name"]: each["share"] for each in found}}
        | means
        | {"seconds": round(record["seconds"] + time.perf_counter() - start, 4), "finished": finished}
        | ({"runs": runs} if "rle" in options.write else {})
        | ({"pieces": lines} if lines else {})
    )
