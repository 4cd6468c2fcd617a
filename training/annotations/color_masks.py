"""Masks whose colours stand for classes, with a table of the colours, as CamVid and CVAT have them."""

from training.annotations.contract import AnnotatedImage, Annotations, Notes
from training.annotations.mask_files import draw_colors, find_table, index_values, is_mask, paired, read_mask
from training.annotations.source import Source, name_of, split_in
from training.annotations.voc import recognises as is_voc
from training.annotations.words import rest_unlabeled


def recognises(source: Source) -> bool:
    """Whether there is a table of colours, and masks with colours."""
    masks = list(paired(source).values())
    if is_voc(source) or not masks or find_table(source) is None:
        return False
    try:
        return index_values(source[masks[0]]) is None or read_mask(source[masks[0]]).mode == "P"
    except ValueError:  # of the first mask; the import names it
        return True


def read(source: Source) -> Annotations:
    """Every image with its mask; classes in the order of the table.

    Raises:
        ValueError: there is no table, or it cannot be read.
    """
    found = find_table(source)
    if found is None:
        raise ValueError(
            f"no table of colours in {source.root}: write label_colors.txt with a line for each class, "
            '"r g b name", such as "128 64 128 road"'
        )
    notes, colors = Notes(), list(found[1].values())
    pairs = paired(source)
    images = [
        AnnotatedImage(source[image], name_of(image), split_in(image), draw_colors(source[mask], colors, notes, mask))
        for image, mask in pairs.items()
    ]
    masks = {file for file in source.images if is_mask(file)}
    return Annotations(
        list(found[1]), images + rest_unlabeled(source, {*pairs, *pairs.values(), *masks}), notes, colors, complete=True
    )
