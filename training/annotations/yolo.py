"""YOLO segmentation: one text file for each image, a line "class x y x y ..." for each polygon, and data.yaml."""

import dataclasses
import os
import re
from pathlib import PurePosixPath

import numpy as np
import yaml

from serving.common.inputs import comparable, read_text
from training.annotations.contract import AnnotatedImage, Annotations, Notes
from training.annotations.raster import Polygon, Shape, draw_shapes
from training.annotations.source import Source, name_of, split_in
from training.annotations.words import BAD_NUMBERS, EMPTY_CLASS, TOO_FEW, UNKNOWN_CLASS, UNREADABLE_TEXT, rest_unlabeled

LINE = re.compile(r"\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*", re.I)


def recognises(source: Source) -> bool:
    """Whether there is a YAML file with `names`, or a text file of such lines in a folder `labels`."""
    if not any(_is_label_file(file) for file in source.ending(".txt")):
        return False
    return bool(_names_file(source)) or any(
        LINE.fullmatch(line)
        for file in [f for f in source.ending(".txt") if _is_label_file(f)][:20]
        for line in _lines(source, file)[:1]
    )


def read(source: Source) -> Annotations:
    """Every image with its polygons, later lines on top; classes in the order of their numbers."""
    notes = Notes()
    names = _names(source)
    by_stem: dict[str, list[str]] = {}
    for each in source.images:
        by_stem.setdefault(comparable(PurePosixPath(each).stem), []).append(each)
    lines: dict[str, tuple[str, list[str]]] = {}
    for file in filter(_is_label_file, source.ending(".txt")):
        image = _image_of(file, by_stem)
        if image is None:
            notes.add("labels without an image of the same name, left out: put it into images, next to labels", file)
            continue
        try:
            lines[image] = file, [line for line in read_text(source[file]).splitlines() if line.strip()]
        except (OSError, ValueError):
            notes.add(UNREADABLE_TEXT, file)
    numbers = sorted({int(n) for _, found in lines.values() for line in found if (n := line.split()[0]).isdecimal()})
    if names is None:
        notes.add('no names of classes: "class_0" and so on; write them into data.yaml (names: [cat, dog])')
        names = {number: f"class_{number}" for number in numbers}
    for number, name in names.items():
        if number not in numbers:
            notes.add(EMPTY_CLASS, name)
    kept = [number for number in sorted(names) if number in numbers]
    images = []
    for image, (file, found) in lines.items():
        shapes = [shape for line in found if (shape := _shape(line, kept, notes, file))]
        draw = draw_shapes(shapes, notes, file)
        images.append(AnnotatedImage(source[image], name_of(image), split_in(image), draw))
    splits = {source[image]: split for image, split in _splits(source).items()}
    images = [
        dataclasses.replace(image, split=splits.get(image.path, image.split))
        for image in images + rest_unlabeled(source, lines)
    ]
    return Annotations([names[number] for number in kept], images, notes)


def _splits(source: Source) -> dict[str, str]:
    """The split of each image that data.yaml gives one: by `train`, `val` and `test`, each a folder, a text file with a
    path on each line, or a list of these. None for an image in several: many files name a folder twice."""
    file = _names_file(source)
    content = (file and _yaml(source, file)) or {}
    above = PurePosixPath(file or "").parent
    found: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        value = content.get(split)
        for said in value if isinstance(value, list) else [value]:
            for image in _images_in(source, above, str(content.get("path") or ""), said) if said else ():
                found.setdefault(image, set()).add(split)
    return {image: splits.pop() for image, splits in found.items() if len(splits) == 1}


def _images_in(source: Source, above: PurePosixPath, root: str, said: object) -> list[str]:
    """The images that an entry of data.yaml names; `root` is its `path`, perhaps one of another machine."""
    places = [os.path.normpath(above / root / str(said)), os.path.normpath(above / str(said))]
    if str(said).endswith(".txt"):
        lists = [file for file in source.ending(".txt") if file in places]
        lists = lists or [f for f in source.ending(".txt") if PurePosixPath(f).name == PurePosixPath(str(said)).name]
        named = (source.find_image(line.strip()) for line in _lines(source, lists[0])) if lists else ()
        return [image for image in named if image]
    return [image for image in source.images if any(image.startswith(f"{place}/") for place in places)]


def _is_label_file(file: str) -> bool:
    return "labels" in file.lower().split("/")[:-1]


def _lines(source: Source, file: str) -> list[str]:
    try:
        return [line for line in read_text(source[file]).splitlines() if line.strip()]
    except (OSError, ValueError):
        return []


def _names_file(source: Source) -> str | None:
    return next((f for f in source.ending(".yaml", ".yml") if "names" in (_yaml(source, f) or {})), None)


def _yaml(source: Source, file: str) -> dict | None:
    try:
        content = yaml.safe_load(read_text(source[file]))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _names(source: Source) -> dict[int, str] | None:
    file = _names_file(source)
    if file is None:
        return None
    names = (_yaml(source, file) or {})["names"]
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    try:
        return {int(number): str(name) for number, name in numbered.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f'{source[file]}: "names" must be a list of names, or numbers with a name each; found {names!r:.60}'
        ) from error


def _image_of(file: str, by_stem: dict[str, list[str]]) -> str | None:
    """`a/labels/train/x.txt` belongs to `a/images/train/x.jpg`."""
    candidates = by_stem.get(comparable(PurePosixPath(file).stem), [])
    wanted = [part.lower() for part in file.split("/")[:-1]]
    wanted = ["images" if part == "labels" else part for part in wanted]
    exact = [image for image in candidates if [part.lower() for part in image.split("/")[:-1]] == wanted]
    if exact:
        return exact[0]
    return candidates[0] if len(candidates) == 1 else None


def _shape(line: str, kept: list[int], notes: Notes, file: str) -> Shape | None:
    fields = line.split()
    try:
        numbers = np.array(fields[1:], np.float64)
    except ValueError:
        numbers = np.array([np.nan])
    if not fields[0].isdecimal() or not np.isfinite(numbers).all() or len(numbers) % 2:
        notes.add(BAD_NUMBERS, file)
    elif int(fields[0]) not in kept:
        notes.add(UNKNOWN_CLASS, file)
    elif len(numbers) == 4:
        notes.add("boxes without outline, left out: export the polygons (YOLO segmentation)", file)
    elif len(numbers) < 6:
        notes.add(TOO_FEW, file)
    else:
        return Polygon(kept.index(int(fields[0])), numbers.reshape(-1, 2), relative=True)
    return None
