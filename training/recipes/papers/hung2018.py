"""Recipes of Hung et al. 2018 (advsemiseg, arXiv:1802.07934)."""

from collections.abc import Mapping
from typing import Any

from training.config import RunConfig
from training.recipes.papers.common import COCO, V2, VOC_TRAIN, trained
from training.recipes.recipe import Fields, recipe

ADVERSARIAL_ONLY = {"lambda_semi": 0.0, "lambda_adv_unlabeled": 0.0}
"""Where all images are labelled there is nothing else to learn: "baseline + L_adv"."""


def hung2018(table: int, needs: Mapping[str, str] | None = None, **expected: float):
    return recipe(
        method="advsemiseg",
        source=f"Hung et al. 2018, table {table}",
        start="COCO",
        hardware="TitanX, 12 GB",
        expected=expected,
        needs={**COCO, **(needs or {})},
    )


def _hung2018(method: str, steps: int, advsemiseg: Mapping[str, Any], **run: Any) -> tuple[RunConfig, Fields]:
    config = RunConfig(method=method, steps=steps, learning_rate=2.5e-4, evaluate_every=2000, **V2 | run)
    optimizer = {"nesterov": True, "weight_decay": 1e-4, "head_multiplier": 10.0}
    return config, trained(optimizer, steps, advsemiseg=advsemiseg)


def _hung2018_voc(method: str, labeled: str, **advsemiseg: Any) -> tuple[RunConfig, Fields]:
    crops: dict[str, Any] = {"crop": (321, 321), "batch_size": 10}
    return _hung2018(method, 20_000, advsemiseg, dataset="voc2012", labeled=labeled, **crops)


def _hung2018_cityscapes(method: str, labeled: str, **advsemiseg: Any) -> tuple[RunConfig, Fields]:
    # "We resize the input image to 512x1024 without any random cropping/scaling."
    whole: dict[str, Any] = {"crop": (512, 1024), "scale": (0.5, 0.5), "protocol": "resized"}
    return _hung2018(method, 40_000, advsemiseg, dataset="cityscapes", labeled=labeled, batch_size=2, **whole)


@hung2018(1, supervised=66.0, advsemiseg=69.5)
def hung2018_voc_1_8(method):
    return _hung2018_voc(method, "1/8")


@hung2018(1, supervised=68.3, advsemiseg=72.1)
def hung2018_voc_1_4(method):
    return _hung2018_voc(method, "1/4")


@hung2018(1, supervised=69.8, advsemiseg=73.8)
def hung2018_voc_1_2(method):
    return _hung2018_voc(method, "1/2")


@hung2018(1, supervised=73.6, advsemiseg=74.9)
def hung2018_voc_full(method):
    return _hung2018_voc(method, "all", **ADVERSARIAL_ONLY)


@hung2018(2, supervised=55.5, advsemiseg=58.8)
def hung2018_cityscapes_1_8(method):
    return _hung2018_cityscapes(method, "1/8")


@hung2018(2, supervised=59.9, advsemiseg=62.3)
def hung2018_cityscapes_1_4(method):
    return _hung2018_cityscapes(method, "1/4")


@hung2018(2, supervised=64.1, advsemiseg=65.7)
def hung2018_cityscapes_1_2(method):
    return _hung2018_cityscapes(method, "1/2")


@hung2018(2, supervised=66.4, advsemiseg=67.7)
def hung2018_cityscapes_full(method):
    return _hung2018_cityscapes(method, "all", **ADVERSARIAL_ONLY)


# Without self-training: the rows "baseline + L_adv". L_adv stays on unlabelled images too; the paper does not say.


@hung2018(8, advsemiseg=67.6)
def hung2018_voc_1_8_lambda_semi_0(method):
    return _hung2018_voc(method, "1/8", lambda_semi=0.0)


@hung2018(1, advsemiseg=71.0)
def hung2018_voc_1_4_lambda_semi_0(method):
    return _hung2018_voc(method, "1/4", lambda_semi=0.0)


@hung2018(1, advsemiseg=72.6)
def hung2018_voc_1_2_lambda_semi_0(method):
    return _hung2018_voc(method, "1/2", lambda_semi=0.0)


@hung2018(2, advsemiseg=57.1)
def hung2018_cityscapes_1_8_lambda_semi_0(method):
    return _hung2018_cityscapes(method, "1/8", lambda_semi=0.0)


@hung2018(2, advsemiseg=61.8)
def hung2018_cityscapes_1_4_lambda_semi_0(method):
    return _hung2018_cityscapes(method, "1/4", lambda_semi=0.0)


@hung2018(2, advsemiseg=64.6)
def hung2018_cityscapes_1_2_lambda_semi_0(method):
    return _hung2018_cityscapes(method, "1/2", lambda_semi=0.0)


# The VOC train set without SBD's labels; SBD's images are unlabelled ones. [40] of the paper labels 30 % of that set.


@hung2018(4, VOC_TRAIN, supervised=66.3, advsemiseg=68.4)
def hung2018_voc_1464(method):
    return _hung2018_voc(method, "1464")


@hung2018(
    4,
    {"--labeled": "a file with 439 names of VOC 2012's own train set, 30 % of it"},
    supervised=57.4,
    advsemiseg=60.6,
)
def hung2018_voc_439(method):
    return _hung2018_voc(method, "439")


# Tables 5 and 8: hyper-parameters. lambda_adv 0.01 is hung2018_voc_full, and 0 its supervised baseline; lambda_semi 0.1
# with T_semi 0.2 is hung2018_voc_1_8.


@hung2018(8, advsemiseg=74.0)
def hung2018_voc_full_lambda_adv_0_005(method):
    return _hung2018_voc(method, "all", **ADVERSARIAL_ONLY, lambda_adv=0.005)


@hung2018(8, advsemiseg=74.6)
def hung2018_voc_full_lambda_adv_0_02(method):
    return _hung2018_voc(method, "all", **ADVERSARIAL_ONLY, lambda_adv=0.02)


@hung2018(8, advsemiseg=74.1)
def hung2018_voc_full_lambda_adv_0_04(method):
    return _hung2018_voc(method, "all", **ADVERSARIAL_ONLY, lambda_adv=0.04)


@hung2018(8, advsemiseg=73.0)
def hung2018_voc_full_lambda_adv_0_05(method):
    return _hung2018_voc(method, "all", **ADVERSARIAL_ONLY, lambda_adv=0.05)


@hung2018(8, advsemiseg=68.4)
def hung2018_voc_1_8_lambda_semi_0_05(method):
    return _hung2018_voc(method, "1/8", lambda_semi=0.05)


@hung2018(8, advsemiseg=69.1)
def hung2018_voc_1_8_lambda_semi_0_2(method):
    return _hung2018_voc(method, "1/8", lambda_semi=0.2)


@hung2018(8, advsemiseg=67.2)
def hung2018_voc_1_8_t_semi_0(method):
    return _hung2018_voc(method, "1/8", T_semi=0.0)


@hung2018(8, advsemiseg=68.8)
def hung2018_voc_1_8_t_semi_0_1(method):
    return _hung2018_voc(method, "1/8", T_semi=0.1)


@hung2018(8, advsemiseg=69.2)
def hung2018_voc_1_8_t_semi_0_3(method):
    return _hung2018_voc(method, "1/8", T_semi=0.3)


@hung2018(8, advsemiseg=67.6)
def hung2018_voc_1_8_t_semi_1(method):
    return _hung2018_voc(method, "1/8", T_semi=1.0)


# Table 6: a discriminator that is not convolutional, and self-training without an adversarial loss.


@hung2018(6, advsemiseg=74.0)
def hung2018_voc_full_not_convolutional(method):
    return _hung2018_voc(method, "all", **ADVERSARIAL_ONLY, convolutional=False)


@hung2018(6, advsemiseg=66.6)
def hung2018_voc_1_8_not_convolutional(method):
    return _hung2018_voc(method, "1/8", lambda_semi=0.0, convolutional=False)


@hung2018(6, advsemiseg=65.7)
def hung2018_voc_1_8_no_adv(method):
    return _hung2018_voc(method, "1/8", lambda_adv=0.0, lambda_adv_unlabeled=0.0)
