"""Image files to arrays and back: what goes into a segmentation model and what people look at afterwards.

Needs Pillow and NumPy only. Shapes: H, W height and width in pixels; K classes.
"""

import contextlib
import io
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, features
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from serving.common import tiff
from serving.common.files import read_bounded
from serving.common.inputs import contents_of

Palette = Sequence[Sequence[int]]


def _reads_heif() -> bool:
    """Whether pillow-heif is there, with which Pillow reads what iPhones take."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm",),
    **({"AVIF": (".avif",)} if features.check("avif") else {}),
    **({"HEIF": (".heic", ".heif")} if _reads_heif() else {}),
}
"""Pillow's names of the formats that are read everywhere, in training, by the server and by batch jobs, and how the
names of such files end, in lower case. Pillow knows more: each would be one more decoder that strangers' bytes
reach."""

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""The endings of file names that a folder is searched for."""

SUFFIXES_SHOWN = ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]}"
"""They, in a message."""

MAX_PIXELS = 178_956_970
"""The largest image decoded by default. Beyond it Pillow suspects a decompression bomb, and the decoders that
training uses give up."""

SMALLER = "cut it into tiles or scale it down"

BYTES_PER_PIXEL, BYTES_BESIDE = 8, 2**24
"""No file of an image is larger: red, green, blue and transparency of 16 bits each, and what comes with them."""

STRIDE = 32
"""Networks pad an image's sides to a multiple of their stride, which is no more than this."""

MAX_SCANS = 64
"""The most scans of a JPEG. Encoders write about ten. Each is a walk over the whole image, for as little as thirty
bytes."""

MAX_READS = 2**17
"""Pieces in which a file of up to 128 MiB may be read; a larger one in as many as it has KiB. Each of its segments
takes a few, and so does each byte between them."""

IGNORE_COLOR = (224, 224, 192)
"""How label 255 (ignored) is shown: the colour map of Pascal VOC has this cream for 255."""


def warm_up() -> None:
    """Has Pillow load what reads and writes the usual formats, which the first image would have to wait for."""
    for format in ("JPEG", "PNG", "WEBP"):
        load_image(_encode(Image.new("RGB", (8, 8)), format))


def read_file(path: str | Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """The contents of a file that should be an image of at most so many pixels.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than any such image, a pipe, or a device.
    """
    return read_bounded(Path(path), BYTES_PER_PIXEL * max_pixels + BYTES_BESIDE)


class TooManyPixels(ValueError):
    """An image larger than accepted."""


def padded_pixels(height: int, width: int) -> int:
    """What an image may count for in a network: its pixels once both sides are multiples of `STRIDE`."""
    return math.prod(-(-side // STRIDE) * STRIDE for side in (height, width))


def check_pixels(height: int, width: int, max_pixels: int, count: int = 1) -> None:
    """Whether so many images of a size take no more memory than square ones of `max_pixels` in all.

    A network pads them: of an image one pixel high it makes one of `STRIDE` times the pixels.

    Raises:
        TooManyPixels: they take more.
    """
    if count * height * width > max_pixels:
        several = f"{count} of " if count > 1 else ""
        raise TooManyPixels(f"larger than {max_pixels} pixels ({several}{width}x{height}): {SMALLER}")
    square = math.isqrt(max_pixels // count) + STRIDE
    if padded_pixels(height, width) > square**2:
        raise TooManyPixels(
            f"{width}x{height} pixels are too thin: the network pads them to {padded_pixels(height, width)}, which are "
            f"more than {max_pixels} pixels take in a square: cut it into parts"
        )


class _LimitedReads(io.BytesIO):
    """A file's contents, for a decoder that may ask for them a limited number of times only.

    Decoders read a file's segments one by one, and the bytes between them too: millions of either take minutes.
    """

    def __init__(self, contents: bytes):
        super().__init__(contents)
        # PNGs have a chunk every 8 KiB, each of which is read in three pieces.
        self._reads_left = max(MAX_READS, len(contents) // 1024)

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("it is made of too many pieces: save it again")
        return super().read(size)


@contextlib.contextmanager
def open_image(
    contents: bytes, *, formats: tuple[str, ...] = tuple(FORMATS), max_pixels: int = MAX_PIXELS
) -> Iterator[ImageFile]:
    """The image in the bytes of a file, of which nothing but the header has been decoded.

    Args:
        formats: Pillow's names of those that are accepted.
        max_pixels: as of `load_image`.

    Raises:
        TooManyPixels: it exceeds `max_pixels`; a ValueError.
        ValueError: no image in one of the formats, or what Pillow trips over while it decodes the image. The
            message is the reason, and leaves it to the caller to name the file.
    """
    try:
        with _LimitedReads(contents) as file, Image.open(file, formats=formats) as image:
            width, height = image.size
            check_pixels(height, width, max_pixels)
            if isinstance(image, JpegImageFile):
                _check_scans(contents, file.tell())
                # In pieces, what a decoder cannot use yet is copied for every piece: fill bytes take minutes.
                image.decodermaxblock = len(contents)
            yield image
    except ValueError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, which comes before ours can be asked
        raise TooManyPixels(f"larger than {min(max_pixels, MAX_PIXELS)} pixels: {SMALLER}") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(_why_unknown(contents, formats)) from error
    # Decoders raise whatever they trip over (SyntaxError, struct.error, EOFError, ...): to a caller it is one
    # thing.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _why_unknown(contents: bytes, formats: Sequence[str]) -> str:
    """Why Pillow knows no image in these bytes, and what to do."""
    wanted = f"in one of the formats {', '.join(formats)}"
    known = contents_of(contents)
    if known is None:
        return f"not an image {wanted}"
    if known.what == "TIFF data" and "TIFF" in formats:
        with contextlib.suppress(Exception):  # whatever a damaged one raises
            return tiff.why_unknown(contents)
    if known.format in formats:  # its own format: then it is damaged
        return f"damaged {known.what}"
    said = " or ".join(format for format in ("JPEG", "PNG") if format in formats)
    return f"{known.what}, not an image {wanted}: {known.remedy_as(said)}"


def load_image(
    source: str | Path | bytes,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes one image to RGB, upright as a viewer shows it.

    EXIF orientation is applied. Grey, palette, CMYK, 1-bit and 16-bit images become 8-bit RGB (16-bit keeps
    the high byte). Transparency is dropped and the colours beneath it are kept, as TensorFlow's decoder does
    in training. An animation gives its first frame.

    Args:
        source: a file, or the bytes of one.
        name: what error messages call the image; the path, or "image", when None.
        max_pixels: refuse more pixels than this before decoding them, and thinner images as `check_pixels` does.

    Returns:
        uint8 (H,W,3), 0..255.

    Raises:
        OSError: the file cannot be opened.
        TooManyPixels: it exceeds `max_pixels`; a ValueError.
        ValueError: the contents are not a whole image in one of the `FORMATS`, or made to take long: with more scans
            or segments than an encoder writes.
    """
    if not isinstance(source, bytes):
        name = name or str(source)
        source = read_file(source, max_pixels)
    name = name or "image"
    try:
        with open_image(source, max_pixels=max_pixels) as image:
            return to_rgb(image)
    except ValueError as error:
        kind = TooManyPixels if isinstance(error, TooManyPixels) else ValueError
        raise kind(f"{name} cannot be read: {error}") from error


_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The start of a JPEG's segment: neither a byte of a scan that is escaped, nor a restart within it."""


def _check_scans(source: bytes, position: int) -> None:
    """Raises ValueError where a JPEG, read up to its first scan, has more than `MAX_SCANS`, or segments as many times.

    The decoder goes over the whole image for each of them before it gives any pixel.
    """
    scans, others = 1, 0
    while position < len(source):
        found = _MARKER.search(source, position, position + 2**20)  # more would hold up other threads
        if not found:
            position += 2**20 - 1
            continue
        marker, position = source[found.end() - 1], found.end()
        if marker == 0xD9:  # the end: what follows is no part of the image
            return
        scans, others = scans + (marker == 0xDA), others + (marker != 0xDA)
        if scans > MAX_SCANS or others > 8 * MAX_SCANS:
            what = f"{MAX_SCANS} scans" if scans > MAX_SCANS else f"{8 * MAX_SCANS} segments after its first scan"
            raise ValueError(f"it has more than {what}: save it again")
        position += int.from_bytes(source[position : position + 2], "big")


def to_rgb(image: ImageFile, upright: bool = True) -> np.ndarray:
    """Decodes what `open_image` gives: uint8 (H,W,3), 0..255, as `load_image` says.

    Args:
        upright: apply the EXIF orientation.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tiff.require_readable(image.tag_v2)
    if upright:
        ImageOps.exif_transpose(image, in_place=True)  # else it copies what needs no turning
    # Pillow's own conversion of 16 bits clips at 255 instead of scaling; those of a PGM are its mode I.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values_HW = np.asarray(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            grey_HW = tiff.high_byte(values_HW, image.tag_v2)
        else:
            grey_HW = (values_HW >> 8).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per channel have no agreed range: save it with 8 or 16 bits")
    image.info.pop("transparency", None)  # of which Pillow would give a warning
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def load_labels(path: str | Path) -> np.ndarray:
    """Reads a label map as `index_png` writes it: uint8 (H,W), the pixel values of an index or palette PNG.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no image with one 8-bit channel.
    """
    try:
        with open_image(read_file(path), formats=("PNG",)) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"expected an index or palette PNG, got mode {image.mode}")
            return np.array(image)
    except ValueError as error:
        raise ValueError(f"{path} is no label map: {error}") from error


def color_table(palette: Palette) -> np.ndarray:
    """uint8 (256,3): the K colours of `palette`, black for labels K..254, `IGNORE_COLOR` for 255."""
    table = np.zeros((256, 3), np.uint8)
    table[255] = IGNORE_COLOR
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)
    return table


def overlay(
    image_HWC: np.ndarray,
    labels_HW: np.ndarray,
    palette: Palette,
    opacity: float = 0.5,
    ignore_label: int | None = 255,
) -> np.ndarray:
    """The image tinted by class; pixels to ignore are left as they are.

    Elsewhere `(1 - opacity) * image + opacity * color`, rounded down.

    Args:
        image_HWC: uint8 (H,W,3).
        labels_HW: integers 0..255 (H,W).
        opacity: 0 (only the image) to 1 (only the colours).

    Returns:
        uint8 (H,W,3).
    """
    if image_HWC.shape[:2] != labels_HW.shape:
        raise ValueError(f"image {image_HWC.shape[:2]} and label map {labels_HW.shape} differ in size")
    image = Image.fromarray(image_HWC)
    blended = Image.blend(image, _with_palette(labels_HW, palette).convert("RGB"), opacity)
    if ignore_label is not None:
        blended.paste(image, mask=Image.fromarray(labels_HW == ignore_label))
    return np.array(blended)


def index_png(labels_HW: np.ndarray, palette: Palette) -> bytes:
    """A palette PNG whose pixel values are the labels themselves; colours as in `color_table`.

    Raises:
        ValueError: a label outside 0..255.
    """
    # Runs are what label maps compress by: three times as fast as Pillow's own choice, and hardly larger.
    return _encode(_with_palette(labels_HW, palette), "PNG", compress_type=zlib.Z_RLE)


def png(image_HWC: np.ndarray) -> bytes:
    """uint8 (H,W,3) or (H,W) as PNG."""
    return _encode(Image.fromarray(image_HWC), "PNG")


def jpeg(image_HWC: np.ndarray, quality: int = 90) -> bytes:
    """uint8 (H,W,3) as JPEG."""
    return _encode(Image.fromarray(image_HWC), "JPEG", quality=quality)


def map_png(map_HW: np.ndarray) -> bytes:
    """A map of a model, such as its confidence, (H,W) in 0..1, as a grey PNG, 0..255."""
    return png(np.rint(np.clip(map_HW.astype(np.float32), 0, 1) * 255).astype(np.uint8))


def _with_palette(labels_HW: np.ndarray, palette: Palette) -> Image.Image:
    image = Image.fromarray(_as_uint8(labels_HW))
    image.putpalette(color_table(palette).tobytes())
    return image


def _as_uint8(labels_HW: np.ndarray) -> np.ndarray:
    if labels_HW.dtype == np.uint8:
        return labels_HW
    if labels_HW.size and (labels_HW.min() < 0 or labels_HW.max() > 255):
        raise ValueError(f"labels must lie in 0..255, got {labels_HW.min()}..{labels_HW.max()}")
    return labels_HW.astype(np.uint8)


def _encode(image: Image.Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
