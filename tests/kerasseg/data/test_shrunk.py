"""Working sizes of datasets: the rule, what is said of it, and that each image is read and shrunk once."""

import errno
import gc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kerasseg.data import FolderDataset, ShrunkDataset, auto_size, eval_dataset, make_split, train_dataset
from kerasseg.data.augment import Augmentation
from kerasseg.data.shrunk import at_working_size, class_widths, explain_size, longer_sides
from kerasseg.recipes import RECIPES
from tests import backbone  # noqa: F401 (the tiny backbone)
from tests.kerasseg.data.folders import make_folder, save


@pytest.fixture
def large(tmp_path):
    """Images of 96x128; one of 24x32."""
    root = make_folder(tmp_path / "large", size=(96, 128))
    save(root / "images/train/train_3.png", np.full((24, 32, 3), 90))
    save(root / "labels/train/train_3.png", np.ones((24, 32)))
    return FolderDataset(root)


@pytest.mark.parametrize(
    ("crop", "size"),
    [((24, 42), 84), ((42, 24), 84), ((24, 43), 128), ((20, 30), 60), ((96, 128), 128)],
)
def test_images_of_more_than_three_crops_are_brought_to_two(large, crop, size):
    assert auto_size(large, crop) == size


def test_one_large_image_among_small_ones_is_brought_to_three_crops(tmp_path):
    root = make_folder(tmp_path / "small")
    save(root / "images/train/train_3.png", np.full((96, 128, 3), 90))
    assert auto_size(FolderDataset(root), (24, 32)) == 96


def test_what_is_said_of_it(large):
    assert explain_size(large, (20, 30), 60) == (
        "working size: 60 pixels; 75% of the training images are larger and are shrunk to it (longer sides: 128 in the "
        "median, 30 of a training crop)"
    )
    assert explain_size(large, (20, 30), None) == (
        "working size: none, though the median image has a longer side of 128 pixels, 4 times that of a training crop: "
        "--size auto shrinks such images"
    )
    assert explain_size(large, (96, 128), None) == "working size: none, images are segmented at their own size"
    assert explain_size(large, (96, 128), 128) == (
        "working size: 128 pixels; no training image is larger, and others are shrunk to it"
    )


def test_large_images_are_read_and_shrunk_once(large, monkeypatch):
    loaded = []

    def counted(load):
        return lambda self, split, name: loaded.append(name) or load(self, split, name)

    for load in ("load_image", "load_label"):
        monkeypatch.setattr(FolderDataset, load, counted(getattr(FolderDataset, load)))
    shrunk = ShrunkDataset(large, 40)
    first = shrunk.load_image("train", "train_0"), shrunk.load_label("train", "train_0")
    assert [each.shape[:2] for each in first] == [(30, 40), (30, 40)] and loaded == ["train_0", "train_0"]
    for again in (shrunk.load_image("train", "train_0"), shrunk.tf_image("train", tf.constant("train_0"))):
        np.testing.assert_array_equal(again, first[0])
    np.testing.assert_array_equal(shrunk.load_label("train", "train_0"), first[1])
    assert loaded == ["train_0", "train_0"]

    image = Image.open(large.path / "images/train/train_0.png")
    np.testing.assert_allclose(first[0], np.asarray(image.resize((40, 30), Image.Resampling.BILINEAR)), atol=2)
    nearest = np.floor((np.arange(40) + 0.5) * 128 / 40)
    np.testing.assert_array_equal(first[1][0], nearest * 3 // 128)  # classes in columns
    assert shrunk.load_image("val", "val_0").shape == (30, 40, 3)  # not an image of train by the same name


def test_smaller_images_stay_as_they_are(large):
    shrunk = ShrunkDataset(large, 40)
    np.testing.assert_array_equal(shrunk.load_image("train", "train_3"), np.full((24, 32, 3), 90))
    assert not list(shrunk.folder.iterdir())


def test_all_else_is_as_in_the_dataset(large):
    shrunk = ShrunkDataset(large, 40)
    for split in large.splits:
        assert shrunk.image_names(split) == large.image_names(split)
        assert shrunk.label_names(split) == large.label_names(split)
    assert (shrunk.name, shrunk.classes, shrunk.palette) == (large.name, large.classes, large.palette)
    assert make_split(shrunk, "2", 0) == make_split(large, "2", 0)
    assert shrunk.describe("val", "val_1").endswith("images/val/val_1.png")


def test_the_temporary_folder_goes_with_the_dataset(large):
    shrunk = ShrunkDataset(large, 40)
    shrunk.load_image("train", "train_0")
    folder = shrunk.folder
    assert len(list(folder.iterdir())) == 1
    del shrunk
    gc.collect()
    assert not folder.exists()


def test_a_full_disk_is_said_once_and_costs_only_time(large, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    shrunk = ShrunkDataset(large, 40)
    monkeypatch.setattr(np, "save", full)
    for _ in range(2):
        assert shrunk.load_image("train", "train_0").shape == (30, 40, 3)
    err = capsys.readouterr().err
    assert err.count("cannot keep more shrunk images (No space left on device)") == 1 and "TMPDIR" in err
    assert not list(shrunk.folder.iterdir())


def test_other_files_keep_their_room(large, monkeypatch, capsys):
    monkeypatch.setattr("kerasseg.data.shrunk.LEFT_FREE", 2**60)
    shrunk = ShrunkDataset(large, 40)
    assert shrunk.load_image("train", "train_0").shape == (30, 40, 3)
    assert "GiB is left" in capsys.readouterr().err and not list(shrunk.folder.iterdir())


def test_not_every_image_is_looked_at_in_a_large_dataset(large, monkeypatch):
    monkeypatch.setattr("kerasseg.data.shrunk.LOOKED_AT", 1)
    longer_sides.cache_clear()
    assert len(longer_sides(large)) == 1
    assert isinstance(at_working_size(large, 4000), ShrunkDataset)
    monkeypatch.undo()
    longer_sides.cache_clear()
    assert at_working_size(large, 4000) is large


def test_training_batches_show_the_shrunk_images(large):
    """A crop of the whole shrunk image, without any other change."""
    shrunk = ShrunkDataset(large, 40)
    split = make_split(large, "4", 0)
    augmentation = Augmentation(crop=(30, 40), scale=(1.0, 1.0), flip=False)
    x, labels = next(iter(train_dataset(shrunk, split, augmentation, batch_size=4)))
    expected = {shrunk.load_image("train", name).tobytes() for name in ("train_0", "train_1", "train_2")}
    got = {np.asarray(image, np.uint8).tobytes() for image in x["labeled"]}
    assert expected < got
    assert set(np.unique(labels)) == {0, 1, 2, 255}  # 255 is around the small one
    assert next(iter(eval_dataset(large, "val")))[0].shape == (1, 96, 128, 3)


def test_only_photographs_are_shrunk_by_default():
    sizes = {name: entry().settings.size for name, entry in RECIPES.items()}
    assert sizes.pop("photos") == "auto" and set(sizes.values()) == {"native"}


@pytest.mark.parametrize("size", ["31", "big", "-3", "3.5", ""])
def test_impossible_sizes(size):
    with pytest.raises(ValueError, match="--size must be auto, native, or the longer side of images in pixels"):
        RECIPES["photos"](size=size)


def test_a_notebook_gets_the_working_size_too(large):
    plan = RECIPES["photos"]("supervised", backbone="tiny", weights="none", crop=(20, 30), steps=3)
    split = make_split(large, "2", 0)
    method = plan.build_method(large, split)
    assert method.config.working_size == 60
    stream = plan.settings.at_working_size(large)
    assert plan.settings.at_working_size(FolderDataset(make_folder(large.path.parent / "small"))).name == "small"
    assert isinstance(stream, ShrunkDataset) and stream.longer_side == 60
    assert plan.settings.at_working_size(stream) is stream
    with pytest.raises(ValueError, match="--size decides the working size .* leave --supervised.working-size out"):
        RECIPES["photos"]("supervised", supervised={"working_size": 50}, backbone="tiny", weights="none").build_method(
            large, split
        )


def test_how_wide_classes_are(tmp_path):
    root = make_folder(tmp_path / "cracks", train=3, size=(300, 400))
    for index in range(3):
        label = np.zeros((300, 400))
        label[100:112] = 1  # 12 pixels
        save(root / f"labels/train/train_{index}.png", label)
    widths = class_widths(FolderDataset(root), 100)
    assert widths[1] == pytest.approx(3.0)
    assert widths[0] == pytest.approx((300 - 12) / 4)  # two strips with a border each
    assert np.isnan(widths[2])
    assert class_widths(FolderDataset(root), 4000)[1] == pytest.approx(12.0)
