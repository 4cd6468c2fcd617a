"""The server's metrics, for Prometheus: of its models under Triton's names, of this process, of its GPUs."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.service.gpu_metrics import GpuCollector

HELP = {
    "request_success": "Requests answered",
    "request_failure": "Requests not answered, by reason",
    "count": "Images segmented",
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
        models: them, as `serving.model.model.Model`.
    """

    def __init__(self, models: Callable[[], Iterable[Any]]):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        families = {name: Metric(f"nv_inference_{name}", text, "counter") for name, text in HELP.items()}
        pending = Metric("nv_inference_pending_request_count", "Requests that wait or are being decoded", "gauge")
        sizes = HistogramMetricFamily("kerasseg_batch_size", "Images in a batch", labels=["model", "version"])
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
