"""Networks that judge: is a segmentation real, which classes does a picture hold?"""

from kerasseg.critics.classifier import build_classifier, build_classifier_like, start_from_backbone
from kerasseg.critics.image_discriminator import build_image_discriminator

__all__ = ["build_classifier", "build_classifier_like", "build_image_discriminator", "start_from_backbone"]
