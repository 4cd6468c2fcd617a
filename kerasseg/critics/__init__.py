"""Networks that judge: is a segmentation real, which classes does a picture hold?"""

from kerasseg.critics.classifier import build_classifier, build_classifier_like, start_from_backbone
from kerasseg.critics.corrector import build_corrector
from kerasseg.critics.dual_discriminators import build_d1, build_d2
from kerasseg.critics.image_discriminator import build_image_discriminator
from kerasseg.critics.pixel_discriminator import build_deeplab_discriminator, build_pixel_discriminator

__all__ = [
    "build_classifier",
    "build_classifier_like",
    "build_corrector",
    "build_d1",
    "build_d2",
    "build_deeplab_discriminator",
    "build_image_discriminator",
    "build_pixel_discriminator",
    "start_from_backbone",
]
