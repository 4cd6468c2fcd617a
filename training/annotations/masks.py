"""Masks of class numbers, or of object and background, next to images: named alike, with a suffix, or in a folder."""

import numpy as np
from tqdm import tqdm

from kerasseg.losses import IGNORE_LABEL
from training.annotations.contract import IGNORED, AnnotatedImage, Annotations, Notes
from training.annotations.mask_files import draw_numbers, index_values, is_mask, names_file, paired
from training.annotations.source import Source, name_of, split_in
from training.annotations.words import rest_unlabeled


def recognises(source: Source) -> bool:
    """Whether an image has a mask."""
    return bool(paired(source))


def read(source: Source) -> Annotations:
    """Every image with its mask. Names come from classes.txt, one a line; without it, masks of two values, one of them
    0, are background and object, and others have the classes background, class_1 and so on.

    Raises:
        ValueError: the masks have colours.
    """
    notes = Notes()
    pairs = paired(source)
    values = np.zeros(65536, bool)
    colors: list[str] = []
    for mask in tqdm(pairs.values(), "masks", leave=False, disable=None):
        try:
            values_HW = index_values(source[mask])
        except ValueError:  # the import names it when the image is written
            continue
        if values_HW is None:
            colors.append(mask)
        else:
            values[np.clip(values_HW, 0, 65535)] = True
    if colors and not values.any():
        raise ValueError(
            f"{source[colors[0]]} and {len(colors) - 1} more masks have colours, and no table says what they mean: "
            f'write {source.root}/label_colors.txt with a line for each class, "r g b name", such as "128 64 128 road"'
        )
    position, classes = _classes(np.flatnonzero(values).tolist(), names_file(source))
    images = [
        AnnotatedImage(
            source[image], name_of(image), split_in(image), draw_numbers(source[mask], position, notes, mask)
        )
        for image, mask in pairs.items()
    ]
    masks = {file for file in source.images if is_mask(file)} | set(pairs.values())
    for file in sorted(masks - set(pairs.values())):
        notes.add("a mask without an image, left out: name it as its image", file)
    return Annotations(classes, images + rest_unlabeled(source, {*pairs, *masks}), notes, complete=True)


def _classes(values: list[int], names: list[str] | None) -> tuple[dict[int, int], list[str]]:
    """The position of each number, and the classes."""
    if names:
        first = names.index("__ignore__") + 1 if "__ignore__" in names[:1] else 0
        kept = names[first:]
        return {k: k for k in range(len(kept))} | {IGNORE_LABEL: IGNORED}, kept
    if len(values) == 2 and values[0] == 0 and (values[1] == 1 or values[1] == IGNORE_LABEL):
        return {0: 0, values[1]: 1}, ["background", "object"]
    numbers = [value for value in values if value < IGNORE_LABEL]
    most = max(numbers, default=0)
    return (
        {k: k for k in range(most + 1)} | {IGNORE_LABEL: IGNORED},
        ["background", *(f"class_{k}" for k in range(1, most + 1))],
    )
