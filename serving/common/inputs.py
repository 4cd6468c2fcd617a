"""What people bring: what a file really is, the text in it, and names that look alike.

Needs the standard library only.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from serving.common.files import read_bounded

MAX_TEXT_BYTES = 2**30
"""The largest file with text, bytes: room for a list of ten million names."""

SAVE = "save it as JPEG or PNG"
COPY = "copy the file again from its source"
EXPORT = "open it in a program that knows it, and export it as JPEG or PNG"
EXTRACT = "extract the archive, and take the files in it"


class Contents(NamedTuple):
    """What a file holds, whatever its name says."""

    what: str
    """As a message has it: "HEIC data", "a Git LFS pointer"."""
    remedy: str
    """How to come by the image."""
    for_photos: str = ""
    """What else to say where it is a photograph, not a label map."""

    @property
    def format(self) -> str:
        """Pillow's name of its format, where it is an image: "HEIF" for "HEIC data"."""
        return self.what.removesuffix(" data").replace("HEIC", "HEIF")

    def remedy_as(self, formats: str) -> str:
        """The remedy where only some formats will do: "PNG", of label maps."""
        return self.remedy.replace("JPEG or PNG", formats) + (self.for_photos if "JPEG" in formats else "")


PNG, JPEG = Contents("PNG data", SAVE), Contents("JPEG data", SAVE)

_HEIC = Contents("HEIC data", SAVE, " (iPhones take JPEGs with Settings > Camera > Formats > Most Compatible)")
_AVIF = Contents("AVIF data", SAVE)
_RAW = Contents("a camera's raw data", "develop it, and save it as JPEG or PNG")
_VIDEO = Contents("a video", "save its frames as JPEG or PNG: ffmpeg -i VIDEO frame_%06d.png")
_PAGE = Contents("a web page", "download the file itself: the server sent a page in its place (a log-in, an error)")
_XML = Contents("XML", "download the file itself: a server's error comes as XML")
_LFS = Contents("a Git LFS pointer", "fetch the file that it stands for: git lfs pull")
_EMPTY, _ZEROS = Contents("an empty file", COPY), Contents("nothing but zeros", COPY)

# The first bytes of a file.
_STARTS = {
    b"\x89PNG\r\n\x1a\n": PNG,
    b"\xff\xd8\xff": JPEG,
    b"GIF8": Contents("GIF data", SAVE),
    b"II*\0": Contents("TIFF data", SAVE),
    b"MM\0*": Contents("TIFF data", SAVE),
    b"II+\0": Contents("TIFF data", SAVE),
    b"MM\0+": Contents("TIFF data", SAVE),
    b"\0\0\0\x0cJXL ": Contents("JPEG XL data", EXPORT),
    b"\xff\x0a": Contents("JPEG XL data", EXPORT),
    b"\0\0\0\x0cjP  ": Contents("JPEG 2000 data", SAVE),
    b"\xff\x4f\xff\x51": Contents("JPEG 2000 data", SAVE),
    b"8BPS": Contents("Photoshop data", SAVE),
    b"gimp xcf": Contents("GIMP data", EXPORT),
    b"v/1\x01": Contents("OpenEXR data", EXPORT),
    b"\0\0\x01\0": Contents("an icon", SAVE),
    b"FUJIFILMCCD-RAW": _RAW,
    b"IIU\0": _RAW,
    b"IIRO": _RAW,
    b"%PDF-": Contents("a PDF", "save its images as JPEG or PNG"),
    b"\x1aE\xdf\xa3": _VIDEO,
    b"FLV\x01": _VIDEO,
    b"\0\0\x01\xba": _VIDEO,
    b"\0\0\x01\xb3": _VIDEO,
    b"OggS": _VIDEO,
    b"PK\x03\x04": Contents("a ZIP archive", EXTRACT),
    b"PK\x05\x06": Contents("an empty ZIP archive", COPY),
    b"\x1f\x8b": Contents("gzip data", EXTRACT),
    b"BZh": Contents("bzip2 data", EXTRACT),
    b"\xfd7zXZ\0": Contents("xz data", EXTRACT),
    b"\x28\xb5\x2f\xfd": Contents("Zstandard data", EXTRACT),
    b"7z\xbc\xaf\x27\x1c": Contents("a 7z archive", EXTRACT),
    b"Rar!\x1a\x07": Contents("a RAR archive", EXTRACT),
    b"\x89HDF\r\n\x1a\n": Contents("HDF5 data", EXPORT),
    b"\x93NUMPY": Contents("a NumPy array", f"{SAVE}: Image.fromarray(np.load(f)).save(name + '.png')"),
    b"MATLAB 5.0": Contents("MATLAB data", f"{SAVE}: scipy.io.loadmat reads it"),
    b"\x80\x02": Contents("a Python pickle", EXPORT),
    b"\x80\x03": Contents("a Python pickle", EXPORT),
    b"\x80\x04": Contents("a Python pickle", EXPORT),
    b"\x80\x05": Contents("a Python pickle", EXPORT),
    b"\0\x05\x16\x07": Contents("macOS's notes on a file", "take the file of the same name without the leading ._"),
    b"version https://git-lfs": _LFS,
}
# Behind "ftyp", which the boxes of an ISO file begin with; the others are videos.
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    b"crx ": _RAW,
}
_RIFFS = {b"WEBP": Contents("WEBP data", SAVE), b"AVI ": _VIDEO, b"WAVE": Contents("sound", COPY)}


def contents_of(contents: bytes) -> Contents | None:
    """What a file is by its first bytes; None for what is not known here.

    Args:
        contents: the file, or its first 512 bytes or more.
    """
    start = contents[:512]
    if not start.strip(b"\0"):
        return _ZEROS if start else _EMPTY
    if start[4:8] == b"ftyp":
        # Both HEIC and AVIF may call themselves mif1 first; what follows says which.
        return _AVIF if b"avif" in start[8:40] else _BRANDS.get(start[8:12], _VIDEO)
    if start[4:8] in (b"moov", b"mdat"):
        return _VIDEO
    if start[:4] == b"RIFF":
        return _RIFFS.get(start[8:12])
    if start[:2] == b"BM" and start[6:10] == bytes(4):  # text may begin so too
        return Contents("BMP data", SAVE)
    if re.match(rb"P[1-7]\s+[\d#]", start):
        return Contents("PPM data", SAVE)
    if start[128:132] == b"DICM":
        return Contents("DICOM data", EXPORT)
    if start[257:262] == b"ustar":
        return Contents("a tar archive", EXTRACT)
    for beginning, known in _STARTS.items():
        if start.startswith(beginning):
            return known
    return _text_of(start)


def failed_copy(path: Path) -> Contents | None:
    """What a failed copy or download left in place of a file of any kind; None where the file may be what it should.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        known = contents_of(file.read(512))
    return known if known in (_LFS, _PAGE, _XML, _EMPTY, _ZEROS) else None


def _text_of(start: bytes) -> Contents | None:
    text = start.decode("utf-8-sig", "ignore").lstrip().lower()
    if text.startswith(("<!doctype html", "<html")) or "<html" in text:
        return _PAGE
    if text.startswith("<svg") or "<svg" in text:
        return Contents("an SVG drawing", EXPORT)
    if text.startswith("<?xml"):
        return _XML
    return Contents("text", COPY) if all(32 <= byte < 127 or byte in b"\t\n\r" for byte in start) else None


def read_text(path: Path) -> str:
    """The text in a file that people write or bring: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is in another encoding, a device, or larger than `MAX_TEXT_BYTES`.
    """
    return decode_text(read_bounded(path, MAX_TEXT_BYTES, pipes=True), str(path))


def decode_text(contents: bytes, name: str, errors: str = "strict") -> str:
    """`read_text` of the contents of a file.

    Args:
        name: what error messages call it.
        errors: of bytes that are not UTF-8, as `bytes.decode` has it.
    """
    if contents.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise ValueError(f"{name} is in UTF-32: save it as UTF-8")
    wide = contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in contents and not wide:
        raise ValueError(f"{name} has zeros between its letters, as UTF-16 without a byte order mark: save it as UTF-8")
    try:
        return contents.decode("utf-16" if wide else "utf-8-sig", "strict" if wide else errors)
    except UnicodeDecodeError as error:
        if wide:
            raise ValueError(f"{name} begins as UTF-16 does, and goes on otherwise: save it as UTF-8") from error
        line = error.object.count(b"\n", 0, error.start) + 1  # of what follows the byte order mark
        raise ValueError(
            f"{name} is not in UTF-8 (byte 0x{error.object[error.start]:02x} in line {line}) but in another encoding, "
            "such as Windows-1252 or Latin-1: save it as UTF-8"
        ) from error


def is_text(name: str) -> bool:
    """Whether the name of a file is UTF-8. On Linux it need not be; Python then has stand-ins for the other bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def printable(name: str) -> str:
    """The name of a file for messages: bytes that are not UTF-8, and line breaks, as `\\xe9`."""
    try:
        text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a letter of UTF-16, which stands for no byte
        text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def comparable(name: str) -> str:
    """One text for names that look alike, or that some file systems take for one: those that differ in Unicode form
    (macOS writes ä as a and two dots) or in letter case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Names:
    """Finds names as people read them: exactly as they are, or else the only one that looks the same."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._alike: dict[str, str | None] = {}
        for name in self._names:
            self._alike[comparable(name)] = None if comparable(name) in self._alike else name

    def find(self, name: str) -> str | None:
        return name if name in self._names else self._alike.get(comparable(name))
