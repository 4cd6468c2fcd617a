"""kerasseg: a few labelled images and many unlabelled ones into a segmentation model.

Importing it registers every layer, network and method, so that `keras.saving.load_model` needs no custom objects.
"""

from kerasseg import start  # isort: skip (first of all)
from kerasseg import losses, methods, metrics, segmenters
from kerasseg.methods import METHODS
from kerasseg.segmenters import SEGMENTERS, build_segmenter

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "SEGMENTERS",
    "build_segmenter",
    "losses",
    "methods",
    "metrics",
    "segmenters",
    "start",
]
