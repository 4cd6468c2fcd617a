"""Pascal VOC's folders: JPEGImages, SegmentationClass and lists in ImageSets/Segmentation, as VOC itself, CVAT and
labelme2voc write them."""

from pathlib import PurePosixPath

from kerasseg.visualize import voc_palette
from serving.common.inputs import comparable, read_text
from training.annotations.contract import IGNORED, AnnotatedImage, Annotations, Draw, Notes
from training.annotations.mask_files import draw_colors, draw_numbers, find_table, index_values, names_file, read_mask
from training.annotations.source import Source, name_of
from training.annotations.words import rest_unlabeled

FOLDERS = ("segmentationclass", "segmentationclasspng")
"""Lower case."""


def recognises(source: Source) -> bool:
    """Whether there is a folder SegmentationClass with masks."""
    return bool(_masks(source))


def read(source: Source) -> Annotations:
    """Every image with its mask. Classes are those of labelmap.txt or class_names.txt; VOC's 21 without such a file.

    Raises:
        ValueError: labelmap.txt cannot be read.
    """
    notes = Notes()
    masks = _masks(source)
    splits = _lists(source)
    images = {comparable(PurePosixPath(f).stem): f for f in source.images if not _in_masks(f) and not _in_objects(f)}
    table, names = find_table(source), names_file(source)
    if table:
        classes, palette = list(table[1]), list(table[1].values())
    else:
        classes = names if names else list(_voc_classes())
        classes = [name for name in classes if name != "__ignore__"]
        palette = list(voc_palette(len(classes)))
    result: dict[str, AnnotatedImage] = {}
    for mask in masks:
        stem = PurePosixPath(mask).stem
        image = images.get(comparable(stem))
        if image is None:
            notes.add("a mask without an image of the same name, left out: put the image into JPEGImages", mask)
            continue
        draw = _drawing(source, mask, classes, palette, bool(table), notes)
        result[image] = AnnotatedImage(source[image], name_of(image), splits.get(stem), draw)
    rest = [
        AnnotatedImage(each.path, each.name, splits.get(each.path.stem))
        for each in rest_unlabeled(source, {*result, *masks})
        if each.path.relative_to(source.root).as_posix() in set(images.values())
    ]
    return Annotations(classes, [*result.values(), *rest], notes, palette, complete=True)


def _voc_classes() -> tuple[str, ...]:
    from kerasseg.data.builders.voc2012 import Voc2012  # loads tensorflow-datasets, which takes seconds

    return Voc2012.CLASSES


def _in_masks(file: str) -> bool:
    return any(folder in FOLDERS for folder in file.lower().split("/")[:-1])


def _in_objects(file: str) -> bool:
    """In a folder of what these programs write in addition: instances, and images for people to look at."""
    others = ("segmentationobject", "segmentationclassvisualization", "segmentationclassraw", "segmentationobjectpng")
    return any(folder in others for folder in file.lower().split("/")[:-1])


def _masks(source: Source) -> list[str]:
    return [file for file in source.ending(".png") if _in_masks(file)]


def _lists(source: Source) -> dict[str, str]:
    """The split of each name in ImageSets/Segmentation/{train,val,test}.txt."""
    found: dict[str, str] = {}
    for file in source.ending(".txt"):
        path = PurePosixPath(file)
        if path.parent.name.lower() == "segmentation" and path.stem in ("train", "val", "test"):
            for line in read_text(source[file]).splitlines():
                if line.strip():
                    found.setdefault(
                        PurePosixPath(line.split()[0]).stem if " " not in line else line.strip(), path.stem
                    )
    return found


def _drawing(source: Source, mask: str, classes: list[str], palette: list, by_color: bool, notes: Notes) -> Draw:
    path = source[mask]
    numbers = {k: k for k in range(len(classes))} | {255: IGNORED}

    def draw(height: int, width: int):
        grey = read_mask(path).mode in ("L", "1")
        has_numbers = (not by_color and index_values(path) is not None) or grey
        drawn = draw_numbers(path, numbers, notes, mask) if has_numbers else draw_colors(path, palette, notes, mask)
        return drawn(height, width)

    return draw
