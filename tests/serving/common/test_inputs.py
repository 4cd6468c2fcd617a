"""What a file really is, the text in it, and names that look alike."""

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.common.files import read_bounded
from serving.common.inputs import (
    Names,
    comparable,
    contents_of,
    decode_text,
    failed_copy,
    is_text,
    printable,
    read_text,
)

PAGE = b"\r\n<!-- proxy --><HTML><head><title>Sign in</title></head></HTML>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def box(brand: bytes, *others: bytes) -> bytes:
    """The first box of an ISO base media file."""
    content = b"ftyp" + brand + bytes(4) + b"".join(others)
    return (len(content) + 4).to_bytes(4, "big") + content


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        (b"", "an empty file"),
        (bytes(3000), "nothing but zeros"),
        (POINTER, "a Git LFS pointer"),
        (PAGE, "a web page"),
        (b"\xef\xbb\xbf<!DOCTYPE html>", "a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'<?xml version="1.0"?>\n<svg xmlns="...">', "an SVG drawing"),
        (b"404: Not Found", "text"),
        (box(b"heic", b"mif1", b"heic"), "HEIC data"),
        (box(b"mif1", b"mif1", b"heic"), "HEIC data"),
        (box(b"mif1", b"avif", b"mif1"), "AVIF data"),
        (box(b"avif", b"avif"), "AVIF data"),
        (box(b"isom", b"mp42"), "a video"),
        (box(b"qt  "), "a video"),
        (box(b"crx "), "a camera's raw data"),
        (b"RIFF\x10\0\0\0AVI LIST", "a video"),
        (b"\x1aE\xdf\xa3\x9f", "a video"),
        (b"PK\x03\x04\x14\0", "a ZIP archive"),
        (b"\x1f\x8b\x08\0", "gzip data"),
        (bytes(1) * 257 + b"ustar\0", "a tar archive"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (bytes(128) + b"DICM", "DICOM data"),
        (bytes(range(200, 256)), None),
        (b"\xff\xfe\0", None),
    ],
)
def test_the_first_bytes_tell(contents, what):
    known = contents_of(contents)
    assert (known and known.what) == what
    assert known is None or known.remedy


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_what_pillow_writes(format):
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, format)
    assert contents_of(file.getvalue()).what == f"{format} data"


def test_what_stands_failed_copy_a_file_of_any_kind(tmp_path):
    file = tmp_path / "model.onnx"
    for contents, what in ((POINTER, "a Git LFS pointer"), (PAGE, "a web page"), (b"", "an empty file")):
        file.write_bytes(contents)
        assert failed_copy(file).what == what
    for contents in (b"PK\x03\x04", b"some text", b"\x08\x07\x12\x00"):
        file.write_bytes(contents)
        assert failed_copy(file) is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("Straße, 道路\r\nb".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "Straße, 道路\r\nb"
    assert decode_text("\ufeffä".encode("utf-16-be"), "a") == "ä"


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("cp1252", r"is not in UTF-8 \(byte 0xdf in line 2\) but in another encoding, such as Windows-1252"),
        ("shift_jis", "is not in UTF-8"),
        ("utf-16-le", "has zeros between its letters, as UTF-16 without a byte order mark"),
        ("utf-32", "is in UTF-32"),
    ],
)
def test_text_in_other_encodings_is_refused_with_file_and_encoding(tmp_path, encoding, said):
    text = "a\n道路" if encoding == "shift_jis" else "a\nStraße"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=f"a.txt {said}.*: save it as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_text_from_a_pipe_somebody_writes_to():
    reads, writes = os.pipe()
    os.write(writes, b"cat\n")
    threading.Timer(0.05, lambda: (os.write(writes, b"dog\n"), os.close(writes))).start()
    assert read_text(Path(f"/dev/fd/{reads}")) == "cat\ndog\n"
    os.close(reads)


def test_a_pipe_of_which_more_comes_than_is_read(tmp_path):
    reads, writes = os.pipe()
    os.write(writes, b"123456789")
    os.close(writes)
    with pytest.raises(ValueError, match="is a pipe with more than 4 bytes: give a file"):
        read_bounded(Path(f"/dev/fd/{reads}"), 4, pipes=True)
    with pytest.raises(ValueError, match="is a pipe with nothing in it: give a file"):
        read_bounded(Path(f"/dev/fd/{reads}"), 4, pipes=True)
    os.close(reads)


def test_half_a_letter_of_utf_16_is_refused():
    with pytest.raises(ValueError, match="list begins as UTF-16 does, and goes on otherwise: save it as UTF-8"):
        decode_text(b"\xff\xfea", "list")


def test_names_are_found_as_people_read_them():
    names = Names(["Ko\u0308ln", "IMG_1", "a", "A", "b"])
    assert names.find("K\u00f6ln") == "Ko\u0308ln"
    assert names.find("k\u00f6LN") == "Ko\u0308ln"
    assert names.find("img_1") == "IMG_1"
    assert (names.find("a"), names.find("A")) == ("a", "A")
    assert names.find("koln") is None
    assert Names(["Ab", "aB"]).find("ab") is None  # either could be meant
    assert comparable("\u00c4") == comparable("a\u0308")


def test_every_name_can_be_shown():
    assert [printable(name) for name in ("é\n", "caf\udce9", "\ud800")] == ["é\\n", "caf\\xe9", "\\ud800"]


def test_names_that_are_no_text():
    name = os.fsdecode(b"caf\xe9\n.jpg")
    assert not is_text(name) and is_text("café")
    assert printable(name) == "caf\\xe9\\n.jpg"
    assert printable("日本 café.jpg") == "日本 café.jpg"
