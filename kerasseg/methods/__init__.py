"""Methods of semi-supervised segmentation: one file each; a new one is a file, a test and a line here."""

from kerasseg.methods.method import Method, MethodConfig, SegmenterConfig
from kerasseg.methods.mlmt import MLMT
from kerasseg.methods.s4gan import S4GAN
from kerasseg.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {method.registry_name: method for method in (Supervised, S4GAN, MLMT)}

__all__ = ["METHODS", "MLMT", "S4GAN", "Method", "MethodConfig", "SegmenterConfig", "Supervised"]
