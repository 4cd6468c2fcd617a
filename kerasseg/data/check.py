"""What is wrong with a dataset folder, and how to put it right: every problem, named with its files and a
fix.

Legend: H, W size of a picture; K classes.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from kerasseg.data.datasets import IGNORE, SPLITS, Dataset, count_pixels
from kerasseg.data.folder import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    ClassTable,
    FolderDataset,
    list_files,
    parse_classes,
)
from kerasseg.data.splits import Split, first_few

# What the pipeline decodes. MPO is what some telephones write: a JPEG with further pictures behind it.
IMAGE_FORMATS = ("JPEG", "MPO", "PNG")
PICTURE_SUFFIXES = (
    *IMAGE_SUFFIXES,
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".heic",
    ".avif",
    ".npy",
    ".mat",
)
# What people call the folders of a dataset, and what they are called here.
OTHER_NAMES = {
    "images": ("image", "imgs", "img", "jpegimages", "pictures", "photos", "inputs"),
    "labels": ("label", "masks", "mask", "annotations", "segmentationclass", "gt", "ground_truth", "targets"),
    "train": ("training", "trn"),
    "val": ("valid", "validation", "dev", "eval"),
    "test": ("testing", "tst"),
}
EXIF_ORIENTATION = 0x0112


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


# kind of finding: severity, message with {} for what was found, fix
KINDS = {
    "unreadable image": (
        "error",
        "cannot be read as a picture ({})",
        "copy the file again from its source, or remove it",
    ),
    "image format": (
        "error",
        "{} data under the name of a JPEG or PNG",
        "save as JPEG or PNG: Image.open(f).convert('RGB').save(name + '.png')",
    ),
    "unreadable label": (
        "error",
        "cannot be read as a picture ({})",
        "copy the file again from its source, or remove it: its image then counts as unlabelled",
    ),
    "colour label": (
        "error",
        "colours ({}) instead of one class number per pixel",
        "write class numbers: replace each colour by the number of its class and save as a grey or palette "
        "PNG (when red, green and blue are equal, Image.open(f).convert('L') is enough)",
    ),
    "16-bit label": (
        "error",
        "16-bit values above 255 (up to {})",
        "write class numbers 0..254 and 255 = ignore as an 8-bit PNG",
    ),
    "size": (
        "error",
        "the label map is not of the size of its image ({})",
        "export the label map at the size of the image, or resize it without mixing values: "
        "label.resize(image.size, Image.NEAREST)",
    ),
    "rotated size": (
        "error",
        "it carries a rotation tag (EXIF orientation {}), and its label map fits only the upright picture",
        "write the image upright: ImageOps.exif_transpose(Image.open(f)).save(f)",
    ),
    "rotated": (
        "warning",
        "it carries a rotation tag (EXIF orientation {}), which is not applied: it is used as stored",
        "if it looks turned, or its label map was drawn on the upright picture, write it upright: "
        "ImageOps.exif_transpose(Image.open(f)).save(f)",
    ),
    "all ignored": (
        "warning",
        "every pixel is ignored, so the label map teaches and measures nothing{}",
        "remove the label map: the image then counts as unlabelled",
    ),
    "mask of 0 and 255": (
        "error",
        "a mask of 0 and 255, but 255 means ignore: the object would never be learnt{}",
        "write the object as 1: Image.fromarray((np.array(Image.open(f)) > 0).astype('uint8')).save(f), "
        "or call another value ignore_label in classes.json",
    ),
    "perhaps a mask of 0 and 255": (
        "warning",
        "only the values 0 and 255, and 255 means ignore{}",
        "if 255 is meant to be the object, write it as 1",
    ),
    "no image": (
        "error",
        "a label map without an image of the same name{}",
        "name the label map as its image (images/train/a.jpg has labels/train/a.png), or remove it",
    ),
    "no label": (
        "warning",
        "an image without a label map, so it is not evaluated{}",
        "add the label map, or remove the image",
    ),
    "two images": (
        "error",
        "several images of one name ({}), and a label map can belong to one only",
        "rename or remove all but one",
    ),
    "other image type": (
        "warning",
        "not read: a picture here is a .jpg, .jpeg or .png ({} found)",
        "save as JPEG or PNG, or remove",
    ),
    "other label type": (
        "error",
        "not read: a label map is a .png ({} found); JPEG would change the class numbers",
        "save the label maps as PNG, from their source rather than from a JPEG",
    ),
    "folder inside": (
        "warning",
        "a folder inside of a split is not read{}",
        "move its files one folder up",
    ),
}


class Finding(NamedTuple):
    kind: str
    file: str
    detail: str = ""


@dataclass
class Inspection:
    """All that was found in a dataset folder."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    images: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each split, the numbers of "images" and of "labeled" ones."""

    label_pixels: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """Of each split, by name, how many pixels of each value 0..255 a label map has, ignored ones under
    255."""

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "warning"]

    @property
    def pixels(self) -> np.ndarray:
        """Of all label maps together, how many pixels of each value 0..255."""
        return _total(counts for maps in self.label_pixels.values() for counts in maps.values())

    def add(self, severity: str, file: str, message: str, fix: str) -> None:
        self.problems.append(Problem(severity, file, message, fix))

    def add_split(self, split: Split, cover: bool = False, shown: set[int] | None = None) -> None:
        """Adds what is wrong with this split of the training images.

        Args:
            cover: the split was made with `cover`.
            shown: the classes that some label map of train shows; those of the label maps that were read when None.
        """
        counts = self.label_pixels.get("train", {})
        if missing := [name for name in split.labeled if name not in counts]:
            self.add(
                "error",
                _join("labels/train", [f"{name}.png" for name in missing]),
                "labelled in the split, but there is no label map that can be read",
                "add the label map, or make the split anew",
            )
        labeled = _total(counts[name] for name in split.labeled if name in counts)
        shown = set(np.flatnonzero(_total(counts.values()))) if shown is None else shown
        seen = shown | set(np.flatnonzero(self.pixels))  # of a class that no label map shows there is a warning already
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


def check_dataset(path: str | Path, split: Split | None = None, cover: bool = False) -> list[Problem]:
    """Every problem of a dataset folder; with a split, also of its labelled images (`cover`: it was made with that).
    Reads every file in it."""
    inspection = inspect_folder(path)
    if split is not None:
        inspection.add_split(split, cover)
    return inspection.problems


def require_sound(
    dataset: Dataset, split: Split | None = None, cover: bool = False, only: str | None = None
) -> list[Problem]:
    """Raises ValueError with the first error of a dataset folder and their number; returns the warnings.

    The files of other datasets are sound: those of published ones were checked when they were prepared. There, only the
    label maps of the labelled images are read.

    Args:
        cover: the split was made with `cover`.
        only: errors in other splits than this one do not count, and they need not be there.
    """
    if not isinstance(dataset, FolderDataset):
        if split is None:
            return []
        result = inspect_dataset(dataset, {"train": split.labeled})
        result.add_split(split, cover, shown=set(range(dataset.num_classes)))
        return result.problems
    problems = check_dataset(dataset.path, split, cover)
    others = "|".join(other for other in SPLITS if only not in (None, other)) or "(?!)"
    elsewhere = re.compile(rf"\b(images|labels)/({others})\b")
    if errors := [each for each in problems if each.severity == "error" and not elsewhere.search(each.file)]:
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


def inspect_folder(path: str | Path) -> Inspection:
    """Reads a whole dataset folder. Never raises for what is wrong in it: that is in the answer."""
    root = Path(path)
    result = Inspection(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        result.add("error", str(root), f"expected a dataset folder, found {found}", "check the path")
        return result
    images = {s: list_files(root / "images" / s, IMAGE_SUFFIXES) for s in SPLITS}
    labels = {s: list_files(root / "labels" / s, LABEL_SUFFIXES) for s in SPLITS}
    _check_layout(result, images, labels)
    table = _check_classes(result)

    findings = list(_stray_files(root))
    pairs = [(s, name) for s in SPLITS for name in sorted(images[s].keys() | labels[s].keys())]
    with ThreadPoolExecutor() as pool:
        ignore = table.ignore_label if table else IGNORE
        read = pool.map(
            lambda s, n: _read_pair(root, images[s].get(n), labels[s].get(n), ignore),
            *zip(*pairs, strict=True),
        )
        for (split, name), (of_pair, counts) in zip(pairs, read, strict=True):
            findings += of_pair
            if counts is not None:
                result.label_pixels.setdefault(split, {})[name] = counts
    result.images = {
        s: {"images": len(images[s]), "labeled": len(images[s].keys() & labels[s].keys())} for s in SPLITS if images[s]
    }

    findings += _pairing(root, images, labels)
    values = result.pixels[:IGNORE].nonzero()[0]
    inferred = not (root / "classes.json").exists()
    if table is not None:
        result.classes = table.classes
    elif inferred:
        result.classes = tuple(f"class_{c}" for c in range(int(values.max(initial=0)) + 1))
    findings += _binary_masks(result)
    result.problems += _grouped(findings)
    _check_values(result, values, inferred)
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
            if files[split]:
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
    table, problems = parse_classes(path.read_text(encoding="utf-8", errors="replace"))
    for problem in problems:
        result.add("error", "classes.json", problem, 'a file that works: {"classes": ["background", "cat"]}')
    return table


def _stray_files(root: Path) -> Iterable[Finding]:
    for kind, known in (("images", IMAGE_SUFFIXES), ("labels", LABEL_SUFFIXES)):
        for split in SPLITS:
            folder = root / kind / split
            paths = sorted(folder.iterdir()) if folder.is_dir() else []
            for path in paths:
                suffix, file = path.suffix.lower(), path.relative_to(root).as_posix()
                if path.name.startswith("."):
                    continue
                if path.is_dir():
                    yield Finding("folder inside", file)
                elif suffix in PICTURE_SUFFIXES and suffix not in known:
                    yield Finding(f"other {kind[:-1]} type", file, suffix)
            if kind == "images":
                by_name = defaultdict(list)
                for path in paths:
                    if path.suffix.lower() in known and not path.name.startswith("."):
                        by_name[path.stem].append(path.name)
                for names in by_name.values():
                    if len(names) > 1:
                        yield Finding("two images", f"images/{split}/{names[0]}", " and ".join(names))


def _pairing(root: Path, images: dict, labels: dict) -> Iterable[Finding]:
    for split in SPLITS:
        for name in sorted(labels[split].keys() - images[split].keys()):
            yield Finding("no image", labels[split][name].relative_to(root).as_posix())
    # In train an image without a label map is what semi-supervised learning is about; in test it is to be
    # predicted.
    for name in sorted(images["val"].keys() - labels["val"].keys()) if labels["val"] else ():
        yield Finding("no label", images["val"][name].relative_to(root).as_posix())


def _read_pair(
    root: Path, image: Path | None, label: Path | None, ignore: int
) -> tuple[list[Finding], np.ndarray | None]:
    """What is wrong with an image and its label map, and the label map's pixels per value (None: not
    readable)."""
    findings: list[Finding] = []
    stored = upright = label_size = counts = None
    orientation = 1
    if image is not None:
        file = image.relative_to(root).as_posix()
        try:
            with Image.open(image) as picture:
                picture.load()
                stored, orientation = picture.size, picture.getexif().get(EXIF_ORIENTATION, 1)
                upright = stored if orientation == 1 else ImageOps.exif_transpose(picture).size
                if picture.format not in IMAGE_FORMATS:
                    findings.append(Finding("image format", file, str(picture.format)))
        except Exception as error:  # a broken file makes Pillow raise nearly anything
            findings.append(Finding("unreadable image", file, _reason(error)))
    if label is not None:
        label_file = label.relative_to(root).as_posix()
        try:
            with Image.open(label) as picture:
                mode, values = picture.mode, np.asarray(picture)
            label_size = values.shape[1::-1]
            if values.ndim != 2:
                findings.append(Finding("colour label", label_file, mode))
            elif values.max(initial=0) > 255:
                findings.append(Finding("16-bit label", label_file, str(values.max())))
            else:
                counts = np.bincount(values.ravel(), minlength=256)
                if ignore != IGNORE:
                    counts[IGNORE] += counts[ignore]
                    counts[ignore] = 0
                if not counts[:IGNORE].any():
                    findings.append(Finding("all ignored", label_file))
        except Exception as error:
            findings.append(Finding("unreadable label", label_file, _reason(error)))
    if stored and label_size and stored != label_size:
        if label_size == upright:
            findings.append(Finding("rotated size", file, str(orientation)))
        else:
            sizes = f"{label_size[0]}x{label_size[1]} for {stored[0]}x{stored[1]}"
            findings.append(Finding("size", label_file, sizes))
    elif orientation != 1:
        findings.append(Finding("rotated", file, str(orientation)))
    return findings, counts


def _binary_masks(result: Inspection) -> Iterable[Finding]:
    """Masks in which 255 most likely is the object: certain where no label map of a split has a class but 0."""
    for split, maps in result.label_pixels.items():
        certain = not any(counts[1:IGNORE].any() for counts in maps.values())
        if not certain and len(result.classes) > 2:
            continue
        kind = "mask of 0 and 255" if certain else "perhaps a mask of 0 and 255"
        for name, counts in maps.items():
            if counts[0] and counts[IGNORE] and counts[0] + counts[IGNORE] == counts.sum():
                yield Finding(kind, f"labels/{split}/{name}.png")


def _check_values(result: Inspection, values: np.ndarray, inferred: bool) -> None:
    count = len(result.classes)
    if inferred and len(values):
        result.add(
            "warning",
            "classes.json",
            f"not there; {count} classes are inferred from the label values 0..{count - 1}",
            f'name the classes in it: {{"classes": [{_list(map(json.dumps, result.classes))}]}}',
        )
    if not result.classes:  # classes.json is broken, and said to be
        return
    outside = values[values >= count]
    if len(outside):
        files = defaultdict(list)
        for split, maps in result.label_pixels.items():
            for name, counts in maps.items():
                if counts[count:IGNORE].any():
                    files[f"labels/{split}"].append(f"{name}.png")
        shifted = values.min() == 1 and outside.tolist() == [count]
        for folder, names in files.items():
            result.add(
                "error",
                _join(folder, names),
                f"label values {_list(outside)} outside of the {count} classes (0..{count - 1})",
                "the classes seem to be numbered from 1: subtract 1 from every value but 255"
                if shifted
                else "write pixels of no class as 255, or add the missing names to classes.json",
            )
    unseen = [name for name, pixels in zip(result.classes, result.pixels[:count], strict=True) if not pixels]
    if unseen and len(values):
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
    """One problem for all files of a folder with the same kind of finding."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind, finding.file.rpartition("/")[0]].append(finding)
    problems = []
    for (kind, folder), group in groups.items():
        severity, message, fix = KINDS[kind]
        details = list(dict.fromkeys(f.detail for f in group))
        names = [f.file.rpartition("/")[2] for f in group]
        problems.append(Problem(severity, _join(folder, names), message.format(_list(details)), fix))
    return problems


def _join(folder: str, names: list[str]) -> str:
    """One file as "labels/train/a.png", more as "300 files in labels/train (a.png, b.png, c.png, ...)"."""
    if len(names) == 1:
        return f"{folder}/{names[0]}"
    return f"{len(names)} files in {folder} ({_list(names)})"


def _list(items: Iterable[object]) -> str:
    """The first three of some things, and whether there are more."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")


def _reason(error: Exception) -> str:
    # Pillow puts the whole path in some messages; the file is named already, and must not keep equal ones
    # apart.
    text = str(error).split("'")[0].strip() or type(error).__name__
    return " ".join(text.split())[:80]
