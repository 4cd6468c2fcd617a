"""Recipes of Sawatzky, Zatsarynna, Gall 2020 (latent)."""

from typing import Any

from kerasseg.recipes.papers.common import COCO, V2, trained
from kerasseg.recipes.recipe import Fields, Settings, add_recipe
from kerasseg.settings import TrainingSettings


def row(name: str, table: int, settings: Settings, **expected: float) -> None:
    source = f"Sawatzky et al. 2020, table {table}"
    add_recipe(name, settings, method="latent", source=source, start="COCO", expected=expected, needs=COCO)


def network(steps: int, **run: Any) -> Settings:
    def settings(method: str) -> tuple[TrainingSettings, Fields]:
        config = TrainingSettings(method=method, steps=steps, learning_rate=2.5e-4, evaluate_every=2000, **V2 | run)
        return config, trained({"nesterov": False, "weight_decay": 1e-4, "head_multiplier": 10.0}, steps)

    return settings


def voc(labeled: str) -> Settings:
    return network(20_000, dataset="voc2012", labeled=labeled, crop=(321, 321), batch_size=10)


def cityscapes(labeled: str) -> Settings:
    return network(40_000, dataset="cityscapes", labeled=labeled, crop=(505, 505), batch_size=2)


row("sawatzky2020_voc_1_8", 1, voc("1/8"), supervised=64.1, advsemiseg=69.5, latent=71.3)
row("sawatzky2020_voc_1_4", 1, voc("1/4"), advsemiseg=72.1, latent=72.4)
row("sawatzky2020_voc_1_2", 1, voc("1/2"), advsemiseg=73.8, latent=73.9)
row("sawatzky2020_voc_full", 1, voc("all"), advsemiseg=74.9, latent=75.0)
row("sawatzky2020_cityscapes_1_8", 2, cityscapes("1/8"), advsemiseg=58.8, latent=63.3)
row("sawatzky2020_cityscapes_1_4", 2, cityscapes("1/4"), advsemiseg=62.3, latent=65.4)
row("sawatzky2020_cityscapes_1_2", 2, cityscapes("1/2"), advsemiseg=65.7, latent=66.1)
row("sawatzky2020_cityscapes_full", 2, cityscapes("all"), advsemiseg=67.7, latent=66.3)
