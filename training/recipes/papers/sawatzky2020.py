"""Recipes of Sawatzky, Zatsarynna, Gall 2020 (latent)."""

from typing import Any

from training.config import RunConfig
from training.recipes.papers.common import COCO, V2, trained
from training.recipes.recipe import Fields, recipe


def sawatzky2020(table: int, **expected: float):
    source = f"Sawatzky et al. 2020, table {table}"
    return recipe(method="latent", source=source, start="COCO", expected=expected, needs=COCO)


def _sawatzky2020(method: str, steps: int, **run: Any) -> tuple[RunConfig, Fields]:
    config = RunConfig(method=method, steps=steps, learning_rate=2.5e-4, evaluate_every=2000, **V2 | run)
    return config, trained({"nesterov": False, "weight_decay": 1e-4, "head_multiplier": 10.0}, steps)


def _sawatzky2020_voc(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    return _sawatzky2020(method, 20_000, dataset="voc2012", labeled=labeled, crop=(321, 321), batch_size=10)


def _sawatzky2020_cityscapes(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    return _sawatzky2020(method, 40_000, dataset="cityscapes", labeled=labeled, crop=(505, 505), batch_size=2)


@sawatzky2020(1, supervised=64.1, advsemiseg=69.5, latent=71.3)
def sawatzky2020_voc_1_8(method):
    return _sawatzky2020_voc(method, "1/8")


@sawatzky2020(1, advsemiseg=72.1, latent=72.4)
def sawatzky2020_voc_1_4(method):
    return _sawatzky2020_voc(method, "1/4")


@sawatzky2020(1, advsemiseg=73.8, latent=73.9)
def sawatzky2020_voc_1_2(method):
    return _sawatzky2020_voc(method, "1/2")


@sawatzky2020(1, advsemiseg=74.9, latent=75.0)
def sawatzky2020_voc_full(method):
    return _sawatzky2020_voc(method, "all")


@sawatzky2020(2, advsemiseg=58.8, latent=63.3)
def sawatzky2020_cityscapes_1_8(method):
    return _sawatzky2020_cityscapes(method, "1/8")


@sawatzky2020(2, advsemiseg=62.3, latent=65.4)
def sawatzky2020_cityscapes_1_4(method):
    return _sawatzky2020_cityscapes(method, "1/4")


@sawatzky2020(2, advsemiseg=65.7, latent=66.1)
def sawatzky2020_cityscapes_1_2(method):
    return _sawatzky2020_cityscapes(method, "1/2")


@sawatzky2020(2, advsemiseg=67.7, latent=66.3)
def sawatzky2020_cityscapes_full(method):
    return _sawatzky2020_cityscapes(method, "all")
