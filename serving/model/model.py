"""A version of a model: its engine, its queue, its statistics. Warm before it answers.

admit --> ticket --> submit: images of one size, padded --> queue --> batch --> engine --> answer
"""

import functools
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from serving.common.artifact import ModelInfo, open_artifact
from serving.model.batcher import Batcher, Ticket
from serving.model.engine import GPU_SHAPES, Engine, Provider, batch_limit, gpu_batch, usable_cpus
from serving.model.statistics import Statistics

log = logging.getLogger("serving")

Size = tuple[int, int]
"""Height and width, pixels."""

MAX_CHANGED = 0.001
"""Share of labels that padding to a bucket may change; beyond it the model's images are not padded."""

RESERVED_NAME = "stats"
"""Triton's clients ask for the statistics of all models where one of this name would be."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
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
    """Images uint8 (H,W,3) on which buckets are tried."""
    versions: int = 1


@dataclass
class PaddedImages:
    """Images of one size, from one request, as they wait for their batch."""

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

    def __init__(self, folder: Path, settings: ModelSettings):
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
        self.buckets = self._harmless_buckets(settings.buckets, settings.samples)
        self._warm_up({*settings.warm_up, *self.buckets})
        self._batcher = Batcher(
            # Knows no model, whose memory could not be let go then until Python looks for cycles.
            functools.partial(_run_batch, self._engine, self.statistics),
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
        """Queues images of one size, uint8 (N,H,W,3). What they are padded to depends on nothing but their size."""
        size = images_NHWC.shape[1:3]
        bucket = next((bucket for bucket in self.buckets if size[0] <= bucket[0] and size[1] <= bucket[1]), size)
        padded = PaddedImages(pad(images_NHWC, bucket), tuple(outputs), size)
        return ticket.submit(bucket, padded, len(images_NHWC))

    def give_back_memory(self) -> None:
        """See `Engine.give_back_memory`."""
        self._engine.give_back_memory()

    def close(self) -> None:
        """Takes no more requests; those that were admitted are answered."""
        self._batcher.close()

    def join(self) -> None:
        self._batcher.join()

    def _warm_up(self, sizes: Iterable[Size]) -> None:
        """Runs every size as one image and as the largest batch. A GPU runs every number of images that it may be
        given, since each is prepared when it comes first."""
        for size in sorted(sizes):
            alone_and_most = sorted({1, batch_limit(size, self.max_batch_size)})
            for count in gpu_batches(size, self.max_batch_size) if self.provider == "cuda" else alone_and_most:
                self._engine.predict(np.zeros((count, *size, 3), np.uint8))

    def _harmless_buckets(self, buckets: tuple[Size, ...], samples: Sequence[np.ndarray]) -> tuple[Size, ...]:
        """The buckets, from the smallest up, if padding leaves the labels of all samples as they are; or none."""
        if buckets and self.info.working_size is not None:
            log.warning(
                "images are not padded to buckets: the model would shrink them to another size",
                extra={"model": self.info.name, "working_size": self.info.working_size},
            )
            return ()
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
                    "images are not padded to buckets",
                    extra={"model": self.info.name, "size": size, "bucket": bucket, "labels_changed": changed},
                )
                return ()
        if buckets and not tried:
            raise ValueError("none of the bucket images is smaller than a bucket, so nothing shows what padding does")
        return buckets


def gpu_batches(size: Size, batch_size: int) -> list[int]:
    """The numbers of images of a size that a GPU may be given."""
    return sorted({gpu_batch(size, count + 1) for count in range(batch_limit(size, batch_size))})


def _run_batch(engine: Engine, statistics: Statistics, requests: list[PaddedImages]) -> list[Answer]:
    """A batch, in the batcher's thread."""
    started = time.perf_counter_ns()
    images_NHWC = (
        requests[0].images_NHWC if len(requests) == 1 else np.concatenate([request.images_NHWC for request in requests])
    )
    stacked = time.perf_counter_ns()
    wanted = [name for name in engine.outputs if any(name in request.outputs for request in requests)]
    outputs = engine.predict(images_NHWC, wanted)
    ran = time.perf_counter_ns()
    statistics.executed(len(images_NHWC), ran - stacked)
    answers, first = [], 0
    for request in requests:
        height, width = request.size
        last = first + len(request.images_NHWC)
        own = {name: outputs[name][first:last, :height, :width] for name in request.outputs}
        durations = {
            "queue": started - request.submitted,
            "compute_input": stacked - started,
            "compute_infer": ran - stacked,
            "compute_output": time.perf_counter_ns() - ran,
        }
        answers.append(Answer(own, durations, request.submitted))
        first = last
    return answers


def pad(images_NHWC: np.ndarray, size: Size) -> np.ndarray:
    """Repeats the last row and column below and to the right, up to `size`: no edge appears that was not there."""
    below, right = (length - own for length, own in zip(size, images_NHWC.shape[1:3], strict=True))
    if not below and not right:
        return images_NHWC
    return np.pad(images_NHWC, ((0, 0), (0, below), (0, right), (0, 0)), mode="edge")
