"""Recipes of Mendel et al. 2020 (ecs, ECCV 2020)."""

from collections.abc import Mapping
from typing import Any

from kerasseg.recipes.papers.common import V2, V3PLUS, trained
from kerasseg.recipes.recipe import Fields, Settings, add_recipe
from kerasseg.settings import TrainingSettings

Own = Mapping[str, Mapping[str, Any]]
"""Fields that a row changes, by the method's name."""

# The paper's corrector is a ResNet-34 that starts from ImageNet. Keras has no such weights for it, and ResNet-50 is the
# nearest network for which it has some. We take a deeper corrector to be nearer to the paper than an untrained one,
# which would have to learn to see from few labelled images.
CORRECTOR = {"corrector_backbone": "resnet50", "corrector_weights": "imagenet"}
DEEPLAB_DISCRIMINATOR = {"advsemiseg": {"discriminator_backbone": "resnet34"}}
"""A DeepLab-v3+; we take it to be the corrector's network."""


def row(name: str, table: str, settings: Settings, method: str = "ecs", **expected: float) -> None:
    add_recipe(
        name,
        settings,
        method=method,
        source=f"Mendel et al. 2020, table {table}",
        start="ImageNet",  # "both ResNets": the paper does not mention COCO for DeepLab-v2 either
        hardware="Titan RTX or Quadro RTX 6000, 24 GB",
        expected=expected,
    )


def network(steps: int, own: Own, **run: Any) -> Settings:
    def settings(method: str) -> tuple[TrainingSettings, Fields]:
        given = V3PLUS | {"backbone": "resnet50"} | run
        config = TrainingSettings(method=method, steps=steps, learning_rate=0.01, evaluate_every=1000, **given)
        optimizer = {"nesterov": False, "weight_decay": 1e-4, "head_multiplier": 1.0}
        return config, trained(optimizer, steps, **{**own, "ecs": {**CORRECTOR, **own.get("ecs", {})}})

    return settings


def voc(labeled: str, own: Own | None = None, **run: Any) -> Settings:
    # "The same training data augmentation scheme as in [DeepLab-v3+]": scale 0.5 to 2.
    crops: dict[str, Any] = {"crop": (512, 512), "scale": (0.5, 2.0), "batch_size": 14}
    return network(22_000, own or {}, dataset="voc2012", labeled=labeled, **crops, **run)


def cityscapes(labeled: str, own: Own | None = None, **run: Any) -> Settings:
    crops: dict[str, Any] = {"crop": (768, 768), "scale": (1.0, 1.0), "batch_size": 6}
    return network(15_000, own or {}, dataset="cityscapes", labeled=labeled, **crops, **run)


row("mendel2020_voc_1_8", "1 and 3", voc("1/8"), supervised=65.2, advsemiseg=66.22, ecs=70.22)
row("mendel2020_voc_1_4", "1 and 3", voc("1/4"), supervised=69.78, advsemiseg=70.48, ecs=72.6)
row("mendel2020_voc_1_2", "1", voc("1/2"), supervised=73.42, ecs=74.63)
row("mendel2020_voc_full", "1", voc("all"), method="supervised", supervised=76.29)
row("mendel2020_cityscapes_1_8", "1 and 3", cityscapes("1/8"), supervised=63.12, advsemiseg=63.21, ecs=67.38)
row("mendel2020_cityscapes_1_4", "1 and 3", cityscapes("1/4"), supervised=67.31, advsemiseg=68.43, ecs=70.7)
row("mendel2020_cityscapes_1_2", "1", cityscapes("1/2"), supervised=71.22, ecs=72.89)
row("mendel2020_cityscapes_full", "1", cityscapes("all"), method="supervised", supervised=74.76)

# Table 2: ecs without its parts.
row("mendel2020_voc_1_4_lambda_cor_0", "2", voc("1/4", {"ecs": {"lambda_cor": 0.0}}), ecs=71.97)
row("mendel2020_voc_1_4_lambda_ecs_0", "2", voc("1/4", {"ecs": {"lambda_ecs": 0.0}}), ecs=69.93)
row("mendel2020_voc_1_4_ce", "2", voc("1/4", {"ecs": {"loss": "ce"}}), ecs=68.39)
row("mendel2020_cityscapes_1_4_lambda_cor_0", "2", cityscapes("1/4", {"ecs": {"lambda_cor": 0.0}}), ecs=70.39)
row("mendel2020_cityscapes_1_4_lambda_ecs_0", "2", cityscapes("1/4", {"ecs": {"lambda_ecs": 0.0}}), ecs=68.22)
row("mendel2020_cityscapes_1_4_ce", "2", cityscapes("1/4", {"ecs": {"loss": "ce"}}), ecs=69.27)

# Section 4.7: hung2018's method with another discriminator.
row(
    "mendel2020_voc_1_4_deeplab_discriminator",
    "3 (text)",
    voc("1/4", DEEPLAB_DISCRIMINATOR),
    method="advsemiseg",
    advsemiseg=65.83,
)
row(
    "mendel2020_cityscapes_1_4_deeplab_discriminator",
    "3 (text)",
    cityscapes("1/4", DEEPLAB_DISCRIMINATOR),
    method="advsemiseg",
    advsemiseg=65.79,
)
row("mendel2020_voc_v2_1_8", "4", voc("1/8", **V2), supervised=67.36, ecs=72.95)
row("mendel2020_voc_v2_1_4", "4", voc("1/4", **V2), supervised=71.61, ecs=74.68)
row("mendel2020_cityscapes_v2_1_8", "4", cityscapes("1/8", **V2), supervised=55.96, ecs=60.26)
row("mendel2020_cityscapes_v2_1_4", "4", cityscapes("1/4", **V2), supervised=60.54, ecs=63.77)
