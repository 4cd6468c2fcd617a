"""What there is to choose from: methods, recipes and backbones, printed as tables."""

import shutil
import textwrap
from dataclasses import dataclass

# isort: off
import kerasseg  # noqa: F401 (first: it prepares the start of TensorFlow)

# isort: on
from kerasseg import recipes
from kerasseg.methods import METHODS
from kerasseg.segmenters.backbones.table import backbone_table
from serving.common import cli


@dataclass(frozen=True)
class NoFlags:
    """A list has none."""


def method_table() -> str:
    """Each method with when to use it, a line each."""
    width = max(map(len, METHODS))
    return "\n".join(f"  {name:{width}}  {method.when}" for name, method in METHODS.items())


def methods(config: NoFlags) -> str:
    """Each method with what it does and when to use it."""
    width = min(shutil.get_terminal_size().columns - 1, 100)
    return "\n\n".join(
        f"{name}: {method.when}\n{textwrap.fill(method.about, width, initial_indent='  ', subsequent_indent='  ')}"
        for name, method in METHODS.items()
    )


def list_recipes(config: NoFlags) -> str:
    return recipes.table()


def list_backbones(config: NoFlags) -> str:
    return backbone_table()


METHOD_LIST = cli.Command(methods, NoFlags, "Lists the methods: what each does, and when to use it.")
RECIPE_LIST = cli.Command(list_recipes, NoFlags, "Lists the recipes: defaults for training, and the papers' tables.")
BACKBONE_LIST = cli.Command(list_backbones, NoFlags, "Lists the image networks that a segmenter can be built on.")
