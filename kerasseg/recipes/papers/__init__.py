"""Recipes for the papers' tables: one for each dataset, setting and amount of labels, in one file for each paper.

`python -m training.run --recipe NAME` trains the paper's method; `--method supervised` trains its baseline, and any
other `--method` trains under the same conditions. The numbers of a recipe are the paper's, for each method that it
reports; `--list-recipes` shows them all. Where the paper is silent, values come from its reference code or are the
methods' defaults (docs/decisions/methods.md).

The end of a name says what a recipe changes: `full` labels all images, `lambda_semi_0` sets that field to 0.
"""

from kerasseg.recipes.papers import (  # noqa: F401 (they add their recipes)
    dualgan,
    hung2018,
    mendel2020,
    mittal2019,
    sawatzky2020,
    yang2023,
    yang2024,
)
