"""The models that a server has: opened, proven and warm before they answer, replaced without a request noticing.

MODELS/name/VERSION/ --> Model (engine, batcher, statistics) --> Repository (by name and version)
"""

import functools
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from serving.common.artifact import GRAPH_FILE, INFO_FILE, ModelInfo, open_artifact, versions
from serving.common.inputs import shown
from serving.model.batcher import Batcher, Closed, Ticket
from serving.model.engine import GPU_SHAPES, Engine, Provider, batch_limit, gpu_batch, usable_cpus
from serving.model.statistics import Statistics

log = logging.getLogger("serving")

Size = tuple[int, int]
"""Height and width, pixels."""

MAX_CHANGED = 0.001
"""Share of labels that padding to a bucket may change; beyond it the model's pictures are not padded."""


RESERVED_NAME = "stats"
"""Triton's clients ask for the statistics of all models where one of this name would be."""


class UnknownModel(Exception):
    """No such model, or no such version of it, is served."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How every model is run; the flags of `python -m serving.run` explain them."""

    provider: Provider = "cpu"
    threads: int | None = None
    workers: int = 1
    batch_size: int = 8
    max_delay: float = 0.001
    """Seconds."""
    max_queue: int = 64
    warm_up: tuple[Size, ...] = ()
    buckets: tuple[Size, ...] = ()
    samples: Sequence[np.ndarray] = ()
    """Pictures uint8 (H,W,3) on which buckets are tried."""
    versions: int = 1


@dataclass
class Job:
    """Pictures of one size on their way through a model."""

    images_NHWC: np.ndarray
    outputs: tuple[str, ...]
    size: Size
    """Before padding."""
    submitted: int = field(default_factory=time.perf_counter_ns)


@dataclass(frozen=True)
class Answer:
    """Outputs by name, (N,H,W) each, and nanoseconds by phase (`serving.model.statistics.PHASES`)."""

    outputs: dict[str, np.ndarray]
    durations: dict[str, int]
    submitted: int
    """When, by `time.perf_counter_ns`."""


class Model:
    """A version of a model, warm.

    Args:
        folder: MODELS/name/VERSION.

    Raises:
        ValueError: the artifact is refused, or cannot be run as the settings ask.
    """

    def __init__(self, folder: Path, settings: Settings):
        artifact = open_artifact(folder)
        if folder.parent.name == RESERVED_NAME:
            raise ValueError(f"no model may be called {RESERVED_NAME}: /v2/models/{RESERVED_NAME} is about all of them")
        # A folder may have been renamed since: clients know the model by it.
        self.info: ModelInfo = replace(artifact.info, name=folder.parent.name, version=int(folder.name))
        self.statistics = Statistics()
        # One engine serves all workers: each brings its own thread, and they share the others.
        threads = max(1, (settings.threads or usable_cpus()) - settings.workers + 1)
        warm_up = {*settings.warm_up, *settings.buckets}
        # And those of other sizes, which shall not displace what was asked for.
        shapes = sum(len(gpu_batches(size, settings.batch_size)) for size in warm_up) + GPU_SHAPES // 2
        self._engine = Engine(artifact, settings.provider, threads, max(GPU_SHAPES, shapes))
        self.provider = self._engine.provider
        self.max_batch_size = settings.batch_size
        self.max_delay = settings.max_delay
        self.buckets = self._proven(settings.buckets, settings.samples)
        self._warm_up({*settings.warm_up, *self.buckets})
        self._batcher = Batcher(
            # Knows no model, whose memory could not be let go then until Python looks for cycles.
            functools.partial(_segment, self._engine, self.statistics),
            lambda size: batch_limit(size, settings.batch_size),
            max_delay=settings.max_delay,
            max_queue=settings.max_queue,
            workers=settings.workers,
        )

    @property
    def pending(self) -> int:
        return self._batcher.pending

    @property
    def full(self) -> bool:
        return self._batcher.full

    def admit(self) -> Ticket:
        """See `Batcher.admit`."""
        return self._batcher.admit()

    def submit(self, ticket: Ticket, images_NHWC: np.ndarray, outputs: Sequence[str]) -> "Future[Answer]":
        """Queues pictures of one size, uint8 (N,H,W,3). What they are padded to depends on their size alone."""
        size = images_NHWC.shape[1:3]
        bucket = next((bucket for bucket in self.buckets if size[0] <= bucket[0] and size[1] <= bucket[1]), size)
        job = Job(pad(images_NHWC, bucket), tuple(outputs), size)
        return ticket.submit(bucket, job, len(images_NHWC))

    def give_back_memory(self) -> None:
        """See `Engine.give_back_memory`."""
        self._engine.give_back_memory()

    def close(self) -> None:
        """Takes no more requests; those that were admitted are answered."""
        self._batcher.close()

    def join(self) -> None:
        self._batcher.join()

    def _warm_up(self, sizes: Iterable[Size]) -> None:
        """Runs every size once alone and once as the largest batch; on a GPU in every number of pictures that it may be
        given, since each is prepared when it comes first."""
        for size in sorted(sizes):
            alone_and_most = sorted({1, batch_limit(size, self.max_batch_size)})
            for count in gpu_batches(size, self.max_batch_size) if self.provider == "cuda" else alone_and_most:
                self._engine.predict(np.zeros((count, *size, 3), np.uint8))

    def _proven(self, buckets: tuple[Size, ...], samples: Sequence[np.ndarray]) -> tuple[Size, ...]:
        """The buckets, from the smallest up, if padding leaves the labels of all samples as they are; or none."""
        buckets = tuple(sorted(buckets, key=lambda size: size[0] * size[1]))
        tried = 0
        for image_HWC in samples:
            images_NHWC = image_HWC[None]
            height, width = size = image_HWC.shape[:2]
            bucket = next((bucket for bucket in buckets if height <= bucket[0] and width <= bucket[1]), size)
            if bucket == size:
                continue
            tried += 1
            native = self._engine.predict(images_NHWC, ["labels"])["labels"]
            padded = self._engine.predict(pad(images_NHWC, bucket), ["labels"])["labels"][:, :height, :width]
            changed = float(np.mean(native != padded))
            if changed > MAX_CHANGED:
                log.warning(
                    "pictures are not padded to buckets",
                    extra={"model": self.info.name, "size": size, "bucket": bucket, "labels_changed": changed},
                )
                return ()
        if buckets and not tried:
            raise ValueError("none of the bucket pictures is smaller than a bucket, so nothing shows what padding does")
        return buckets


def gpu_batches(size: Size, batch_size: int) -> list[int]:
    """The numbers of pictures of a size that a GPU may be given."""
    return sorted({gpu_batch(size, count + 1) for count in range(batch_limit(size, batch_size))})


def _segment(engine: Engine, statistics: Statistics, jobs: list[Job]) -> list[Answer]:
    """A batch, in the batcher's thread."""
    started = time.perf_counter_ns()
    images_NHWC = jobs[0].images_NHWC if len(jobs) == 1 else np.concatenate([job.images_NHWC for job in jobs])
    stacked = time.perf_counter_ns()
    wanted = [name for name in engine.outputs if any(name in job.outputs for job in jobs)]
    outputs = engine.predict(images_NHWC, wanted)
    ran = time.perf_counter_ns()
    statistics.executed(len(images_NHWC), ran - stacked)
    answers, first = [], 0
    for job in jobs:
        height, width = job.size
        last = first + len(job.images_NHWC)
        own = {name: outputs[name][first:last, :height, :width] for name in job.outputs}
        durations = {
            "queue": started - job.submitted,
            "compute_input": stacked - started,
            "compute_infer": ran - stacked,
            "compute_output": time.perf_counter_ns() - ran,
        }
        answers.append(Answer(own, durations, job.submitted))
        first = last
    return answers


def pad(images_NHWC: np.ndarray, size: Size) -> np.ndarray:
    """Repeats the last row and column below and to the right, up to `size`: no edge appears that was not there."""
    below, right = (length - own for length, own in zip(size, images_NHWC.shape[1:3], strict=True))
    if not below and not right:
        return images_NHWC
    return np.pad(images_NHWC, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")


class Repository:
    """MODELS, a folder of models, and what of it is served.

    `load` and `scan` follow the disk; requests read two dictionaries that are replaced, never changed.
    """

    def __init__(self, folder: Path, settings: Settings):
        self.folder = folder
        self.settings = settings
        self._models: dict[str, dict[int, Model]] = {}
        self._refused: dict[tuple[str, int], tuple[tuple, str]] = {}
        self._unloaded: set[str] = set()
        self._skipped: set[str] = set()
        """Entries that cannot be read, and were told."""
        self._lock = threading.RLock()
        self._closed = False

    def models(self) -> list[Model]:
        """All that are served."""
        return [model for by_version in self._models.values() for model in by_version.values()]

    def versions(self, name: str) -> list[int]:
        return sorted(self._models.get(name, {}))

    def get(self, name: str, version: str | None = None) -> Model:
        """A model's newest version, or the one asked for.

        Raises:
            UnknownModel: it is not served. The name is looked up among those of models, never in the file system.
        """
        by_version = self._models.get(name)
        if not by_version:
            served = ", ".join(sorted(self._models)) or "none"
            # Triton's words, by which its clients know it.
            raise UnknownModel(f"Request for unknown model: {name!r} is not found, served are {served}")
        if version is None:
            return by_version[max(by_version)]
        for number, model in by_version.items():
            if str(number) == version:
                return model
        served = ", ".join(map(str, sorted(by_version)))
        raise UnknownModel(f"Request for unknown model: {name!r} version {version!r} is not found, served are {served}")

    def admit(self, name: str, version: str | None = None) -> tuple[Model, Ticket]:
        """A place in the queue of a model.

        Raises:
            UnknownModel, QueueFull: see `get` and `Batcher.admit`.
        """
        while True:
            model = self.get(name, version)
            try:
                return model, model.admit()
            except Closed:
                if self._closed:
                    raise
                # Replaced between the two lines: its successor is there already.

    def load(self) -> None:
        """Loads every model, for the first time.

        Raises:
            ValueError: there are none, or one has no version that can be served.
        """
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}: give the one that holds the models, such as models")
        if versions(self.folder):
            raise ValueError(f"{self.folder} is a model: give the folder that holds it, {self.folder.resolve().parent}")
        names = self._names()
        if not names:
            raise ValueError(f"{self.folder} holds no models: export one with python -m export.run RUN --out ...")
        for name in names:
            self._follow(name)
            if name not in self._models:
                raise ValueError(self._refusals(name)[-1])

    def scan(self) -> None:
        """Follows the disk: new versions are served once they are whole, proven and warm; deleted ones end."""
        try:
            names = self._names()
        except OSError as error:  # a network disk that is away for a moment ends no model
            log.warning("the repository cannot be read", extra={"reason": str(error)})
            return
        with self._lock:
            self._unloaded &= {*names, *self._skipped}
            known = {*names, *self._models, *(name for name, _ in self._refused)} - self._unloaded - self._skipped
        for name in known:
            self._follow(name)

    def load_one(self, name: str) -> None:
        """Serves a model again that was unloaded, or its newest version at once.

        Raises:
            UnknownModel: the folder has no such model.
            ValueError: none of its versions can be served.
        """
        if name not in self._names():
            raise UnknownModel(f"failed to load {name!r}: there is no such model in the repository")
        self._unloaded.discard(name)
        self._follow(name)
        if name not in self._models:
            raise ValueError(self._refusals(name)[-1])

    def unload(self, name: str) -> None:
        """Ends a model until `load_one`; requests that it has admitted are answered.

        Raises:
            UnknownModel: it is not served.
        """
        with self._lock:
            self.get(name)
            self._unloaded.add(name)
            self._replace(name, {})

    def index(self) -> list[dict[str, str]]:
        """Every version that is served, and those that were refused, with the reason."""
        ready = [
            {"name": model.info.name, "version": str(model.info.version), "state": "READY", "reason": ""}
            for model in self.models()
        ]
        refused = [
            {"name": name, "version": str(version), "state": "UNAVAILABLE", "reason": reason}
            for (name, version), (_, reason) in sorted(self._refused.items())
        ]
        unloaded = [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
            for name in sorted(self._unloaded)
        ]
        return ready + refused + unloaded

    def close(self) -> None:
        """Ends all models; returns once their last requests are answered."""
        self._closed = True
        models = self.models()
        for model in models:
            model.close()
        for model in models:
            model.join()

    def _names(self) -> list[str]:
        """The folders that hold versions. What cannot be read is left as it is served at present, and told once."""
        names: list[str] = []
        skipped: set[str] = set()
        for child in self.folder.iterdir():
            try:
                if versions(child):
                    child.name.encode()  # it goes into all that is answered
                    names.append(child.name)
            except (OSError, ValueError) as error:
                skipped.add(child.name)
                if child.name not in self._skipped:
                    log.warning("not served", extra={"entry": shown(str(child)), "reason": _in_a_line(error)})
        self._skipped = skipped
        return sorted(names)

    def _follow(self, name: str) -> None:
        with self._lock:
            current = self._models.get(name, {})
            on_disk = versions(self.folder / name)
            served: dict[int, Model] = {}
            for version in reversed(on_disk):
                if len(served) == self.settings.versions:
                    break
                model = current.get(version) or self._open(name, version)
                if model:
                    served[version] = model
            for key in [key for key in self._refused if key[0] == name and key[1] not in on_disk]:
                del self._refused[key]
            if served != current:
                self._replace(name, served)

    def _open(self, name: str, version: int) -> Model | None:
        """None where it is refused: half-written as yet, or not right. Looked at again once its files change."""
        folder = self.folder / name / str(version)
        state = _state(folder)
        if self._refused.get((name, version), (None,))[0] == state:
            return None
        started = time.perf_counter()
        try:
            model = Model(folder, self.settings)
        except Exception as error:  # what onnxruntime raises, out of memory for one, has no public base class
            reason = _in_a_line(error)
            self._refused[name, version] = state, reason
            log.warning("model refused", extra={"model": name, "version": version, "reason": reason})
            return None
        self._refused.pop((name, version), None)
        log.info(
            "model ready",
            extra={
                "model": name,
                "version": version,
                "provider": model.provider,
                "seconds": round(time.perf_counter() - started, 3),
            },
        )
        return model

    def _replace(self, name: str, served: dict[int, Model]) -> None:
        before = self._models.get(name, {})
        models = {other: by_version for other, by_version in self._models.items() if other != name}
        self._models = models | {name: served} if served else models
        for version, model in before.items():
            if served.get(version) is not model:
                model.close()
                log.info("model ended", extra={"model": name, "version": version})

    def _refusals(self, name: str) -> list[str]:
        return [reason for (refused, _), (_, reason) in sorted(self._refused.items()) if refused == name]


def _in_a_line(error: Exception) -> str:
    return shown(" ".join(str(error).split()))


def _state(folder: Path) -> tuple[Any, ...]:
    """What changes when a file of an artifact is written."""
    state: list[Any] = []
    for file in (GRAPH_FILE, INFO_FILE):
        try:
            status = (folder / file).stat()
            state.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            state.append(None)
    return tuple(state)
