import dataclasses

import pytest
import tyro

from kerasseg.methods import METHODS
from training.config import with_groups
from training.recipes import RECIPES, recipe
from training.run import configuration


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
    assert recipe("auto", "mlmt", "shapes") == RECIPES["shapes"]("mlmt")
    assert recipe("auto", "mlmt", "some/folder") == RECIPES["photos"]("mlmt")


def test_photos_trains_every_segmenter_alike():
    for method in METHODS:
        settings, fields = RECIPES["photos"](method)
        config = with_groups(settings, fields)
        branch = config.method_fields["s4gan" if method == "mlmt" else method]
        assert (config.backbone, branch["optimizer"], branch["learning_rate"]) == ("mobilenet_v2_c4", "adamw", 1e-3)


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
