"""What can be wrong with the files of a dataset folder, and the words in which readers and checks say so."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from serving.common.images import SMALLER, SUFFIXES_SHOWN
from serving.common.inputs import COPY

# kind of finding: severity, message with {} for what was found, fix
KINDS = {
    "unreadable image": (
        "error",
        "cannot be read as an image ({})",
        f"{COPY}, or remove it",
    ),
    "too large": ("error", "{}", SMALLER),
    "image format": (
        "error",
        "{} under the name of an image",
        "save as JPEG or PNG: Image.open(f).convert('RGB').save(name + '.png')",
    ),
    "unreadable label": (
        "error",
        "cannot be read as an image ({})",
        f"{COPY}, or remove it: its image then counts as unlabelled",
    ),
    "label format": (
        "error",
        "{} under the name of a PNG",
        "save the label maps as PNG, from their source: JPEG changes class numbers",
    ),
    "low-bit label": (
        "error",
        "grey of 2 or 4 bits, whose numbers some programs multiply (here by {})",
        "write class numbers as an 8-bit PNG: Image.fromarray(np.array(Image.open(f)) // FACTOR).save(f) undoes it",
    ),
    "colour label": (
        "error",
        "colours ({}) instead of one class number per pixel",
        "write class numbers: replace each colour by the number of its class and save as a grey or palette "
        "PNG (when red, green and blue are equal, Image.open(f).convert('L') is enough); with a table of the colours, "
        "`kerasseg import FOLDER NEW_FOLDER` does so",
    ),
    "16-bit label": (
        "error",
        "16-bit values above 255 (up to {})",
        "write class numbers 0..254 and 255 = ignore as an 8-bit PNG",
    ),
    "size": (
        "error",
        "the label map is not of the size of its image ({})",
        "export the label map at the size of the image, or resize it without mixing values: "
        "label.resize(image.size, Image.NEAREST)",
    ),
    "drawn as stored": (
        "warning",
        "it carries a rotation tag (EXIF orientation {}), which is not applied: its label map has the size of the "
        "image as it is stored",
        "if the label map was drawn on the upright image and squeezed, draw it again; else write the image without the "
        "tag, so that it looks the same everywhere",
    ),
    "turned": (
        "warning",
        "it carries a rotation tag (EXIF orientation {}), which is applied to the image, and never to its label map",
        "if the label map was drawn on the image as it is stored, write the image without the tag: "
        "Image.fromarray(np.array(Image.open(f))).save(f)",
    ),
    "all ignored": (
        "warning",
        "every pixel is ignored, so nothing is learned from the label map or measured with it{}",
        "remove the label map: the image then counts as unlabelled",
    ),
    "mask of 0 and 255": (
        "error",
        "a label map of 0 and 255, but 255 means ignore: the object would never be learned{}",
        "write the object as 1: Image.fromarray((np.array(Image.open(f)) > 0).astype('uint8')).save(f), "
        "or call another value ignore_label in classes.json",
    ),
    "perhaps a mask of 0 and 255": (
        "warning",
        "only the values 0 and 255, and 255 means ignore{}",
        "if 255 is meant to be the object, write it as 1",
    ),
    "no image": (
        "error",
        "a label map without an image of the same name{}",
        "name the label map as its image (images/train/a.jpg has labels/train/a.png), or remove it",
    ),
    "no label": (
        "warning",
        "an image without a label map, so it is not evaluated{}",
        "add the label map, or remove the image",
    ),
    "two images": (
        "error",
        "several images of one name ({}), and a label map can belong to one only",
        "rename or remove all but one",
    ),
    "two labels": (
        "error",
        "several label maps of one name ({}), and an image can have one only",
        "remove all but one",
    ),
    "name": (
        "error",
        "its name is not UTF-8, or has line breaks, so lists of names cannot hold it{}",
        "rename it (convmv -f latin1 -t utf8 --notest does so for whole folders)",
    ),
    "no file": (
        "error",
        "a link to nothing, or no file that can be read{}",
        "put the file itself there, or remove it",
    ),
    "other image type": (
        "warning",
        f"not read: an image here ends in {SUFFIXES_SHOWN} ({{}} found)",
        "save as JPEG or PNG, or remove",
    ),
    "other label type": (
        "error",
        "not read: a label map is a .png ({} found); JPEG would change the class numbers",
        "save the label maps as PNG, from their source rather than from a JPEG",
    ),
    "folder inside": (
        "warning",
        "a folder inside of a split is not read{}",
        "move its files one folder up",
    ),
}


class Finding(NamedTuple):
    """What is wrong with one file."""

    kind: str
    """One of `KINDS`."""
    file: str
    """Relative to the dataset folder."""
    detail: str = ""
    """What was found."""
    remedy: str = ""
    """The fix, where this cause has another one than its kind."""


class FileError(ValueError):
    """An image or label map that cannot be used; `kind`, `detail` and `remedy` as in `Finding`."""

    def __init__(self, kind: str, detail: str = "", remedy: str = "") -> None:
        super().__init__(KINDS[kind][1].format(detail))
        self.kind, self.detail, self.remedy = kind, detail, remedy


@contextlib.contextmanager
def naming_file(what: str | Path) -> Iterator[None]:
    """A FileError inside becomes a ValueError that names the file and says what to do."""
    try:
        yield
    except FileError as error:
        raise ValueError(f"{what}: {error}; {error.remedy or KINDS[error.kind][2]}") from error
