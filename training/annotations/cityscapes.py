"""Cityscapes: label ids in files whose names end in _gtFine_labelIds.png."""

from pathlib import PurePosixPath

from training.annotations.contract import IGNORED, AnnotatedImage, Annotations, Notes
from training.annotations.mask_files import draw_numbers
from training.annotations.source import Source, name_of, split_in
from training.annotations.words import rest_unlabeled

ENDINGS = ("_gtFine_labelIds.png", "_gtCoarse_labelIds.png")


def recognises(source: Source) -> bool:
    """Whether there are files of that name."""
    return any(file.endswith(ENDINGS) for file in source.files)


def read(source: Source) -> Annotations:
    """Every image with the 19 classes of the benchmark; all other label ids are ignored."""
    from kerasseg.data.builders.cityscapes import TRAIN_CLASSES  # loads tensorflow-datasets, which takes seconds

    notes = Notes()
    position = {**dict.fromkeys(range(-1, 256), IGNORED), **{c.label_id: k for k, c in enumerate(TRAIN_CLASSES)}}
    drawn_files = [file for file in source.images if _place(file) is not None and "_gt" in PurePosixPath(file).name]
    by_place = {_place(file): file for file in source.images if file not in set(drawn_files)}
    images: dict[str, AnnotatedImage] = {}
    for mask in source.files:
        if mask.endswith(ENDINGS):
            image = by_place.get(_place(mask))
            if image is None:
                notes.add("a label map without its _leftImg8bit image, left out: unpack the images next to it", mask)
                continue
            if image not in images or "gtFine" in mask:
                draw = draw_numbers(source[mask], position, notes, mask)
                images[image] = AnnotatedImage(source[image], name_of(image), split_in(image), draw)
    return Annotations(
        [c.name for c in TRAIN_CLASSES],
        [*images.values(), *rest_unlabeled(source, {*images, *drawn_files})],
        notes,
        [c.color for c in TRAIN_CLASSES],
        complete=True,
    )


def _place(file: str) -> str:
    """What image and label map have in common: `aachen_000000_000019`."""
    stem = PurePosixPath(file).stem
    for ending in ("_leftImg8bit", "_gtFine", "_gtCoarse"):
        stem = stem.partition(ending)[0]
    return stem
