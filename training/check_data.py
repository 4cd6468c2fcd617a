"""Checks a dataset folder: names each problem, its files and the fix."""

import sys
from dataclasses import dataclass
from typing import Annotated

# isort: off
import kerasseg  # noqa: F401 (first: it prepares the start of TensorFlow)

# isort: on
import tyro

from kerasseg.data.check import inspect_folder
from kerasseg.data.datasets import DATASETS, open_dataset
from kerasseg.data.inspection import inspect_dataset
from kerasseg.data.shrunk import auto_size, class_widths, explain_size, longer_sides
from kerasseg.data.splits import make_split
from kerasseg.distribution import leave_gpus
from kerasseg.losses import IGNORE_LABEL
from kerasseg.recipes import RECIPES
from serving.common import cli

PHOTOS = RECIPES["photos"]().settings
"""What a dataset folder is trained with, unless another recipe is named."""

THIN = 3.0
"""A class that is narrower than this, pixels, is hardly learned."""


@dataclass(frozen=True)
class CheckDataConfig:
    """Which folder, and which split of it."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The dataset folder, or the name of a dataset that kerasseg train knows."""

    labeled: str | None = None
    """Also check the split that --labeled makes: a fraction (1/8), a count (45), all, or a file of image names, one per
    line."""

    seed: int = 0
    """Seed of that split."""

    cover: bool = False
    """Choose the images of --labeled so that every class is in as many of them as possible, rare classes first."""


def main(config: CheckDataConfig) -> dict:
    """Writes every problem to stderr; returns the counts, with exit status 2 where there is an error."""
    if config.cover and config.labeled is None:
        raise ValueError("--cover says how the images of --labeled are chosen: give --labeled too")
    dataset = open_dataset(config.path) if config.path in DATASETS else None
    inspection = inspect_dataset(dataset) if dataset else inspect_folder(config.path)
    if config.labeled is not None and not inspection.errors:
        dataset = dataset or open_dataset(config.path)
        split = make_split(dataset, config.labeled, config.seed, cover=config.cover)
        inspection.add_split(split, config.cover)
    for problem in inspection.problems:
        print(problem, file=sys.stderr)
    size = {}
    if not inspection.errors and config.path not in DATASETS:
        dataset = dataset or open_dataset(config.path)
        working_size = auto_size(dataset, PHOTOS.crop)
        size = {"working_size": working_size}
        if longer_sides(dataset)[-1] > working_size:
            print(f"with --size auto, {explain_size(dataset, PHOTOS.crop, working_size)}", file=sys.stderr)
            for name, width in zip(dataset.classes, class_widths(dataset, working_size), strict=True):
                if width < THIN:
                    print(
                        f"with --size auto, {name} would be about {width:.1f} pixels wide: --size native keeps its own "
                        "width",
                        file=sys.stderr,
                    )
    errors = len(inspection.errors)
    if errors:
        print(f"error: {errors} problem{'s' * (errors > 1)} in {config.path}", file=sys.stderr)

    pixels = inspection.pixels
    labeled = max(1, int(pixels[:IGNORE_LABEL].sum()))
    return {
        "errors": errors,
        "warnings": len(inspection.warnings),
        "images": inspection.images,
        "classes": {name: round(int(n) / labeled, 5) for name, n in zip(inspection.classes, pixels, strict=False)},
        "ignored": round(int(pixels[IGNORE_LABEL]) / max(1, int(pixels.sum())), 5),
        **size,
        "exit_status": 2 if errors else 0,
    }


COMMAND = cli.Command(main, CheckDataConfig, str(__doc__), prepare=leave_gpus)

if __name__ == "__main__":
    COMMAND.run()
