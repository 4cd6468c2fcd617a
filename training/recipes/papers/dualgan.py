"""Recipes of "Improved GAN with two discriminators" (dualgan), the numbers of whose tables are lost."""

from typing import Any

from training.config import RunConfig
from training.recipes.papers.common import V3PLUS, trained
from training.recipes.recipe import Fields, recipe


def dualgan(table: int):
    source = f"Improved GAN with two discriminators, table {table} (numbers lost)"
    return recipe(method="dualgan", source=source, start="ImageNet")


def _dualgan(method: str, steps: int, **run: Any) -> tuple[RunConfig, Fields]:
    config = RunConfig(method=method, steps=steps, learning_rate=1e-3, evaluate_every=2000, **V3PLUS, **run)
    return config, trained({"nesterov": False, "weight_decay": 1e-4, "head_multiplier": 10.0}, steps)


def _dualgan_voc(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    return _dualgan(method, 20_000, dataset="voc2012", labeled=labeled, crop=(321, 321), batch_size=10)


def _dualgan_cityscapes(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    # "The size of input images is 512x1024."
    whole: dict[str, Any] = {"crop": (512, 1024), "scale": (0.5, 0.5), "protocol": "resized"}
    return _dualgan(method, 40_000, dataset="cityscapes", labeled=labeled, batch_size=2, **whole)


@dualgan(1)
def dualgan_voc_1_8(method):
    return _dualgan_voc(method, "1/8")


@dualgan(1)
def dualgan_voc_1_4(method):
    return _dualgan_voc(method, "1/4")


@dualgan(1)
def dualgan_voc_1_2(method):
    return _dualgan_voc(method, "1/2")


@dualgan(2)
def dualgan_cityscapes_1_8(method):
    return _dualgan_cityscapes(method, "1/8")


@dualgan(2)
def dualgan_cityscapes_1_4(method):
    return _dualgan_cityscapes(method, "1/4")


@dualgan(2)
def dualgan_cityscapes_1_2(method):
    return _dualgan_cityscapes(method, "1/2")
