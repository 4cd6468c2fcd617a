"""Recipes of Mendel et al. 2020 (ecs, ECCV 2020)."""

from collections.abc import Mapping
from typing import Any

from training.config import RunConfig
from training.recipes.papers.common import V2, V3PLUS, trained
from training.recipes.recipe import Fields, recipe

Own = Mapping[str, Mapping[str, Any]]
"""Fields that a row changes, by the method's name."""

# The paper's corrector is a ResNet-34 that starts from ImageNet. Keras has no such weights for it, and ResNet-50 is the
# nearest network that it has some for. A deeper corrector is taken to be nearer to the paper than an untrained one, for
# that would have to learn to see from few labelled images.
CORRECTOR = {"corrector_backbone": "resnet50", "corrector_weights": "imagenet"}


def mendel2020(table: str, method: str = "ecs", **expected: float):
    return recipe(
        method=method,
        source=f"Mendel et al. 2020, table {table}",
        start="ImageNet",  # "both ResNets": the paper says nothing of COCO for DeepLab-v2 either
        hardware="Titan RTX or Quadro RTX 6000, 24 GB",
        expected=expected,
    )


def _mendel2020(method: str, steps: int, own: Own, **run: Any) -> tuple[RunConfig, Fields]:
    run = V3PLUS | {"backbone": "resnet50"} | run
    config = RunConfig(method=method, steps=steps, learning_rate=0.01, evaluate_every=1000, **run)
    optimizer = {"nesterov": False, "weight_decay": 1e-4, "head_multiplier": 1.0}
    return config, trained(optimizer, steps, **{**own, "ecs": {**CORRECTOR, **own.get("ecs", {})}})


def _mendel2020_voc(method: str, labeled: str, own: Own | None = None, **run: Any) -> tuple[RunConfig, Fields]:
    # "The same training data augmentation scheme as in [DeepLab-v3+]": scale 0.5 to 2.
    crops: dict[str, Any] = {"crop": (512, 512), "scale": (0.5, 2.0), "batch_size": 14}
    return _mendel2020(method, 22_000, own or {}, dataset="voc2012", labeled=labeled, **crops, **run)


def _mendel2020_cityscapes(method: str, labeled: str, own: Own | None = None, **run: Any) -> tuple[RunConfig, Fields]:
    crops: dict[str, Any] = {"crop": (768, 768), "scale": (1.0, 1.0), "batch_size": 6}
    return _mendel2020(method, 15_000, own or {}, dataset="cityscapes", labeled=labeled, **crops, **run)


@mendel2020("1 and 3", supervised=65.2, advsemiseg=66.22, ecs=70.22)
def mendel2020_voc_1_8(method):
    return _mendel2020_voc(method, "1/8")


@mendel2020("1 and 3", supervised=69.78, advsemiseg=70.48, ecs=72.6)
def mendel2020_voc_1_4(method):
    return _mendel2020_voc(method, "1/4")


@mendel2020("1", supervised=73.42, ecs=74.63)
def mendel2020_voc_1_2(method):
    return _mendel2020_voc(method, "1/2")


@mendel2020("1", "supervised", supervised=76.29)
def mendel2020_voc_full(method):
    return _mendel2020_voc(method, "all")


@mendel2020("1 and 3", supervised=63.12, advsemiseg=63.21, ecs=67.38)
def mendel2020_cityscapes_1_8(method):
    return _mendel2020_cityscapes(method, "1/8")


@mendel2020("1 and 3", supervised=67.31, advsemiseg=68.43, ecs=70.7)
def mendel2020_cityscapes_1_4(method):
    return _mendel2020_cityscapes(method, "1/4")


@mendel2020("1", supervised=71.22, ecs=72.89)
def mendel2020_cityscapes_1_2(method):
    return _mendel2020_cityscapes(method, "1/2")


@mendel2020("1", "supervised", supervised=74.76)
def mendel2020_cityscapes_full(method):
    return _mendel2020_cityscapes(method, "all")


# Table 2: ecs without its parts.


@mendel2020("2", ecs=71.97)
def mendel2020_voc_1_4_lambda_cor_0(method):
    return _mendel2020_voc(method, "1/4", {"ecs": {"lambda_cor": 0.0}})


@mendel2020("2", ecs=69.93)
def mendel2020_voc_1_4_lambda_ecs_0(method):
    return _mendel2020_voc(method, "1/4", {"ecs": {"lambda_ecs": 0.0}})


@mendel2020("2", ecs=68.39)
def mendel2020_voc_1_4_ce(method):
    return _mendel2020_voc(method, "1/4", {"ecs": {"loss": "ce"}})


@mendel2020("2", ecs=70.39)
def mendel2020_cityscapes_1_4_lambda_cor_0(method):
    return _mendel2020_cityscapes(method, "1/4", {"ecs": {"lambda_cor": 0.0}})


@mendel2020("2", ecs=68.22)
def mendel2020_cityscapes_1_4_lambda_ecs_0(method):
    return _mendel2020_cityscapes(method, "1/4", {"ecs": {"lambda_ecs": 0.0}})


@mendel2020("2", ecs=69.27)
def mendel2020_cityscapes_1_4_ce(method):
    return _mendel2020_cityscapes(method, "1/4", {"ecs": {"loss": "ce"}})


# Section 4.7: hung2018's method with a DeepLab-v3+ discriminator. It is taken to be the corrector's network.
DEEPLAB_DISCRIMINATOR = {"advsemiseg": {"discriminator_backbone": "resnet34"}}


@mendel2020("3 (text)", "advsemiseg", advsemiseg=65.83)
def mendel2020_voc_1_4_deeplab_discriminator(method):
    return _mendel2020_voc(method, "1/4", DEEPLAB_DISCRIMINATOR)


@mendel2020("3 (text)", "advsemiseg", advsemiseg=65.79)
def mendel2020_cityscapes_1_4_deeplab_discriminator(method):
    return _mendel2020_cityscapes(method, "1/4", DEEPLAB_DISCRIMINATOR)


@mendel2020("4", supervised=67.36, ecs=72.95)
def mendel2020_voc_v2_1_8(method):
    return _mendel2020_voc(method, "1/8", **V2)


@mendel2020("4", supervised=71.61, ecs=74.68)
def mendel2020_voc_v2_1_4(method):
    return _mendel2020_voc(method, "1/4", **V2)


@mendel2020("4", supervised=55.96, ecs=60.26)
def mendel2020_cityscapes_v2_1_8(method):
    return _mendel2020_cityscapes(method, "1/8", **V2)


@mendel2020("4", supervised=60.54, ecs=63.77)
def mendel2020_cityscapes_v2_1_4(method):
    return _mendel2020_cityscapes(method, "1/4", **V2)
