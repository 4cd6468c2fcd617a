"""The papers' recipes through the real builders, on archives of a few tiny pictures."""

import pytest

from tests.data import archives
from tests.training.commands import TINY, call, error_line
from training import run
from training.recipes import RECIPES

# One of each paper: the others differ in the amount of labels, or in networks that tiny ones stand for here.
CHOSEN = {
    "voc2012": [
        "hung2018_voc_1_8",
        "mittal2019_voc_1464_weak",
        "mendel2020_voc_1_8",
        "sawatzky2020_voc_1_8",
        "dualgan_voc_1_8",
        "yang2023_voc_183",
    ],
    "pascal_context": ["mittal2019_context_1_4"],
    "cityscapes": ["mittal2019_cityscapes_1_8", "yang2023_cityscapes_1_8"],
}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", CHOSEN)
def test_the_recipes_run_from_archives(dataset, tfds_directories, tmp_path, capsys):
    manual, _ = tfds_directories
    getattr(archives, dataset)(manual)
    for name in CHOSEN[dataset]:
        flags = ["--recipe", name, "--steps", "2", "--labeled", "2", *TINY, "--out", tmp_path / name]
        if RECIPES[name].method == "ecs":
            flags += ["--ecs.corrector-backbone", "None"]  # the segmenter's, in place of a ResNet-34
        status, result, err = call(run.main, flags, capsys)
        assert status == 0 and result["finished"] and result["steps"] == 2 + 2 * (RECIPES[name].method == "mlmt"), err


def test_a_recipe_without_its_archives_says_what_to_get(tfds_directories, tmp_path, capsys):
    flags = ["--recipe", "mendel2020_cityscapes_1_8", *TINY, "--out", tmp_path / "run"]
    status, _, err = call(run.main, flags, capsys)
    assert status == 2 and "needs leftImg8bit_trainvaltest.zip" in error_line(err)
    assert not (tmp_path / "run").exists()
