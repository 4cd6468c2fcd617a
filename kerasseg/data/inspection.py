"""What is found in a dataset: problems with their remedies, and how many pixels of each value there are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kerasseg.checks import first_few
from kerasseg.data.datasets import Dataset, count_pixels
from kerasseg.data.splits import Split


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: with one file, or with several in the same way."""

    severity: str
    """"error": training would fail or learn nonsense; "warning": worth knowing."""

    file: str
    """The file or files, relative to the dataset folder."""

    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}: {self.message}; {self.fix}"


@dataclass
class Inspection:
    """All that was found in a dataset folder."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    images: dict[str, dict[str, int]] = field(default_factory=dict)
    """The numbers of "images" and of "labeled" ones in each split."""

    label_pixels: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """How many pixels of each value 0..255 a label map has, by split and name; ignored ones under 255."""

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "warning"]

    @property
    def pixels(self) -> np.ndarray:
        """How many pixels of each value 0..255 all label maps have together."""
        return total(counts for maps in self.label_pixels.values() for counts in maps.values())

    def add(self, severity: str, file: str, message: str, fix: str) -> None:
        self.problems.append(Problem(severity, file, message, fix))

    def add_split(self, split: Split, cover: bool = False, shown: set[int] | None = None) -> None:
        """Adds what is wrong with this split of the training images.

        Args:
            cover: the split was made with `cover`.
            shown: the classes that some label map of train shows; None for the classes in the label maps that were
                read.
        """
        counts = self.label_pixels.get("train", {})
        if missing := [name for name in split.labeled if name not in counts]:
            self.add(
                "error",
                joined("labels/train", [f"{name}.png" for name in missing]),
                "labelled in the split, but there is no label map that can be read",
                "add the label map, or make the split again",
            )
        labeled = total(counts[name] for name in split.labeled if name in counts)
        shown = set(np.flatnonzero(total(counts.values()))) if shown is None else shown
        seen = shown | set(np.flatnonzero(self.pixels))  # a class that no label map shows has a warning already
        absent = [k for k in range(len(self.classes)) if not labeled[k]]
        search = f"`--labeled {len(split.labeled)} --cover` looks for images that show it"
        for classes, where, remedy in (
            ([k for k in absent if k in shown], "", "choose more images" if cover else search),
            (
                [k for k in absent if k in seen - shown],
                ", nor in any other label map of train",
                "label images that show it",
            ),
        ):
            if classes:
                names = first_few(self.classes[k] for k in classes)
                self.add("warning", _labeled(split), f"no pixel of {names} to learn from{where}", remedy)
        if len(split.labeled) < len(self.classes):
            self.add(
                "warning",
                _labeled(split),
                f"there are more classes ({len(self.classes)}) than labelled images",
                "label more"
                + ("" if cover or not split.without_label_maps else ", or spread the classes over them with --cover"),
            )


def inspect_dataset(dataset: Dataset, chosen: Mapping[str, Sequence[str]] | None = None) -> Inspection:
    """Counts the pixels of the label maps of a known dataset, whose files were checked when it was prepared.

    Args:
        chosen: names by split; all when None.
    """
    result = Inspection(Path(dataset.name), classes=dataset.classes)
    for split in dataset.splits if chosen is None else chosen:
        names = dataset.label_names(split) if chosen is None else chosen[split]
        result.images[split] = {"images": len(dataset.image_names(split)), "labeled": len(names)}
        result.label_pixels[split] = dict(zip(names, count_pixels(dataset, split, names), strict=True))
    return result


def _labeled(split: Split) -> str:
    return f"the {len(split.labeled)} labelled images" if len(split.labeled) > 1 else "the labelled image"


def total(counts: Iterable[np.ndarray]) -> np.ndarray:
    return sum(counts, np.zeros(256, np.int64))


def joined(folder: str, names: list[str]) -> str:
    """One file as "labels/train/a.png", more as "300 files in labels/train (a.png, b.png, c.png and 297 more)"."""
    if len(names) == 1:
        return f"{folder}/{names[0]}"
    return f"{len(names)} files in {folder} ({first_few(names)})"
