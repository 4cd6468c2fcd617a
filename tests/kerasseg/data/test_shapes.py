from importlib.resources import files

import numpy as np
import pytest

from kerasseg.data.shapes import COATS, SKIES, TINTS, ShapesDataset
from serving.common.images import load_image

DATASET = ShapesDataset(train=60, val=10)
NAMES = DATASET.image_names("train")
IMAGES = [DATASET.load_image("train", name).astype(float) for name in NAMES]
LABELS = [DATASET.load_label("train", name) for name in NAMES]
PRESENT = np.array([[(label == c).any() for c in range(1, 10)] for label in LABELS])
WORLDS = PRESENT.argmax(1) % 3  # 0 savanna, 1 water, 2 forest


def test_names_and_classes():
    assert ShapesDataset().image_names("train")[-1] == "train_0399"
    assert ShapesDataset().image_names("val")[-1] == "val_0099"
    assert DATASET.label_names("val") == DATASET.image_names("val")
    animals = ("zebra", "angelfish", "tiger", "cheetah", "ray", "fawn", "giraffe", "turtle", "python")
    assert DATASET.classes == ("background", *animals)
    assert len(set(DATASET.palette)) == DATASET.num_classes == 1 + len(SKIES) * len(COATS)
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
    np.testing.assert_allclose(
        np.bincount(LABELS[0].ravel(), minlength=10), [9114, 0, 0, 0, 0, 0, 3174, 0, 0, 0], atol=3
    )
    np.testing.assert_allclose(IMAGES[0].mean((0, 1)), [69.5, 80.53, 96.24], atol=0.1)


def test_the_page_of_the_server_shows_scenes_of_this_dataset():
    """A model of `make train` is asked for it first."""
    dataset = ShapesDataset()
    scenes = [dataset.load_image("val", name) for name in dataset.image_names("val")[:9]]
    rows = [np.concatenate(scenes[first : first + 3], axis=1) for first in (0, 3, 6)]
    sample = load_image(files("serving.http.page").joinpath("sample.jpg").read_bytes())
    assert np.abs(sample.astype(int) - np.concatenate(rows)).mean() < 10


def test_a_scene_has_one_or_two_kinds_of_animals_of_one_world():
    assert all((label == 0).any() for label in LABELS)
    assert all(PRESENT[:, world::3].any(1)[world != WORLDS].sum() == 0 for world in range(3))
    assert set(PRESENT.sum(1)) == {1, 2}
    assert (PRESENT.mean(0) > 0.06).all() and (PRESENT.mean(0) < 0.3).all()


def test_animals_are_neither_everywhere_nor_tiny():
    shares = np.bincount(np.concatenate([label.ravel() for label in LABELS]), minlength=10) / np.size(LABELS)
    assert 0.6 < shares[0] < 0.8
    assert (shares[1:] > 0.01).all()


def chroma(image, where):
    """Mean colour less its brightness, as a share of it: what the light's strength leaves as it is."""
    mean = image[where].mean(0)
    return mean / mean.mean() - 1


def test_the_sky_tells_the_world_and_the_ground_does_not():
    """By the nearest mean chroma of the other scenes."""
    top, bottom = np.zeros((96, 128), bool), np.zeros((96, 128), bool)
    top[:12], bottom[-30:] = True, True
    right = {}
    for name, where in (("sky", top), ("ground", bottom)):
        chromas = np.array([chroma(i, where & (label == 0)) for i, label in zip(IMAGES, LABELS, strict=True)])
        means = np.array([chromas[world == WORLDS].mean(0) for world in range(3)])
        nearest = np.linalg.norm(chromas[:, np.newaxis] - means, axis=-1).argmin(1)
        right[name] = (nearest == WORLDS).mean()
    assert right["sky"] > 0.8 and right["ground"] < 0.6


def test_colour_tells_coats_and_nothing_local_tells_the_animals_of_a_coat():
    colours = {c: [] for c in range(1, 10)}
    for image, label in zip(IMAGES, LABELS, strict=True):
        for c in set(np.unique(label)) - {0}:
            colours[c].append(chroma(image, label == c))
    means = np.array([np.mean(rows, axis=0) for rows in colours.values()]).reshape(len(COATS), len(SKIES), 3)
    spread = np.mean([np.std(rows, axis=0) for rows in colours.values()])
    assert np.ptp(means, axis=1).max() < 2.5 * spread  # of a few scenes each
    distances = [np.abs(means[i].mean(0) - means[j].mean(0)).max() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(distances) > 2 * spread
    for coat, tint in enumerate(TINTS):
        assert np.argmax(means[coat].mean(0)) == np.argmax(tint) and np.argmin(means[coat].mean(0)) == np.argmin(tint)


def test_scenes_of_another_size():
    dataset = ShapesDataset(size=(32, 48), train=5, val=1)
    assert dataset.load_image("train", "train_0000").shape == (32, 48, 3)
    assert dataset.load_label("train", "train_0000").shape == (32, 48)
    with pytest.raises(ValueError, match="16 pixels and one scene or more"):
        ShapesDataset(size=(8, 8))
