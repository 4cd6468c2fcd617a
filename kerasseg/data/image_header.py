"""What the header of an image file says: its size, whether it lies on its side, and which decoder takes it."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.ImageFile import ImageFile

EXIF_ORIENTATION = 0x0112

TURNED = (5, 6, 7, 8)
"""The orientations in which width and height change places."""


class ImageHeader(NamedTuple):
    """What is known of an image that can be opened."""

    stored: tuple[int, int]
    """Height and width of the pixels as they are stored."""
    orientation: int
    """How they have to be turned or mirrored, by the EXIF standard; 1 for not at all."""
    decodable: bool
    """Whether TensorFlow decodes its pixels as they are stored, as `serving.common.images` does, and faster."""

    @property
    def in_graph(self) -> bool:
        """Whether TensorFlow gives the upright image."""
        return self.decodable and self.orientation == 1

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return self.stored[::-1] if self.orientation in TURNED else self.stored

    @classmethod
    def of(cls, image: ImageFile, contents: bytes) -> "ImageHeader":
        """The header of an image that Pillow has opened.

        Args:
            contents: its file; needed of a PNG only.
        """
        if image.format == "TIFF":  # Pillow turns it by itself, and gives its upright size
            return cls(image.size[::-1], 1, False)
        orientation = 1
        # Pillow decodes all of a PNG to look for the tag, which may come after its pixels.
        if image.format != "PNG" or any(mark in contents for mark in (b"Exif", b"eXIf", b"exif", b"rientation")):
            with contextlib.suppress(Exception):  # damaged tags are no reason not to use an image
                orientation = int(image.getexif().get(EXIF_ORIENTATION, 1))
        # TensorFlow knows no JPEG of four inks.
        known = image.format == "PNG" or (image.format == "JPEG" and image.mode in ("L", "RGB"))
        return cls(image.size[::-1], orientation if orientation in range(2, 9) else 1, known)


def read_header(path: Path) -> ImageHeader | None:
    """The header of a file; None where it cannot be opened, which its decoder explains."""
    try:
        with Image.open(path) as image:
            return ImageHeader.of(image, path.read_bytes() if image.format == "PNG" else b"")
    except Exception:  # whatever decoders trip over
        return None
