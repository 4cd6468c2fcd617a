"""Recipes of Yang, Zhao, Zhao 2024 (unimatch_v2, arXiv:2410.10777).

The figures are those of the authors' training logs, which have one for each cell of the paper's tables
(github.com/LiheYoung/UniMatch-V2): the best epoch on val, of the teacher for unimatch_v2.
"""

from typing import Any, NamedTuple

from kerasseg.recipes.papers.common import VOC_TRAIN, trained
from kerasseg.recipes.recipe import Fields, Settings, add_recipe
from kerasseg.settings import ProtocolName, TrainingSettings


class Part(NamedTuple):
    """What the paper chose for a dataset."""

    dataset: str
    table: int
    images: int
    """Training images, labelled and unlabelled."""
    epochs: int
    """Over the unlabelled images."""
    batch_size: int
    crop: int = 518
    protocol: ProtocolName = "native"
    ohem_threshold: float = 1.0


PARTS = {
    "voc": Part("voc2012", 1, images=10_582, epochs=60, batch_size=16),
    "cityscapes": Part(
        "cityscapes", 2, 2975, epochs=180, batch_size=8, crop=798, protocol="sliding_window", ohem_threshold=0.7
    ),
    # The published configuration freezes the encoder, and the log of each reported value says that it learned.
    "ade20k": Part("ade20k", 3, images=20_210, epochs=60, batch_size=8),
    "coco": Part("coco", 4, images=118_287, epochs=20, batch_size=16),
}

# Labelled images: supervised and unimatch_v2 with DINOv2-small, then with DINOv2-base.
FIGURES = {
    "voc": {
        92: (66.98, 79.03, 76.86, 86.29),
        183: (75.63, 85.50, 82.07, 87.92),
        366: (81.82, 85.85, 85.27, 88.86),
        732: (83.69, 86.69, 87.15, 89.98),
        1464: (85.56, 87.82, 88.30, 90.80),
    },
    "cityscapes": {
        186: (77.15, 80.55, 80.79, 83.60),
        372: (80.22, 81.86, 82.65, 84.30),
        744: (81.69, 82.39, 83.98, 84.51),
        1488: (82.42, 82.61, 84.39, 85.14),
    },
    "ade20k": {
        316: (26.14, 31.48, 32.06, 38.70),
        631: (32.70, 38.10, 39.25, 45.00),
        1263: (37.11, 40.69, 42.82, 46.67),
        2526: (39.83, 44.41, 46.41, 49.84),
        5052: (42.67, 45.76, 49.02, 52.02),
    },
    "coco": {
        232: (29.44, 39.33, 36.76, 47.93),
        463: (35.56, 45.41, 45.77, 55.84),
        925: (44.63, 53.17, 52.13, 58.66),
        1849: (49.15, 54.99, 56.24, 60.42),
        3697: (52.04, 57.01, 59.50, 63.31),
    },
}


def settings_of(part: Part, labeled: int, backbone: str) -> Settings:
    def settings(method: str) -> tuple[TrainingSettings, Fields]:
        steps = part.epochs * (part.images - labeled) // part.batch_size
        network: dict[str, Any] = {"segmenter": "dpt", "backbone": backbone}
        config = TrainingSettings(
            method=method,
            dataset=part.dataset,
            labeled=str(labeled),
            crop=(part.crop, part.crop),
            scale=(0.5, 2.0),
            batch_size=part.batch_size,
            steps=steps,
            learning_rate=5e-6,
            evaluate_every=2000,
            protocol=part.protocol,
            **network,
        )
        # Published, the head's weights decay at its own rate: by 4 % over all steps, here by a fortieth of that.
        optimizer = {"optimizer": "adamw", "nesterov": False, "weight_decay": 0.01, "head_multiplier": 40.0}
        return config, trained(optimizer | {"ohem_threshold": part.ohem_threshold}, steps)

    return settings


def voc_needs(labeled: int) -> dict[str, str]:
    if labeled == 1464:
        return VOC_TRAIN
    return {"--labeled": f"a file with {labeled} names of VOC 2012's own train set, as they publish it"}


for place, part in PARTS.items():
    for labeled, (*small, supervised, ours) in FIGURES[place].items():
        for size, expected in (("small", small), ("base", (supervised, ours))):
            add_recipe(
                f"yang2024_{place}_{labeled}" + ("" if size == "small" else f"_{size}"),
                settings_of(part, labeled, f"dinov2_{size}"),
                method="unimatch_v2",
                source=f"Yang et al. 2024, table {part.table}, DINOv2-{size}",
                start="LVD-142M",
                hardware="4 GPUs",
                expected=dict(zip(("supervised", "unimatch_v2"), expected, strict=True)),
                needs=voc_needs(labeled) if place == "voc" else {},
            )
