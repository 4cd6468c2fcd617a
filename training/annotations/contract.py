"""What the reader of each annotation tool gives to `training.import_data`: images, and a way to draw their label maps.

Legend: H, W size of an image.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kerasseg.checks import first_few

REST = -1
"""In a drawn label map: a pixel without annotation."""

IGNORED = -2
"""In a drawn label map: a pixel that is neither learned nor measured, such as one of a crowd."""

Draw = Callable[[int, int], np.ndarray]
"""Height and width to a drawn label map, int16 (H, W): positions in `Annotations.classes`, `REST` or `IGNORED`.

A label map from a file has the size of the file, whatever the arguments. Raises ValueError for annotation that cannot
be used; the message follows the name of a file: "a mask that cannot be read: ...".
"""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image that an annotation tool knows."""

    path: Path
    """The file."""
    name: str
    """The path of the file within the source, with "/" and extension, without folders that say only split or kind."""
    split: str | None = None
    """"train", "val" or "test" where the source says so."""
    draw: Draw | None = None
    """None without annotation. It is called once, when the label map is written: 100,000 of them need no memory."""
    size: tuple[int, int] | None = None
    """Height and width on which the annotation was drawn, pixels; None where the tool does not say."""
    predicted: bool = False
    """The annotation is a model's, written by `serving.batch`, and nobody has saved it since."""


def size_of(height: object, width: object) -> tuple[int, int] | None:
    """A size as a tool has written it; None where it is none."""
    if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
        return height, width
    return None


class Notes:
    """What was left out or changed, one line for each kind with all of its files."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}

    def add(self, what: str, file: object = "") -> None:
        """Notes that `what` holds for a file (or a class, or an entry)."""
        self.lines.setdefault(what, []).append(str(file))

    def __iter__(self):
        """Lines: "2 files: a.json and b.json: an image that is missing; ..."."""
        for what, files in self.lines.items():
            distinct = list(dict.fromkeys(file for file in files if file))
            count = f"{len(distinct)} files: " if len(distinct) > 1 else ""
            times = f" ({len(files)} times)" if len(files) > len(distinct) > 0 else ""
            yield f"{count}{first_few(distinct)}: {what}{times}" if distinct else what

    def show(self) -> None:
        """Writes the lines to stderr as warnings."""
        for line in self:
            print(f"warning: {line}", file=sys.stderr)


@dataclass
class Annotations:
    """All that a reader found in a source."""

    classes: list[str]
    """Names as the tool has them; two may differ in letter case only."""
    images: list[AnnotatedImage]
    notes: Notes = field(default_factory=Notes)
    palette: list[tuple[int, int, int]] | None = None
    """The colours of the classes where the source has them."""
    complete: bool = False
    """Every pixel of a label map has a class, so no class "background" needs to be added."""
