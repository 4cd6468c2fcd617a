"""What a model has done: counted once, read by the protocol's statistics and by `serving.service.metrics`."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

PHASES = ("queue", "compute_input", "compute_infer", "compute_output")
"""Waiting; decoding and stacking; the session; splitting and encoding."""

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Why a request failed, as Triton has it: queue full or too late; client gone; the session; the request itself."""

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Statistics:
    """Counts requests, batches and images of one version of a model. Durations are in nanoseconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: Counter[str] = Counter()
        self._nanoseconds: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._batch_nanoseconds: Counter[int] = Counter()
        self._images = 0
        self._last_inference = 0

    def succeeded(self, images: int, durations: dict[str, int]) -> None:
        """A request was answered. `durations` are of `PHASES`, and `"success"` from its arrival to the answer."""
        with self._lock:
            self._images += images
            self._last_inference = time.time_ns() // 1_000_000
            self._count.update(dict.fromkeys(durations, 1))
            self._nanoseconds.update(durations)

    def failed(self, reason: str, duration: int) -> None:
        with self._lock:
            self._count.update({"fail": 1, reason: 1})
            self._nanoseconds["fail"] += duration

    def executed(self, images: int, duration: int) -> None:
        """A batch of that many images went through the session."""
        with self._lock:
            self._batches[images] += 1
            self._batch_nanoseconds[images] += duration

    def to_json(self, name: str, version: int) -> dict[str, Any]:
        """An entry of `GET /v2/models/stats`; every field is there, since perf_analyzer reads all of them."""
        with self._lock:

            def counted(what: str) -> dict[str, int]:
                return {"count": self._count[what], "ns": self._nanoseconds[what]}

            nothing = {"count": 0, "ns": 0}
            return {
                "name": name,
                "version": str(version),
                "last_inference": self._last_inference,
                "inference_count": self._images,
                "execution_count": self._batches.total(),
                "inference_stats": {what: counted(what) for what in ("success", "fail", *PHASES)}
                | {"cache_hit": nothing, "cache_miss": nothing},
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": nothing,
                        "compute_infer": {"count": count, "ns": self._batch_nanoseconds[size]},
                        "compute_output": nothing,
                    }
                    for size, count in sorted(self._batches.items())
                ],
            }

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name without Triton's prefix, further labels, value."""
        with self._lock:
            yield "request_success", {}, self._count["success"]
            for reason in REASONS:
                yield "request_failure", {"reason": reason}, self._count[reason]
            yield "count", {}, self._images
            yield "exec_count", {}, self._batches.total()
            for name, what in {"request": "success", **{phase: phase for phase in PHASES}}.items():
                yield f"{name}_duration_us", {}, self._nanoseconds[what] // 1000

    def batch_sizes(self) -> tuple[list[tuple[str, float]], int]:
        """Cumulative counts by upper bound, and the sum, as a Prometheus histogram has them."""
        with self._lock:
            below = [
                (str(bound), sum(n for size, n in self._batches.items() if size <= bound)) for bound in BATCH_BUCKETS
            ]
            total = sum(size * count for size, count in self._batches.items())
            return [*below, ("+Inf", self._batches.total())], total
