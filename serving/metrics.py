"""What a model has done, counted once, and told twice: to Prometheus and in the protocol's statistics."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.gpu_metrics import GpuCollector

PHASES = ("queue", "compute_input", "compute_infer", "compute_output")
"""Waiting; decoding and stacking; the session; splitting and encoding."""

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Why a request failed, as Triton has it: queue full or too late; client gone; the session; the request itself."""

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Statistics:
    """Of one version of a model. Durations are in nanoseconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: Counter[str] = Counter()
        self._nanoseconds: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._batch_nanoseconds: Counter[int] = Counter()
        self._pictures = 0
        self._last_inference = 0

    def succeeded(self, pictures: int, durations: dict[str, int]) -> None:
        """A request was answered. `durations` are of `PHASES`, and `"success"` from its arrival to the answer."""
        with self._lock:
            self._pictures += pictures
            self._last_inference = time.time_ns() // 1_000_000
            self._count.update(dict.fromkeys(durations, 1))
            self._nanoseconds.update(durations)

    def failed(self, reason: str, duration: int) -> None:
        with self._lock:
            self._count.update({"fail": 1, reason: 1})
            self._nanoseconds["fail"] += duration

    def executed(self, pictures: int, duration: int) -> None:
        """A batch of that many pictures went through the session."""
        with self._lock:
            self._batches[pictures] += 1
            self._batch_nanoseconds[pictures] += duration

    def to_json(self, name: str, version: int) -> dict[str, Any]:
        """An entry of `GET /v2/models/stats`; every field is there, since perf_analyzer reads all of them."""
        with self._lock:

            def told(what: str) -> dict[str, int]:
                return {"count": self._count[what], "ns": self._nanoseconds[what]}

            nothing = {"count": 0, "ns": 0}
            return {
                "name": name,
                "version": str(version),
                "last_inference": self._last_inference,
                "inference_count": self._pictures,
                "execution_count": self._batches.total(),
                "inference_stats": {what: told(what) for what in ("success", "fail", *PHASES)}
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
            yield "count", {}, self._pictures
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


HELP = {
    "request_success": "Requests answered",
    "request_failure": "Requests not answered, by reason",
    "count": "Pictures segmented",
    "exec_count": "Batches run",
    "request_duration_us": "Time of answered requests from arrival to answer, summed",
    "queue_duration_us": "Time they waited, summed",
    "compute_input_duration_us": "Time to decode and stack them, summed",
    "compute_infer_duration_us": "Time of the session, summed over requests",
    "compute_output_duration_us": "Time to split and encode answers, summed",
}


class ModelCollector(Collector):
    """Asks the models that are loaded at the moment.

    Args:
        models: them, as `serving.repository.Model`.
    """

    def __init__(self, models: Callable[[], Iterable[Any]]):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        families = {name: Metric(f"nv_inference_{name}", text, "counter") for name, text in HELP.items()}
        pending = Metric("nv_inference_pending_request_count", "Requests that wait or are being decoded", "gauge")
        sizes = HistogramMetricFamily("kerasseg_batch_size", "Pictures in a batch", labels=["model", "version"])
        about = GaugeMetricFamily(
            "kerasseg_model_info", "Always 1", labels=["model", "version", "provider", "precision", "sha256"]
        )
        for model in self._models():
            info = model.info
            labels = {"model": info.name, "version": str(info.version)}
            for name, more, value in model.statistics.samples():
                families[name].add_sample(f"nv_inference_{name}", labels | more, value)
            pending.add_sample(pending.name, labels, model.pending)
            buckets, total = model.statistics.batch_sizes()
            sizes.add_metric(list(labels.values()), buckets, total)
            about.add_metric([*labels.values(), model.provider, info.precision, info.sha256], 1)
        yield from (*families.values(), pending, sizes, about)


def new_registry(models: Callable[[], Iterable[Any]]) -> CollectorRegistry:
    """Metrics of the models, of this process (memory, CPU time, open files), and of the GPUs where models use them."""
    registry = CollectorRegistry()
    registry.register(ModelCollector(models))
    registry.register(GpuCollector(models))
    ProcessCollector(registry=registry)
    return registry


def prometheus_text(registry: CollectorRegistry) -> bytes:
    # prometheus_client has every counter end in _total; Triton's do not.
    return re.sub(rb"^(# (?:HELP|TYPE) nv_\w+)_total ", rb"\1 ", generate_latest(registry), flags=re.MULTILINE)
