"""What the machine's GPUs are doing, under Triton's names, for Prometheus."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

log = logging.getLogger("serving")

READINGS: dict[str, tuple[str, Callable[[Any, Any], float]]] = {
    "nv_gpu_utilization": (
        "Share of the last moments in which it was busy, 0 to 1",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    "nv_gpu_memory_total_bytes": ("Memory it has", lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
    "nv_gpu_memory_used_bytes": (
        "Memory in use, by whatever process",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    "nv_gpu_power_usage": ("Watts", lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000),
}


class GpuCollector(Collector):
    """Tells of every GPU that the process can see; nothing while no model runs on one.

    Args:
        models: those that are served, as `serving.model.model.Model`.
    """

    def __init__(self, models: Callable[[], Iterable[Any]]):
        self._models = models

    def collect(self) -> Iterator[Metric]:
        if not any(model.provider == "cuda" for model in self._models()):
            return
        nvml, gpus = _gpus()
        for name, (text, read) in READINGS.items():
            family = GaugeMetricFamily(name, text, labels=["gpu_uuid"])
            for uuid, gpu in gpus.items():
                try:
                    family.add_metric([uuid], read(nvml, gpu))
                except nvml.NVMLError:  # not every GPU knows everything
                    continue
            yield family


@functools.cache
def _gpus() -> tuple[Any, dict[str, Any]]:
    """NVIDIA's library, opened, and its handles by the GPUs' names; none where it cannot be used."""
    import pynvml as nvml  # here, since most servers have no use for it

    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return nvml, {nvml.nvmlDeviceGetUUID(handle): handle for handle in handles}
    except nvml.NVMLError as error:
        log.warning("no metrics of the GPU", extra={"reason": str(error)})
        return nvml, {}
