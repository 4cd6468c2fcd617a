import numpy as np
import pytest

from kerasseg.data.shapes import _SHAPES, GROUNDS, HOMES, ShapesDataset

DATASET = ShapesDataset(train=60, val=10)
LABELS = [DATASET.load_label("train", name) for name in DATASET.image_names("train")]


def test_names_and_classes():
    assert ShapesDataset().image_names("train")[-1] == "train_0399"
    assert ShapesDataset().image_names("val")[-1] == "val_0099"
    assert DATASET.label_names("val") == DATASET.image_names("val")
    assert DATASET.classes == ("background", "disc", "ring", "square", "triangle", "star", "cross")
    assert len(set(DATASET.palette)) == DATASET.num_classes == 7
    with pytest.raises(ValueError, match="has no split 'test'; it has train, val"):
        DATASET.image_names("test")
    with pytest.raises(ValueError, match="no train scene 'val_0001'"):
        DATASET.load_image("train", "val_0001")


def test_a_scene_depends_on_its_name_and_the_seed_only():
    name = "train_0007"
    fresh = ShapesDataset(train=8, val=1)
    np.testing.assert_array_equal(fresh.load_image("train", name), DATASET.load_image("train", name))
    np.testing.assert_array_equal(fresh.load_label("train", name), DATASET.load_label("train", name))
    other = ShapesDataset(seed=1).load_image("train", name)
    assert np.abs(other.astype(int) - DATASET.load_image("train", name)).mean() > 5


def test_scenes_are_those_on_file():
    """To a pixel or two: another machine may round a border differently."""
    image, label = DATASET.load_image("train", "train_0000"), DATASET.load_label("train", "train_0000")
    np.testing.assert_allclose(np.bincount(label.ravel(), minlength=7), [9166, 543, 0, 1566, 0, 0, 1013], atol=3)
    np.testing.assert_allclose(image.mean((0, 1)), [103.98, 97.55, 71.02], atol=0.1)


def test_which_classes_appear_varies_from_scene_to_scene():
    present = np.array([[(label == c).any() for c in range(7)] for label in LABELS])
    assert present[:, 0].all()
    per_scene = present[:, 1:].sum(1)
    assert per_scene.min() >= 1 and per_scene.max() == 3
    assert (present[:, 1:].mean(0) > 0.15).all() and (present[:, 1:].mean(0) < 0.6).all()


def test_the_colour_of_the_ground_tells_which_classes_are_likely():
    at_home, elsewhere = [], []
    for name, label in zip(DATASET.image_names("train"), LABELS, strict=True):
        colour = DATASET.load_image("train", name)[label == 0].mean(0) / 255
        land = np.argmin(np.linalg.norm(GROUNDS - (colour - colour.mean()), axis=1))
        for index, home in enumerate(HOMES):
            (at_home if home == land else elsewhere).append((label == index + 1).any())
    assert np.mean(at_home) > 0.6 and np.mean(elsewhere) < 0.25
    assert all(HOMES[i] != HOMES[i + 1] for i in (0, 2, 4)), "a pair's two classes have homes of their own"


def test_objects_are_neither_everywhere_nor_tiny():
    shares = np.bincount(np.concatenate([label.ravel() for label in LABELS]), minlength=7) / np.size(LABELS)
    assert 0.7 < shares[0] < 0.9
    assert (shares[1:] > 0.01).all()


def test_colour_tells_pairs_of_classes_and_not_the_classes():
    """Mean colours within a pair lie close together and those of pairs apart, by the spread of colours in a class."""
    colours = {c: [] for c in range(1, 7)}
    for name, label in zip(DATASET.image_names("train"), LABELS, strict=True):
        image = DATASET.load_image("train", name)
        for c in set(np.unique(label)) - {0}:
            mean = image[label == c].mean(0)
            colours[c].append(mean - mean.mean())  # less the brightness
    means = np.array([np.mean(rows, axis=0) for rows in colours.values()])
    spread = np.mean([np.std(rows, axis=0) for rows in colours.values()])
    pairs = means.reshape(3, 2, 3)
    assert np.abs(pairs[:, 0] - pairs[:, 1]).max() < spread
    assert min(np.abs(pairs[i].mean(0) - pairs[j].mean(0)).max() for i, j in ((0, 1), (0, 2), (1, 2))) > spread


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        ("disc", [(0, 0), (0.8, 0)], [(0.95, 0), (0.7, 0.7)]),
        ("ring", [(0.68, 0), (0, -0.9)], [(0, 0), (1, 0)]),
        ("square", [(0.75, 0.75), (0, 0)], [(0.85, 0), (0, -0.85)]),
        ("triangle", [(-1, 0), (0.5, 0)], [(0.65, 0), (-0.6, 0.5)]),
        ("star", [(-1.1, 0), (0, 0), (0.4, 0)], [(0.5, 0), (-0.8, 0.3)]),
        ("cross", [(0.9, 0), (0, 0.9), (0.2, 0.2)], [(0.5, 0.5), (1.1, 0)]),
    ],
)
def test_outlines(shape, inside, outside):
    distance = _SHAPES[DATASET.classes.index(shape) - 1]
    assert all(distance(np.float64(u), np.float64(v)) < 0 for u, v in inside)
    assert all(distance(np.float64(u), np.float64(v)) > 0 for u, v in outside)


def test_scenes_of_another_size():
    dataset = ShapesDataset(size=(32, 48), train=5, val=1)
    assert dataset.load_image("train", "train_0000").shape == (32, 48, 3)
    assert dataset.load_label("train", "train_0000").shape == (32, 48)
    with pytest.raises(ValueError, match="16 pixels and one scene or more"):
        ShapesDataset(size=(8, 8))
