import numpy as np
import pytest

from kerasseg.data import FolderDataset, Split, class_weights, resolve_class_weights
from kerasseg.data.weighting import parse_class_weights
from tests.kerasseg.data.folders import save, write_classes

SPLIT = Split(("a", "b"), (), ("c",))


@pytest.fixture
def dataset(tmp_path):
    """100 labelled pixels in two images: 75 ground, 20 cat, 5 dog, no bird; 60 are ignored, 40 are of no class."""
    labels = {"a": [0] * 50 + [1] * 20 + [255] * 30, "b": [0] * 25 + [2] * 5 + [255] * 30 + [9] * 40, "c": [3] * 100}
    for name, label in labels.items():
        save(tmp_path / f"images/train/{name}.png", np.zeros((10, 10, 3)))
        save(tmp_path / f"labels/train/{name}.png", np.reshape(label, (10, 10)))
    write_classes(tmp_path, classes=["ground", "cat", "dog", "bird"])
    return FolderDataset(tmp_path)


def test_inverse_log_is_enets(dataset):
    by_hand = np.array([1 / np.log(1.02 + share) for share in (0.75, 0.2, 0.05, 0.05)])
    np.testing.assert_allclose(by_hand, [1.7508, 5.0298, 14.7785, 14.7785], rtol=1e-3)
    mean = 0.75 * by_hand[0] + 0.2 * by_hand[1] + 0.05 * by_hand[2]
    np.testing.assert_allclose(class_weights(dataset, SPLIT, "inverse_log"), by_hand / mean, rtol=1e-6)


def test_effective_number_is_cuis_with_the_pixels_of_an_image(dataset):
    beta = 49 / 50  # 100 labelled pixels in two images
    by_hand = np.array([(1 - beta) / (1 - beta**count) for count in (75, 20, 5, 5)])
    np.testing.assert_allclose(by_hand, [0.02564, 0.06017, 0.20816, 0.20816], rtol=1e-3)
    mean = 0.75 * by_hand[0] + 0.2 * by_hand[1] + 0.05 * by_hand[2]
    np.testing.assert_allclose(class_weights(dataset, SPLIT, "effective_number"), by_hand / mean, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["inverse_log", "effective_number"])
def test_the_mean_weight_of_a_labelled_pixel_is_1(dataset, scheme):
    weights = class_weights(dataset, SPLIT, scheme)
    assert np.dot(weights, [0.75, 0.2, 0.05, 0]) == pytest.approx(1)
    assert weights[0] < weights[1] < weights[2] == weights[3]
    assert all(isinstance(weight, float) for weight in weights)


def test_effective_numbers_do_not_depend_on_the_resolution(dataset, tmp_path):
    before = class_weights(dataset, SPLIT, "effective_number")
    for name in "ab":
        label = dataset.load_label("train", name).repeat(30, 0).repeat(30, 1)
        save(dataset.path / f"labels/train/{name}.png", label)
    np.testing.assert_allclose(class_weights(dataset, SPLIT, "effective_number"), before, rtol=0.03)


def test_single_pixels_can_be_weighed(dataset):
    for name, label in (("a", [[0]]), ("b", [[1]])):
        save(dataset.path / f"labels/train/{name}.png", label)
    assert class_weights(dataset, SPLIT, "effective_number") == (1, 1, 1, 1)


def test_weights_need_a_labelled_pixel_and_a_known_scheme(dataset):
    for name in "ab":
        save(dataset.path / f"labels/train/{name}.png", np.full((10, 10), 255))
    with pytest.raises(ValueError, match="no labelled image has a pixel of a class"):
        class_weights(dataset, SPLIT, "inverse_log")
    with pytest.raises(ValueError, match="class weights must be one of inverse_log, effective_number; got 'inverse'"):
        class_weights(dataset, SPLIT, "inverse")


def test_what_the_flag_stands_for(dataset):
    assert resolve_class_weights("none", dataset, SPLIT) == ()
    assert resolve_class_weights("1, 2,0.5,0", dataset, SPLIT) == (1, 2, 0.5, 0)
    for scheme in ("inverse_log", "effective_number"):
        assert resolve_class_weights(scheme, dataset, SPLIT) == class_weights(dataset, SPLIT, scheme)


@pytest.mark.parametrize(("text", "count"), [("1,2,3", 3), ("1,2,3,4,5", 5), ("2", 1)])
def test_one_weight_for_each_class_that_exists(dataset, text, count):
    with pytest.raises(
        ValueError, match=r"must be 4 numbers, one for each class .*\(ground, cat, dog and 1 more\); got "
    ) as error:
        resolve_class_weights(text, dataset, SPLIT)
    assert str(error.value).endswith(f"got {count}")


@pytest.mark.parametrize("text", ["1,-2,1,1", "0,0,0,0", "1,nan,1,1", "1,inf,1,1", "1,,1,1", "", "inverse", "1 2 3 4"])
def test_what_is_no_weights(text):
    with pytest.raises(
        ValueError, match="--class-weights must be none, inverse_log, effective_number, or numbers"
    ) as error:
        parse_class_weights(text)
    assert str(error.value).endswith(f"got {text!r}") and "\n" not in str(error.value)
