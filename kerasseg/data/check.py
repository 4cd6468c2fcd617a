"""Finds what is wrong with a dataset folder, and how to fix it: every problem, with its files and a fix.

Legend: H, W size of an image; K classes.
"""

import functools
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerasseg.data.datasets import DATASETS, IGNORE, SPLITS, Dataset, count_pixels
from kerasseg.data.folder import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    ClassTable,
    FolderDataset,
    list_files,
    list_pairs,
    parse_classes,
    read_image,
    read_label,
    usable_name,
)
from kerasseg.data.problems import KINDS, FileError, Finding
from kerasseg.data.splits import Split, first_few
from serving.common.inputs import printable, read_text
from serving.common.pictures import PICTURE_SUFFIXES, open_picture, read_file

OTHER_SUFFIXES = (*PICTURE_SUFFIXES, ".heic", ".heif", ".avif", ".jxl", ".npy", ".mat")
# What people call the folders of a dataset, and what they are called here.
OTHER_NAMES = {
    "images": ("image", "imgs", "img", "jpegimages", "pictures", "photos", "inputs"),
    "labels": ("label", "masks", "mask", "annotations", "segmentationclass", "gt", "ground_truth", "targets"),
    "train": ("training", "trn"),
    "val": ("valid", "validation", "dev", "eval"),
    "test": ("testing", "tst"),
}
EXIF_ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)  # the orientations in which width and height change places
# In clean label maps (CamVid, MSRC-21), 0.2 to 4 % of the edges have a third value in 3x3 pixels. Saved as JPEG, or
# resized with interpolation, 60 to 70 % have one, and 9 to 37 % where there are only three or four classes.
MIXED = 0.08
BLENDED = (
    "the edges were blended, by anti-aliasing, resizing or JPEG: export the label maps again without, resize with "
    "Image.NEAREST, and save as PNG only"
)
BINARY = "or write the object as 1: Image.fromarray((np.array(Image.open(f)) > 127).astype('uint8')).save(f)"

Color = tuple[int, int, int]


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
        return _total(counts for maps in self.label_pixels.values() for counts in maps.values())

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
                _join("labels/train", [f"{name}.png" for name in missing]),
                "labelled in the split, but there is no label map that can be read",
                "add the label map, or make the split again",
            )
        labeled = _total(counts[name] for name in split.labeled if name in counts)
        shown = set(np.flatnonzero(_total(counts.values()))) if shown is None else shown
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
                names = first_few([self.classes[k] for k in classes])
                self.add("warning", _labeled(split), f"no pixel of {names} to learn from{where}", remedy)
        if len(split.labeled) < len(self.classes):
            self.add(
                "warning",
                _labeled(split),
                f"there are more classes ({len(self.classes)}) than labelled images",
                "label more"
                + ("" if cover or not split.without_masks else ", or spread the classes over them with --cover"),
            )


def check_dataset(
    path: str | Path, split: Split | None = None, cover: bool = False, splits: Sequence[str] = SPLITS
) -> list[Problem]:
    """Every problem of a dataset folder; with a split, also those of its labelled images (`cover`: the split was made
    with it). Reads every file in its `splits`."""
    inspection = inspect_folder(path, splits)
    if split is not None:
        inspection.add_split(split, cover)
    return inspection.problems


def require_sound(
    dataset: Dataset, split: Split | None = None, cover: bool = False, splits: Sequence[str] = SPLITS
) -> list[Problem]:
    """Raises ValueError with the first error of a dataset folder and the number of errors; returns the warnings.

    The files of other datasets are sound: published ones were checked when they were prepared. There, only the label
    maps of the labelled images are read.

    Args:
        cover: the split was made with `cover`.
        splits: only these are checked; others need not be there.
    """
    if not isinstance(dataset, FolderDataset):
        if split is None:
            return []
        result = inspect_dataset(dataset, {"train": split.labeled})
        result.add_split(split, cover, shown=set(range(dataset.num_classes)))
        return result.problems
    problems = check_dataset(dataset.path, split, cover, splits)
    if errors := [each for each in problems if each.severity == "error"]:
        first = errors[0]
        more = f" (the first of {len(errors)} problems)" if len(errors) > 1 else ""
        raise ValueError(
            f"{first.file}: {first.message}; {first.fix}{more}; "
            f"`python -m training.check_data {dataset.path}` checks the folder again"
        )
    return problems


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


def inspect_folder(path: str | Path, splits: Sequence[str] = SPLITS) -> Inspection:
    """Reads the `splits` of a dataset folder. What is wrong in it is in the answer, never an error raised."""
    root = Path(path)
    result = Inspection(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        result.add("error", str(root), f"expected a dataset folder, found {found}", "check the path")
        return result
    if not usable_name(str(root.resolve())):
        result.problems += _grouped([Finding("name", printable(str(root)))])
        return result
    if (name := root.resolve().name) in DATASETS:
        result.add(
            "warning",
            str(root),
            f"a folder with the name of the built-in dataset {name!r}, which --dataset {name} opens instead, and whose "
            "name the results carry",
            "rename the folder",
        )
    images, labels = ({split: of_kind[split] for split in splits} for of_kind in list_pairs(root))
    _check_layout(result, images, labels)
    table = _check_classes(result)

    findings = list(_stray_files(root, splits))
    pairs = [(s, name) for s in splits for name in sorted(images[s].keys() | labels[s].keys())]
    with ThreadPoolExecutor() as pool:
        ignore = table.ignore_label if table else IGNORE
        read = pool.map(
            lambda s, n: _read_pair(root, images[s].get(n), labels[s].get(n), ignore),
            *zip(*pairs, strict=True),
        )
        maps: dict[str, LabelMap] = {}
        for (split, name), (of_pair, label) in zip(pairs, read, strict=True):
            findings += of_pair
            if label is not None:
                maps[_file(root, labels[split][name])] = label
                result.label_pixels.setdefault(split, {})[name] = label.counts
    result.images = {
        s: {"images": len(images[s]), "labeled": len(images[s].keys() & labels[s].keys())} for s in splits if images[s]
    }

    findings += _pairing(root, images, labels)
    values = result.pixels[:IGNORE].nonzero()[0]
    inferred = not (root / "classes.json").exists()
    if table is not None:
        result.classes = table.classes
    elif inferred:
        result.classes = tuple(f"class_{c}" for c in range(int(values.max(initial=0)) + 1))
    binary = list(_binary_masks(result))
    result.problems += _grouped(findings + binary)
    _check_palettes(result, maps, table)
    if _enough_classes(result, bool(table), bool(binary)):
        _check_values(result, maps, values, inferred)
    result.problems.sort(key=lambda problem: problem.severity != "error")
    return result


def _check_layout(result: Inspection, images: dict, labels: dict) -> None:
    root = result.path
    for kind, suffixes in (("images", IMAGE_SUFFIXES), ("labels", LABEL_SUFFIXES)):
        folder = root / kind
        files = images if kind == "images" else labels
        if not folder.is_dir():
            hint = _did_you_mean(root, kind)
            swapped = [s for s in SPLITS if (root / s / kind).is_dir()]
            if swapped:
                hint = f"move {swapped[0]}/{kind} to {kind}/{swapped[0]}"
            result.add(
                "error",
                f"{kind}/",
                "no such folder",
                hint or f"put the files into {kind}/train and {kind}/val",
            )
            continue
        for split in ("train", "val"):
            if files.get(split, True):
                continue
            loose = list_files(folder, suffixes)
            if not (folder / split).is_dir():
                what = "no such folder"
                hint = f"did you mean {kind}/{split} for the {len(loose)} files in {kind}/?" if loose else None
                hint = hint or _did_you_mean(folder, split)
            else:
                what, hint = f"the folder has no {' or '.join(suffixes)} file", None
            if split == "train":
                hint = hint or f"put the training {kind} there"
                result.add("error", f"{kind}/train", what, hint)
            elif kind == "images" or images["val"]:
                missing = "evaluate on" if kind == "images" else "compare predictions with"
                hint = hint or f"put some {kind} aside for validation there"
                result.add("error", f"{kind}/val", f"{what}, so there is nothing to {missing}", hint)


def _did_you_mean(folder: Path, wanted: str) -> str | None:
    here = {p.name.lower(): p.name for p in sorted(folder.iterdir()) if p.is_dir() and p.name not in SPLITS}
    close = [name for name in OTHER_NAMES[wanted] if name in here] or get_close_matches(wanted, here, 1)
    return f"did you mean {here[close[0]]}/? Rename it to {wanted}" if close else None


def _check_classes(result: Inspection) -> ClassTable | None:
    path = result.path / "classes.json"
    if not path.exists():
        return None
    try:
        table, problems = parse_classes(read_text(path))
    except (OSError, ValueError) as error:
        table, problems = None, [str(error).removeprefix(f"{path} ")]
    for problem in problems:
        result.add("error", "classes.json", problem, 'a file that works: {"classes": ["background", "cat"]}')
    return table


def _stray_files(root: Path, splits: Sequence[str]) -> Iterable[Finding]:
    for kind, known in (("images", IMAGE_SUFFIXES), ("labels", LABEL_SUFFIXES)):
        for split in splits:
            folder = root / kind / split
            by_name = defaultdict(list)
            for path in sorted(folder.iterdir()) if folder.is_dir() else []:
                suffix, file = path.suffix.lower(), _file(root, path)
                if path.name.startswith("."):
                    continue
                if path.is_dir():
                    yield Finding("folder inside", file)
                elif suffix in known:
                    by_name[unicodedata.normalize("NFC", path.stem)].append(path.name)
                    if not path.is_file():
                        yield Finding("no file", file)
                    elif not usable_name(path.name):
                        yield Finding("name", file)
                elif suffix in OTHER_SUFFIXES:
                    yield Finding(f"other {kind[:-1]} type", file, suffix)
            for names in by_name.values():
                if len(names) > 1:
                    yield Finding(f"two {kind}", f"{kind}/{split}/{names[0]}", " and ".join(names))


def _pairing(root: Path, images: dict, labels: dict) -> Iterable[Finding]:
    for split in images:
        for name in sorted(labels[split].keys() - images[split].keys()):
            yield Finding("no image", _file(root, labels[split][name]))
    # In train, images without label maps are what semi-supervised learning is about; in test they are to be predicted.
    for name in sorted(images["val"].keys() - labels["val"].keys()) if labels.get("val") else ():
        yield Finding("no label", _file(root, images["val"][name]))


class LabelMap(NamedTuple):
    """Counts of a label map; 255 stands for its pixels to ignore."""

    counts: np.ndarray
    """int64 (256,): how many pixels of each value."""
    solid: np.ndarray
    """bool (256,): the values that fill 3x3 pixels somewhere; all of a smaller map."""
    edges: int
    """How many 3x3 pixels have several values, none of them ignored."""
    mixed: int
    """How many of these have a value between their lowest and their highest one."""
    colors: dict[int, Color]
    """The palette's colours of the values that occur; none where the palette is a grey scale, or there is none."""


def _read_pair(
    root: Path, image: Path | None, label: Path | None, ignore: int
) -> tuple[list[Finding], LabelMap | None]:
    """What is wrong with an image and its label map, and what the latter holds (None: not readable)."""
    findings: list[Finding] = []
    stored = label_map = None
    orientation = 1
    if image is not None:
        try:
            contents = _contents(image, "unreadable image")
            stored = read_image(contents).shape[1::-1]
            orientation = _orientation(contents)
        except FileError as error:
            findings.append(Finding(error.kind, _file(root, image), error.detail, error.remedy))
    if label is not None:
        try:
            contents = _contents(label, "unreadable label")
            label_HW = read_label(contents)
        except FileError as error:
            findings.append(Finding(error.kind, _file(root, label), error.detail, error.remedy))
        else:
            label_map = _count(label_HW, contents, ignore)
            if not label_map.counts[:IGNORE].any():
                findings.append(Finding("all ignored", _file(root, label)))
    if image is None or stored is None:
        return findings, label_map
    upright = stored[::-1] if orientation in TURNED else stored
    if label is not None and label_map is not None and stored != (size := label_HW.shape[::-1]):
        if size == upright:
            findings.append(Finding("rotated size", _file(root, image), str(orientation)))
        else:
            sizes = f"{size[0]}x{size[1]} for {stored[0]}x{stored[1]}"
            findings.append(Finding("size", _file(root, label), sizes))
    elif orientation != 1:
        findings.append(Finding("rotated", _file(root, image), str(orientation)))
    return findings, label_map


def _contents(path: Path, kind: str) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise FileError(kind, error.strerror or str(error)) from error
    except ValueError as error:
        raise FileError("too large", str(error).removeprefix(f"{path} ")) from error


def _orientation(contents: bytes) -> int:
    """The EXIF orientation of an image that can be decoded."""
    if not any(mark in contents for mark in (b"Exif", b"eXIf", b"exif", b"rientation")):
        return 1  # without the search: in a PNG it takes decoding all of it
    with open_picture(contents) as picture:
        return picture.getexif().get(EXIF_ORIENTATION, 1)


def _count(label_HW: np.ndarray, contents: bytes, ignore: int) -> LabelMap:
    counts = np.bincount(label_HW.ravel(), minlength=256)
    solid, edges, mixed = _edges(label_HW, counts > 0)
    with open_picture(contents) as picture:  # not `getpalette`, which would decode the image once more
        palette = bytes(picture.palette.palette) if picture.palette else b""
    values = [int(value) for value in np.flatnonzero(counts) if value not in (ignore, IGNORE)]
    colors = {k: (palette[3 * k], palette[3 * k + 1], palette[3 * k + 2]) for k in values if 3 * k + 2 < len(palette)}
    if all(color == (value, value, value) for value, color in colors.items()):
        colors = {}
    if ignore != IGNORE:
        counts[IGNORE] += counts[ignore]
        solid[IGNORE] |= solid[ignore]
        counts[ignore] = solid[ignore] = 0
    return LabelMap(counts, solid, edges, mixed, colors)


def _edges(label_HW: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, int, int]:
    """`solid`, `edges` and `mixed` of a `LabelMap`, of uint8 (H,W) with these values, bool (256,)."""
    height, width = label_HW.shape
    if min(height, width) < 3:
        return present, 0, 0
    shifted = [label_HW[row : row + height - 2, column : column + width - 2] for row, column in np.ndindex(3, 3)]
    low, high = functools.reduce(np.minimum, shifted), functools.reduce(np.maximum, shifted)
    solid = np.bincount(low[low == high], minlength=256) > 0
    edge = (low != high) & (high != IGNORE)
    mixed = np.zeros_like(edge)
    for each in shifted:
        mixed |= (low < each) & (each < high)
    return solid, int(edge.sum()), int((edge & mixed).sum())


def _binary_masks(result: Inspection) -> Iterable[Finding]:
    """Label maps in which 255 most likely is the object: certain where no label map of a split has a class but 0."""
    for split, maps in result.label_pixels.items():
        certain = not any(counts[1:IGNORE].any() for counts in maps.values())
        if not certain and len(result.classes) > 2:
            continue
        kind = "mask of 0 and 255" if certain else "perhaps a mask of 0 and 255"
        for name, counts in maps.items():
            if counts[0] and counts[IGNORE] and counts[0] + counts[IGNORE] == counts.sum():
                yield Finding(kind, f"labels/{split}/{name}.png")


def _check_palettes(result: Inspection, maps: dict[str, LabelMap], table: ClassTable | None) -> None:
    """Whether the palettes of label maps give one value one colour."""
    files: dict[int, dict[Color, list[str]]] = defaultdict(lambda: defaultdict(list))
    values: dict[Color, set[int]] = defaultdict(set)
    for file, label in maps.items():
        times = Counter(label.colors.values())
        for value, color in label.colors.items():
            files[value][color].append(file)
            if times[color] == 1:  # a colour that several values share (black without a name) identifies none of them
                values[color].add(value)
    different = [value for value in sorted(files) if len(files[value]) > 1]
    swapped = [value for value in different if any(len(values[color]) > 1 for color in files[value])]
    for value in (swapped or different)[:1]:
        uses = sorted(files[value].items(), key=lambda use: -len(use[1]))
        found = ", ".join(f"{color} in {len(names)} ({names[0]})" for color, names in uses[:3])
        others = f", and {len(swapped or different) - 1} more values" if len(swapped or different) > 1 else ""
        result.add(
            "error" if swapped else "warning",
            "labels/",
            f"the palettes of the label maps contradict each other: value {value} has the colour {found}{others}",
            "write the same number for the same colour in all of them: the number is the class, and programs that "
            "make a palette for each image may give one colour several numbers"
            if swapped
            else "if the numbers mean the same in all of them, leave it",
        )
    if table is None or table.palette is None or different:
        return
    named = {color: k for k, color in enumerate(table.palette)}
    for value, uses_of in sorted(files.items()):
        (color,) = uses_of
        if named.get(color, value) != value:
            result.add(
                "warning",
                "classes.json",
                f"its palette gives {color} to {table.classes[named[color]]!r}, whose number is {named[color]}; in the "
                f"palettes of the label maps it is the colour of {value}",
                "bring names and colours into the order of the numbers in the label maps",
            )
            return


def _enough_classes(result: Inspection, named: bool, binary: bool) -> bool:
    """Whether there is a class besides the background. Otherwise it is an error, unless the label maps are known to be
    binary."""
    if named and len(result.classes) == 1:
        result.add(
            "error",
            "classes.json",
            f"one class ({result.classes[0]}): the background counts too, so there are at least 2",
            'name both: {"classes": ["background", "cat"]}, whose numbers in the label maps are 0 and 1',
        )
        return False
    black = [s for s, maps in result.label_pixels.items() if all(m[0] == m.sum() for m in maps.values())]
    for split in black:
        result.add(
            "error" if split == "train" else "warning",
            f"labels/{split}",
            f"all {len(result.label_pixels[split])} label maps are black, 0 everywhere: there is only background "
            + ("to learn" if split == "train" else "to measure"),
            "export the label maps again, with the objects in them as 1, 2, ...",
        )
    return binary or len(black) < len(result.label_pixels) or not black


def _check_values(result: Inspection, maps: dict[str, LabelMap], values: np.ndarray, inferred: bool) -> None:
    solid = np.any([label.solid for label in maps.values()] or [np.zeros(256, bool)], axis=0)
    count, pixels = len(result.classes), result.pixels
    mixed = sum(label.mixed for label in maps.values()) / max(1, sum(label.edges for label in maps.values()))
    # Hardly anything but 0 and 255 covers more than a line.
    binary = solid[0] and solid[IGNORE] and pixels[1:IGNORE][solid[1:IGNORE]].sum() < 0.15 * pixels.sum()
    remedy = f"{BLENDED}; {BINARY}" if binary and (inferred or count == 2) else BLENDED

    def on_edges_only(some: np.ndarray) -> bool:
        """Whether most of these values never fill 3x3 pixels; values of classes do."""
        return bool(len(some) >= 3 and np.count_nonzero(solid[some]) < len(some) / 2)

    if inferred and on_edges_only(values):
        result.classes = ()
        result.add(
            "error",
            "labels/",
            f"{len(values)} label values ({_list(values)}), of which {np.count_nonzero(~solid[values])} are on edges "
            "only, never on 3x3 pixels: these are no classes",
            f"{remedy}; or, if they are thin classes, name them in classes.json",
        )
        return
    if inferred and len(values):
        result.add(
            "warning",
            "classes.json",
            f"not there; {count} class{'es are' if count > 1 else ' is'} inferred from the label values 0..{count - 1}",
            f'name the classes in it: {{"classes": [{_list(map(json.dumps, result.classes))}]}}',
        )
    if not result.classes:  # classes.json is broken, and said to be
        return
    outside = values[values >= count]
    blended = False
    if len(outside):
        files = defaultdict(list)
        for file, label in maps.items():
            if label.counts[count:IGNORE].any():
                folder, _, name = file.rpartition("/")
                files[folder].append(name)
        if blended := bool(not solid[outside].any() or on_edges_only(outside) or mixed > MIXED):
            fix = remedy
        elif values.min() == 1 and outside.tolist() == [count]:
            fix = "the classes seem to be numbered from 1: subtract 1 from every value but 255"
        else:
            fix = "write pixels of no class as 255, or add the missing names to classes.json"
        for folder, names in files.items():
            result.add(
                "error",
                _join(folder, names),
                f"label values {_list(outside)} outside of the {count} classes (0..{count - 1})",
                fix,
            )
    elif mixed > MIXED:
        result.add(
            "warning",
            "labels/",
            f"at {mixed:.0%} of the edges between two label values there is a third value between the two",
            f"if that is no thin class, {BLENDED}",
        )
    unseen = [name for name, of_class in zip(result.classes, pixels[:count], strict=True) if not of_class]
    if unseen and len(values) and not blended:
        result.add(
            "warning",
            "labels/",
            f"no pixel of {_list(unseen)} in any label map",
            "check the order of the names in classes.json, or leave the classes out"
            if not inferred
            else "check that the label values are class numbers, not grey values",
        )


def _labeled(split: Split) -> str:
    return f"the {len(split.labeled)} labelled images" if len(split.labeled) > 1 else "the labelled image"


def _total(counts: Iterable[np.ndarray]) -> np.ndarray:
    return sum(counts, np.zeros(256, np.int64))


def _grouped(findings: Iterable[Finding]) -> list[Problem]:
    """One problem for all files of a folder that have the same kind of finding."""
    groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind, finding.file.rpartition("/")[0], finding.remedy].append(finding)
    problems = []
    for (kind, folder, remedy), group in groups.items():
        severity, message, fix = KINDS[kind]
        details = list(dict.fromkeys(f.detail for f in group))
        names = [f.file.rpartition("/")[2] for f in group]
        problems.append(Problem(severity, _join(folder, names), message.format(_list(details)), remedy or fix))
    return problems


def _file(root: Path, path: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def _join(folder: str, names: list[str]) -> str:
    """One file as "labels/train/a.png", more as "300 files in labels/train (a.png, b.png, c.png, ...)"."""
    if len(names) == 1:
        return f"{folder}/{names[0]}"
    return f"{len(names)} files in {folder} ({_list(names)})"


def _list(items: Iterable[object]) -> str:
    """The first three of some things, and whether there are more."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")
