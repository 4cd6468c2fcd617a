"""What `--list-backbones` prints."""

import csv
from pathlib import Path

from kerasseg.segmenters.backbones import BACKBONES

FIGURES = Path(__file__).with_name("figures.tsv")
"""Sizes of the backbones, which take minutes to build: written by `python -m benchmarks.backbones`."""
COLUMNS = {
    "parameters": "parameters, millions",
    "multiply_adds": "multiply-adds of 321x321, billions",
    "strides": "strides",
}


def figures() -> dict[str, dict[str, str]]:
    """The rows of figures.tsv by name, each by the keys of `COLUMNS`."""
    with FIGURES.open(encoding="utf-8", newline="") as file:
        return {row.pop("backbone"): row for row in csv.DictReader(file, delimiter="\t")}


def rows() -> list[tuple[str, ...]]:
    """The table with its head; `-` for figures of a backbone that a program has added."""
    known = figures()
    head = ("backbone", *COLUMNS.values(), "8 and 16 too", "pixels", "weights")
    body = [
        (
            name,
            *(known.get(name, {}).get(column, "-") for column in COLUMNS),
            "yes" if spec.dilates else "",
            spec.pixels,
            spec.weights,
        )
        for name, spec in sorted(BACKBONES.items())
    ]
    return [head, *body]


def backbone_table() -> str:
    """All backbones as lines of text."""
    widths = [max(map(len, column)) for column in zip(*rows(), strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows())
