"""What a recipe is, and the list of all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kerasseg.methods import METHODS, SegmenterConfig
from training.config import RunConfig

Fields = dict[str, dict[str, Any]]
"""Fields of methods by registry name."""


Settings = Callable[[str], tuple[RunConfig, Fields]]
"""From a method's name to the run's settings and the methods' fields."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named set of defaults for `training.run`; any flag overrides them."""

    settings: Settings
    method: str
    """The one that is trained where --method is not given."""
    expected: Mapping[str, float] = field(default_factory=dict)
    """What the paper reports by method: mIoU on val, %."""
    source: str = ""
    """Where it does."""
    start: str = ""
    """The data that the paper's initial weights were trained on."""
    hardware: str = "not said"
    """What the paper trained on."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Flags without which it cannot run, and what to give."""
    measured: str = "not measured yet"
    """What was measured here: mIoU, hardware, time."""

    def __call__(self, method: str | None = None) -> tuple[RunConfig, Fields]:
        return self.settings(method or self.method)


RECIPES: dict[str, Recipe] = {}


def enter(name: str, settings: Settings, **about) -> None:
    """Enters a recipe into `RECIPES`. Arguments: `Recipe`."""
    RECIPES[name] = Recipe(settings=settings, **about)


def recipe(**about):
    """`enter` for a function, by its own name."""

    def entered(settings: Settings) -> Settings:
        enter(settings.__name__, settings, **about)
        return settings

    return entered


def same_for_all(fields: Mapping[str, Any], **of_one: Mapping[str, Any]) -> Fields:
    """The segmenter's fields for every method, so that a gain is one over the same training; and those of one's own."""
    shared: Fields = {
        name: dict(fields) if issubclass(method.Config, SegmenterConfig) else {} for name, method in METHODS.items()
    }
    return {name: {**values, **of_one.get(name, {})} for name, values in shared.items()}
