"""Named settings of whole trainings: `small_scale` for a laptop, `papers` for the papers' tables.

`training.run --recipe NAME` takes its defaults from them. In a notebook, call one by its name:

    plan = kerasseg.recipes.photos("meanteacher", steps=300)
    method = plan.build_method(dataset, split)
    for stage in method.stages():  # mlmt has two, every other method one
        stage.compile()
        stage.fit(plan.batches(dataset, split, stage), steps_per_epoch=100, epochs=3)
"""

from kerasseg.methods import find_method
from kerasseg.recipes import papers, small_scale  # noqa: F401 (they add their recipes)
from kerasseg.recipes.recipe import RECIPES, Fields, Plan, Recipe

__all__ = ["RECIPES", "Fields", "Plan", "Recipe", "choose", "table"]


def __getattr__(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]
    raise AttributeError(f"there is no recipe {name!r}: kerasseg.recipes.RECIPES has them all")


def choose(name: str, method: str | None = None, dataset: str | None = None) -> Plan:
    """The plan of the recipe with that name; `auto` is `shapes` for the built-in dataset and `photos` for all others.

    Args:
        method, dataset: those of the command line; None where it does not name one.

    Raises:
        ValueError: for an unknown recipe or method.
    """
    if name == "auto":
        name = "shapes" if dataset in (None, "shapes") else "photos"
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}: auto, or one that --list-recipes shows")
    if method is not None:
        find_method(method)
    return RECIPES[name](method)


def table() -> str:
    """All recipes as lines of text, below the table of the paper that they are from. The command of each is `kerasseg
    train --recipe NAME`, with the flags in its cells."""
    head = ("recipe", "method", "dataset", "labelled", "steps", "weights", "mIoU in the paper, %")
    rows: list[tuple[str, ...]] = [head]
    groups: dict[str, list[tuple[str, ...]]] = {}
    for name, entry in RECIPES.items():
        config, _ = entry()
        expected = ", ".join(f"{method} {value:g}" for method, value in entry.expected.items())
        dataset, labeled = (
            f"--{flag}" if f"--{flag}" in entry.needs else getattr(config, flag) for flag in ("dataset", "labeled")
        )
        start = f"{entry.start}: --weights" if "--weights" in entry.needs else entry.start or config.weights
        rows.append((f"  {name}", entry.method, str(dataset), str(labeled), str(config.steps), start, expected))
        published = f"{entry.source}; hardware: {entry.hardware}; here: " if entry.source else ""
        groups.setdefault(f"{published}{entry.measured}", []).append(rows[-1])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for title, group in {"": rows[:1], **groups}.items():
        lines += ["", title] if title else []
        lines += ["  ".join(map(str.ljust, row, widths)).rstrip() for row in group]
    return "\n".join(lines)


def __dir__() -> list[str]:
    return sorted({*globals(), *RECIPES})
