"""Recipes for the papers' tables: one for each dataset, setting and amount of labels.

`python -m training.run --recipe NAME` trains the paper's method; with `--method supervised` its baseline, and with any
other method that one under the same conditions. The numbers of a recipe are the paper's, for each method that it
reports; `--list-recipes` shows them all. What a paper does not say is its reference code's, or the methods' default
(docs/decisions.md).
"""

from collections.abc import Mapping
from typing import Any

from kerasseg.methods import METHODS
from training.config import RunConfig
from training.recipes.recipe import Fields, recipe, same_for_all

V2: dict[str, Any] = {"segmenter": "deeplab_v2", "backbone": "resnet101", "output_stride": 8}
V3PLUS: dict[str, Any] = {
    "segmenter": "deeplab_v3plus",
    "backbone": "resnet101",
    "output_stride": 16,
    "head_dropout": 0.5,
}

COCO = {"--weights": "the file of a DeepLab-v2 trained on COCO, as in the paper; or --weights imagenet"}
VOC_TRAIN = {
    "--labeled": "a file with the 1464 names of VOC 2012's own train set, its ImageSets/Segmentation/train.txt"
}


def trained(segmenter: Mapping[str, Any], steps: int, **of_one: Mapping[str, Any]) -> Fields:
    """`same_for_all`, with what three papers start after 5000 steps, whatever the length of the training."""
    start = 5000 / steps
    late = {
        "advsemiseg": {"adv_unlabeled_start": start, "semi_start": start},
        "latent": {"cons_start": start},
        "dualgan": {"semi_start": start},
    }
    return same_for_all(segmenter, **late, **of_one)


# --- Hung et al. 2018 (advsemiseg), arXiv:1802.07934 ---


def hung2018(table: int, **expected: float):
    return recipe(
        method="advsemiseg",
        source=f"Hung et al. 2018, table {table}",
        start="COCO",
        hardware="TitanX, 12 GB",
        expected=expected,
        needs=COCO,
    )


def _hung2018(method: str, steps: int, **run: Any) -> tuple[RunConfig, Fields]:
    config = RunConfig(method=method, steps=steps, learning_rate=2.5e-4, evaluate_every=2000, **V2 | run)
    return config, trained({"nesterov": True, "weight_decay": 1e-4, "head_multiplier": 10.0}, steps)


def _hung2018_voc(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    return _hung2018(method, 20_000, dataset="voc2012", labeled=labeled, crop=(321, 321), batch_size=10)


def _hung2018_cityscapes(method: str, labeled: str) -> tuple[RunConfig, Fields]:
    # "We resize the input image to 512x1024 without any random cropping/scaling."
    whole: dict[str, Any] = {"crop": (512, 1024), "scale": (0.5, 0.5), "protocol": "resized"}
    return _hung2018(method, 40_000, dataset="cityscapes", labeled=labeled, batch_size=2, **whole)


@hung2018(1, supervised=66.0, advsemiseg=69.5)
def hung2018_voc_1_8(method):
    return _hung2018_voc(method, "1/8")


@hung2018(1, supervised=68.3, advsemiseg=72.1)
def hung2018_voc_1_4(method):
    return _hung2018_voc(method, "1/4")


@hung2018(1, supervised=69.8, advsemiseg=73.8)
def hung2018_voc_1_2(method):
    return _hung2018_voc(method, "1/2")


@hung2018(2, supervised=55.5, advsemiseg=58.8)
def hung2018_cityscapes_1_8(method):
    return _hung2018_cityscapes(method, "1/8")


@hung2018(2, supervised=59.9, advsemiseg=62.3)
def hung2018_cityscapes_1_4(method):
    return _hung2018_cityscapes(method, "1/4")


@hung2018(2, supervised=64.1, advsemiseg=65.7)
def hung2018_cityscapes_1_2(method):
    return _hung2018_cityscapes(method, "1/2")


# --- Mittal, Tatarchenko, Brox 2019 (s4gan, mlmt), arXiv:1908.05724 ---


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


@mittal2019(1, needs=COCO, supervised=53.2, advsemiseg=57.2, s4gan=60.9, mlmt=63.3)
def mittal2019_voc_coco_1_50(method):
    return _mittal2019_voc(method, "1/50")


@mittal2019(1, needs=COCO, supervised=58.7, advsemiseg=64.7, s4gan=66.4, mlmt=67.2)
def mittal2019_voc_coco_1_20(method):
    return _mittal2019_voc(method, "1/20")


@mittal2019(1, needs=COCO, supervised=65.2, advsemiseg=69.5, s4gan=69.8, mlmt=71.4)
def mittal2019_voc_coco_1_8(method):
    return _mittal2019_voc(method, "1/8")


@mittal2019(2, mlmt=62.6)
def mittal2019_voc_v3plus_1_50(method):
    return _mittal2019_voc_v3plus(method, "1/50")


@mittal2019(2, mlmt=66.6)
def mittal2019_voc_v3plus_1_20(method):
    return _mittal2019_voc_v3plus(method, "1/20")


@mittal2019(2, supervised=63.5, mlmt=70.4)
def mittal2019_voc_v3plus_1_8(method):
    return _mittal2019_voc_v3plus(method, "1/8")


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


@mittal2019(4, "s4gan", supervised=56.2, advsemiseg=57.1, s4gan=59.3)
def mittal2019_cityscapes_1_8(method):
    return _mittal2019_cityscapes(method, "1/8")


@mittal2019(4, "s4gan", supervised=60.2, advsemiseg=60.5, s4gan=61.9)
def mittal2019_cityscapes_1_4(method):
    return _mittal2019_cityscapes(method, "1/4")


# --- Mendel et al. 2020 (ecs), ECCV 2020 ---


def mendel2020(table: int, needs: Mapping[str, str] | None = None, **expected: float):
    return recipe(
        method="ecs",
        source=f"Mendel et al. 2020, table {table}",
        # Keras has none for the corrector's ResNet-34: without a file it starts from random ones.
        start=("COCO" if needs == COCO else "ImageNet") + ", --ecs.corrector-weights",
        hardware="Titan RTX or Quadro RTX 6000, 24 GB",
        expected=expected,
        needs=needs or {},
    )


def _mendel2020(method: str, steps: int, **run: Any) -> tuple[RunConfig, Fields]:
    run = V3PLUS | {"backbone": "resnet50"} | run
    config = RunConfig(method=method, steps=steps, learning_rate=0.01, evaluate_every=1000, **run)
    return config, trained({"nesterov": False, "weight_decay": 1e-4, "head_multiplier": 1.0}, steps)


def _mendel2020_voc(method: str, labeled: str, **run: Any) -> tuple[RunConfig, Fields]:
    # "The same training data augmentation scheme as in [DeepLab-v3+]": scale 0.5 to 2.
    crops: dict[str, Any] = {"crop": (512, 512), "scale": (0.5, 2.0), "batch_size": 14}
    return _mendel2020(method, 22_000, dataset="voc2012", labeled=labeled, **crops, **run)


def _mendel2020_cityscapes(method: str, labeled: str, **run: Any) -> tuple[RunConfig, Fields]:
    crops: dict[str, Any] = {"crop": (768, 768), "scale": (1.0, 1.0), "batch_size": 6}
    return _mendel2020(method, 15_000, dataset="cityscapes", labeled=labeled, **crops, **run)


@mendel2020(1, supervised=65.2, ecs=70.22)
def mendel2020_voc_1_8(method):
    return _mendel2020_voc(method, "1/8")


@mendel2020(1, supervised=69.78, ecs=72.6)
def mendel2020_voc_1_4(method):
    return _mendel2020_voc(method, "1/4")


@mendel2020(1, supervised=73.42, ecs=74.63)
def mendel2020_voc_1_2(method):
    return _mendel2020_voc(method, "1/2")


@mendel2020(1, supervised=63.12, ecs=67.38)
def mendel2020_cityscapes_1_8(method):
    return _mendel2020_cityscapes(method, "1/8")


@mendel2020(1, supervised=67.31, ecs=70.7)
def mendel2020_cityscapes_1_4(method):
    return _mendel2020_cityscapes(method, "1/4")


@mendel2020(1, supervised=71.22, ecs=72.89)
def mendel2020_cityscapes_1_2(method):
    return _mendel2020_cityscapes(method, "1/2")


@mendel2020(4, COCO, supervised=67.36, ecs=72.95)
def mendel2020_voc_v2_1_8(method):
    return _mendel2020_voc(method, "1/8", **V2)


@mendel2020(4, COCO, supervised=71.61, ecs=74.68)
def mendel2020_voc_v2_1_4(method):
    return _mendel2020_voc(method, "1/4", **V2)


@mendel2020(4, supervised=55.96, ecs=60.26)
def mendel2020_cityscapes_v2_1_8(method):
    return _mendel2020_cityscapes(method, "1/8", **V2)


@mendel2020(4, supervised=60.54, ecs=63.77)
def mendel2020_cityscapes_v2_1_4(method):
    return _mendel2020_cityscapes(method, "1/4", **V2)


# --- Sawatzky, Zatsarynna, Gall 2020 (latent) ---


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


@sawatzky2020(2, advsemiseg=58.8, latent=63.3)
def sawatzky2020_cityscapes_1_8(method):
    return _sawatzky2020_cityscapes(method, "1/8")


@sawatzky2020(2, advsemiseg=62.3, latent=65.4)
def sawatzky2020_cityscapes_1_4(method):
    return _sawatzky2020_cityscapes(method, "1/4")


@sawatzky2020(2, advsemiseg=65.7, latent=66.1)
def sawatzky2020_cityscapes_1_2(method):
    return _sawatzky2020_cityscapes(method, "1/2")


# --- "Improved GAN with two discriminators" (dualgan) ---


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


# --- Yang et al. 2023 (unimatch), arXiv:2208.09910 ---


def yang2023(needs: Mapping[str, str] | None = None, **expected: float):
    source = "Yang et al. 2023, ResNet-101"
    return recipe(method="unimatch", source=source, start="ImageNet", expected=expected, needs=needs or {})


def _yang2023(method: str, steps: int, head_multiplier: float, **run: Any) -> tuple[RunConfig, Fields]:
    config = RunConfig(method=method, steps=steps, scale=(0.5, 2.0), batch_size=8, evaluate_every=2000, **V3PLUS, **run)
    # "OHEM on labelled" and a threshold of 0 are Cityscapes'.
    own = {"threshold": 0.0, "ohem_threshold": 0.7} if config.dataset == "cityscapes" else {}
    return config, trained(
        {"nesterov": False, "weight_decay": 1e-4, "head_multiplier": head_multiplier}, steps, unimatch=own
    )


def _yang2023_voc(method: str, labeled: int) -> tuple[RunConfig, Fields]:
    # 80 epochs over the unlabelled images.
    steps = 80 * (10_582 - labeled) // 8
    return _yang2023(method, steps, 10.0, dataset="voc2012", labeled=str(labeled), crop=(321, 321), learning_rate=1e-3)


@yang2023(
    {"--labeled": "a file with 183 names of VOC 2012's own train set, as they publish it"},
    supervised=55.3,
    unimatch=77.2,
)
def yang2023_voc_183(method):
    return _yang2023_voc(method, 183)


@yang2023(VOC_TRAIN, supervised=73.5, unimatch=81.2)
def yang2023_voc_1464(method):
    return _yang2023_voc(method, 1464)


@yang2023(supervised=72.8, unimatch=77.9)
def yang2023_cityscapes_1_8(method):
    # 240 epochs over the unlabelled images.
    steps = 240 * (2975 - 372) // 8
    windows: dict[str, Any] = {"crop": (801, 801), "protocol": "sliding_window"}
    return _yang2023(method, steps, 1.0, dataset="cityscapes", labeled="1/8", learning_rate=5e-3, **windows)
