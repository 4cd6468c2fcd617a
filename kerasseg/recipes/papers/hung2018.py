"""Recipes of Hung et al. 2018 (advsemiseg, arXiv:1802.07934)."""

from collections.abc import Mapping
from typing import Any

from kerasseg.recipes.papers.common import COCO, V2, VOC_TRAIN, trained
from kerasseg.recipes.recipe import Fields, Settings, add_recipe
from kerasseg.settings import TrainingSettings

ADVERSARIAL_ONLY = {"lambda_semi": 0.0, "lambda_adv_unlabeled": 0.0}
"""Where all images are labelled there is nothing else to learn: "baseline + L_adv"."""


def row(name: str, table: int, settings: Settings, needs: Mapping[str, str] | None = None, **expected: float) -> None:
    add_recipe(
        name,
        settings,
        method="advsemiseg",
        source=f"Hung et al. 2018, table {table}",
        start="COCO",
        hardware="TitanX, 12 GB",
        expected=expected,
        needs={**COCO, **(needs or {})},
    )


def network(steps: int, advsemiseg: Mapping[str, Any], **run: Any) -> Settings:
    def settings(method: str) -> tuple[TrainingSettings, Fields]:
        config = TrainingSettings(method=method, steps=steps, learning_rate=2.5e-4, evaluate_every=2000, **V2 | run)
        optimizer = {"nesterov": True, "weight_decay": 1e-4, "head_multiplier": 10.0}
        return config, trained(optimizer, steps, advsemiseg=advsemiseg)

    return settings


def voc(labeled: str, **advsemiseg: Any) -> Settings:
    return network(20_000, advsemiseg, dataset="voc2012", labeled=labeled, crop=(321, 321), batch_size=10)


def cityscapes(labeled: str, **advsemiseg: Any) -> Settings:
    # "We resize the input image to 512x1024 without any random cropping/scaling."
    whole: dict[str, Any] = {"crop": (512, 1024), "scale": (0.5, 0.5), "protocol": "resized"}
    return network(40_000, advsemiseg, dataset="cityscapes", labeled=labeled, batch_size=2, **whole)


row("hung2018_voc_1_8", 1, voc("1/8"), supervised=66.0, advsemiseg=69.5)
row("hung2018_voc_1_4", 1, voc("1/4"), supervised=68.3, advsemiseg=72.1)
row("hung2018_voc_1_2", 1, voc("1/2"), supervised=69.8, advsemiseg=73.8)
row("hung2018_voc_full", 1, voc("all", **ADVERSARIAL_ONLY), supervised=73.6, advsemiseg=74.9)
row("hung2018_cityscapes_1_8", 2, cityscapes("1/8"), supervised=55.5, advsemiseg=58.8)
row("hung2018_cityscapes_1_4", 2, cityscapes("1/4"), supervised=59.9, advsemiseg=62.3)
row("hung2018_cityscapes_1_2", 2, cityscapes("1/2"), supervised=64.1, advsemiseg=65.7)
row("hung2018_cityscapes_full", 2, cityscapes("all", **ADVERSARIAL_ONLY), supervised=66.4, advsemiseg=67.7)

# Without self-training: the rows "baseline + L_adv". L_adv stays on unlabelled images too; the paper does not say.
row("hung2018_voc_1_8_lambda_semi_0", 8, voc("1/8", lambda_semi=0.0), advsemiseg=67.6)
row("hung2018_voc_1_4_lambda_semi_0", 1, voc("1/4", lambda_semi=0.0), advsemiseg=71.0)
row("hung2018_voc_1_2_lambda_semi_0", 1, voc("1/2", lambda_semi=0.0), advsemiseg=72.6)
row("hung2018_cityscapes_1_8_lambda_semi_0", 2, cityscapes("1/8", lambda_semi=0.0), advsemiseg=57.1)
row("hung2018_cityscapes_1_4_lambda_semi_0", 2, cityscapes("1/4", lambda_semi=0.0), advsemiseg=61.8)
row("hung2018_cityscapes_1_2_lambda_semi_0", 2, cityscapes("1/2", lambda_semi=0.0), advsemiseg=64.6)

# The VOC train set without SBD's labels; SBD's images are unlabelled ones. [40] of the paper labels 30 % of that set.
row("hung2018_voc_1464", 4, voc("1464"), needs=VOC_TRAIN, supervised=66.3, advsemiseg=68.4)
row(
    "hung2018_voc_439",
    4,
    voc("439"),
    needs={"--labeled": "a file with 439 names of VOC 2012's own train set, 30 % of it"},
    supervised=57.4,
    advsemiseg=60.6,
)

# Tables 5 and 8: hyper-parameters. lambda_adv 0.01 is hung2018_voc_full, and 0 its supervised baseline; lambda_semi 0.1
# with T_semi 0.2 is hung2018_voc_1_8.
row("hung2018_voc_full_lambda_adv_0_005", 8, voc("all", **ADVERSARIAL_ONLY, lambda_adv=0.005), advsemiseg=74.0)
row("hung2018_voc_full_lambda_adv_0_02", 8, voc("all", **ADVERSARIAL_ONLY, lambda_adv=0.02), advsemiseg=74.6)
row("hung2018_voc_full_lambda_adv_0_04", 8, voc("all", **ADVERSARIAL_ONLY, lambda_adv=0.04), advsemiseg=74.1)
row("hung2018_voc_full_lambda_adv_0_05", 8, voc("all", **ADVERSARIAL_ONLY, lambda_adv=0.05), advsemiseg=73.0)
row("hung2018_voc_1_8_lambda_semi_0_05", 8, voc("1/8", lambda_semi=0.05), advsemiseg=68.4)
row("hung2018_voc_1_8_lambda_semi_0_2", 8, voc("1/8", lambda_semi=0.2), advsemiseg=69.1)
row("hung2018_voc_1_8_t_semi_0", 8, voc("1/8", T_semi=0.0), advsemiseg=67.2)
row("hung2018_voc_1_8_t_semi_0_1", 8, voc("1/8", T_semi=0.1), advsemiseg=68.8)
row("hung2018_voc_1_8_t_semi_0_3", 8, voc("1/8", T_semi=0.3), advsemiseg=69.2)
row("hung2018_voc_1_8_t_semi_1", 8, voc("1/8", T_semi=1.0), advsemiseg=67.6)

# Table 6: a discriminator that is not convolutional, and self-training without an adversarial loss.
row("hung2018_voc_full_not_convolutional", 6, voc("all", **ADVERSARIAL_ONLY, convolutional=False), advsemiseg=74.0)
row("hung2018_voc_1_8_not_convolutional", 6, voc("1/8", lambda_semi=0.0, convolutional=False), advsemiseg=66.6)
row("hung2018_voc_1_8_no_adv", 6, voc("1/8", lambda_adv=0.0, lambda_adv_unlabeled=0.0), advsemiseg=65.7)
