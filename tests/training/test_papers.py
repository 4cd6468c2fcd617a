"""The papers' recipes through the real builders, on archives of a few tiny images."""

import dataclasses
import functools

import pytest
import tyro

from kerasseg.recipes import RECIPES
from tests.kerasseg.data import archives
from tests.training.commands import TINY, call, error_line
from training import run

PAPERS = [name for name, entry in RECIPES.items() if entry.source]


def flags_of(name: str) -> list[str]:
    """What makes a recipe fit a test; nothing else about it changes."""
    flags = ["--recipe", name, "--steps", "2", "--labeled", "2", *TINY]
    if RECIPES[name]()[0].segmenter == "dpt":
        flags += ["--backbone", "tiny_transformer"]
    if RECIPES[name].method == "ecs":  # the segmenter's, in place of a pretrained ResNet-50
        flags += ["--ecs.corrector-backbone", "None", "--ecs.corrector-weights", "none"]
    if RECIPES[name]()[1]["advsemiseg"].get("discriminator_backbone"):
        flags += ["--advsemiseg.discriminator-backbone", "tiny"]
    return flags


@functools.cache
def different() -> dict[str, list[str]]:
    """The recipes to run, by dataset: on each dataset every method with every network, and each variant of a method
    once, on the dataset that has it first.

    Others are the same on the command line with these flags, or differ in the amount of labels, the number of steps,
    the initial weights or the size of a factor above 0.
    """

    def alike(value):
        if isinstance(value, dict):
            return {key: alike(each) for key, each in value.items()}
        return value > 0 if isinstance(value, float) else value

    chosen: dict[str, list[str]] = {}
    seen = set()
    for name in PAPERS:
        flags = flags_of(name)
        default = run.configuration(flags)
        config = tyro.cli(type(default), args=flags, default=default)
        shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(run.RunConfig)}
        keys = {repr(alike(each)) for each in (shared | {"recipe": ""}, config.method_fields)}
        if not keys <= seen:
            chosen.setdefault(config.dataset, []).append(name)
        seen |= keys
    return chosen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")
@pytest.mark.parametrize("dataset", ["voc2012", "pascal_context", "cityscapes", "ade20k", "coco"])
def test_the_recipes_run_from_archives(dataset, eager, only_scores, tfds_directories, tmp_path, capsys):
    manual, _ = tfds_directories
    getattr(archives, dataset)(manual)
    for name in different()[dataset]:
        status, result, err = call(run.main, [*flags_of(name), "--out", tmp_path / name], capsys)
        assert status == 0 and result["finished"], (name, err)
        assert result["steps"] == 2 + 2 * (RECIPES[name].method == "mlmt")


def test_a_recipe_without_its_archives_says_what_to_get(tfds_directories, tmp_path, capsys):
    flags = ["--recipe", "mendel2020_cityscapes_1_8", *TINY, "--out", tmp_path / "run"]
    status, _, err = call(run.main, flags, capsys)
    assert status == 2 and "needs leftImg8bit_trainvaltest.zip" in error_line(err)
    assert not (tmp_path / "run").exists()
