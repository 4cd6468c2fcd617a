import numpy as np
import pytest
from PIL import Image

from kerasseg.data import open_dataset
from kerasseg.methods import ECS, S4GAN, Supervised
from kerasseg.metrics import scores
from tests.kerasseg.data.folders import make_folder
from tests.kerasseg.methods import tiny
from training.evaluation import Examples, evaluate, find_min_pixels


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(str(make_folder(tmp_path / "pets", val=3)))


def confusion(dataset, predict) -> np.ndarray:
    total = np.zeros((3, 3), np.int64)
    for name in dataset.label_names("val"):
        truth, predicted = dataset.load_label("val", name), predict(dataset.load_image("val", name))
        np.add.at(total, (truth.ravel(), predicted.ravel()), 1)
    return total


def test_evaluate_is_the_confusion_matrix_of_all_images(dataset):
    method = Supervised(tiny.segmenter())
    method.compile()
    result = evaluate(method, dataset)
    matrix = confusion(dataset, lambda image: np.argmax(method(image[None].astype(np.float32))[0], axis=-1))
    expected = scores(matrix)
    assert result["mIoU"] == expected.mean_iou and result["pixel_accuracy"] == expected.pixel_accuracy
    assert result["per_class_IoU"] == dict(zip(dataset.classes, expected.iou, strict=True))
    assert result["per_class_pixels"] == dict(zip(dataset.classes, matrix.sum(axis=1).tolist(), strict=True))
    assert result["protocol"]["images"] == 3


def test_examples_show_how_far_a_critic_of_pixels_trusts_them(dataset, tmp_path):
    method = ECS(tiny.segmenter(), tiny.judge(tiny.K + 1, "corrector"))
    Examples(method, dataset, "val").write(tmp_path, dataset.label_names("val")[:2])
    names = sorted(path.name for path in tmp_path.glob("val_*"))
    assert len(names) == 2
    for name in names:
        image = dataset.load_image("val", name)[np.newaxis].astype(np.float32)
        S = method(image)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name / "prediction.png")), np.argmax(S[0], -1))
        shown = np.asarray(Image.open(tmp_path / name / "reliability.png"), int)
        np.testing.assert_allclose(shown, 255 * method.reliability(image)[0], atol=0.51)
        assert shown.std() > 0
    assert S4GAN(tiny.segmenter(), tiny.discriminator()).reliability(image) is None


def test_pixel_thresholds_are_those_that_serve_each_class_best(dataset):
    method = Supervised(tiny.segmenter())
    candidates = (0, 100, 300, 10**6)

    def switched_off(least):
        def predict(image):
            S = method(image[None].astype(np.float32))[0].numpy()
            on = np.bincount(S.argmax(-1).ravel(), minlength=3) >= least
            return (S * (on if on.any() else 1)).argmax(-1)

        return predict

    by_hand = [scores(confusion(dataset, switched_off(least))) for least in candidates]
    found = find_min_pixels(method, dataset, candidates=candidates)
    assert found["mIoU"] == {str(t): result.mean_iou for t, result in zip(candidates, by_hand, strict=True)}
    best = np.argmax([[value or 0 for value in result.iou] for result in by_hand], axis=0)
    assert found["min_pixels"] == [candidates[index] for index in best]
