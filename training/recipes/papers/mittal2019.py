"""Recipes of Mittal, Tatarchenko, Brox 2019 (s4gan and mlmt, arXiv:1908.05724)."""

from collections.abc import Mapping
from typing import Any

from kerasseg.methods import METHODS
from training.config import RunConfig
from training.recipes.papers.common import COCO, V2, V3PLUS, VOC_TRAIN, trained
from training.recipes.recipe import Fields, recipe


def mittal2019(table: int, method: str = "mlmt", needs: Mapping[str, str] | None = None, **expected: float):
    return recipe(
        method=method,
        source=f"Mittal et al. 2019, table {table}",
        start="COCO" if needs == COCO else "ImageNet",
        hardware="Tesla P100",
        expected=expected,
        needs=needs or {},
    )


def _mittal2019(method: str, steps: int = 35_000, s4gan: Mapping[str, Any] | None = None, **run: Any):
    run = V2 | {"batch_size": 8} | run
    config = RunConfig(method=method, steps=steps, learning_rate=2.5e-4, evaluate_every=2000, **run)
    return config, trained({"nesterov": False, "weight_decay": 5e-4, "head_multiplier": 10.0}, steps, s4gan=s4gan or {})


def _mittal2019_voc(method: str, labeled: str, **run: Any) -> tuple[RunConfig, Fields]:
    return _mittal2019(method, dataset="voc2012", labeled=labeled, crop=(321, 321), **run)


def _mittal2019_voc_v3plus(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    return _mittal2019_voc(method, labeled, **V3PLUS)


def _mittal2019_context(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    return _mittal2019(method, 50_000, dataset="pascal_context", labeled=labeled, crop=(321, 321))


def _mittal2019_cityscapes(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    # "We downsample the original images by a factor 2. [...] random crops of size 256x512 and horizontal flipping."
    crops: dict[str, Any] = {"crop": (256, 512), "scale": (0.5, 0.5), "batch_size": 5, "protocol": "resized"}
    s4gan = {"gamma": 0.7, "discriminator_learning_rate": 1e-5}
    return _mittal2019(method, s4gan=s4gan, dataset="cityscapes", labeled=labeled, **crops)


@mittal2019(1, supervised=48.3, advsemiseg=49.2, s4gan=58.1, mlmt=60.4)
def mittal2019_voc_1_50(method):
    return _mittal2019_voc(method, "1/50")


@mittal2019(1, supervised=56.8, advsemiseg=59.1, s4gan=60.9, mlmt=62.9)
def mittal2019_voc_1_20(method):
    return _mittal2019_voc(method, "1/20")


@mittal2019(1, supervised=62.0, advsemiseg=64.3, s4gan=65.4, mlmt=67.3)
def mittal2019_voc_1_8(method):
    return _mittal2019_voc(method, "1/8")


# Table 7 has the same setting as "All/0/0", with 72.9 for mlmt.
@mittal2019(1, supervised=70.7, advsemiseg=71.4, s4gan=71.2, mlmt=73.2)
def mittal2019_voc_full(method):
    return _mittal2019_voc(method, "all")


@mittal2019(1, needs=COCO, supervised=53.2, advsemiseg=57.2, s4gan=60.9, mlmt=63.3)
def mittal2019_voc_coco_1_50(method):
    return _mittal2019_voc(method, "1/50")


@mittal2019(1, needs=COCO, supervised=58.7, advsemiseg=64.7, s4gan=66.4, mlmt=67.2)
def mittal2019_voc_coco_1_20(method):
    return _mittal2019_voc(method, "1/20")


@mittal2019(1, needs=COCO, supervised=65.2, advsemiseg=69.5, s4gan=69.8, mlmt=71.4)
def mittal2019_voc_coco_1_8(method):
    return _mittal2019_voc(method, "1/8")


@mittal2019(1, needs=COCO, supervised=73.6, advsemiseg=74.9, s4gan=73.9, mlmt=75.6)
def mittal2019_voc_coco_full(method):
    return _mittal2019_voc(method, "all")


@mittal2019(2, mlmt=62.6)
def mittal2019_voc_v3plus_1_50(method):
    return _mittal2019_voc_v3plus(method, "1/50")


@mittal2019(2, mlmt=66.6)
def mittal2019_voc_v3plus_1_20(method):
    return _mittal2019_voc_v3plus(method, "1/20")


@mittal2019(2, supervised=63.5, mlmt=70.4)
def mittal2019_voc_v3plus_1_8(method):
    return _mittal2019_voc_v3plus(method, "1/8")


@mittal2019(2, supervised=74.6, mlmt=74.7)
def mittal2019_voc_v3plus_full(method):
    return _mittal2019_voc_v3plus(method, "all")


@mittal2019(7, needs=VOC_TRAIN, supervised=65.7, s4gan=67.5, mlmt=69.6)
def mittal2019_voc_1464(method):
    return _mittal2019_voc(method, "1464")


@mittal2019(7, needs=VOC_TRAIN, mlmt=70.9)
def mittal2019_voc_1464_weak(method):
    return _mittal2019_voc(method, "1464", image_labels="all" if METHODS[method].uses_weak else None)


@mittal2019(3, supervised=32.1, advsemiseg=32.8, s4gan=34.4, mlmt=35.3)
def mittal2019_context_1_8(method):
    return _mittal2019_context(method, "1/8")


@mittal2019(3, supervised=35.4, advsemiseg=34.8, s4gan=37.1, mlmt=37.8)
def mittal2019_context_1_4(method):
    return _mittal2019_context(method, "1/4")


@mittal2019(3, supervised=41.0, advsemiseg=39.1, s4gan=40.8, mlmt=41.1)
def mittal2019_context_full(method):
    return _mittal2019_context(method, "all")


@mittal2019(4, "s4gan", supervised=56.2, advsemiseg=57.1, s4gan=59.3)
def mittal2019_cityscapes_1_8(method):
    return _mittal2019_cityscapes(method, "1/8")


@mittal2019(4, "s4gan", supervised=60.2, advsemiseg=60.5, s4gan=61.9)
def mittal2019_cityscapes_1_4(method):
    return _mittal2019_cityscapes(method, "1/4")


@mittal2019(4, "s4gan", supervised=66.0, advsemiseg=66.2, s4gan=65.8)
def mittal2019_cityscapes_full(method):
    return _mittal2019_cityscapes(method, "all")
