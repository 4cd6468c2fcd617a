import contextlib
import importlib.util
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, features

from serving.common import images
from serving.common.images import (
    FORMATS,
    IGNORE_COLOR,
    SUFFIXES,
    TooManyPixels,
    check_pixels,
    color_table,
    index_png,
    load_image,
    load_labels,
    overlay,
    png,
)

PALETTE = [(10, 20, 30), (200, 100, 50), (0, 255, 0)]


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def random_image(height=5, width=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(deadline=None)
@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)),
    st.lists(st.tuples(*[st.integers(0, 255)] * 3), max_size=256),
)
def test_index_png_keeps_labels(labels_HW, palette):
    image = Image.open(io.BytesIO(index_png(labels_HW, palette)))
    assert image.mode == "P"
    np.testing.assert_array_equal(np.asarray(image), labels_HW)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), color_table(palette)[labels_HW])


def test_colors_of_labels():
    colors = color_table(PALETTE)[np.array([[0, 2], [7, 255]])]
    assert colors.tolist() == [[[10, 20, 30], [0, 255, 0]], [[0, 0, 0], list(IGNORE_COLOR)]]


@pytest.mark.parametrize("labels", [[[-1]], [[256]]])
def test_labels_that_do_not_fit_a_byte_are_refused(labels):
    with pytest.raises(ValueError, match="0..255"):
        index_png(np.array(labels, np.int32), PALETTE)


@settings(deadline=None)
@given(arrays.arrays(np.uint8, (4, 6, 3)), st.floats(0, 1))
def test_overlay_blends_and_leaves_ignored_pixels(image_HWC, opacity):
    labels_HW = np.array([[0, 1, 2, 255, 0, 1]] * 4, np.uint8)
    blended = overlay(image_HWC, labels_HW, PALETTE, opacity).astype(float)
    expected = (1 - opacity) * image_HWC + opacity * color_table(PALETTE)[labels_HW]
    seen = labels_HW != 255
    assert np.abs(blended - expected)[seen].max() <= 1
    np.testing.assert_array_equal(blended[~seen], image_HWC[~seen])


def test_overlay_of_another_size_is_refused():
    with pytest.raises(ValueError, match="differ in size"):
        overlay(random_image(), np.zeros((7, 5), np.uint8), PALETTE)


def test_png_round_trip_from_file_and_bytes(tmp_path):
    image_HWC = random_image()
    (tmp_path / "a.png").write_bytes(png(image_HWC))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), image_HWC)
    np.testing.assert_array_equal(load_image(png(image_HWC)), image_HWC)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    stored = random_image()
    exif = Image.Exif()
    exif[0x0112] = orientation
    # By the EXIF standard: what has to be done to the stored rows and columns to see the scene upright.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).swapaxes(0, 1),
        8: np.rot90(stored, 1),
    }[orientation]
    loaded = load_image(encoded(Image.fromarray(stored), "PNG", exif=exif))
    np.testing.assert_array_equal(loaded, upright)


def test_every_mode_becomes_rgb():
    image_HWC = random_image()
    image = Image.fromarray(image_HWC)
    grey_HW = np.asarray(image.convert("L"))
    as_grey = np.repeat(grey_HW[..., None], 3, -1)
    alpha = Image.fromarray(random_image(seed=1)[..., 0])
    transparent = image.copy()
    transparent.putalpha(alpha)
    palette = image.quantize(16)
    black_and_white = grey_HW > 127
    cmyk = Image.merge("CMYK", [Image.new("L", (7, 5), value) for value in (255, 0, 0, 0)])
    cases = {
        "grey": (encoded(Image.fromarray(grey_HW)), as_grey),
        "16-bit grey": (encoded(Image.fromarray(grey_HW.astype(np.uint16) * 256 + 99)), as_grey),
        "transparent": (encoded(transparent), image_HWC),
        "palette": (encoded(palette), np.asarray(palette.convert("RGB"))),
        "transparent palette": (encoded(palette, transparency=3), np.asarray(palette.convert("RGB"))),
        "half transparent palette": (encoded(palette, transparency=bytes(9)), np.asarray(palette.convert("RGB"))),
        "1 bit": (
            encoded(Image.fromarray(black_and_white)),
            np.repeat(black_and_white[..., None], 3, -1) * 255,
        ),
        "CMYK": (encoded(cmyk, "TIFF"), np.full((5, 7, 3), (0, 255, 255))),
        "animation": (
            encoded(Image.new("L", (7, 5), 40), "GIF", save_all=True, append_images=[Image.new("L", (7, 5), 90)]),
            np.full((5, 7, 3), 40),
        ),
    }
    for name, (contents, expected) in cases.items():
        np.testing.assert_array_equal(load_image(contents), expected, err_msg=name)


def tiff(samples: bytes, bits: int, channels: int = 1, photometric: int = 1, planes: bool = False, kind: int = 1):
    """An uncompressed little-endian TIFF of 4x2 pixels.

    Args:
        samples: row by row, or plane by plane.
        photometric: 0 white is zero, 1 black is zero, 2 RGB.
        kind: of the samples: 1 unsigned, 2 signed, 3 floating-point.
    """
    parts = channels if planes else 1
    size = len(samples) // parts
    values = {256: [4], 257: [2], 258: [bits] * channels, 259: [1], 262: [photometric], 277: [channels], 278: [2]}
    values |= {273: [], 279: [size] * parts, 284: [2 if planes else 1], 339: [kind] * channels}
    start = 8 + 2 + 12 * len(values) + 4  # behind the directory come lists of several values, then the samples
    lists = sum(4 * len(each) for each in values.values() if len(each) > 1) + 4 * parts * (parts > 1)
    values[273] = [start + lists + size * part for part in range(parts)]
    entries = more = b""
    for tag, each in sorted(values.items()):
        packed = struct.pack(f"<{len(each)}I", *each)
        where = packed if len(each) == 1 else struct.pack("<I", start + len(more))
        more += packed if len(each) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(each)) + where
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + entries + bytes(4) + more + samples


GREY_16 = np.array([[0, 255, 256, 511], [32768, 40000, 65279, 65535]], "<u2")


def test_16_bits_of_a_tiff_keep_their_high_byte():
    rgb = np.stack([GREY_16, 65535 - GREY_16, GREY_16 // 2], -1)
    cases = {
        "grey": (tiff(GREY_16.tobytes(), 16), GREY_16[..., None] >> 8),
        "white is zero": (tiff(GREY_16.tobytes(), 16, photometric=0), (65535 - GREY_16[..., None]) >> 8),
        "RGB": (tiff(rgb.tobytes(), 16, 3, photometric=2), rgb >> 8),
        # Two samples of 12 bits in three bytes: 0xabc and 0xdef.
        "12 bits": (tiff(b"\xab\xcd\xef" * 4, 12), np.array([[0xAB, 0xDE] * 2] * 2)[..., None]),
        "PGM": (b"P5 4 2 65535\n" + GREY_16.astype(">u2").tobytes(), GREY_16[..., None] >> 8),
    }
    for name, (contents, expected) in cases.items():
        np.testing.assert_array_equal(load_image(contents), np.broadcast_to(expected, (2, 4, 3)), err_msg=name)


def test_planes_of_8_bits_are_read():
    planes = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    loaded = load_image(tiff(planes.tobytes(), 8, 3, photometric=2, planes=True))
    np.testing.assert_array_equal(loaded, planes.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (tiff(bytes(48), 16, 3, 2, planes=True), "uncompressed (3 channels of 16 bits, in planes, RGB)"),
        (tiff(bytes(48), 16, 3, 1), "of a kind that cannot be read (3 channels of 16 bits, black is zero)"),
        (tiff(bytes(24), 8, 3, 1), "of a kind that cannot be read (3 channels of 8 bits, black is zero)"),
        (tiff(bytes(16), 16, kind=2), "no agreed range (1 channel of 16 bits, signed, black is zero)"),
        (tiff(bytes(8), 8, kind=2), "no agreed range (1 channel of 8 bits, signed, black is zero)"),
        (tiff(bytes(32), 32, kind=3), "no agreed range (1 channel of 32 bits, floating-point, black is zero)"),
        (tiff(bytes(16), 16, photometric=9), "1 channel of 16 bits, photometric interpretation 9"),
    ],
)
def test_a_tiff_without_a_right_answer_is_refused_with_the_reason(contents, reason):
    with pytest.raises(ValueError) as error:
        load_image(contents, name="x.tif")
    assert str(error.value).startswith("x.tif cannot be read: ")
    assert reason in str(error.value) and str(error.value).endswith(
        ": save it as PNG, or as a TIFF with 8 bits per channel, red, green and blue side by side"
    )


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", r"HEIC data, not an image in one of .*: save it .*iPhones"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not an image .*: .*git lfs pull"),
        (
            b"<!doctype html><title>Log in</title>",
            "a web page, not an image in one of .*: download the file",
        ),
        (b"", "an empty file, not an image in one of .*: copy the file again"),
        (b"PK\x03\x04" + bytes(30), "a ZIP archive, not an image in one of .*: extract"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "damaged PNG data"),
        (b"\xfe\xdc\xba", "not an image in one of the formats .*"),
    ],
)
def test_what_is_no_image_is_named_for_what_it_is(contents, message):
    with pytest.raises(ValueError, match=f"^a.jpg cannot be read: {message}"):
        load_image(contents, name="a.jpg")


def test_32_bit_images_are_refused():
    with pytest.raises(ValueError, match="32 bits"):
        load_image(encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))


@pytest.mark.parametrize("kept", [0, 1, 10, 60, 200, -1])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_broken_files_are_named(tmp_path, format, kept):
    contents = encoded(Image.fromarray(random_image(64, 64)), format)
    path = tmp_path / f"broken.{format}"
    path.write_bytes(contents[: kept if kept >= 0 else len(contents) // 2])
    with pytest.raises(ValueError, match="broken"):
        load_image(path)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_image_or_a_value_error(contents):
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\x00"):
        try:
            load_image(start + contents)
        except ValueError:
            continue


def test_decompression_bomb_is_refused_unread():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(TooManyPixels, match="x.png cannot be read: larger than 178956970 pixels"):
        load_image(bomb, name="x.png")
    with pytest.raises(ValueError, match=r"larger than 34 pixels \(7x5\): cut it into tiles or scale it down"):
        load_image(png(random_image()), max_pixels=34)


def test_an_image_beyond_the_limit_is_told_apart():
    with pytest.raises(TooManyPixels, match="image cannot be read: larger than 34 pixels"):
        load_image(png(random_image()), max_pixels=34)
    assert load_image(png(random_image()), max_pixels=35).shape == (5, 7, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "PCX"])
def test_only_the_formats_of_the_list(format):
    contents = encoded(Image.new("RGB", (3, 2), (255, 0, 0)), format)
    if format in FORMATS:
        assert load_image(contents).shape == (2, 3, 3)
    else:
        with pytest.raises(ValueError, match="not an image in one of the formats JPEG, PNG, WEBP, BMP, TIFF, GIF, PPM"):
            load_image(contents)


def test_the_list_holds_what_people_bring():
    assert {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"} <= FORMATS.keys()
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"} <= set(SUFFIXES)
    assert ("AVIF" in FORMATS) is features.check("avif")
    assert ("HEIF" in FORMATS) is (importlib.util.find_spec("pillow_heif") is not None)


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="nothing.png"):
        load_image(tmp_path / "nothing.png")


def test_label_maps_are_read_back_or_refused(tmp_path):
    labels_HW = np.array([[0, 1], [2, 255]], np.uint8)
    (tmp_path / "index.png").write_bytes(index_png(labels_HW, PALETTE))
    (tmp_path / "grey.png").write_bytes(png(labels_HW))
    (tmp_path / "rgb.png").write_bytes(png(random_image()))
    (tmp_path / "text.png").write_text("no image")
    np.testing.assert_array_equal(load_labels(tmp_path / "index.png"), labels_HW)
    np.testing.assert_array_equal(load_labels(tmp_path / "grey.png"), labels_HW)
    for name in ("rgb.png", "text.png"):
        with pytest.raises(ValueError, match=name):
            load_labels(tmp_path / name)


# Images made to take long, or much memory


@pytest.mark.parametrize(
    ("size", "count", "fits"),
    [
        ((4096, 4096), 1, True),
        ((8192, 2048), 1, True),
        ((1, 500_000), 1, True),  # padded, they are an image of 4000x4000
        ((1, 600_000), 1, False),
        ((600_000, 1), 1, False),
        ((4097, 4096), 1, False),
        ((1, 500_000), 2, False),
        ((2048, 2048), 4, True),
        ((2, 2), 8, True),
    ],
)
def test_thin_images_count_as_they_are_padded(size, count, fits):
    with contextlib.nullcontext() if fits else pytest.raises(TooManyPixels):
        check_pixels(*size, 2**24, count)


def test_a_thin_image_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", None)
    thin = png(np.zeros((1, 60_000, 3), np.uint8))
    with pytest.raises(TooManyPixels, match="60000x1 pixels are too thin: the network pads them to 1920000"):
        load_image(thin, max_pixels=2**20)


def progressive(scans, size=64):
    """A grey JPEG whose last scan, which changes nothing, comes so many times more."""
    contents = encoded(Image.new("L", (size, size), 100), "JPEG", progressive=True)
    last = contents[contents.rindex(b"\xff\xda") : -2]
    return contents[:-2] + last * scans + contents[-2:]


def jpeg_with(inserted):
    contents = encoded(Image.new("RGB", (8, 8), (9, 99, 199)), "JPEG")
    return contents[:2] + inserted + contents[2:]


def test_scans_are_counted():
    assert load_image(progressive(10)).shape == (64, 64, 3)
    with pytest.raises(ValueError, match="it has more than 64 scans: save it again"):
        load_image(progressive(65))
    with pytest.raises(ValueError, match="it has more than 64 scans"):  # an end that is none, within a comment
        load_image(progressive(65).replace(b"\xff\xda", b"\xff\xfe\x00\x04\xff\xd9\xff\xda", 3))
    assert load_image(progressive(2) + progressive(99)[2:]).shape == (64, 64, 3)  # what follows the image's end


def test_a_jpeg_of_many_kinds_of_nothing(monkeypatch):
    monkeypatch.setattr(images, "MAX_READS", 1000)
    for inserted in (b"\xff" * 1000, b"\xff\xfe\x00\x02" + b"\1" * 1000, b"\xff\xfe\x00\x02" * 1000):
        assert load_image(jpeg_with(inserted[:100])).shape == (8, 8, 3)
        with pytest.raises(ValueError, match="it is made of too many pieces"):
            load_image(jpeg_with(inserted))


def test_fill_bytes_between_scans_are_read_once(monkeypatch):
    """In pieces, those that the decoder cannot use yet would be copied for every piece."""
    reads = []
    read = images._LimitedReads.read
    monkeypatch.setattr(images._LimitedReads, "read", lambda self, *size: reads.append(size) or read(self, *size))
    contents = encoded(Image.new("RGB", (8, 8)), "JPEG")
    assert load_image(contents[:-2] + b"\xff" * 10**6 + contents[-2:]).shape == (8, 8, 3)
    assert len(reads) < 200


def test_a_png_of_many_chunks(monkeypatch):
    monkeypatch.setattr(images, "MAX_READS", 1000)
    contents = png(random_image())
    at = contents.index(b"IDAT") - 4
    chunk = b"\0\0\0\0teSt" + zlib.crc32(b"teSt").to_bytes(4, "big")
    np.testing.assert_array_equal(load_image(contents[:at] + chunk * 10 + contents[at:]), random_image())
    with pytest.raises(ValueError, match="it is made of too many pieces"):
        load_image(contents[:at] + chunk * 1000 + contents[at:])
