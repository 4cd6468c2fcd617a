import dataclasses

import pytest

from kerasseg.methods import METHODS
from training.config import with_groups
from training.recipes import RECIPES, recipe


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_configures_every_method(name, method):
    config = with_groups(*RECIPES[name](method))
    fields = config.method_fields
    assert set(config.groups) == set(METHODS[method].config_groups(fields))
    for group in fields.values():
        assert group["steps"] == config.steps


def test_auto_follows_the_dataset():
    assert recipe("auto", "mlmt", "shapes") == RECIPES["shapes"]("mlmt")
    assert recipe("auto", "mlmt", "some/folder") == RECIPES["photos"]("mlmt")


def test_steps_and_learning_rate_reach_the_methods_that_have_them():
    config, fields = RECIPES["shapes"]("mlmt")
    config = with_groups(dataclasses.replace(config, steps=7, learning_rate=0.5), fields)
    fields = config.method_fields
    assert fields["s4gan"]["steps"] == fields["mlmt"]["steps"] == 7
    assert fields["s4gan"]["learning_rate"] == 0.5 and "learning_rate" not in fields["mlmt"]


def test_the_supervised_branch_of_mlmt_brings_its_own_flags():
    config, _ = RECIPES["shapes"]("mlmt")
    assert set(with_groups(config, {"mlmt": {"branch": "supervised"}}).groups) == {"mlmt", "supervised"}
