"""Methods of semi-supervised segmentation: one file each; a new one is a file, a test and a line here."""

from kerasseg.methods.advsemiseg import AdvSemiSeg
from kerasseg.methods.config import MethodConfig, SegmenterConfig
from kerasseg.methods.dualgan import DualGAN
from kerasseg.methods.ecs import ECS
from kerasseg.methods.latent import Latent
from kerasseg.methods.meanteacher import MeanTeacher
from kerasseg.methods.method import Method, TrainingData
from kerasseg.methods.mlmt import MLMT
from kerasseg.methods.s4gan import S4GAN
from kerasseg.methods.supervised import Supervised
from kerasseg.methods.unimatch import UniMatch

METHODS: dict[str, type[Method]] = {
    method.registry_name: method
    for method in (Supervised, MeanTeacher, AdvSemiSeg, S4GAN, MLMT, ECS, Latent, DualGAN, UniMatch)
}

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
]
