"""Which training images are labelled, which have image-level labels only, and which are unlabelled."""

import csv
import hashlib
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from kerasseg.checks import first_few
from kerasseg.data.datasets import Dataset, count_pixels
from serving.common.files import write_atomically
from serving.common.inputs import Names, read_text

T = TypeVar("T")

ROLES = {"labeled": "labeled", "image_labeled": "weak", "unlabeled": "unlabeled"}
"""The roles of images, and the word for each in files and fingerprints: those of older runs have "weak"."""
ALL = ("all", "full")
# The end of Cityscapes' image files, which is no part of an image's name.
CITYSCAPES_SUFFIX = "_leftImg8bit"


@dataclass(frozen=True)
class Split:
    """Names of training images by role, each sorted; no image has two roles.

    Attributes:
        labeled: images whose label maps are used.
        image_labeled: images with image-level labels, of which only the set of classes is used.
        unlabeled: images used without any label.
        image_labels: the classes, as numbers, in each of these; empty where they follow from label maps.
    """

    labeled: tuple[str, ...]
    image_labeled: tuple[str, ...] = ()
    unlabeled: tuple[str, ...] = ()
    image_labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for role in ROLES:
            for name in getattr(self, role):
                if name in seen:
                    raise ValueError(f"image {name!r} is named twice in a split: as {seen[name]} and as {role}")
                seen[name] = role
            object.__setattr__(self, role, tuple(sorted(getattr(self, role))))
        if self.image_labels and self.image_labels.keys() != set(self.image_labeled):
            raise ValueError(
                "image_labels of a split must name the classes of every image-labelled image, and of no other"
            )

    @property
    def without_label_maps(self) -> tuple[str, ...]:
        """The images without a label map: unlabelled and image-labelled ones, sorted."""
        return tuple(sorted(self.unlabeled + self.image_labeled))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sorted names with their roles (and the image-level labels, where they do not come from label
        maps): equal for equal splits, on any machine."""
        lines = [f"{word}/{name}\n" for role, word in ROLES.items() for name in getattr(self, role)]
        lines += [f"{name},{number}\n" for name in self.image_labeled for number in self.image_labels.get(name, ())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes labeled.txt, weak.txt and unlabeled.txt, one name per line; and weak.csv where there are
        `image_labels`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for role, word in ROLES.items():
            write_atomically(folder / f"{word}.txt", "".join(f"{name}\n" for name in getattr(self, role)).encode())
        if self.image_labels:
            rows: list[tuple[str, Any]] = [("image", "class")]
            rows += [(name, number) for name in self.image_labeled for number in self.image_labels[name] or [""]]
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            write_atomically(folder / "weak.csv", text.getvalue().encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Split":
        """Reads what `save` wrote. Raises OSError for a missing file, ValueError for a name with two
        roles."""
        names = [tuple((Path(folder) / f"{word}.txt").read_text("utf-8").split("\n")[:-1]) for word in ROLES.values()]
        table = Path(folder) / "weak.csv"
        labeled, image_labeled, unlabeled = names
        return cls(labeled, image_labeled, unlabeled, _read_image_labels(table, str, int) if table.exists() else {})


def make_split(
    dataset: Dataset,
    labeled: str | int | float = "1/8",
    seed: int = 0,
    image_labels: str | int | float | None = None,
    cover: bool = False,
) -> Split:
    """Chooses the labelled and the image-labelled training images; every other training image is unlabelled.

    The split depends on the dataset's name and image names, the amounts and the seed only: images are in the order
    of a hash of (dataset, seed, name), and the first of them are taken. So for one seed a smaller split is part of
    every larger one, and an image added to the dataset moves no other. With `cover` the label maps decide too:
    smaller splits are still part of larger ones, but an added image may move others.

    Args:
        dataset: candidates are its train images that have label maps.
        labeled: a fraction of the candidates ("1/8", "0.125"; rounded to the nearest), a count ("45"; "1" is
            one image), "all" ("full", "1/1", "1.0"), or a text file of image names, one per line; folders and
            extensions in it are dropped, and so is what follows the image, as in lists of "image label".
        seed: any integer; not used for a file of names.
        image_labels: the same forms for images with image-level labels, taken from what is left after the
            labelled ones. Fractions are of all candidates; "all" means all that are left. Or a .csv file of image-level
            labels, for images without label maps too: a line `image,class` for each class of an image, the class by
            name or number, under a first line of these two words; labelled images in it are skipped.
        cover: choose the labelled images so that every class fills a fair part of as many of them as possible (at
            least half of what it fills in the median image that shows it). This reads the label map of every
            candidate.

    Raises:
        ValueError: no images or too many, names that the dataset does not have, one image in both roles, `cover` with a
            file of names, a label map that `cover` cannot read.
    """
    candidates = dataset.label_names("train")
    ordered = sorted(candidates, key=lambda name: hashlib.sha256(f"{dataset.name}/{seed}/{name}".encode()).digest())
    chosen = _choose("labeled", labeled, ordered, ordered, dataset)
    if cover:
        if not _is_amount("labeled", labeled, len(ordered)):
            raise ValueError(
                f"--cover chooses the labelled images, and --labeled {labeled} names them: leave --cover out, or give "
                "an amount (1/8, 45)"
            )
        chosen = _covering(ordered, dataset)[: len(chosen)]
    image_labeled: list[str] = []
    labels_of: dict[str, tuple[int, ...]] = {}
    if image_labels is not None and Path(str(image_labels)).suffix == ".csv":
        from_file = _image_labels_in_file(Path(str(image_labels)), dataset)
        labels_of = {name: classes for name, classes in from_file.items() if name not in set(chosen)}
        if not labels_of:
            raise ValueError(f"--image-labels {image_labels}: every image in it is a labelled one")
        image_labeled = list(labels_of)
    elif image_labels is not None:
        rest = [name for name in ordered if name not in set(chosen)]
        image_labeled = _choose("image-labels", image_labels, rest, ordered, dataset)
        if both := sorted(set(chosen) & set(image_labeled)):
            raise ValueError(f"{_few(both)} named both as labelled and as image-labelled: name each image once")
    used = {*chosen, *image_labeled}
    return Split(
        labeled=tuple(chosen),
        image_labeled=tuple(image_labeled),
        unlabeled=tuple(name for name in dataset.image_names("train") if name not in used),
        image_labels=labels_of,
    )


def _covering(ordered: list[str], dataset: Dataset) -> list[str]:
    """All of `ordered`, so that its first images, however many, hold every class as often as possible.

    An image holds a class where the class fills at least half of what it fills in the median image that shows it. A few
    pixels at a border say little about a class, and would otherwise count like an image that the class fills.

    Greedy: the next image is the first one that holds the class which the fewest images so far hold; among equals, the
    class that the fewest images hold at all, then the one with the lowest number. Classes whose images have all been
    taken are skipped; images that are left at the end keep their order.
    """
    pixels_NC = count_pixels(dataset, "train", ordered)
    shares_NK = pixels_NC[:, : dataset.num_classes] / pixels_NC.sum(axis=1, keepdims=True)
    medians_K = [np.median(share_N[share_N > 0]) if share_N.any() else np.inf for share_N in shares_NK.T]
    holds_NK = shares_NK >= np.array(medians_K) / 2
    candidates_K = holds_NK.sum(axis=0)
    left = [list(np.flatnonzero(holds_N)[::-1]) for holds_N in holds_NK.T]  # for each class; the next image at the end
    taken_K = np.zeros_like(candidates_K)
    taken: dict[int, None] = {}
    while classes := [k for k, images in enumerate(left) if images]:
        image = left[min(classes, key=lambda k: (taken_K[k], candidates_K[k], k))].pop()
        if image not in taken:
            taken[image] = None
            taken_K += holds_NK[image]
    return [ordered[i] for i in (*taken, *(i for i in range(len(ordered)) if i not in taken))]


def _is_amount(flag: str, amount: str | int | float, total: int) -> bool:
    """Whether it is a number or `all`, not a file of names."""
    text = str(amount).strip()
    return text.lower() in ALL or _count(flag, text, total) is not None


def _choose(flag: str, amount: str | int | float, available: list[str], everything: list[str], dataset: Dataset):
    """The names that `amount` stands for: the first of `available`, or those of a file, which may name any
    candidate."""
    text = str(amount).strip()
    count = len(available) if text.lower() in ALL else _count(flag, text, len(everything))
    if count is None:
        return _names_in_file(flag, text, everything, dataset)
    if count < 1:
        raise ValueError(
            f"--{flag} {text} means {count} of the {len(everything)} labelled train images of "
            f"{dataset.name!r}: give at least one"
        )
    if count > len(available):
        raise ValueError(
            f"--{flag} {text} means {count} images, but {dataset.name!r} has {len(available)} train images "
            f"with labels{' left' if len(available) < len(everything) else ''}: give a smaller amount"
        )
    return available[:count]


def _count(flag: str, text: str, total: int) -> int | None:
    """How many of `total` images a number in `text` stands for; None where it is no number.

    A whole number is a count, so "1" is one image; "1.0" and "1/1" are everything.
    """
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        fraction = Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
    if not 0 <= fraction <= 1:
        raise ValueError(f"--{flag} {text}: a fraction lies between 0 and 1; a number of images is a whole number")
    return int(fraction * total + Fraction(1, 2))


def _names_in_file(flag: str, text: str, candidates: list[str], dataset: Dataset) -> list[str]:
    path = Path(text)
    if path.is_dir() or not path.exists():
        raise ValueError(
            f"--{flag} {text}: expected a fraction (1/8, 0.125), a count (45), all, or a file of image "
            "names; no such file was found"
        )
    lines = (line.strip() for line in read_text(path).splitlines())
    known = Names(candidates)
    names = list(dict.fromkeys(_image_name(line, known) for line in lines if line))
    _require_known(f"--{flag} {text}", names, candidates, f"labelled train images of {dataset.name!r}")
    return names


def _require_known(flag: str, names: Sequence[str], known: Collection[str], what: str) -> None:
    """ValueError unless a file names at least one image, and only known ones."""
    if not names:
        raise ValueError(f"{flag}: the file names no image; expected one per line")
    if missing := sorted(set(names) - set(known)):
        raise ValueError(
            f"{flag}: {_few(missing)} not among the {len(known)} {what}; take them out, or give a file made for this "
            "dataset"
        )


def _image_labels_in_file(path: Path, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    images = dataset.image_names("train")
    known, classes = Names(images), Names(dataset.classes)
    numbers = {str(number): number for number in range(dataset.num_classes)}
    numbers |= {name: number for number, name in enumerate(dataset.classes)}

    def number_of(text: str) -> int:
        if (name := classes.find(text) or text) not in numbers:
            raise ValueError(f"{text!r} is no class of {dataset.name!r}: {', '.join(dataset.classes)}")
        return numbers[name]

    if not path.is_file():
        raise ValueError(f"--image-labels {path}: no such file was found")
    try:
        classes_of = _read_image_labels(path, lambda line: _image_name(line, known), number_of)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"--image-labels {path}: {error}") from error
    _require_known(f"--image-labels {path}", list(classes_of), images, f"train images of {dataset.name!r}")
    return classes_of


def _read_image_labels(path: Path, name_of, number_of) -> dict[str, tuple[int, ...]]:
    """Image -> its classes, from a CSV file of `image,class`; an image without any class has one line with an empty
    class."""
    classes: dict[str, set[int]] = {}
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    if [title.strip().lower() for title in next(rows, [])] != ["image", "class"]:
        raise ValueError("expected a first line `image,class`, then a line for each class of an image")
    for row in filter(None, rows):
        if len(row) != 2 or not row[0].strip():
            raise ValueError(f"expected an image and a class in line {rows.line_num}; got {','.join(row)!r}")
        present = classes.setdefault(name_of(row[0].strip()), set())
        if row[1].strip():
            present.add(number_of(row[1].strip()))
    return {name: tuple(sorted(present)) for name, present in classes.items()}


def _image_name(line: str, known: Names) -> str:
    """The image that a line means: `images/train/a.b.jpg` is `a.b`, `img/c_leftImg8bit.png lbl/c.png` is `c`.

    The whole line is tried first, since names may have spaces in them, and a name as it is before one without what
    looks like an extension.
    """
    whole, first = (PurePath(text.replace("\\", "/")) for text in (line, line.split()[0]))
    names = [whole.name, whole.stem, first.name, first.stem, first.stem.removesuffix(CITYSCAPES_SUFFIX)]
    return next(filter(None, map(known.find, names)), whole.stem)


def _few(names: list[str]) -> str:
    """The first names in quotes, with a verb: `'a', 'b', 'c' and 4 more are`."""
    return first_few(map(repr, names)) + (" are" if len(names) > 1 else " is")


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, evenly spaced: neighbours are often frames of one video."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
