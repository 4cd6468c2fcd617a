"""All that `kerasseg` offers. Importing it registers every layer, network and method with Keras."""

# ruff: noqa: F401

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
