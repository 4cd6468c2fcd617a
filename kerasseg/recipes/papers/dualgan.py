"""Recipes of "Improved GAN with two discriminators" (dualgan), the numbers of whose tables are lost."""

from typing import Any

from kerasseg.recipes.papers.common import V3PLUS, trained
from kerasseg.recipes.recipe import Fields, Settings, add_recipe
from kerasseg.settings import TrainingSettings


def row(name: str, table: int, settings: Settings) -> None:
    source = f"Improved GAN with two discriminators, table {table} (numbers lost)"
    add_recipe(name, settings, method="dualgan", source=source, start="ImageNet")


def network(steps: int, **run: Any) -> Settings:
    def settings(method: str) -> tuple[TrainingSettings, Fields]:
        config = TrainingSettings(method=method, steps=steps, learning_rate=1e-3, evaluate_every=2000, **V3PLUS, **run)
        return config, trained({"nesterov": False, "weight_decay": 1e-4, "head_multiplier": 10.0}, steps)

    return settings


def voc(labeled: str) -> Settings:
    return network(20_000, dataset="voc2012", labeled=labeled, crop=(321, 321), batch_size=10)


def cityscapes(labeled: str) -> Settings:
    # "The size of input images is 512x1024."
    whole: dict[str, Any] = {"crop": (512, 1024), "scale": (0.5, 0.5), "protocol": "resized"}
    return network(40_000, dataset="cityscapes", labeled=labeled, batch_size=2, **whole)


row("dualgan_voc_1_8", 1, voc("1/8"))
row("dualgan_voc_1_4", 1, voc("1/4"))
row("dualgan_voc_1_2", 1, voc("1/2"))
row("dualgan_cityscapes_1_8", 2, cityscapes("1/8"))
row("dualgan_cityscapes_1_4", 2, cityscapes("1/4"))
row("dualgan_cityscapes_1_2", 2, cityscapes("1/2"))
