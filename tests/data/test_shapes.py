import numpy as np
import pytest

from kerasseg.data.shapes import COATS, GROUNDS, TINTS, ShapesDataset

DATASET = ShapesDataset(train=60, val=10)
NAMES = DATASET.image_names("train")
IMAGES = [DATASET.load_image("train", name).astype(float) for name in NAMES]
LABELS = [DATASET.load_label("train", name) for name in NAMES]
PRESENT = np.array([[(label == c).any() for c in range(1, 7)] for label in LABELS])
WORLDS = PRESENT[:, 1::2].any(1).astype(int)  # 0 land, 1 water


def test_names_and_classes():
    assert ShapesDataset().image_names("train")[-1] == "train_0399"
    assert ShapesDataset().image_names("val")[-1] == "val_0099"
    assert DATASET.label_names("val") == DATASET.image_names("val")
    assert DATASET.classes == ("background", "zebra", "angelfish", "leopard", "ray", "giraffe", "turtle")
    assert len(set(DATASET.palette)) == DATASET.num_classes == 1 + 2 * len(COATS)
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
    np.testing.assert_allclose(np.bincount(LABELS[0].ravel(), minlength=7), [9667, 0, 0, 2621, 0, 0, 0], atol=3)
    np.testing.assert_allclose(IMAGES[0].mean((0, 1)), [105.41, 84.41, 104.65], atol=0.1)


def test_a_scene_has_one_or_two_kinds_of_animals_of_one_world():
    assert all((label == 0).any() for label in LABELS)
    assert not (PRESENT[:, 0::2].any(1) & PRESENT[:, 1::2].any(1)).any()
    assert set(PRESENT.sum(1)) == {1, 2}
    assert (PRESENT.mean(0) > 0.1).all() and (PRESENT.mean(0) < 0.4).all()


def test_animals_are_neither_everywhere_nor_tiny():
    shares = np.bincount(np.concatenate([label.ravel() for label in LABELS]), minlength=7) / np.size(LABELS)
    assert 0.6 < shares[0] < 0.8
    assert (shares[1:] > 0.02).all()


def chroma(image, where):
    """Mean colour less its brightness, as a share of it: what the light's strength leaves as it is."""
    mean = image[where].mean(0)
    return mean / mean.mean() - 1


def test_the_ground_tells_land_from_water_and_leaves_doubt():
    towards_water = np.array(
        [chroma(image, label == 0) @ (GROUNDS[1] - GROUNDS[0]) for image, label in zip(IMAGES, LABELS, strict=True)]
    )
    right = ((towards_water > np.median(towards_water)) == WORLDS).mean()
    assert 0.75 < right < 1.0


def test_colour_tells_coats_and_nothing_local_tells_the_two_animals_of_a_coat():
    colours = {c: [] for c in range(1, 7)}
    for image, label in zip(IMAGES, LABELS, strict=True):
        for c in set(np.unique(label)) - {0}:
            colours[c].append(chroma(image, label == c))
    means = np.array([np.mean(rows, axis=0) for rows in colours.values()]).reshape(len(COATS), 2, 3)
    spread = np.mean([np.std(rows, axis=0) for rows in colours.values()])
    assert np.abs(means[:, 0] - means[:, 1]).max() < 1.5 * spread
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
