"""Turns what annotation tools write into a dataset folder."""

import dataclasses
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

# isort: off
import kerasseg  # noqa: F401 (first: it prepares the start of TensorFlow)

# isort: on
import numpy as np
import tyro

from kerasseg.checks import require, require_choices
from kerasseg.data.check import inspect_folder
from kerasseg.data.folder import list_pairs, read_classes
from kerasseg.data.inspection import Inspection
from kerasseg.distribution import leave_gpus
from kerasseg.losses import IGNORE_LABEL
from serving.common import cli
from serving.common.files import write_atomically
from serving.common.images import png
from training.annotations.contact_sheet import contact_sheet
from training.annotations.contract import Notes
from training.annotations.formats import read_source
from training.annotations.source import Source
from training.annotations.splits import choose_splits, output_names
from training.annotations.writing import add_to_folder, draw_label_maps, plan_classes, write_folder

PREDICTED = "predictions that nobody has corrected are taken as annotation; --predictions skip leaves them out"

Format = Literal[
    "auto",
    "labelme",
    "coco",
    "cvat",
    "label_studio",
    "yolo",
    "cityscapes",
    "voc",
    "color_masks",
    "class_masks",
    "masks",
]


@dataclass(frozen=True)
class ImportConfig:
    """What is read, and what is written."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The folder with images and annotations, or the annotation file in it. Nothing in it is changed."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The dataset folder to write; without --add it must not exist yet."""

    add: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add to the dataset OUT: label maps for its images that have none, and images that it does not have. Annotations
    may name its images, and its classes keep their numbers."""

    format: Format = "auto"
    """The tool that wrote the annotations; auto recognises it by its files."""

    rest: Literal["background", "ignored"] = "background"
    """Pixels without annotation: class 0, background, or neither learned nor measured."""

    classes: str | None = None
    """A dataset's classes.json: its names, numbers and colours are kept, also of classes without annotation."""

    val: float = 0.2
    """Share of the labelled images for validation, 0..1, where the source has no split of its own. Not with --add."""

    test: float = 0.0
    """Share of the labelled images for test, 0..1, where the source has none. Not with --add."""

    seed: int = 0
    """Seed of the choice of images for validation and test."""

    predictions: Literal["use", "skip"] = "use"
    """What serving.batch predicted and nobody has saved in the tool since: annotation like any other, or none."""

    link: Literal["copy", "hard", "symbolic"] = "copy"
    """Images are copied, or are hard or symbolic links to those of the source."""

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("val", "test"):
            share = getattr(self, name)
            require(
                math.isfinite(share) and 0 <= share < 1, f"--{name} must be a share, 0 or more and below 1; got {share}"
            )
        require(self.val + self.test < 1, f"--val {self.val} and --test {self.test} leave no image to train on")


def main(config: ImportConfig) -> dict:
    """Writes OUT and shows what is in it; returns the counts, with exit status 2 where the check finds an error."""
    out = Path(config.out)
    known: dict[Path, tuple[str, str]] = {}
    if config.add:
        require(config.classes is None, f"--add keeps the classes of {out}: leave out --classes")
        require((out / "classes.json").is_file(), f"--add needs a dataset folder with classes.json; {out} has none")
        known = {
            Path(os.path.realpath(path)): (split, name)
            for split, images in list_pairs(out)[0].items()
            for name, path in images.items()
        }
    else:
        require(not os.path.lexists(out), f"{out} exists: choose another OUT, remove it, or add to it with --add")
    source = Source(config.source, known)
    require(
        not out.resolve().is_relative_to(source.root.resolve()),
        f"{out} lies in {source.root}, in which nothing is changed: choose an OUT outside of it",
    )
    wanted = None
    if classes := str(out / "classes.json") if config.add else config.classes:
        wanted = read_classes(Path(classes))
        require(wanted is not None, f"--classes {classes} is not there: name a dataset folder's classes.json")
        assert wanted is not None
        require(
            not config.add or wanted.ignore_label == IGNORE_LABEL,
            f"{classes} has another ignore_label than {IGNORE_LABEL}, which --add writes: import into a new folder",
        )
    format, annotations = read_source(source, config.format)
    notes = annotations.notes
    for name in source.unusable:
        notes.add("names that are not UTF-8 or have line breaks, left out: rename them", name)
    images = sorted(annotations.images, key=lambda image: (image.name, str(image.path)))
    if config.predictions == "skip":
        images = [dataclasses.replace(image, draw=None) if image.predicted else image for image in images]
    for image in images:
        if image.predicted and image.draw:
            notes.add(
                "predictions that nobody has corrected are taken as annotation; --predictions skip leaves them out",
                image.name,
            )
    # Made next to OUT and renamed: a failure leaves nothing.
    building = out.parent / f".{out.name[:40]}.{os.getpid()}.tmp"
    try:
        require(
            any(image.draw for image in images),
            f"no annotation in {source.root} belongs to an image: {_first(notes)}",
        )
        plan = plan_classes(annotations, config.rest, wanted)
        out.parent.mkdir(parents=True, exist_ok=True)
        building.mkdir()
        label_maps = building / "drawn"
        drawn = draw_label_maps(label_maps, images, output_names(images), plan, notes)
        require(
            any(image.draw for image in drawn.images),
            f"no image with annotation in {source.root} can be used: {_first(notes)}",
        )
        sheet = png(np.asarray(contact_sheet(drawn.tiles, plan.names, plan.palette)))
        skipped = len(images) - len(drawn.images)
        if config.add:
            add_to_folder(out, building, drawn, label_maps, known, config.link, notes)
            write_atomically(out / "contact_sheet.png", sheet)
            inspection = inspect_folder(out)
        else:
            # Only images that can be used are split: one that cannot might be all there is for validation.
            splits = choose_splits(drawn.images, config.val, config.test, config.seed, notes)
            write_folder(building, drawn, label_maps, splits, plan, config.link)
            skipped += splits.count(None)
            write_atomically(building / "contact_sheet.png", sheet)
            inspection = inspect_folder(building)
            building.rename(out)
    finally:
        notes.show()
        shutil.rmtree(building, ignore_errors=True)
    return _report(config, format, inspection, skipped)


def _first(notes: Notes) -> str:
    return next(iter(notes), "there are images only")


def _report(config: ImportConfig, format: str, inspection: Inspection, skipped: int) -> dict:
    for problem in inspection.problems:
        print(problem, file=sys.stderr)
    pixels = inspection.pixels
    showing = sum((counts > 0).astype(int) for maps in inspection.label_pixels.values() for counts in maps.values())
    showing = np.zeros(256, int) + showing
    longest = max([len(name) for name in inspection.classes] + [7])
    print(f"{'class':>5}  {'name':{longest}}  {'pixels':>14}  {'images':>7}", file=sys.stderr)
    rows = [*enumerate(inspection.classes), *([(255, "ignored")] if pixels[255] else [])]
    for label, name in rows:
        print(f"{label:5}  {name:{longest}}  {pixels[label]:14,}  {showing[label]:7,}", file=sys.stderr)
    counts = {split: n for split, n in inspection.images.items() if n["images"]}
    said = ", ".join(f"{split} {n['images']} ({n['labeled']} labelled)" for split, n in counts.items())
    print(f"{config.out}: {said}; look at {config.out}/contact_sheet.png", file=sys.stderr)
    errors = len(inspection.errors)
    if errors:
        print(
            f"error: {config.out} is written, but has {errors} problem{'s' * (errors > 1)}, named above, that training "
            "refuses",
            file=sys.stderr,
        )
    return {
        "format": format,
        "images": counts,
        "classes": list(inspection.classes),
        "pixels": {name: int(pixels[label]) for label, name in rows},
        "skipped": skipped,
        "errors": errors,
        "warnings": len(inspection.warnings),
        "exit_status": 2 if errors else 0,
    }


COMMAND = cli.Command(main, ImportConfig, str(__doc__), prepare=leave_gpus)

if __name__ == "__main__":
    COMMAND.run()
