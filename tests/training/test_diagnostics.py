"""What diagnostics.json says, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import spearmanr

from kerasseg.data import Split, open_dataset
from kerasseg.methods import ECS, MLMT, S4GAN, Latent, Supervised
from kerasseg.methods.ecs import rank_correlation
from kerasseg.metrics import Reliability, roc, scores
from tests.kerasseg.data.folders import make_folder
from tests.kerasseg.methods import tiny
from training.diagnostics import GradientNorms, diagnose
from training.evaluation import evaluate
from training.image_scores import pixels_by_class

SPLIT = Split(labeled=("train_0", "train_1"), unlabeled=("train_2", "train_3"))


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(str(make_folder(tmp_path / "pets", val=3)))


def expected(method, dataset, confidence_of, split="val", names=None):
    reliability = Reliability()
    for name in names or dataset.label_names(split):
        image, truth = dataset.load_image(split, name)[np.newaxis].astype(np.float32), dataset.load_label(split, name)
        S = np.asarray(method(image))
        known = truth != 255
        reliability.add(np.asarray(confidence_of(image, S))[0][known], (np.argmax(S[0], axis=-1) == truth)[known])
    return reliability.summary()


@pytest.mark.slow
def test_two_replicas_measure_the_gradients_that_one_does(two_replicas):
    batch = tiny.tensors(*tiny.batch(np.random.default_rng(0), size=4))
    measured = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            method = S4GAN(tiny.segmenter(), tiny.discriminator(), gamma=0.0)
            method.compile()
        measured.append(GradientNorms(method, batch)())
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)
    assert min(measured[0].values()) > 0


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_does_not_notice_that_gradients_are_measured(replicas, request):
    strategy = request.getfixturevalue("two_replicas") if replicas == 2 else tf.distribute.get_strategy()
    batch = tiny.batch(np.random.default_rng(0))
    data = tf.data.Dataset.from_tensors(batch).repeat()
    histories, measured = [], []
    for measures in (False, True):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            method = MLMT(
                S4GAN(tiny.segmenter(), tiny.discriminator(), steps=2),
                *(tiny.classifier(name=name) for name in ("student", "teacher")),
                steps=2,
            )
            for stage in method.stages():
                stage.compile()

        class Measure(keras.callbacks.Callback):
            def on_train_batch_end(self, step, logs=None):
                measured.append(GradientNorms(self.model, tiny.tensors(*batch))())

        once = {"steps_per_epoch": 1, "epochs": 2, "shuffle": False, "verbose": 0}
        for stage in method.stages():
            histories.append(stage.fit(data, callbacks=[Measure()] if measures else [], **once).history)
    assert histories[:2] == histories[2:]
    assert [set(norms) for norms in measured] == [
        *2 * [{"grad_L_S", "grad_L_ce", "grad_L_fm", "grad_L_st", "grad_L_D"}],
        *2 * [{"grad_L_MT", "grad_L_cls", "grad_L_cons"}],
    ]
    assert all(norms[name] > 0 for norms in measured for name in norms.keys() & {"grad_L_ce", "grad_L_cls"})


def test_the_softmax_of_every_method(dataset):
    method = Supervised(tiny.segmenter())
    result = diagnose(method, dataset, SPLIT)[0]
    assert result.keys() == {"split", "confidence", "confusion", "training"}
    ours, theirs = result["confidence"]["softmax"], expected(method, dataset, lambda image, S: S.max(axis=-1))
    for name in ("pixels", "accuracy", "expected_calibration_error", "error_detection_auc"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-3), name
    assert 0 < ours["accuracy"] < 1


def test_pixels_of_each_image_add_up_to_the_scores(dataset):
    method = Supervised(tiny.segmenter())
    content, images = diagnose(method, dataset, SPLIT)
    whole = scores(np.array(content["confusion"]))
    result = evaluate(method, dataset)
    assert (whole.mean_iou, whole.pixel_accuracy) == (result["mIoU"], result["pixel_accuracy"])
    assert images.names == ("val_0", "val_1", "val_2")
    np.testing.assert_array_equal(images.counts_N3K.sum(axis=0), pixels_by_class(np.array(content["confusion"])))
    image = dataset.load_image("val", "val_1")[np.newaxis].astype(np.float32)
    truth, found = dataset.load_label("val", "val_1"), np.argmax(method(image)[0], axis=-1)
    assert images.accuracy_N[1] == (found == truth)[truth != 255].mean()


def test_training_images_are_measured_apart_as_far_as_there_are_masks(tmp_path):
    root = make_folder(tmp_path / "pets", train=4)
    (root / "labels/train/train_3.png").unlink()
    dataset, method = open_dataset(str(root)), Supervised(tiny.segmenter())
    training = diagnose(method, dataset, SPLIT)[0]["training"]
    for role, names in (("labeled", ["train_0", "train_1"]), ("unlabeled", ["train_2"])):
        theirs = expected(method, dataset, lambda image, S: S.max(axis=-1), "train", names)
        ours = training[role]["confidence"]["softmax"]
        assert (ours["pixels"], ours["accuracy"]) == (theirs["pixels"], pytest.approx(theirs["accuracy"], abs=1e-3))
    no_masks = Split(labeled=("train_0",), unlabeled=("train_3",))
    assert diagnose(method, dataset, no_masks)[0]["training"].keys() == {"labeled"}


def test_a_critic_that_scores_pixels_stands_beside_it(dataset):
    method = ECS(tiny.segmenter(), tiny.judge(tiny.K + 1, "corrector"))
    confidence = diagnose(method, dataset, SPLIT)[0]["confidence"]
    assert confidence.keys() == {"softmax", "critic"}
    theirs = expected(method, dataset, method.critic_scores)
    assert confidence["critic"]["expected_calibration_error"] == pytest.approx(
        theirs["expected_calibration_error"], abs=1e-4
    )
    assert confidence["critic"]["error_detection_auc"] == pytest.approx(theirs["error_detection_auc"], abs=1e-3)
    assert confidence["critic"] != confidence["softmax"]


def test_ecs_tells_what_its_corrector_knows(dataset):
    method = ECS(tiny.segmenter(), tiny.judge(tiny.K + 1, "corrector"))
    found = diagnose(method, dataset, SPLIT)[0]["corrector"]
    confusion, rho = np.zeros((tiny.K + 1, tiny.K + 1), np.int64), [[] for _ in range(tiny.K)]
    for name in dataset.label_names("val"):
        image, truth = dataset.load_image("val", name)[np.newaxis].astype(np.float32), dataset.load_label("val", name)
        S = np.asarray(method(image), np.float64)
        C = tiny.softmax(tiny.judgement(tiny.float64_weights(method.corrector), S, image))[0]
        known = truth != 255
        y_cor = np.where(np.argmax(S[0], axis=-1) == truth, tiny.K, truth)
        np.add.at(confusion, (y_cor[known], np.argmax(C, axis=-1)[known]), 1)
        for number in range(tiny.K):
            pixels = truth == number
            if pixels.sum() > 1:
                rho[number].append(spearmanr(C[pixels, -1] ** 2, np.log(S[0, pixels, number])).statistic)
    expected_scores = scores(confusion)
    assert found["mIoU"] == pytest.approx(expected_scores.mean_iou, abs=1e-3)
    for ours, theirs in zip(found["IoU"], expected_scores.iou, strict=True):
        assert (ours is None) == (theirs is None) and (ours is None or ours == pytest.approx(theirs, abs=2e-3))
    for ours, values in zip(found["spearman"], rho, strict=True):
        assert (ours is None) if not values else ours == pytest.approx(np.mean(values), abs=1e-2)


@pytest.mark.parametrize("distinct", [1, 3, 40])
def test_the_rank_correlation_is_spearmans_also_of_equal_values(distinct):
    a, b = np.random.default_rng(distinct).integers(0, distinct, (2, 40)).astype(np.float32)
    expected = spearmanr(a, b).statistic if distinct > 1 else np.nan
    np.testing.assert_allclose(rank_correlation(a, b), expected, rtol=1e-5)


def test_mlmt_tells_how_well_its_classifiers_know_the_classes(dataset):
    branch = Supervised(tiny.segmenter())
    method = MLMT(branch, tiny.classifier(name="student"), tiny.classifier(name="teacher"))
    method.teacher.set_weights([w + 0.5 for w in method.teacher.get_weights()])
    found = diagnose(method, dataset, SPLIT)[0]["classifiers"]
    names = dataset.label_names("val")
    images = np.stack([dataset.load_image("val", name) for name in names]).astype(np.float32)
    present = np.array([[(dataset.load_label("val", name) == c).any() for c in range(tiny.K)] for name in names])
    for name, network in (("mean_teacher", method.teacher), ("plain", method.student)):
        p = tiny.sigmoid(np.asarray(network(images), np.float64))
        assert found[name]["auc"] == roc(p.ravel(), present.ravel())["auc"]
        assert found[name]["per_class_auc"] == [roc(p[:, c], present[:, c])["auc"] for c in range(tiny.K)]


def test_latent_tells_where_its_classes_went(dataset):
    method = Latent(tiny.BranchingSegmenter(), latent_classes=4, labeled_images=2)
    method.co_occurrence.assign([[19, 1, 0, 0], [0, 4, 4, 0], [5, 0, 0, 5]])
    result = diagnose(method, dataset, SPLIT)[0]
    assert result["latent_given_class"] == [[0.95, 0.05, 0, 0], [0, 0.5, 0.5, 0], [0.5, 0, 0, 0.5]]
    assert result["effective_latent_classes"] == {"0.1": 4, "0.9": 1}
    twins = Latent(tiny.BranchingSegmenter(), branch="symmetric_kl", labeled_images=2)
    assert diagnose(twins, dataset, SPLIT)[0].keys() == result.keys() - {
        "latent_given_class",
        "effective_latent_classes",
    }
