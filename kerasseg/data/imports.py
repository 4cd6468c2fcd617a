"""Whether a folder holds what an annotation tool wrote, and the command that makes a dataset folder of it.

Only names are looked at: `training.import_data` reads the files.
"""

import os
from pathlib import Path

from serving.common.images import SUFFIXES

ANNOTATIONS = (".json", ".xml", ".txt", ".yaml", ".yml")
"""How the files of annotation tools end."""

MASK_FOLDERS = ("masks", "mask", "segmentationclass", "gtfine", "annotations", "ground_truth", "gt")
"""Folders of masks, lower case."""

MOST_SEEN = 10_000
"""Files that are looked at: a folder may be large, and a hint is not worth minutes."""


def import_hint(root: Path, by_masks: bool = True) -> str | None:
    """What to do with a folder that has not been imported: images with JSON, XML or text of an annotation tool, or with
    a folder of masks. None for other folders.

    Args:
        by_masks: whether a folder of masks is enough.
    """
    images = annotations = masks = seen = 0
    for folder, _, names in os.walk(root):
        inside = Path(folder).relative_to(root).as_posix().lower().split("/")
        for name in names:
            suffix = Path(name).suffix.lower()
            of_masks = suffix in SUFFIXES and any(part in MASK_FOLDERS for part in inside)
            masks += of_masks
            images += suffix in SUFFIXES and not of_masks
            annotations += suffix in ANNOTATIONS and name != "classes.json"
            seen += 1
        if seen > MOST_SEEN:
            break
    if images and (annotations or (masks and by_masks)):
        return f"`kerasseg import {root} NEW_FOLDER` makes a dataset folder of annotations"
    return None
