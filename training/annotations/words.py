"""What readers say about the same mistakes, and what they do with images that nobody annotated."""

from collections.abc import Collection

from training.annotations.contract import AnnotatedImage
from training.annotations.mask_files import is_mask
from training.annotations.source import Source, name_of, split_in

MISSING = "an image that is missing, left out: put it next to its annotation, under the name that is written there"
TOO_FEW = "a shape of too few points, left out: a polygon needs three"
NO_AREA = "shapes of the kind {}, which have no area, left out: draw a polygon around what should be learned"
OTHER_JSON = "JSON of another tool or purpose, left out"
UNREADABLE_TEXT = "a file that cannot be read, left out: copy it again from its source"
EMPTY_CLASS = "a class without annotation, left out"
UNKNOWN_CLASS = "annotation of a class that the file does not list, left out: export it again"
BAD_NUMBERS = "a shape with coordinates that are no numbers, left out: export it again"


def rest_unlabeled(source: Source, known: Collection[str]) -> list[AnnotatedImage]:
    """The images of a source that no annotation names, as unlabelled ones; without those in folders of masks, which
    tools write in addition to their annotation."""
    return [
        AnnotatedImage(source[image], name_of(image), split_in(image))
        for image in source.images
        if image not in known and image not in source.elsewhere and not is_mask(image)
    ]
