from pathlib import Path

import pytest

from training.annotations.contract import AnnotatedImage, Notes
from training.annotations.splits import choose_splits, groups_of, output_names


def images(*names: str, labeled: bool = True, split: str | None = None) -> list[AnnotatedImage]:
    draw = (lambda height, width: None) if labeled else None
    return [AnnotatedImage(Path("/source", name), name, split, draw) for name in names]


def split(found: list[AnnotatedImage], val=0.2, test=0.0, seed=0) -> tuple[list[str | None], Notes]:
    notes = Notes()
    return choose_splits(found, val, test, seed, notes), notes


SINGLE = images(*(f"{name}.png" for name in "abcdefghij"))


def test_shares_of_single_images():
    splits, _ = split(SINGLE, 0.2, 0.3)
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (5, 2, 3)


def test_the_seed_chooses_and_order_does_not_matter():
    first, _ = split(SINGLE)
    assert split(SINGLE)[0] == first
    assert split(SINGLE[::-1])[0] == first[::-1]
    assert any(split(SINGLE, seed=seed)[0] != first for seed in range(1, 5))


@pytest.mark.parametrize("seed", range(5))
def test_clips_and_folders_stay_whole(seed):
    clips = images(*(f"clip{c}_{n:04}.png" for c in range(5) for n in range(4)))
    folders = images(*(f"day{d}/{n}.png" for d in range(5) for n in "abcd"))
    for found in (clips, folders):
        splits, _ = split(found, seed=seed)
        assert splits.count("val") == 4
        assert len(set(splits[splits.index("val") :][:4])) == 1


def test_what_a_clip_is():
    assert groups_of(["clip1_0001.png", "clip1_0002.png", "x.png"]) == ["clip clip1", "clip clip1", "image x"]
    assert groups_of(["park_001.png", "park_002.png", "b.png"]) == ["clip park", "clip park", "image b"]
    assert groups_of(["Cat_1.png", "Cat_12.png", "b.png"]) == ["image Cat_1", "image Cat_12", "image b"]
    assert groups_of(["IMG_0001.png", "IMG_0002.png", "b.png"]) == ["image IMG_0001", "image IMG_0002", "image b"]
    assert groups_of(["s1_f001.png", "s1_f002.png"]) == ["image s1_f001", "image s1_f002"]  # one clip is all there is
    assert groups_of(["a_jpg.rf.0a1b.jpg", "a_jpg.rf.9f.jpg"]) == ["image a", "image a"]
    assert groups_of(["p/a.png", "q/a.png"]) == ["folder p", "folder q"]


def test_one_folder_is_split_image_by_image_with_a_warning():
    found = images("day/a.png", "day/b.png") + images("other/c.png", labeled=False)
    splits, notes = split(found)
    assert sorted(map(str, splits)) == ["train", "train", "val"]
    assert "image by image" in next(iter(notes))


def test_splits_of_the_source_are_kept():
    found = images("a.png", "b.png", "c.png") + images("d.png", split="val") + images("e.png", split="test")
    assert split(found, 0.5, 0.5)[0] == ["train", "train", "train", "val", "test"]
    found = images("a.png", "b.png", "c.png", split="train") + images("d.png", split="test")
    splits, _ = split(found, 0.5)
    assert (splits[:3].count("val"), splits[3]) == (2, "test")


def test_unlabelled_images_are_for_training_unless_they_show_what_is_measured():
    found = images("a.png", "b.png") + images("c.png", labeled=False, split="val")
    found += images("d.png", labeled=False, split="test")
    assert split(found)[0][2:] == ["train", "test"]
    found = images(*(f"clip{c}_0001.png" for c in range(4))) + images(
        *(f"clip{c}_0002.png" for c in range(4)), labeled=False
    )
    splits, notes = split(found)
    place = splits.index("val")
    assert splits[place + 4] is None
    assert splits.count("train") == 6
    assert any("images without annotation, left out" in line for line in notes)


def test_a_single_labelled_image_is_for_training():
    assert split(images("a.png"), 0.5, 0.4)[0] == ["train"]


def test_names():
    assert output_names(images("x/a b.png", "x/ä.png")) == ["a b", "ä"]
    assert output_names(images("x/a.png", "y/a.png", "y/b.png")) == ["x-a", "y-a", "b"]
    assert output_names(images("x/a.png", "x/A.png", "x/b.png")) == ["x-a-png-0", "x-A-png-1", "b"]
    assert output_names(images("a.png", "a.jpg")) == ["a-png", "a-jpg"]
    assert output_names(images("a.png", split="train") + images("a.png", split="val")) == ["train-a", "val-a"]
    assert output_names(images("x/a.png", "y/a.png", "x-a.png")) == ["x-a-png-0", "y-a", "x-a-png-2"]
