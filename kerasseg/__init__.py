"""kerasseg: from a few labelled images and many unlabelled ones to a segmentation model.

After importing it, `keras.saving.load_model` needs no custom objects: see `kerasseg.tensorflow_setup`. TensorFlow is
imported when something that needs it is asked for, so that commands start at once and serving does without it.
"""

# ruff: noqa: F403, F405

import importlib
from typing import TYPE_CHECKING, Any

from kerasseg.tensorflow_setup import watch_imports

if TYPE_CHECKING:
    from kerasseg.everything import *

__version__ = "0.1.0"

__all__ = [
    "DPT",
    "ECS",
    "FPN",
    "METHODS",
    "MLMT",
    "S4GAN",
    "SEGMENTERS",
    "AdvSemiSeg",
    "DeepLabV2",
    "DeepLabV3Plus",
    "DualGAN",
    "Latent",
    "MeanTeacher",
    "SegFormer",
    "Supervised",
    "UniMatch",
    "UniMatchV2",
    "build_segmenter",
    "data",
    "losses",
    "methods",
    "metrics",
    "recipes",
    "register_method",
    "segmenters",
]


def __getattr__(name: str) -> Any:
    """What `__all__` lists, imported when it is asked for.

    Raises:
        ImportError: TensorFlow is not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    everything = importlib.import_module("kerasseg.everything")
    globals().update({entry: getattr(everything, entry) for entry in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


watch_imports()
