"""Finds what is wrong with a dataset folder, and how to fix it: every problem, with its files and a fix.

Legend: H, W size of an image; K classes.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path

from kerasseg.checks import first_few
from kerasseg.data.datasets import DATASETS, SPLITS, Dataset
from kerasseg.data.folder import (
    LABEL_SUFFIXES,
    ClassTable,
    FolderDataset,
    list_files,
    list_pairs,
    parse_classes,
    usable_name,
)
from kerasseg.data.imports import import_hint
from kerasseg.data.inspection import Inspection, Problem, inspect_dataset, joined
from kerasseg.data.label_values import binary_label_maps, check_palettes, check_values, enough_classes
from kerasseg.data.pairs import LabelMap, read_pair, shown_path
from kerasseg.data.problems import KINDS, Finding
from kerasseg.data.splits import Split
from kerasseg.losses import IGNORE_LABEL
from serving.common.images import SUFFIXES
from serving.common.inputs import printable, read_text

OTHER_SUFFIXES = (*SUFFIXES, ".heic", ".heif", ".avif", ".jxl", ".tga", ".npy", ".mat")
# What people call the folders of a dataset, and what they are called here.
OTHER_NAMES = {
    "images": ("image", "imgs", "img", "jpegimages", "pictures", "photos", "inputs"),
    "labels": ("label", "masks", "mask", "annotations", "segmentationclass", "gt", "ground_truth", "targets"),
    "train": ("training", "trn"),
    "val": ("valid", "validation", "dev", "eval"),
    "test": ("testing", "tst"),
}


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
            f"{first.file}: {first.message}; {first.fix}{more}; `kerasseg check {dataset.path}` checks the folder again"
        )
    return problems


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
        ignore = table.ignore_label if table else IGNORE_LABEL
        read = pool.map(
            lambda s, n: read_pair(root, images[s].get(n), labels[s].get(n), ignore),
            *zip(*pairs, strict=True),
        )
        maps: dict[str, LabelMap] = {}
        for (split, name), (of_pair, label) in zip(pairs, read, strict=True):
            findings += of_pair
            if label is not None:
                maps[shown_path(root, labels[split][name])] = label
                result.label_pixels.setdefault(split, {})[name] = label.counts
    result.images = {
        s: {"images": len(images[s]), "labeled": len(images[s].keys() & labels[s].keys())} for s in splits if images[s]
    }

    findings += _pairing(root, images, labels)
    values = result.pixels[:IGNORE_LABEL].nonzero()[0]
    inferred = not (root / "classes.json").exists()
    if table is not None:
        result.classes = table.classes
    elif inferred:
        result.classes = tuple(f"class_{c}" for c in range(int(values.max(initial=0)) + 1))
    binary = list(binary_label_maps(result))
    result.problems += _grouped(findings + binary)
    check_palettes(result, maps, table)
    if enough_classes(result, bool(table), bool(binary)):
        check_values(result, maps, values, inferred)
    result.problems.sort(key=lambda problem: problem.severity != "error")
    return result


def _check_layout(result: Inspection, images: dict, labels: dict) -> None:
    root = result.path
    # A sound folder is not searched. Masks may be label maps under another name, files of annotation tools are none.
    incomplete = not (images.get("train") and labels.get("train"))
    importing = import_hint(root, by_masks=False) if incomplete else None
    last_resort = import_hint(root) if incomplete else None
    for kind, suffixes in (("images", SUFFIXES), ("labels", LABEL_SUFFIXES)):
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
                importing or hint or last_resort or f"put the files into {kind}/train and {kind}/val",
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
                what, hint = f"the folder has no {' or '.join(suffixes) if kind == 'labels' else 'image'} file", None
            if split == "train":
                hint = importing or hint or last_resort or f"put the training {kind} there"
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
    for kind, known in (("images", SUFFIXES), ("labels", LABEL_SUFFIXES)):
        for split in splits:
            folder = root / kind / split
            by_name = defaultdict(list)
            for path in sorted(folder.iterdir()) if folder.is_dir() else []:
                suffix, file = path.suffix.lower(), shown_path(root, path)
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
            yield Finding("no image", shown_path(root, labels[split][name]))
    # In train, images without label maps are what semi-supervised learning is about; in test they are to be predicted.
    for name in sorted(images["val"].keys() - labels["val"].keys()) if labels.get("val") else ():
        yield Finding("no label", shown_path(root, images["val"][name]))


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
        problems.append(Problem(severity, joined(folder, names), message.format(first_few(details)), remedy or fix))
    return problems
