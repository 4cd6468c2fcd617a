"""What the writer of each annotation tool is given: an image, what was found in it, and how to say that.

Legend: H, W height and width in pixels.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from serving.batch.annotations.outlines import Outline, outlines

Pieces = Callable[[], Iterable[tuple[str, Any]]]
"""Name of each image and what `piece` said of it, as often as it is called: there may be more than memory holds."""


class Mask(NamedTuple):
    """The pixels of one label, in the smallest box around them."""

    label: int
    left: int
    top: int
    width: int
    height: int
    counts: list[int]
    """Lengths of runs of other pixels and of the label's in turn, along the rows of the box, others first."""


@dataclass(frozen=True)
class Segmented:
    """An image and its segmentation."""

    source: str
    """The file."""
    name: str
    """Its path below INPUT, with forward slashes."""
    labels_HW: np.ndarray
    """Integers 0..255, upright."""
    classes: tuple[str, ...]
    model: str
    """NAME/VERSION."""
    confidence: float | None
    """The mean over the image, 0..1."""
    polygons: float | None
    """The tolerance of polygons, pixels; None for masks, which are exact."""

    def class_name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)

    @functools.cached_property
    def leave_out(self) -> frozenset[int]:
        """Labels that are not written: the background, unless an image has nothing else. Tools and `import_data` take
        an image without any shape for one that nobody has looked at."""
        if is_background(self.classes[0]) and self.labels_HW.any():
            return frozenset([0])
        return frozenset()

    @functools.cached_property
    def masks(self) -> list[Mask]:
        """One for each label."""
        return masks(self.labels_HW, self.leave_out)

    @functools.cached_property
    def outlines(self) -> list[Outline]:
        """Polygons; where the tolerance leaves none, the whole image has its most frequent label."""
        assert self.polygons is not None
        if found := outlines(self.labels_HW, self.polygons, self.leave_out):
            return found
        height, width = self.labels_HW.shape
        most = int(np.bincount(self.labels_HW.ravel()).argmax())
        return [Outline(most, np.array([[0, 0], [width, 0], [width, height], [0, height]]))]


def is_background(name: str) -> bool:
    """Whether a class has the name that `import_data` gives to pixels without annotation."""
    return " ".join(name.split()).strip("_").casefold() == "background"


def masks(labels_HW: np.ndarray, leave_out: frozenset[int] = frozenset()) -> list[Mask]:
    """The mask of each label that occurs, in time that grows with the runs and not with the number of labels.

    Args:
        labels_HW: integers 0..255 (H,W).
        leave_out: labels without a mask.
    """
    width = labels_HW.shape[1]
    begins = np.ones(labels_HW.shape, bool)
    begins[:, 1:] = labels_HW[:, 1:] != labels_HW[:, :-1]
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], labels_HW.size)
    labels = labels_HW.ravel()[starts]
    order = np.argsort(labels, kind="stable")
    found = []
    for runs in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        label = int(labels[runs[0]])
        if label in leave_out:
            continue
        rows, first, last = starts[runs] // width, starts[runs] % width, (ends[runs] - 1) % width
        top, left = int(rows[0]), int(first.min())
        box = int(rows[-1]) + 1 - top, int(last.max()) + 1 - left
        begin, end = ((rows - top) * box[1] + columns - left for columns in (first, last + 1))
        apart = begin[1:] != end[:-1]  # those that fill the box from side to side go on in the next row
        begin, end = begin[np.append(True, apart)], end[np.append(apart, True)]
        counts = np.diff(np.concatenate([[0], np.stack([begin, end], axis=1).ravel(), [box[0] * box[1]]]))
        found.append(Mask(label, left, top, box[1], box[0], (counts if counts[-1] else counts[:-1]).tolist()))
    return found


def as_text(name: str) -> str:
    """The name of a file for files of text: bytes that are not UTF-8 as U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
