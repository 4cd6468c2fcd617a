"""kerasseg: from a few labelled images and many unlabelled ones to a segmentation model.

Importing it registers every layer, network and method, so that `keras.saving.load_model` needs no custom objects.
"""

from kerasseg import tensorflow_setup  # isort: skip (first of all)
from kerasseg import data, losses, methods, metrics, recipes, segmenters
from kerasseg.methods import (
    ECS,
    METHODS,
    MLMT,
    S4GAN,
    AdvSemiSeg,
    DualGAN,
    Latent,
    MeanTeacher,
    Supervised,
    UniMatch,
    UniMatchV2,
    register_method,
)
from kerasseg.segmenters import DPT, FPN, SEGMENTERS, DeepLabV2, DeepLabV3Plus, SegFormer, build_segmenter

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
    "tensorflow_setup",
]
