"""NVIDIA GPUs of this machine, found without a library that would run on them."""

from pathlib import Path


def has_gpu() -> bool:
    """Whether this machine, or container, has an NVIDIA GPU, be it usable or not."""
    return Path("/dev/nvidiactl").exists()


def gpu_names() -> list[str]:
    """The names of the GPUs; empty where the driver cannot be asked, as without the package nvidia-ml-py."""
    try:
        import pynvml  # here, since most commands have no use for it

        pynvml.nvmlInit()
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(gpu)) for gpu in gpus]
    except Exception:  # no package, no driver, or no right to use it
        return []
