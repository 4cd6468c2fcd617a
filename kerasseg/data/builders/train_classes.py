"""The classes of a benchmark, with their numbers in its published label maps."""

import csv
from pathlib import Path
from typing import NamedTuple


class TrainClass(NamedTuple):
    name: str
    label_id: int
    """The number in the published label maps or annotations."""
    color: tuple[int, int, int]
    """Red, green, blue, 0..255."""


def read_train_classes(dataset: str) -> tuple[TrainClass, ...]:
    """The classes in `dataset`.tsv in this folder, in the order of their numbers."""
    with Path(__file__).with_name(f"{dataset}.tsv").open(encoding="utf-8", newline="") as table:
        return tuple(
            TrainClass(row["name"], int(row["id"]), (int(row["red"]), int(row["green"]), int(row["blue"])))
            for row in csv.DictReader(table, delimiter="\t")
        )
