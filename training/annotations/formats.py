"""The annotation formats by name, and which of them a source has."""

from typing import Protocol

from training.annotations import (
    cityscapes,
    class_masks,
    coco,
    color_masks,
    cvat,
    label_studio,
    labelme,
    masks,
    voc,
    yolo,
)
from training.annotations.contract import Annotations
from training.annotations.source import Source


class Reader(Protocol):
    """What the file of each tool has."""

    def recognises(self, source: Source) -> bool:
        """Whether the tool wrote what is in the source."""

    def read(self, source: Source) -> Annotations:
        """Everything in the source. Raises ValueError where nothing can be imported."""


FORMATS: dict[str, Reader] = {
    "labelme": labelme,
    "coco": coco,
    "cvat": cvat,
    "label_studio": label_studio,
    "yolo": yolo,
    "cityscapes": cityscapes,
    "voc": voc,
    "color_masks": color_masks,
    "class_masks": class_masks,
    "masks": masks,
}
"""In the order in which a source is looked at."""

FALLBACKS = ("class_masks", "masks")
"""Masks without anything that says how they are meant: only where a source has no other format."""

KNOWN = (
    "labelme JSON, COCO JSON, CVAT for images XML, Label Studio JSON, YOLO segmentation, Pascal VOC folders, "
    "Cityscapes label ids, colour masks with a table, one mask per class, masks named as their images"
)


def recognised(source: Source) -> list[str]:
    """The formats of a source: none, one, or several."""
    found = [name for name, reader in FORMATS.items() if name not in FALLBACKS and reader.recognises(source)]
    if not found:
        found = [name for name in FALLBACKS if FORMATS[name].recognises(source)][:1]
    return found


def read_source(source: Source, format: str) -> tuple[str, Annotations]:
    """The format and the annotations of a source.

    Args:
        format: one of `FORMATS`, or "auto".

    Raises:
        ValueError: no format or several are recognised, or nothing can be imported.
    """
    if format == "auto":
        found = recognised(source)
        if len(found) > 1:
            raise ValueError(
                f"{source.root} has annotations of {len(found)} formats ({', '.join(found)}): "
                f"say which with --format {found[0]}"
            )
        if not found:
            said = ", ".join(source.ending(".json", ".xml", ".txt", ".yaml")[:3])
            others = f" ({said} are of none of them)" if said else ""
            raise ValueError(f"no annotations recognised in {source.root}{others}: known are {KNOWN}")
        format = found[0]
    if not source.images:
        raise ValueError(f"no images in {source.root}: put them next to the annotations")
    return format, FORMATS[format].read(source)
