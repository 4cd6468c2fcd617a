"""One mask for each class of an image: IMAGE/CLASS.png in a folder of masks, or IMAGE_CLASS.png."""

from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np

from serving.common.inputs import comparable
from training.annotations.contract import REST, AnnotatedImage, Annotations, Draw, Notes
from training.annotations.mask_files import LOSSLESS, MASK_SUFFIXES, index_values, is_mask
from training.annotations.source import Source, name_of, split_in
from training.annotations.words import rest_unlabeled

MOST_TRIED = 6
"""Masks that are opened to see whether they have two values only."""


def recognises(source: Source) -> bool:
    """Whether masks are named so, by two classes or more, or in a folder for each image, and have two values only."""
    found = _masks(source)
    classes = {name for masks in found.values() for name in masks}
    in_folders = any("/" in name for masks in found.values() for name in masks.values())
    if not found or (len(classes) < 2 and not in_folders):
        return False
    tried = [mask for masks in found.values() for mask in masks.values()][:MOST_TRIED]
    try:
        return all(_is_binary(index_values(source[mask])) for mask in tried)
    except ValueError:
        return False


def read(source: Source) -> Annotations:
    """Every image with its masks, smaller ones on top; classes in the order of the alphabet."""
    notes = Notes()
    found = _masks(source)
    classes = sorted({name for masks in found.values() for name in masks}, key=lambda name: (name.casefold(), name))
    images = [
        AnnotatedImage(
            source[image],
            name_of(image),
            split_in(image),
            _drawing(source, {classes.index(name): mask for name, mask in masks.items()}),
        )
        for image, masks in found.items()
    ]
    masks = {mask for of_image in found.values() for mask in of_image.values()}
    others = {file for file in source.images if is_mask(file)} - masks
    for file in sorted(others):
        notes.add("a mask without an image, left out: name it as its image, with the class behind it", file)
    return Annotations(classes, images + rest_unlabeled(source, {*found, *masks, *others}), notes)


def _masks(source: Source) -> dict[str, dict[str, str]]:
    """By image, the mask of each class."""
    stems: dict[str, list[str]] = defaultdict(list)
    for file in source.images:
        stems[comparable(PurePosixPath(file).stem)].append(file)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for mask in source.images:
        if not mask.lower().endswith(LOSSLESS):
            continue
        path = PurePosixPath(mask)
        in_folder = [f for f in stems.get(comparable(path.parent.name), []) if f != mask and not is_mask(f)]
        if len(in_folder) == 1:
            found[in_folder[0]][path.stem] = mask
            continue
        parts = path.stem.split("_")
        for count in range(len(parts) - 1, 0, -1):  # the longest name of an image that fits
            images = [f for f in stems.get(comparable("_".join(parts[:count])), []) if not is_mask(f)]
            name = "_".join(parts[count:])
            if len(images) == 1 and images[0] != mask and name:
                if f"_{name.lower()}" not in MASK_SUFFIXES and not name.isdecimal():
                    found[images[0]][name] = mask
                break
    return dict(found)


def _is_binary(values_HW: np.ndarray | None) -> bool:
    return values_HW is not None and len(np.unique(values_HW)) <= 2


def _drawing(source: Source, masks: dict[int, str]) -> Draw:
    def draw(height: int, width: int) -> np.ndarray:
        chosen = []
        for label, mask in masks.items():
            values_HW = index_values(source[mask])
            if values_HW is None:
                raise ValueError(f"colours in {mask}, which should have two values: save it in grey")
            most = int(values_HW.max(initial=0))
            chosen.append((label, values_HW > (0 if most < 128 else 127)))  # edges may be blended
        if len({mask_HW.shape for _, mask_HW in chosen}) > 1:
            raise ValueError("masks of different sizes for one image: export them again")
        drawn_HW = np.full(chosen[0][1].shape, REST, np.int16)
        for label, mask_HW in sorted(chosen, key=lambda pair: -int(pair[1].sum())):
            drawn_HW[mask_HW] = label
        return drawn_HW

    return draw
