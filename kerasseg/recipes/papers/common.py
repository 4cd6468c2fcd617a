"""What the recipes of several papers share: networks, and what a training needs from outside."""

from collections.abc import Mapping
from typing import Any

from kerasseg.recipes.recipe import Fields, same_for_all

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
    late: dict[str, Mapping[str, Any]] = {
        "advsemiseg": {"adv_unlabeled_start": start, "semi_start": start},
        "latent": {"cons_start": start},
        "dualgan": {"semi_start": start},
    }
    own = {name: {**late.get(name, {}), **of_one.get(name, {})} for name in (*late, *of_one)}
    return same_for_all(segmenter, **own)
