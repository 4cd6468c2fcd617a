"""Recipes of Mittal, Tatarchenko, Brox 2019 (s4gan and mlmt, arXiv:1908.05724)."""

from collections.abc import Mapping
from typing import Any

from kerasseg.methods import find_method
from kerasseg.recipes.papers.common import COCO, V2, V3PLUS, VOC_TRAIN, trained
from kerasseg.recipes.recipe import Fields, Settings, add_recipe
from kerasseg.settings import TrainingSettings


def row(
    name: str,
    table: int,
    settings: Settings,
    method: str = "mlmt",
    needs: Mapping[str, str] | None = None,
    **expected: float,
) -> None:
    add_recipe(
        name,
        settings,
        method=method,
        source=f"Mittal et al. 2019, table {table}",
        start="COCO" if needs == COCO else "ImageNet",
        hardware="Tesla P100",
        expected=expected,
        needs=needs or {},
    )


def network(
    steps: int = 35_000, s4gan: Mapping[str, Any] | None = None, image_labels: str | None = None, **run: Any
) -> Settings:
    def settings(method: str) -> tuple[TrainingSettings, Fields]:
        used = image_labels if find_method(method).uses_image_labels else None
        given = V2 | {"batch_size": 8, "image_labels": used} | run
        config = TrainingSettings(method=method, steps=steps, learning_rate=2.5e-4, evaluate_every=2000, **given)
        optimizer = {"nesterov": False, "weight_decay": 5e-4, "head_multiplier": 10.0}
        return config, trained(optimizer, steps, s4gan=s4gan or {})

    return settings


def voc(labeled: str, **run: Any) -> Settings:
    return network(dataset="voc2012", labeled=labeled, crop=(321, 321), **run)


def voc_v3plus(labeled: str) -> Settings:
    return voc(labeled, **V3PLUS)


def context(labeled: str) -> Settings:
    return network(50_000, dataset="pascal_context", labeled=labeled, crop=(321, 321))


def cityscapes(labeled: str) -> Settings:
    # "We downsample the original images by a factor 2. [...] random crops of size 256x512 and horizontal flipping."
    crops: dict[str, Any] = {"crop": (256, 512), "scale": (0.5, 0.5), "batch_size": 5, "protocol": "resized"}
    s4gan = {"gamma": 0.7, "discriminator_learning_rate": 1e-5}
    return network(s4gan=s4gan, dataset="cityscapes", labeled=labeled, **crops)


row("mittal2019_voc_1_50", 1, voc("1/50"), supervised=48.3, advsemiseg=49.2, s4gan=58.1, mlmt=60.4)
row("mittal2019_voc_1_20", 1, voc("1/20"), supervised=56.8, advsemiseg=59.1, s4gan=60.9, mlmt=62.9)
row("mittal2019_voc_1_8", 1, voc("1/8"), supervised=62.0, advsemiseg=64.3, s4gan=65.4, mlmt=67.3)

# Table 7 has the same setting as "All/0/0", with 72.9 for mlmt.
row("mittal2019_voc_full", 1, voc("all"), supervised=70.7, advsemiseg=71.4, s4gan=71.2, mlmt=73.2)
row("mittal2019_voc_coco_1_50", 1, voc("1/50"), needs=COCO, supervised=53.2, advsemiseg=57.2, s4gan=60.9, mlmt=63.3)
row("mittal2019_voc_coco_1_20", 1, voc("1/20"), needs=COCO, supervised=58.7, advsemiseg=64.7, s4gan=66.4, mlmt=67.2)
row("mittal2019_voc_coco_1_8", 1, voc("1/8"), needs=COCO, supervised=65.2, advsemiseg=69.5, s4gan=69.8, mlmt=71.4)
row("mittal2019_voc_coco_full", 1, voc("all"), needs=COCO, supervised=73.6, advsemiseg=74.9, s4gan=73.9, mlmt=75.6)
row("mittal2019_voc_v3plus_1_50", 2, voc_v3plus("1/50"), mlmt=62.6)
row("mittal2019_voc_v3plus_1_20", 2, voc_v3plus("1/20"), mlmt=66.6)
row("mittal2019_voc_v3plus_1_8", 2, voc_v3plus("1/8"), supervised=63.5, mlmt=70.4)
row("mittal2019_voc_v3plus_full", 2, voc_v3plus("all"), supervised=74.6, mlmt=74.7)
row("mittal2019_voc_1464", 7, voc("1464"), needs=VOC_TRAIN, supervised=65.7, s4gan=67.5, mlmt=69.6)
row("mittal2019_voc_1464_weak", 7, voc("1464", image_labels="all"), needs=VOC_TRAIN, mlmt=70.9)
row("mittal2019_context_1_8", 3, context("1/8"), supervised=32.1, advsemiseg=32.8, s4gan=34.4, mlmt=35.3)
row("mittal2019_context_1_4", 3, context("1/4"), supervised=35.4, advsemiseg=34.8, s4gan=37.1, mlmt=37.8)
row("mittal2019_context_full", 3, context("all"), supervised=41.0, advsemiseg=39.1, s4gan=40.8, mlmt=41.1)
row("mittal2019_cityscapes_1_8", 4, cityscapes("1/8"), method="s4gan", supervised=56.2, advsemiseg=57.1, s4gan=59.3)
row("mittal2019_cityscapes_1_4", 4, cityscapes("1/4"), method="s4gan", supervised=60.2, advsemiseg=60.5, s4gan=61.9)
row("mittal2019_cityscapes_full", 4, cityscapes("all"), method="s4gan", supervised=66.0, advsemiseg=66.2, s4gan=65.8)
