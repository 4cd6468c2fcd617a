"""Images of every format and kind are the same pixels in training, in the check and in serving."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasseg.data import FolderDataset
from kerasseg.data.check import check_dataset
from kerasseg.data.folder import read_image, tf_decode_image
from kerasseg.data.image_header import ImageHeader
from serving.common.images import FORMATS, load_image, open_image
from tests.kerasseg.data.folders import make_folder, save

RGB = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).resize(
        (35, 25), Image.Resampling.BICUBIC
    )
)
GREY16 = (RGB[..., 0].astype(np.uint16) << 8) + 77


def exif(orientation: int) -> dict:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return {"exif": tags}


def encoded(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def files() -> dict[str, bytes]:
    rgb, grey = Image.fromarray(RGB), Image.fromarray(RGB[..., 0])
    clear = rgb.copy()
    clear.putalpha(grey)
    palette = rgb.quantize(16)
    kinds = {
        "jpeg": encoded(rgb, "JPEG", quality=80),
        "progressive": encoded(rgb, "JPEG", progressive=True),
        "full colour": encoded(rgb, "JPEG", subsampling=0),
        "grey jpeg": encoded(grey, "JPEG"),
        "four inks": encoded(rgb.convert("CMYK"), "JPEG"),
        "png": encoded(rgb, "PNG"),
        "transparent": encoded(clear, "PNG"),
        "grey png": encoded(grey, "PNG"),
        "grey with alpha": encoded(clear.convert("LA"), "PNG"),
        "palette": encoded(palette, "PNG"),
        "transparent palette": encoded(palette, "PNG", transparency=3),
        "one bit": encoded(grey.convert("1"), "PNG"),
        "16 bits": encoded(Image.fromarray(GREY16), "PNG"),
        "lossless webp": encoded(rgb, "WEBP", lossless=True),
        "bmp": encoded(rgb, "BMP"),
        "tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "16-bit tiff": encoded(Image.fromarray(GREY16), "TIFF"),
        "gif": encoded(palette, "GIF", save_all=True, append_images=[palette.transpose(Image.Transpose.ROTATE_180)]),
        "ppm": encoded(rgb, "PPM"),
    }
    if "AVIF" in FORMATS:
        kinds["avif"] = encoded(rgb, "AVIF")
    for orientation in (2, 3, 6, 8):
        kinds[f"jpeg {orientation}"] = encoded(rgb, "JPEG", **exif(orientation))
        kinds[f"png {orientation}"] = encoded(rgb, "PNG", **exif(orientation))
    return kinds


FILES = files()


@pytest.mark.parametrize("kind", FILES)
def test_one_file_is_the_same_pixels_everywhere(kind, tmp_path):
    contents, expected = FILES[kind], load_image(FILES[kind])
    np.testing.assert_array_equal(read_image(contents), expected)
    folder = make_folder(tmp_path / "photos")
    (folder / "images/train/extra.jpg").write_bytes(contents)  # it is known by its contents
    dataset = FolderDataset(folder)
    np.testing.assert_array_equal(dataset.load_image("train", "extra"), expected)
    assert dataset.image_size("train", "extra") == expected.shape[:2]
    traced = tf.data.Dataset.from_tensor_slices(["extra", "train_0"]).map(lambda name: dataset.tf_image("train", name))
    extra, other = traced
    np.testing.assert_array_equal(extra, expected)
    np.testing.assert_array_equal(other, dataset.load_image("train", "train_0"))
    assert not check_dataset(folder)

    with open_image(contents) as image:
        header = ImageHeader.of(image, contents)
    plain = kind not in ("four inks", "lossless webp", "bmp", "tiff", "16-bit tiff", "gif", "ppm", "avif")
    assert header.in_graph is (plain and not kind[-1].isdecimal())
    if header.in_graph:
        np.testing.assert_array_equal(tf_decode_image(tf.constant(contents)), expected)


def test_a_photograph_and_its_mask_on_the_upright_image(tmp_path):
    """A telephone's photograph is stored on its side; labelling tools show it upright."""
    folder = make_folder(tmp_path / "photos")
    upright = Image.fromarray(RGB)
    save(folder / "images/train/phone.jpg", np.rot90(RGB), quality=95, **exif(6))
    save(folder / "labels/train/phone.png", np.ones((25, 35)))
    dataset = FolderDataset(folder)
    assert dataset.load_image("train", "phone").shape == (25, 35, 3)
    assert np.abs(dataset.load_image("train", "phone").astype(int) - np.asarray(upright)).mean() < 6
    assert dataset.image_size("train", "phone") == dataset.load_label("train", "phone").shape
    assert not check_dataset(folder)


def test_a_mask_drawn_on_the_image_as_it_is_stored(tmp_path):
    folder = make_folder(tmp_path / "photos")
    save(folder / "images/train/phone.jpg", np.rot90(RGB), **exif(6))
    save(folder / "labels/train/phone.png", np.ones((35, 25)))
    dataset = FolderDataset(folder)
    for image in (dataset.load_image("train", "phone"), dataset.tf_image("train", tf.constant("phone"))):
        assert image.shape == (35, 25, 3)
    assert dataset.image_size("train", "phone") == (35, 25)
    [problem] = check_dataset(folder)
    assert problem.severity == "warning" and "which is not applied: its label map has the size" in problem.message


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "AVIF", "WEBP"])
@pytest.mark.parametrize("drawn_upright", [True, False])
def test_turned_images_of_every_format_and_their_masks(format, drawn_upright, tmp_path):
    folder = make_folder(tmp_path / "photos")
    path = save(folder / "images/train/phone.jpg", np.rot90(RGB), format=format, **exif(6))
    save(folder / "labels/train/phone.png", np.ones((25, 35) if drawn_upright else (35, 25)))
    dataset = FolderDataset(folder)
    if format == "TIFF" and not drawn_upright:  # Pillow gives the upright image only
        assert any(problem.severity == "error" for problem in check_dataset(folder))
        return
    expected = (25, 35, 3) if drawn_upright else (35, 25, 3)
    assert dataset.image_size("train", "phone") == expected[:2]
    for image in (dataset.load_image("train", "phone"), dataset.tf_image("train", tf.constant("phone"))):
        assert image.shape == expected
    if drawn_upright:
        np.testing.assert_array_equal(dataset.load_image("train", "phone"), load_image(path))
    assert [problem.severity for problem in check_dataset(folder)] == ([] if drawn_upright else ["warning"])


@pytest.mark.parametrize("orientation", [0, 1, 9])
def test_orientations_that_say_nothing(orientation, tmp_path):
    folder = make_folder(tmp_path / "photos")
    save(folder / "images/train/a.jpg", RGB, **exif(orientation))
    save(folder / "labels/train/a.png", np.ones((25, 35)))
    assert not check_dataset(folder) and not FolderDataset(folder)._not_in_graph("train")


@pytest.mark.parametrize("damage", [b"", b"\xff\xd8\xff\xe0 and nothing more", b"GIF89a"])
def test_what_cannot_be_opened_is_named(tmp_path, damage):
    folder = make_folder(tmp_path / "photos")
    (folder / "images/train/train_1.png").write_bytes(damage)
    dataset = FolderDataset(folder)
    for ask in (dataset.load_image, dataset.image_size):
        with pytest.raises(ValueError, match=r"images/train/train_1\.png: "):
            ask("train", "train_1")
