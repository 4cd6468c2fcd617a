"""What a recipe is, and the list of all recipes."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import tensorflow as tf

from kerasseg.data import Dataset, Split
from kerasseg.methods import METHODS, Method, SegmenterConfig
from kerasseg.settings import Fields, TrainingSettings


class Plan(NamedTuple):
    """A recipe for one method: the defaults of `training.run`; a notebook can build its parts."""

    settings: TrainingSettings
    fields: Fields

    def build_method(self, dataset: Dataset, split: Split, weights: str | None = None) -> Method:
        """The method around a new segmenter, not compiled.

        Args:
            weights: the segmenter's initial weights instead of the recipe's: imagenet, none or a file.
        """
        configs = self.settings.method_configs(self.fields)
        fields = {name: dataclasses.asdict(config) for name, config in configs.items()}
        return self.settings.build_method(dataset, split, fields, weights)

    def batches(self, dataset: Dataset, split: Split, method: Method) -> tf.data.Dataset:
        """Endless training batches for the method."""
        unlabeled = self.settings.unlabeled_images(method)
        return self.settings.batches(dataset, split, unlabeled, method.learns_from_whole_images)


Settings = Callable[[str], tuple[TrainingSettings, Fields]]
"""From a method's name to the run's settings and the methods' fields."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of defaults for `training.run`; any flag overrides them."""

    settings: Settings
    method: str
    """The method that is trained where --method is not given."""
    expected: Mapping[str, float] = field(default_factory=dict)
    """The paper's result for each method: mIoU on val, %."""
    source: str = ""
    """The table of the paper with these results."""
    start: str = ""
    """The data that the paper's initial weights were trained on."""
    hardware: str = "not said"
    """The paper's hardware."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Flags that it needs, and what to give."""
    measured: str = "not measured yet"
    """Our own results: mIoU, hardware, time."""

    def __call__(self, method: str | None = None, **changes: Any) -> Plan:
        """The recipe for a method; for the recipe's own method where None.

        Args:
            changes: settings instead of the recipe's (`steps=300`), and fields of a method under its name
                (`meanteacher={"threshold": 0.8}`).

        Raises:
            ValueError, TypeError: there is no such method or setting, or its value is impossible.
        """
        settings, fields = self.settings(method or self.method)
        own = {name: fields[name] | changes.pop(name) for name in fields.keys() & changes.keys()}
        return Plan(dataclasses.replace(settings, **changes), fields | own)


RECIPES: dict[str, Recipe] = {}


def add_recipe(name: str, settings: Settings, **about) -> None:
    """Adds a recipe to `RECIPES`. Arguments: `Recipe`."""
    RECIPES[name] = Recipe(settings=settings, **about)


def recipe(**about):
    """Decorator: `add_recipe` for a function, under the function's name; the name then stands for the recipe."""

    def added(settings: Settings) -> Recipe:
        add_recipe(settings.__name__, settings, **about)
        return RECIPES[settings.__name__]

    return added


def same_for_all(fields: Mapping[str, Any], **of_one: Mapping[str, Any]) -> Fields:
    """The segmenter's fields, the same for every method so that gains are comparable; and each method's own."""
    shared: Fields = {
        name: dict(fields) if issubclass(method.Config, SegmenterConfig) else {} for name, method in METHODS.items()
    }
    return {name: {**values, **of_one.get(name, {})} for name, values in shared.items()}
