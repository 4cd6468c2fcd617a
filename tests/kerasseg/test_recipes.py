import dataclasses
import functools
import re

import numpy as np
import pytest
import tensorflow as tf
import tyro

import kerasseg
import tests.backbone  # noqa: F401 (the backbone "tiny")
from kerasseg.data import DATASETS
from kerasseg.data.shapes import ShapesDataset
from kerasseg.methods import METHODS, TrainingData
from kerasseg.recipes import RECIPES, choose, table
from kerasseg.segmenters import SEGMENTERS, build_segmenter, fitting_rates
from kerasseg.segmenters.segmenter import map_size
from training.config import with_groups
from training.run import configuration
from training.session import assemble, untrained_taps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_configures_every_method(name, method):
    settings, own = RECIPES[name](method)
    config = with_groups(settings, own)
    fields = config.method_fields
    assert set(config.groups) == set(METHODS[method].config_groups(fields))
    for group, values in fields.items():
        assert values["steps"] == own[group].get("steps", settings.steps)
        assert own[group].items() <= values.items()


def test_auto_follows_the_dataset():
    assert choose("auto", "mlmt", "shapes") == RECIPES["shapes"]("mlmt")
    assert choose("auto", "mlmt", "some/folder") == RECIPES["photos"]("mlmt")


def test_photos_takes_meanteacher_where_no_method_is_named():
    config, _ = choose("auto", None, "some/folder")
    assert config.method == RECIPES["photos"].method == "meanteacher"


@pytest.mark.parametrize("segmenter", [name for name, segmenter in SEGMENTERS.items() if segmenter.RATES])
@pytest.mark.parametrize("name", RECIPES)
def test_every_tap_of_every_dilated_convolution_learns_with_every_recipe(name, segmenter):
    """Of the segmenter's head, of the corrector's, and of the backbone, which trades strides beyond 8 or 16 for
    dilation: 4 or 2."""
    config, _ = RECIPES[name]("ecs")
    positions = min(map_size(config.crop, config.output_stride))
    assert max(fitting_rates(SEGMENTERS[segmenter], config.crop, config.output_stride)) < positions
    assert 32 // config.output_stride < positions
    assert max(fitting_rates(SEGMENTERS["deeplab_v3plus"], config.crop, 16)) < min(map_size(config.crop, 16))


def test_photos_trains_every_segmenter_alike():
    for method in METHODS:
        settings, fields = RECIPES["photos"](method)
        config = with_groups(settings, fields)
        branch = config.method_fields["s4gan" if method == "mlmt" else method]
        assert (config.backbone, branch["optimizer"], branch["learning_rate"]) == ("mobilenet_v2", "adamw", 3e-4)
        assert branch["head_multiplier"] == 3.0


@pytest.mark.parametrize("name", ["shapes", "photos"])
def test_small_recipes_give_every_segmenter_as_many_updates(name):
    assert RECIPES[name]("ecs")[1]["ecs"]["joint_update"]


def test_photos_takes_dualgans_static_variant_which_has_no_d1():
    fields = RECIPES["photos"]("dualgan")[1]["dualgan"]
    assert (fields["threshold"], fields["use_d1"]) == ("static", False)


def test_steps_and_learning_rate_reach_the_methods_that_have_them():
    config, fields = RECIPES["shapes"]("mlmt")
    config = dataclasses.replace(with_groups(config, fields), steps=7, learning_rate=0.5)
    fields = config.method_fields
    assert fields["s4gan"]["steps"] == fields["mlmt"]["steps"] == 7
    assert fields["s4gan"]["learning_rate"] == 0.5 and "learning_rate" not in fields["mlmt"]


def test_a_methods_own_flag_goes_before_the_recipe():
    own = ["--s4gan.learning-rate", "0.5", "--mlmt.steps", "9"]
    default = configuration(["--method", "mlmt"])
    fields = tyro.cli(type(default), args=own, default=default).method_fields
    assert fields["s4gan"]["learning_rate"] == 0.5 and fields["mlmt"]["steps"] == 9
    assert fields["s4gan"]["steps"] == RECIPES["shapes"]("mlmt")[0].steps


def test_the_supervised_branch_of_mlmt_brings_its_own_flags():
    config, _ = RECIPES["shapes"]("mlmt")
    assert set(with_groups(config, {"mlmt": {"branch": "supervised"}}).groups) == {"mlmt", "supervised"}


SGD = {"optimizer": "sgd", "momentum": 0.9}
HUNG = {"learning_rate": 2.5e-4, "weight_decay": 1e-4, "nesterov": True, "head_multiplier": 10.0, **SGD}
MITTAL = {"learning_rate": 2.5e-4, "weight_decay": 5e-4, "nesterov": False, "head_multiplier": 10.0, **SGD}
MENDEL = {"learning_rate": 0.01, "weight_decay": 1e-4, "nesterov": False, "head_multiplier": 1.0, **SGD}
SAWATZKY = {"learning_rate": 2.5e-4, "weight_decay": 1e-4, "nesterov": False, "head_multiplier": 10.0, **SGD}
DUALGAN = {"learning_rate": 1e-3, "weight_decay": 1e-4, "nesterov": False, "head_multiplier": 10.0, **SGD}
V2_R101 = ("deeplab_v2", "resnet101", 8)
V3_R101, V3_R50 = ("deeplab_v3plus", "resnet101", 16), ("deeplab_v3plus", "resnet50", 16)
D = {"discriminator_learning_rate": 1e-4, "discriminator_channels": 64}
ADVSEMISEG = {"lambda_adv": 0.01, "lambda_adv_unlabeled": 0.001, "lambda_semi": 0.1, "T_semi": 0.2, **D}
S4GAN = {"lambda_fm": 0.1, "lambda_st": 1.0, "gamma": 0.6, "discriminator_dropout": 0.5, "discriminator_shrink": 1, **D}
ECS = {
    "lambda_cor": 0.1,
    "loss": "nfl",
    "gamma": 2.0,
    "corrector_learning_rate": 1e-4,
    "lambda_ecs": 1.0,
    "joint_update": False,
    "corrector_backbone": "resnet50",  # the paper's ResNet-34 has no weights in Keras
    "corrector_weights": "imagenet",
}
LATENT = {"latent_classes": 20, "lambda_latent": 1.0, "lambda_adv": 0.01, "lambda_adv_unlabeled": 0.001}
LATENT |= {"lambda_cons": 0.1, "cons_start": 0.25, **D}
TWO = {"lambda_ad": 0.01, "lambda_s": 0.1, "semi_start": 0.25, "d2_structure": "stride16_up4", "d2_input": "maps", **D}
UNIMATCH = {"lambda_s": 0.25, "lambda_fp": 0.5, "channel_dropout": 0.5, "cutmix": 0.5}
UNIMATCH |= {"jitter": 0.5, "hue": 0.25, "jitter_probability": 0.8, "grey_probability": 0.2, "blur_probability": 0.5}
UNIMATCH_V2 = {"lambda_s": 0.5, "complementary_dropout": 0.5, "cutmix": 0.5, "threshold": 0.95, "ema_decay": 0.996}
DINOV2 = {"optimizer": "adamw", "learning_rate": 5e-6, "weight_decay": 0.01, "head_multiplier": 40.0}
STREETS = {"gamma": 0.7, "discriminator_learning_rate": 1e-5}
WHOLE, ANY = (0.5, 0.5), (0.5, 1.5)

# Written from the papers' sections on training and, where those are silent, their reference code: network, crop, scale,
# batch, steps, the segmenter's optimizer, the method's own fields.
PAPERS = {
    "hung2018_voc": (V2_R101, (321, 321), ANY, 10, 20_000, HUNG, ADVSEMISEG | {"semi_start": 0.25}),
    "hung2018_cityscapes": (V2_R101, (512, 1024), WHOLE, 2, 40_000, HUNG, ADVSEMISEG | {"semi_start": 0.125}),
    "mittal2019_voc_v3plus": (V3_R101, (321, 321), ANY, 8, 35_000, MITTAL, S4GAN),
    "mittal2019_voc": (V2_R101, (321, 321), ANY, 8, 35_000, MITTAL, S4GAN),
    "mittal2019_context": (V2_R101, (321, 321), ANY, 8, 50_000, MITTAL, S4GAN),
    "mittal2019_cityscapes": (V2_R101, (256, 512), WHOLE, 5, 35_000, MITTAL, S4GAN | STREETS),
    "mendel2020_voc_v2": (V2_R101, (512, 512), (0.5, 2.0), 14, 22_000, MENDEL, ECS),
    "mendel2020_voc": (V3_R50, (512, 512), (0.5, 2.0), 14, 22_000, MENDEL, ECS),
    "mendel2020_cityscapes_v2": (V2_R101, (768, 768), (1.0, 1.0), 6, 15_000, MENDEL, ECS),
    "mendel2020_cityscapes": (V3_R50, (768, 768), (1.0, 1.0), 6, 15_000, MENDEL, ECS),
    "sawatzky2020_voc": (V2_R101, (321, 321), ANY, 10, 20_000, SAWATZKY, LATENT),
    "sawatzky2020_cityscapes": (V2_R101, (505, 505), ANY, 2, 40_000, SAWATZKY, LATENT | {"cons_start": 0.125}),
    "dualgan_voc": (V3_R101, (321, 321), ANY, 10, 20_000, DUALGAN, TWO),
    "dualgan_cityscapes": (V3_R101, (512, 1024), WHOLE, 2, 40_000, DUALGAN, TWO | {"semi_start": 0.125}),
    "yang2023_voc_183": (V3_R101, (321, 321), (0.5, 2.0), 8, 103_990, DUALGAN, UNIMATCH | {"threshold": 0.95}),
    "yang2023_voc_1464": (V3_R101, (321, 321), (0.5, 2.0), 8, 91_180, DUALGAN, UNIMATCH | {"threshold": 0.95}),
    "yang2023_cityscapes": (
        V3_R101,
        (801, 801),
        (0.5, 2.0),
        8,
        78_090,
        DUALGAN | {"learning_rate": 5e-3, "head_multiplier": 1.0},
        UNIMATCH | {"threshold": 0.0, "ohem_threshold": 0.7},
    ),
}

# Steps: epochs times unlabelled images over the batch.
for place, crop, batch_size, ohem, steps_by_labels in (
    ("voc", 518, 16, 1.0, {92: 39_337, 183: 38_996, 366: 38_310, 732: 36_937, 1464: 34_192}),
    ("cityscapes", 798, 8, 0.7, {186: 62_752, 372: 58_567, 744: 50_197, 1488: 33_457}),
    ("ade20k", 518, 8, 1.0, {316: 149_205, 631: 146_842, 1263: 142_102, 2526: 132_630, 5052: 113_685}),
    ("coco", 518, 16, 1.0, {232: 147_568, 463: 147_280, 925: 146_702, 1849: 145_547, 3697: 143_237}),
):
    for labels, steps in steps_by_labels.items():
        for size, end in (("small", ""), ("base", "_base")):
            PAPERS[f"yang2024_{place}_{labels}{end}"] = (
                ("dpt", f"dinov2_{size}", 16),
                (crop, crop),
                (0.5, 2.0),
                batch_size,
                steps,
                DINOV2 | {"ohem_threshold": ohem},
                UNIMATCH_V2,
            )

# What rows of the papers' tables change.
ADVERSARIAL_ONLY = {"lambda_semi": 0.0, "lambda_adv_unlabeled": 0.0}
CHANGES = {
    "hung2018_voc_full": ADVERSARIAL_ONLY,
    "hung2018_cityscapes_full": ADVERSARIAL_ONLY,
    "hung2018_voc_full_lambda_adv_0_005": ADVERSARIAL_ONLY | {"lambda_adv": 0.005},
    "hung2018_voc_full_lambda_adv_0_02": ADVERSARIAL_ONLY | {"lambda_adv": 0.02},
    "hung2018_voc_full_lambda_adv_0_04": ADVERSARIAL_ONLY | {"lambda_adv": 0.04},
    "hung2018_voc_full_lambda_adv_0_05": ADVERSARIAL_ONLY | {"lambda_adv": 0.05},
    "hung2018_voc_1_8_lambda_semi_0": {"lambda_semi": 0.0},
    "hung2018_voc_1_4_lambda_semi_0": {"lambda_semi": 0.0},
    "hung2018_voc_1_2_lambda_semi_0": {"lambda_semi": 0.0},
    "hung2018_cityscapes_1_8_lambda_semi_0": {"lambda_semi": 0.0},
    "hung2018_cityscapes_1_4_lambda_semi_0": {"lambda_semi": 0.0},
    "hung2018_cityscapes_1_2_lambda_semi_0": {"lambda_semi": 0.0},
    "hung2018_voc_1_8_lambda_semi_0_05": {"lambda_semi": 0.05},
    "hung2018_voc_1_8_lambda_semi_0_2": {"lambda_semi": 0.2},
    "hung2018_voc_1_8_t_semi_0": {"T_semi": 0.0},
    "hung2018_voc_1_8_t_semi_0_1": {"T_semi": 0.1},
    "hung2018_voc_1_8_t_semi_0_3": {"T_semi": 0.3},
    "hung2018_voc_1_8_t_semi_1": {"T_semi": 1.0},
    "hung2018_voc_full_not_convolutional": ADVERSARIAL_ONLY | {"convolutional": False},
    "hung2018_voc_1_8_not_convolutional": {"lambda_semi": 0.0, "convolutional": False},
    "hung2018_voc_1_8_no_adv": {"lambda_adv": 0.0, "lambda_adv_unlabeled": 0.0},
    "mendel2020_voc_1_4_lambda_cor_0": {"lambda_cor": 0.0},
    "mendel2020_voc_1_4_lambda_ecs_0": {"lambda_ecs": 0.0},
    "mendel2020_voc_1_4_ce": {"loss": "ce"},
    "mendel2020_cityscapes_1_4_lambda_cor_0": {"lambda_cor": 0.0},
    "mendel2020_cityscapes_1_4_lambda_ecs_0": {"lambda_ecs": 0.0},
    "mendel2020_cityscapes_1_4_ce": {"loss": "ce"},
}


# "We resize the input image to 512x1024", "we downsample the original images by a factor 2"; the published code of
# UniMatch slides its crops over Cityscapes. All else says nothing, or that images are measured as they are.
PROTOCOLS = {
    "hung2018_cityscapes": "resized",
    "mittal2019_cityscapes": "resized",
    "dualgan_cityscapes": "resized",
    "yang2023_cityscapes": "sliding_window",
    "yang2024_cityscapes": "sliding_window",
}


OTHER_METHODS = {
    "mittal2019_cityscapes_1_8": "s4gan",
    "mittal2019_cityscapes_1_4": "s4gan",
    "mittal2019_cityscapes_full": "s4gan",
    "mendel2020_voc_full": "supervised",
    "mendel2020_cityscapes_full": "supervised",
    "mendel2020_voc_1_4_deeplab_discriminator": "advsemiseg",
    "mendel2020_cityscapes_1_4_deeplab_discriminator": "advsemiseg",
}
"""Recipes that train another method than the paper's own."""


def of_paper(name):
    """The row of `PAPERS` for a recipe: the longest name that it starts with."""
    return PAPERS[max((row for row in PAPERS if name.startswith(row)), key=len)]


@pytest.mark.parametrize("name", [name for name, entry in RECIPES.items() if entry.source])
def test_the_papers_recipes_have_the_papers_settings(name):
    network, crop, scale, batch_size, steps, optimizer, own = of_paper(name)
    place = name.split("_")[1]
    dataset = {"voc": "voc2012", "context": "pascal_context"}.get(place, place)
    share = re.search(r"_(1_(50|20|8|4|2)|full)(_|$)", name)
    labeled = share and {"full": "all"}.get(share[1], share[1].replace("_", "/"))
    if name.startswith("yang2024"):
        labeled = name.split("_")[2]
    for method in {RECIPES[name].method, "supervised", *RECIPES[name].expected}:
        config = with_groups(*choose(name, method))
        assert (config.segmenter, config.backbone, config.output_stride) == network
        assert (config.dataset, config.crop, config.scale, config.batch_size, config.flip) == (
            dataset,
            crop,
            scale,
            batch_size,
            True,
        )
        assert config.labeled == labeled if labeled else "--labeled" in RECIPES[name].needs
        assert config.protocol == PROTOCOLS.get("_".join(name.split("_")[:2]), "native")
        fields = config.method_fields["s4gan" if method == "mlmt" else method]
        assert fields["steps"] == steps and optimizer.items() <= fields.items(), method
    paper = name.split("_")[0]
    usual = {"hung2018": "advsemiseg", "mittal2019": "mlmt", "mendel2020": "ecs", "sawatzky2020": "latent"}
    usual |= {"dualgan": "dualgan", "yang2023": "unimatch", "yang2024": "unimatch_v2"}
    assert RECIPES[name].method == OTHER_METHODS.get(name, usual[paper])
    config = with_groups(*choose(name, usual[paper]))
    fields = config.method_fields["s4gan" if config.method == "mlmt" else config.method]
    assert (own | CHANGES.get(name, {})).items() <= fields.items()
    if network[0] == "deeplab_v3plus":
        assert config.head_dropout == (0.0 if paper == "yang2023" else 0.5)
    assert config.image_labels == ("all" if name.endswith("weak") else None)
    assert choose(name, "supervised")[0].image_labels is None  # which has no use for them


@pytest.mark.parametrize("dataset", ["voc", "cityscapes"])
def test_mendels_other_discriminator_is_the_correctors_network(dataset):
    config = with_groups(*choose(f"mendel2020_{dataset}_1_4_deeplab_discriminator"))
    assert config.method_fields["advsemiseg"]["discriminator_backbone"] == "resnet34"


def test_every_table_of_the_papers_has_its_recipes():
    numbers = {
        ("hung2018_voc", "supervised", 1): [66.0, 68.3, 69.8, 73.6],
        ("hung2018_voc", "advsemiseg", 1): [69.5, 72.1, 73.8, 74.9, 71.0, 72.6],
        ("hung2018_cityscapes", "supervised", 2): [55.5, 59.9, 64.1, 66.4],
        ("hung2018_cityscapes", "advsemiseg", 2): [58.8, 62.3, 65.7, 67.7, 57.1, 61.8, 64.6],
        ("hung2018", "supervised", 4): [66.3, 57.4],
        ("hung2018", "advsemiseg", 4): [68.4, 60.6],
        ("hung2018", "advsemiseg", 6): [74.0, 66.6, 65.7],
        ("hung2018_voc_full", "advsemiseg", 8): [74.0, 74.6, 74.1, 73.0],
        ("hung2018_voc_1_8", "advsemiseg", 8): [67.6, 68.4, 69.1, 67.2, 68.8, 69.2, 67.6],
        ("mittal2019_voc_coco", "supervised", 1): [53.2, 58.7, 65.2, 73.6],
        ("mittal2019_voc_coco", "advsemiseg", 1): [57.2, 64.7, 69.5, 74.9],
        ("mittal2019_voc_coco", "s4gan", 1): [60.9, 66.4, 69.8, 73.9],
        ("mittal2019_voc_coco", "mlmt", 1): [63.3, 67.2, 71.4, 75.6],
        ("mittal2019_voc_v3plus", "supervised", 2): [63.5, 74.6],
        ("mittal2019_voc_v3plus", "mlmt", 2): [62.6, 66.6, 70.4, 74.7],
        ("mittal2019", "supervised", 3): [32.1, 35.4, 41.0],
        ("mittal2019", "advsemiseg", 3): [32.8, 34.8, 39.1],
        ("mittal2019", "s4gan", 3): [34.4, 37.1, 40.8],
        ("mittal2019", "mlmt", 3): [35.3, 37.8, 41.1],
        ("mittal2019", "supervised", 4): [56.2, 60.2, 66.0],
        ("mittal2019", "advsemiseg", 4): [57.1, 60.5, 66.2],
        ("mittal2019", "s4gan", 4): [59.3, 61.9, 65.8],
        ("mittal2019", "supervised", 7): [65.7],
        ("mittal2019", "mlmt", 7): [69.6, 70.9],
        ("mendel2020_voc", "supervised", 1): [65.2, 69.78, 73.42, 76.29],
        ("mendel2020_voc", "ecs", 1): [70.22, 72.6, 74.63],
        ("mendel2020_cityscapes", "supervised", 1): [63.12, 67.31, 71.22, 74.76],
        ("mendel2020_cityscapes", "ecs", 1): [67.38, 70.7, 72.89],
        ("mendel2020", "ecs", 2): [71.97, 69.93, 68.39, 70.39, 68.22, 69.27],
        ("mendel2020", "advsemiseg", 1): [66.22, 70.48, 63.21, 68.43],  # table 3, of the same networks
        ("mendel2020", "advsemiseg", 3): [65.83, 65.79],
        ("mendel2020_voc_v2", "ecs", 4): [72.95, 74.68],
        ("mendel2020_cityscapes_v2", "ecs", 4): [60.26, 63.77],
        ("sawatzky2020", "supervised", 1): [64.1],
        ("sawatzky2020", "advsemiseg", 1): [69.5, 72.1, 73.8, 74.9],
        ("sawatzky2020", "latent", 1): [71.3, 72.4, 73.9, 75.0],
        ("sawatzky2020", "advsemiseg", 2): [58.8, 62.3, 65.7, 67.7],
        ("sawatzky2020", "latent", 2): [63.3, 65.4, 66.1, 66.3],
    }
    for (start, method, number), expected in numbers.items():
        of_table = [
            entry.expected
            for name, entry in RECIPES.items()
            if name.startswith(start) and f", table {number}" in entry.source
        ]
        assert [each[method] for each in of_table if method in each] == expected, (start, method, number)
    # Table 1 of Mittal et al. has the same networks and splits without and with COCO.
    plain = [RECIPES[f"mittal2019_voc_{labeled}"].expected for labeled in ("1_50", "1_20", "1_8", "full")]
    assert [list(row.values()) for row in plain] == [
        [48.3, 49.2, 58.1, 60.4],
        [56.8, 59.1, 60.9, 62.9],
        [62.0, 64.3, 65.4, 67.3],
        [70.7, 71.4, 71.2, 73.2],
    ]
    yang = [entry.expected for name, entry in RECIPES.items() if name.startswith("yang2023")]
    assert [list(row.values()) for row in yang] == [[55.3, 77.2], [73.5, 81.2], [72.8, 77.9]]


@pytest.mark.parametrize(
    "place, of_base",
    [
        ("voc", [86.3, 87.9, 88.9, 90.0, 90.8]),
        ("cityscapes", [83.6, 84.3, 84.5, 85.1]),
        ("ade20k", [38.7, 45.0, 46.7, 49.8, 52.0]),
        ("coco", [47.9, 55.8, 58.7, 60.4, 63.3]),
    ],
)
def test_the_figures_of_unimatch_v2_are_those_of_its_tables(place, of_base):
    """The page of the published code has those of DINOv2-base, rounded, but for ADE20K's last; its logs have all."""
    names = [name for name in RECIPES if name.startswith(f"yang2024_{place}")]
    gains = [RECIPES[name].expected["unimatch_v2"] - RECIPES[name].expected["supervised"] for name in names]
    assert min(gains) > 0
    found = [RECIPES[name].expected["unimatch_v2"] for name in names if name.endswith("_base")]
    assert found == pytest.approx(of_base, abs=0.0501)
    small = [RECIPES[name].expected["unimatch_v2"] for name in names if not name.endswith("_base")]
    assert len(small) == len(found) and all(less < more for less, more in zip(small, found, strict=True))


def test_a_recipe_that_lacks_a_flag_says_which():
    with pytest.raises(ValueError, match="hung2018_voc_1_8 needs --weights: the file of a DeepLab-v2 trained on COCO"):
        configuration(["--recipe", "hung2018_voc_1_8"])
    with pytest.raises(ValueError, match="yang2023_voc_183 needs --labeled: a file with 183 names"):
        configuration(["--recipe", "yang2023_voc_183"])
    with pytest.raises(ValueError, match="photos needs --dataset"):
        configuration(["--recipe", "photos"])
    for given in (["--weights", "none"], ["--weights=none"], ["--help"]):
        config = configuration(["--recipe", "hung2018_voc_1_8", *given])
        assert (config.method, config.recipe) == ("advsemiseg", "hung2018_voc_1_8")
    assert configuration(["--recipe", "mendel2020_voc_1_8", "--method", "latent"]).method == "latent"
    with pytest.raises(ValueError, match="there is no recipe 'voc'"):
        configuration(["--recipe", "voc"])


def test_the_list_has_a_line_for_each_recipe():
    lines, title, titles = {}, "", {}
    for line in table().splitlines()[1:]:
        if line.startswith("  "):
            name = line.split()[0]
            lines[name], titles[name] = line, title
        title = title if line.startswith("  ") else line
    assert lines.keys() == RECIPES.keys() and max(map(len, lines.values())) < 180
    assert "advsemiseg 69.5" in lines["hung2018_voc_1_8"]
    assert titles["hung2018_voc_1_8"].startswith("Hung et al. 2018, table 1; hardware: ")
    assert "--labeled" in lines["yang2023_voc_183"] and titles["yang2023_voc_183"].endswith("; here: not measured yet")


@functools.cache
def small_segmenter(name, output_stride, rates):
    """Built once for all methods, of which none trains it."""
    head = {"head_channels": 4} if name == "deeplab_v3plus" else {}
    return build_segmenter(name, backbone="tiny", num_classes=3, output_stride=output_stride, rates=rates, **head)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "mlmt"])
def test_no_method_has_taps_that_never_learn_with_any_recipe(method):
    """Of all its networks: second heads, correctors and discriminators too."""
    seen = set()
    for name in RECIPES:
        config = with_groups(*RECIPES[name](method))
        own = config.method_fields[method]
        key = (config.segmenter, config.output_stride, config.crop, own.get("discriminator_backbone"))
        if key in seen or not SEGMENTERS[config.segmenter].RATES:
            continue
        seen.add(key)
        rates = fitting_rates(SEGMENTERS[config.segmenter], config.crop, config.output_stride)
        segmenter = small_segmenter(config.segmenter, config.output_stride, tuple(rates))
        small = {"discriminator_channels": 4, "corrector_head_channels": 4, "corrector_backbone": None}
        small |= {"corrector_weights": "none", "discriminator_backbone": own.get("discriminator_backbone") and "tiny"}
        own |= {field: value for field, value in small.items() if field in own}
        fields = METHODS[method].with_data({method: own}, TrainingData(labeled_images=9, crop=config.crop))
        assert untrained_taps(METHODS[method].from_segmenter(segmenter, fields), config.crop) == {}, name
    assert len(seen) > 5


def test_the_taps_of_every_network_are_looked_at():
    """Built with the published rates, which crops of 176x240 have no room for."""
    segmenter = build_segmenter("deeplab_v2", backbone="tiny", num_classes=3, output_stride=8)
    own = {"corrector_backbone": None, "corrector_head_channels": 4}
    taps = untrained_taps(METHODS["ecs"](segmenter, **own), (176, 176))
    assert taps == {
        "segmenter/aspp_rate24": 24,
        "corrector/aspp_rate12_conv": 12,
        "corrector/aspp_rate18_conv": 18,
    }
    latent = METHODS["latent"](segmenter, discriminator_channels=4)
    assert untrained_taps(latent, (176, 176)) == {"segmenter/aspp_rate24": 24, "latent_head/aspp_rate24": 24}
    critic = {"discriminator_backbone": "tiny"}
    assert "discriminator/aspp_rate18_conv" in untrained_taps(METHODS["advsemiseg"](segmenter, **critic), (176, 176))


def few_shapes():
    """What stands for `shapes` in a test: drawing all of its scenes takes seconds."""
    return ShapesDataset(train=80, val=20)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")
def test_a_recipe_in_a_notebook(eager, tmp_path, monkeypatch):
    """The method that it builds is the one that training.run trains."""
    monkeypatch.setitem(DATASETS, "shapes", f"{__name__}:few_shapes")
    dataset = kerasseg.data.open_dataset("shapes")
    split = kerasseg.data.make_split(dataset, "1/20", seed=3, cover=True)
    changes = {"backbone": "tiny", "head_channels": 8, "crop": (32, 32), "steps": 7, "seed": 3}
    plan = kerasseg.recipes.shapes("meanteacher", meanteacher={"threshold": 0.8}, **changes)
    method = plan.build_method(dataset, split)
    assert (method.config.threshold, method.config.steps, method.config.cons_start) == (0.8, 7, 0.4)
    method.compile()
    ours = next(iter(plan.batches(dataset, split, method)))
    history = method.fit(plan.batches(dataset, split, method), steps_per_epoch=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()

    flags = ["--recipe", "shapes", "--method", "meanteacher", "--meanteacher.threshold", "0.8", "--steps", "7"]
    flags += ["--backbone", "tiny", "--head-channels", "8", "--crop", "32", "32", "--seed", "3", "--out", str(tmp_path)]
    default = configuration(flags)
    session = assemble(tyro.cli(type(default), args=flags, default=default), tf.distribute.get_strategy())
    assert session.method.config == method.config and session.split == split
    theirs = next(iter(session.whole_batches(session.stages[0], 0)))
    tf.nest.map_structure(np.testing.assert_array_equal, ours, theirs)


def test_what_a_notebook_may_ask_of_recipes():
    assert kerasseg.recipes.hung2018_voc_1_8 is RECIPES["hung2018_voc_1_8"]
    with pytest.raises(AttributeError, match="there is no recipe 'photo': kerasseg.recipes.RECIPES has them all"):
        _ = kerasseg.recipes.photo
    with pytest.raises(TypeError, match="learning_rat"):
        kerasseg.recipes.photos(learning_rat=1.0)
    with pytest.raises(ValueError, match="batch-size must be at least 1; got 0"):
        kerasseg.recipes.photos(batch_size=0)
