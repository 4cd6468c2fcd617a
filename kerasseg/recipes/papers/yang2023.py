"""Recipes of Yang et al. 2023 (unimatch, arXiv:2208.09910)."""

from collections.abc import Mapping
from typing import Any

from kerasseg.recipes.papers.common import V3PLUS, VOC_TRAIN, trained
from kerasseg.recipes.recipe import Fields, recipe
from kerasseg.settings import TrainingSettings


def yang2023(needs: Mapping[str, str] | None = None, **expected: float):
    source = "Yang et al. 2023, ResNet-101"
    return recipe(method="unimatch", source=source, start="ImageNet", expected=expected, needs=needs or {})


def _yang2023(method: str, steps: int, head_multiplier: float, **run: Any) -> tuple[TrainingSettings, Fields]:
    # Their head has no dropout: its targets would be noisy.
    run |= V3PLUS | {"head_dropout": 0.0}
    config = TrainingSettings(method=method, steps=steps, scale=(0.5, 2.0), batch_size=8, evaluate_every=2000, **run)
    # "OHEM on labelled" and a threshold of 0 are Cityscapes'.
    own = {"threshold": 0.0, "ohem_threshold": 0.7} if config.dataset == "cityscapes" else {}
    return config, trained(
        {"nesterov": False, "weight_decay": 1e-4, "head_multiplier": head_multiplier}, steps, unimatch=own
    )


def _yang2023_voc(method: str, labeled: int) -> tuple[TrainingSettings, Fields]:
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
