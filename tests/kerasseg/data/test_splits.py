import os

import numpy as np
import pytest

from kerasseg.data import FolderDataset, Split, evenly_spaced, make_split
from kerasseg.data.shapes import ShapesDataset
from tests.kerasseg.data.folders import make_folder, save, write_classes

SHAPES = ShapesDataset()


def test_a_split_is_the_same_on_every_machine_and_in_every_version():
    split = make_split(SHAPES, "5", seed=0)
    assert split.labeled == ("train_0030", "train_0080", "train_0162", "train_0273", "train_0315")
    assert split.fingerprint == "8559d0c45cf26335112ef73692f2e68b4e69c7d20e3fe8a5cb2e0417cfb2c313"
    assert make_split(SHAPES, "5", seed=0) == split
    assert make_split(SHAPES, "5", seed=1).labeled != split.labeled


def test_every_train_image_has_one_role():
    split = make_split(SHAPES, "1/8", seed=3, image_labels="1/4")
    assert (len(split.labeled), len(split.image_labeled), len(split.unlabeled)) == (50, 100, 250)
    assert sorted(split.labeled + split.image_labeled + split.unlabeled) == list(SHAPES.image_names("train"))
    assert split.image_labeled == tuple(sorted(split.image_labeled))


def test_smaller_splits_are_part_of_larger_ones():
    sizes = ("1", "1/50", "1/8", "100", "0.5", "all")
    splits = [set(make_split(SHAPES, size, seed=2).labeled) for size in sizes]
    assert [len(split) for split in splits] == [1, 8, 50, 100, 200, 400]
    assert all(small < large for small, large in zip(splits, splits[1:], strict=False))
    without_weak = make_split(SHAPES, "1/8", seed=2)
    assert make_split(SHAPES, "1/8", seed=2, image_labels="1/8").labeled == without_weak.labeled


@pytest.fixture
def four_classes(tmp_path):
    """16 images: all show class 0, "b" and "d" class 1 too, "c" 1 and 2, "e" 3, "m" a value that is no class."""
    shown = {"b": [1], "c": [1, 2], "d": [1], "e": [3], "m": [77]}
    for name in "abcdefghijklmnop":
        save(tmp_path / f"images/train/{name}.png", np.zeros((1, 4, 3)))
        save(tmp_path / f"labels/train/{name}.png", [([0, *shown.get(name, [])] + [255] * 3)[:4]])
    save(tmp_path / "labels/train/p.png", [[255, 255, 255, 255]])
    write_classes(tmp_path, classes=["ground", "x", "y", "z", "nowhere"])
    return FolderDataset(tmp_path)


def rank(dataset, seed, names):
    """Names in the order in which a split without `cover` takes them."""
    order = [make_split(dataset, str(count + 1), seed).labeled for count in range(16)]
    return sorted(names, key=lambda name: sum(name not in labeled for labeled in order))


@pytest.mark.parametrize("seed", range(5))
def test_cover_takes_rare_classes_first_and_all_classes_evenly(four_classes, seed):
    splits = [set(make_split(four_classes, str(count), seed, cover=True).labeled) for count in range(1, 17)]
    assert all(small < large for small, large in zip(splits, splits[1:], strict=False))
    order = [*splits[0], *(name for a, b in zip(splits, splits[1:], strict=False) for name in b - a)]
    # y and z are in one image each, x in three, ground in 15. "c" shows x too, so z is next; then x is in one image, y
    # and z have none left, and ground is in two: so x, then x again (in two images, as ground would be in four).
    x = rank(four_classes, seed, "bd")
    rest = rank(four_classes, seed, "afghijklmno")
    assert order == ["c", "e", *x, *rest, "p"]


def test_cover_takes_turns_between_classes(tmp_path):
    for index in range(8):
        save(tmp_path / f"images/train/{index}.png", np.zeros((1, 1, 3)))
        save(tmp_path / f"labels/train/{index}.png", [[int(index >= 3)]])
    for seed in range(3):
        splits = [make_split(FolderDataset(tmp_path), str(count), seed, cover=True) for count in range(1, 9)]
        of_class_0 = [sum(name in "012" for name in split.labeled) for split in splits]
        assert of_class_0 == [1, 1, 2, 2, 3, 3, 3, 3]


def test_cover_counts_no_image_for_a_class_of_which_it_shows_a_few_pixels(tmp_path):
    pixels = {"a": 1, "b": 2, "c": 3, "d": 8, "e": 8, "f": 9, "g": 9, "h": 0}  # of class 1; others are of class 0
    for name, count in pixels.items():
        save(tmp_path / f"images/train/{name}.png", np.zeros((1, 10, 3)))
        save(tmp_path / f"labels/train/{name}.png", [[1] * count + [0] * (10 - count)])
    for seed in range(5):
        labeled = [make_split(FolderDataset(tmp_path), str(count), seed, cover=True).labeled for count in (4, 8)]
        assert [len(set(names) & set("defg")) for names in labeled] == [2, 4]


def test_cover_is_a_function_of_dataset_amount_and_seed(four_classes):
    first, again = (make_split(four_classes, "5", 1, cover=True) for _ in range(2))
    assert first == again and first.fingerprint == again.fingerprint
    assert len({make_split(four_classes, "5", seed, cover=True).fingerprint for seed in range(9)}) > 1
    split = make_split(SHAPES, "5", cover=True)
    assert split.labeled == ("train_0080", "train_0119", "train_0162", "train_0178", "train_0346")
    assert split.fingerprint == "2e5d00eacc962ce4b7d3f8d9bba7c6d2aa6ce9eb994d61c2757456c3f9f3dd54"
    assert make_split(SHAPES, "all", cover=True) == make_split(SHAPES, "all")


def test_cover_reaches_every_class_with_few_images():
    for seed in range(5):
        labeled = make_split(SHAPES, "8", seed, cover=True).labeled
        shown = set().union(*(np.unique(SHAPES.load_label("train", name)) for name in labeled))
        assert shown == set(range(SHAPES.num_classes))


def test_cover_leaves_the_image_level_labels_to_others(four_classes):
    split = make_split(four_classes, "2", 3, image_labels="2", cover=True)
    assert split.labeled == ("c", "e")
    assert list(split.image_labeled) == sorted(rank(four_classes, 3, set("abdfghijklmnop"))[:2])


def test_names_from_a_pipe():
    reads, writes = os.pipe()
    os.write(writes, b"train_0001\ntrain_0002\n")
    os.close(writes)
    assert make_split(SHAPES, f"/dev/fd/{reads}").labeled == ("train_0001", "train_0002")
    os.close(reads)


def test_cover_has_nothing_to_choose_of_a_file_of_names(tmp_path):
    (tmp_path / "names.txt").write_text("train_0001\n")
    with pytest.raises(
        ValueError, match="--cover chooses the labelled images, and --labeled .*names.txt names them: le"
    ):
        make_split(SHAPES, tmp_path / "names.txt", cover=True)
    with pytest.raises(ValueError, match="--labeled few: expected a fraction"):
        make_split(SHAPES, "few", cover=True)
    with pytest.raises(ValueError, match="--labeled 401 means 401 images"):
        make_split(SHAPES, "401", cover=True)


def test_cover_names_a_label_map_that_it_cannot_read(four_classes):
    (four_classes.path / "labels/train/f.png").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match="the label map of the train image 'f' cannot be read: .*labels/train/f.png: text under"
    ):
        make_split(four_classes, "2", cover=True)


@pytest.mark.parametrize(
    ("amount", "count"),
    [("1/8", 50), ("0.125", 50), (0.125, 50), ("45", 45), (45, 45), ("1", 1), ("1/1", 400), ("1.0", 400),
     (1.0, 400), ("full", 400), ("ALL", 400), ("3/7", 171), ("0.00125", 1), (" 1/4 ", 100)],
)  # fmt: skip
def test_forms_of_an_amount(amount, count):
    assert len(make_split(SHAPES, amount).labeled) == count


def test_all_image_labels_are_all_that_is_left():
    split = make_split(SHAPES, "1/8", image_labels="all")
    assert (len(split.labeled), len(split.image_labeled), len(split.unlabeled)) == (50, 350, 0)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("0", "--labeled 0 means 0 of the 400 labelled train images of 'shapes': give at least one"),
        ("-3", "--labeled -3 means -3 of"),
        ("1/900", "--labeled 1/900 means 0 of the 400"),
        ("401", "--labeled 401 means 401 images, but 'shapes' has 400 train images with labels: give a "
        "smaller amount"),
        ("9/8", "--labeled 9/8: a fraction lies between 0 and 1; a number of images is a whole number"),
        ("-0.5", "--labeled -0.5: a fraction lies between 0 and 1"),
        ("1/0", "--labeled 1/0: expected a fraction"),
        ("few", r"--labeled few: expected a fraction \(1/8, 0.125\), a count \(45\), all, or a file of "
        "image names; "
                "no such file was found"),
        ("nan", "--labeled nan: expected a fraction"),
    ],
)  # fmt: skip
def test_impossible_amounts(amount, message):
    with pytest.raises(ValueError, match=message):
        make_split(SHAPES, amount)


def test_too_many_image_labels():
    with pytest.raises(ValueError, match="--image-labels 351 .* has 350 train images with labels left"):
        make_split(SHAPES, "1/8", image_labels="351")


def test_a_file_of_names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("images/train/train_0007.jpg\n\n  train_0003.png \ntrain_0001\nother\\train_0001.png\n")
    split = make_split(SHAPES, str(file))
    assert split.labeled == ("train_0001", "train_0003", "train_0007")
    assert len(split.unlabeled) == 397
    assert make_split(SHAPES, file, seed=9) == split


def test_a_file_of_names_that_does_not_fit(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("train_0001\na\nb\nc\nd\n")
    with pytest.raises(ValueError, match="'a', 'b', 'c' and 1 more are not among the 400 labelled train images"):
        make_split(SHAPES, str(file))
    file.write_text("val_0001")
    with pytest.raises(ValueError, match="'val_0001' is not among"):
        make_split(SHAPES, str(file))
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="the file names no image"):
        make_split(SHAPES, str(file))
    file.write_text("train_0001")
    with pytest.raises(ValueError, match="'train_0001' is named both as labelled and as image-labelled|named both"):
        make_split(SHAPES, str(file), image_labels=str(file))


def test_names_with_dots_keep_them(tmp_path):
    for name in ("a.b", "a.c"):
        save(tmp_path / f"images/train/{name}.png", [[[0, 0, 0]]])
        save(tmp_path / f"labels/train/{name}.png", [[0]])
    file = tmp_path / "names.txt"
    file.write_text("a.b\nimages/a.c.png\n")
    assert make_split(FolderDataset(tmp_path), str(file)).labeled == ("a.b", "a.c")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/JPEGImages/a.jpg /SegmentationClassAug/a.png", "a"),
        ("img/a.jpg\tlbl/a_mask.png", "a"),
        ("a a_mask", "a"),
        ("leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png", "ulm_0_1"),
        ("ulm/ulm_0_1_leftImg8bit.png", "ulm_0_1"),
        ("ulm_0_1", "ulm_0_1"),
        ("my a", "my a"),
        ("my folder/my a.jpg", "my a"),
        ("my folder/a.jpg", "a"),
        ("b_leftImg8bit.png", "b_leftImg8bit"),
    ],
)
def test_lists_of_other_projects(tmp_path, line, name):
    for known in ("a", "my a", "ulm_0_1", "b_leftImg8bit"):
        save(tmp_path / f"images/train/{known}.png", [[[0, 0, 0]]])
        save(tmp_path / f"labels/train/{known}.png", [[0]])
    (tmp_path / "names.txt").write_text(f"{line}\n")
    assert make_split(FolderDataset(tmp_path), str(tmp_path / "names.txt")).labeled == (name,)


def test_only_images_with_label_maps_are_labelled(tmp_path):
    make_folder(tmp_path, train=3)
    save(tmp_path / "images/train/plain.png", [[[0, 0, 0]]])
    split = make_split(FolderDataset(tmp_path), "all")
    assert split.labeled == ("train_0", "train_1", "train_2")
    assert split.unlabeled == ("plain",)


def test_saved_and_loaded(tmp_path):
    split = Split(("b", "a"), ("c",), ())
    split.save(tmp_path / "split")
    assert sorted(p.name for p in (tmp_path / "split").iterdir()) == [
        "labeled.txt",
        "unlabeled.txt",
        "weak.txt",
    ]
    assert (tmp_path / "split/labeled.txt").read_text() == "a\nb\n"
    loaded = Split.load(tmp_path / "split")
    assert loaded == split
    assert loaded.fingerprint == split.fingerprint


def test_a_split_that_cannot_be_saved_leaves_no_part_of_a_file(tmp_path):
    (tmp_path / "labeled.txt").mkdir()
    with pytest.raises(OSError, match=r"labeled\.txt"):
        Split(("a",)).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["labeled.txt"]


def test_the_fingerprint_tells_roles_and_names_apart():
    splits = [
        Split(("a", "b")),
        Split(("a",), ("b",)),
        Split(("a",), (), ("b",)),
        Split(("ab",)),
        Split(("a",)),
    ]
    assert len({split.fingerprint for split in splits}) == 5
    assert Split(("b", "a")).fingerprint == Split(("a", "b")).fingerprint


def test_no_image_has_two_roles():
    with pytest.raises(ValueError, match="image 'a' is named twice in a split: as labeled and as unlabeled"):
        Split(("a",), (), ("a",))


@pytest.mark.parametrize(("count", "expected"), [(1, ["a"]), (2, ["a", "c"]), (3, ["a", "b", "d"]), (9, list("abcde"))])
def test_evenly_spaced(count, expected):
    assert evenly_spaced("abcde", count) == expected


def test_image_level_labels_from_a_file(tmp_path):
    folder = FolderDataset(make_folder(tmp_path / "data"))
    (tmp_path / "data/labels/train/train_3.png").unlink()
    dataset = FolderDataset(tmp_path / "data")
    file = tmp_path / "told.csv"
    file.write_text("image,class\nimages/train/train_3.png,dog\ntrain_2,\ntrain_3, 1\ntrain_0,cat\n")
    names = tmp_path / "names.txt"
    names.write_text("train_0")
    split = make_split(dataset, str(names), image_labels=str(file))
    assert (split.labeled, split.image_labeled, split.unlabeled) == (("train_0",), ("train_2", "train_3"), ("train_1",))
    assert split.image_labels == {"train_2": (), "train_3": (1, 2)}
    assert split.without_label_maps == ("train_1", "train_2", "train_3")

    split.save(tmp_path / "split")
    assert Split.load(tmp_path / "split") == split
    others = [make_split(folder, str(names)), Split(split.labeled, split.image_labeled, split.unlabeled)]
    others.append(Split(split.labeled, split.image_labeled, split.unlabeled, {"train_2": (), "train_3": (1,)}))
    assert len({split.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected a first line `image,class`"),
        ("train_1,cat\n", "expected a first line `image,class`"),
        ("image,class\ntrain_1,cow\n", "'cow' is no class of 'data': ground, cat, dog"),
        ("image,class\ntrain_1,3\n", "'3' is no class"),
        ("image,class\nval_1,cat\n", "'val_1' is not among the 4 train images"),
        ("image,class\ntrain_1,cat,dog\n", "expected an image and a class in line 2; got 'train_1,cat,dog'"),
        ("image,class\n ,cat\n", "expected an image and a class in line 2"),
        ("image,class\n", "the file names no image"),
        ("image,class\ntrain_0,cat\n", "every image in it is a labelled one"),
    ],
)
def test_a_file_of_image_level_labels_that_does_not_fit(tmp_path, text, message):
    dataset = FolderDataset(make_folder(tmp_path / "data"))
    (tmp_path / "names.txt").write_text("train_0")
    (tmp_path / "told.csv").write_text(text)
    with pytest.raises(ValueError, match=f"--image-labels .*told.csv: {message}"):
        make_split(dataset, str(tmp_path / "names.txt"), image_labels=str(tmp_path / "told.csv"))
    with pytest.raises(ValueError, match="--image-labels other.csv: no such file"):
        make_split(dataset, "1", image_labels="other.csv")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_from_other_editors_and_names_in_other_forms(tmp_path, encoding):
    for name in ("Ko\u0308ln", "Paris"):
        save(tmp_path / f"images/train/{name}.png", np.zeros((4, 4, 3)))
        save(tmp_path / f"labels/train/{name}.png", np.zeros((4, 4)))
    save(tmp_path / "images/train/Rom.png", np.zeros((4, 4, 3)))
    write_classes(tmp_path, classes=["Stra\u00dfe", "Stra\u00dfe und Ba\u0308ume"])
    names, told = tmp_path / "names.txt", tmp_path / "told.csv"
    names.write_text("K\u00f6ln.JPG\r\n", encoding)
    told.write_text("image,class\r\nPARIS,Stra\u00dfe und B\u00e4ume\r\nRom,\r\n", encoding)
    split = make_split(FolderDataset(tmp_path), str(names), image_labels=str(told))
    assert split.labeled == ("Ko\u0308ln",)
    assert split.image_labels == {"Paris": (1,), "Rom": ()}


def test_lists_in_older_encodings_are_refused_by_name(tmp_path):
    names, told = tmp_path / "names.txt", tmp_path / "told.csv"
    names.write_text("train_0001\nK\u00f6ln\n", "cp1252")
    with pytest.raises(ValueError, match=r"names.txt is not in UTF-8 \(byte 0xf6 in line 2\).*: save it as UTF-8"):
        make_split(SHAPES, str(names))
    told.write_text("image,class\n", "utf-16-le")
    with pytest.raises(ValueError, match="--image-labels .*told.csv has zeros between its letters.*: save it as UTF-8"):
        make_split(SHAPES, "1", image_labels=str(told))
