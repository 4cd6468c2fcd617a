"""Metrics of GPUs, with a stand-in for NVIDIA's library."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from serving.service import gpu_metrics
from serving.service.metrics import new_registry, prometheus_text


class NVMLError(Exception):
    pass


@pytest.fixture
def nvml(monkeypatch):
    """Two GPUs, 0 and 1, of which the second does not know its power."""

    def power(gpu):
        if gpu:
            raise NVMLError("Not Supported")
        return 71_500

    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda gpu: f"GPU-{gpu}",
        "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=25 + gpu, memory=99),
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=2**34 + gpu, used=2**30, free=7),
        "nvmlDeviceGetPowerUsage": power,
        "NVMLError": NVMLError,
    }
    module = ModuleType("pynvml")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    gpu_metrics._gpus.cache_clear()
    yield module
    gpu_metrics._gpus.cache_clear()


@pytest.fixture
def told(monkeypatch):
    """Asks for the metrics of GPUs while a model runs on a provider."""

    def ask(provider):
        monkeypatch.setattr("serving.service.metrics.ModelCollector.collect", lambda self: ())
        text = prometheus_text(new_registry(lambda: [SimpleNamespace(provider=provider)])).decode()
        return [line for line in text.splitlines() if line.startswith("nv_gpu")]

    return ask


def test_what_gpus_tell(nvml, told):
    assert told("cuda") == [
        'nv_gpu_utilization{gpu_uuid="GPU-0"} 0.25',
        'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.26',
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-0"} 1.7179869184e+10',
        'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 1.7179869185e+10',
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-0"} 1.073741824e+09',
        'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1.073741824e+09',
        'nv_gpu_power_usage{gpu_uuid="GPU-0"} 71.5',
    ]


def test_none_where_models_run_on_the_cpu(nvml, told, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not even looked for
    assert told("cpu") == []


def test_none_where_the_library_is_not_there(nvml, told, caplog):
    def missing():
        raise NVMLError("Shared library not found")

    nvml.nvmlInit = missing
    assert (told("cuda"), told("cuda")) == ([], [])
    [record] = caplog.records
    assert (record.message, record.reason) == ("no metrics of the GPU", "Shared library not found")
