"""Methods of semi-supervised segmentation: one file each; a new one here is a file, a test and a line in this file."""

# The order of `METHODS`: the baseline, the first to try, then the papers by year.
# isort: off
from kerasseg.methods.config import MethodConfig, SegmenterConfig, TrainingData
from kerasseg.methods.method import Method
from kerasseg.methods.registry import METHODS, find_method, register_method
from kerasseg.methods.supervised import Supervised
from kerasseg.methods.meanteacher import MeanTeacher
from kerasseg.methods.advsemiseg import AdvSemiSeg
from kerasseg.methods.s4gan import S4GAN
from kerasseg.methods.mlmt import MLMT
from kerasseg.methods.ecs import ECS
from kerasseg.methods.latent import Latent
from kerasseg.methods.dualgan import DualGAN
from kerasseg.methods.unimatch import UniMatch
from kerasseg.methods.unimatch_v2 import UniMatchV2

__all__ = [
    "ECS",
    "METHODS",
    "MLMT",
    "S4GAN",
    "AdvSemiSeg",
    "DualGAN",
    "Latent",
    "MeanTeacher",
    "Method",
    "MethodConfig",
    "SegmenterConfig",
    "Supervised",
    "TrainingData",
    "UniMatch",
    "UniMatchV2",
    "find_method",
    "register_method",
]
