"""What diagnostics.json says, against NumPy."""

import numpy as np
import pytest

from kerasseg.data import open_dataset
from kerasseg.methods import ECS, Latent, Supervised
from kerasseg.metrics import Reliability
from tests.data.folders import make_folder
from tests.methods import tiny
from training.diagnostics import diagnose


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(str(make_folder(tmp_path / "pets", val=3)))


def expected(method, dataset, confidence_of):
    reliability = Reliability()
    for name in dataset.label_names("val"):
        image, truth = dataset.load_image("val", name)[np.newaxis].astype(np.float32), dataset.load_label("val", name)
        S = np.asarray(method(image))
        known = truth != 255
        reliability.add(np.asarray(confidence_of(image, S))[0][known], (np.argmax(S[0], axis=-1) == truth)[known])
    return reliability.summary()


def test_the_softmax_of_every_method(dataset):
    method = Supervised(tiny.segmenter())
    result = diagnose(method, dataset)
    assert result == {"split": "val", "confidence": result["confidence"]}
    ours, theirs = result["confidence"]["softmax"], expected(method, dataset, lambda image, S: S.max(axis=-1))
    for name in ("pixels", "accuracy", "expected_calibration_error", "error_detection_auc"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-3), name
    assert 0 < ours["accuracy"] < 1


def test_a_critic_that_scores_pixels_stands_beside_it(dataset):
    method = ECS(tiny.segmenter(), tiny.judge(tiny.K + 1, "corrector"))
    confidence = diagnose(method, dataset)["confidence"]
    assert confidence.keys() == {"softmax", "critic"}
    theirs = expected(method, dataset, method.scores)
    assert confidence["critic"]["expected_calibration_error"] == pytest.approx(
        theirs["expected_calibration_error"], abs=1e-4
    )
    assert confidence["critic"]["error_detection_auc"] == pytest.approx(theirs["error_detection_auc"], abs=1e-3)
    assert confidence["critic"] != confidence["softmax"]


def test_latent_tells_where_its_classes_went(dataset):
    method = Latent(tiny.BranchingSegmenter(), latent_classes=4, labeled_images=2)
    method.co_occurrence.assign([[19, 1, 0, 0], [0, 4, 4, 0], [5, 0, 0, 5]])
    result = diagnose(method, dataset)
    assert result["latent_given_class"] == [[0.95, 0.05, 0, 0], [0, 0.5, 0.5, 0], [0.5, 0, 0, 0.5]]
    assert result["effective_latent_classes"] == {"0.1": 4, "0.9": 1}
