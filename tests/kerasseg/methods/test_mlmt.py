"""Equations 6 and 7 of Mittal et al. 2019."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasseg.methods import METHODS, MLMT, S4GAN, Supervised, TrainingData
from kerasseg.methods.mlmt import gated
from kerasseg.segmenters import build_backbone, build_segmenter
from tests.kerasseg.methods import tiny
from tests.kerasseg.methods.contract import MethodContract


def make(segmenter=None, **fields):
    branch = S4GAN(segmenter or tiny.segmenter(), tiny.discriminator(), steps=fields.get("steps", 10))
    return MLMT(branch, tiny.classifier(), **{"steps": 10} | fields)


class TestMLMT(MethodContract):
    name = "mlmt"
    fields = {"train_branch": False}
    network = "student"
    loss = "L_cls"
    minimized = ("student", "L_MT")

    def make(self, segmenter):
        if hasattr(segmenter, "backbone"):
            return super().make(segmenter)
        return make(segmenter, **self.fields)

    def make_without_chance(self, segmenter):
        method = still(make(segmenter, **self.fields))
        method.student.get_layer("bn").trainable = False
        return method


def changes(method, update):
    """Names of the networks whose weights `update()` changes."""
    branch = method.segmentation
    networks = {name: getattr(branch, name) for name in branch.network_names}
    networks |= {"student": method.student, "teacher": method.teacher}
    before = {name: network.get_weights() for name, network in networks.items()}
    update()
    return {
        name
        for name, network in networks.items()
        if any(not np.array_equal(a, b) for a, b in zip(before[name], network.get_weights(), strict=True))
    }


def fit(method, data, steps=1):
    return method.fit(data, steps_per_epoch=1, epochs=steps, shuffle=False, verbose=0).history


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_one_fit_trains_the_segmenter_and_the_other_the_classifier(run_eagerly):
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0))).repeat()
    branch = S4GAN(tiny.segmenter(), tiny.discriminator(), steps=2)
    method = MLMT(branch, tiny.classifier(), steps=3)
    assert method.stages() == (branch, method)
    branch.compile(run_eagerly=run_eagerly)
    assert changes(method, lambda: fit(branch, data, 2)) == {"segmenter", "discriminator"}
    method.compile(run_eagerly=run_eagerly)
    assert changes(method, lambda: fit(method, data, 3)) == {"student", "teacher"}
    assert method.main_optimizer is method.training_optimizers.student
    assert float(method.main_optimizer.learning_rate) == pytest.approx(method.config.classifier_learning_rate / 300)


def test_the_classifier_is_not_trained_before_its_branch(tmp_path):
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0))).repeat()
    method = MLMT(S4GAN(tiny.segmenter(), tiny.discriminator(), steps=2), tiny.classifier(), steps=2)
    method.compile(run_eagerly=True)
    with pytest.raises(ValueError, match=r"fit its branch first \(method.segmentation\), or give train_branch=False"):
        fit(method, data)
    method.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.compile(run_eagerly=True)
    assert changes(loaded, lambda: fit(loaded, data)) == {"student", "teacher"}


def test_one_optimizer_is_the_classifiers():
    method = make()
    method.compile("adam")
    assert type(method.training_optimizers.student) is keras.optimizers.Adam
    assert vars(method.training_optimizers).keys() == {"student"}
    for name in ("segmenter", "segmentation", "teacher"):
        with pytest.raises(ValueError, match=f"MLMT trains no network '{name}'; it trains student"):
            method.compile({name: "adam"})


def test_a_trained_branch_is_no_stage():
    method = MLMT(Supervised(tiny.segmenter()), tiny.classifier(), train_branch=False)
    assert method.stages() == (method,)


def test_an_overflow_costs_one_update_of_one_network_and_no_step_of_its_schedule():
    keras.config.set_dtype_policy("mixed_float16")
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0))).repeat()
    branch = S4GAN(tiny.segmenter(), tiny.discriminator(), steps=2)
    method = MLMT(branch, tiny.classifier(), steps=2)
    for stage, network in ((branch, "segmenter"), (method, "student")):
        stage.compile(run_eagerly=True)
        getattr(stage.training_optimizers, network).dynamic_scale.assign(3e38)
    assert changes(method, lambda: fit(branch, data)) == {"discriminator"}
    history = fit(branch, data)
    assert history["skipped_segmenter"] == [1.0] and history["skipped_discriminator"] == [0.0]
    history = fit(method, data, 2)
    assert history["skipped_student"] == [1.0, 1.0] and "skipped_segmenter" not in history
    assert branch.training_optimizers.segmenter.skipped.numpy() == 2
    assert float(branch.training_optimizers.segmenter.learning_rate) == 0.0  # the schedule's end


@pytest.mark.parametrize("start", ["initial", "segmenter"])
def test_the_classifier_starts_from_a_backbone_of_the_segmenters_and_rules_nothing_out(start):
    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=tiny.K, weights="none", head_channels=8)
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0), height=32, width=32)).repeat()
    own = {"steps": 1, "branch": "supervised", "classifier_start": start}
    method = MLMT.from_segmenter(segmenter, {"mlmt": own, "supervised": {"steps": 1}})
    method.segmentation.compile()
    method.compile({"student": keras.optimizers.SGD(0.0)})
    initial = {layer.name: layer.get_weights() for layer in segmenter.backbone.layers}
    images = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    for stage in method.stages():
        fit(stage, data)
        np.testing.assert_array_equal(method.predictions(images)[""], method.predictions(images)["without_gate"])
    convolutions = [layer.name for layer in segmenter.backbone.layers if hasattr(layer, "kernel")]
    assert len(convolutions) == 3
    for network in (method.student, method.teacher):
        for name in convolutions:
            started = network.get_layer("tiny").get_layer(name).kernel
            trained = segmenter.backbone.get_layer(name).kernel
            assert np.abs(trained - initial[name][0]).max() > 0
            np.testing.assert_array_equal(started, initial[name][0] if start == "initial" else trained)


def test_a_classifier_for_a_finished_run_starts_from_the_weights_that_the_run_started_from(tmp_path):
    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=tiny.K, weights="none", head_channels=8)
    build_backbone("tiny").save_weights(tmp_path / "tiny.weights.h5")
    start = build_backbone("tiny", weights=str(tmp_path / "tiny.weights.h5"))
    for choice, expected in (("initial", start), ("segmenter", segmenter.backbone)):
        fields = {"mlmt": {"classifier_start": choice, "steps": 1}}
        method = MLMT.from_trained(Supervised(segmenter), fields, str(tmp_path / "tiny.weights.h5"))
        for network in (method.student, method.teacher):
            kernel = network.get_layer("tiny").get_layer("conv").kernel
            np.testing.assert_array_equal(kernel, expected.get_layer("conv").kernel)


NARROW = {"discriminator_channels": 4}
BRANCHES = {
    "supervised": {},
    "advsemiseg": NARROW,
    "s4gan": NARROW,
    "ecs": {"corrector_backbone": None, "corrector_head_channels": 8},
    "latent": NARROW,
    "dualgan": NARROW,
    "unimatch": {},
    "unimatch_v2": {},
    "meanteacher": {},
}


@pytest.mark.parametrize("branch", BRANCHES)
def test_any_method_may_train_the_segmenter(branch):
    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=tiny.K, weights="none", head_channels=8)
    fields = {"mlmt": {"steps": 1, "branch": branch}, branch: {"steps": 1} | BRANCHES[branch]}
    method = MLMT.from_segmenter(segmenter, MLMT.with_data(fields, TrainingData(labeled_images=2, crop=(32, 32))))
    assert type(method.segmentation) is METHODS[branch] and set(MLMT.config_groups(fields)) == {"mlmt", branch}
    data = tf.data.Dataset.from_tensors(tiny.batch(np.random.default_rng(0), height=32, width=32)).repeat()
    for stage in method.stages():
        stage.compile(run_eagerly=True)
        fit(stage, data)
    method.teacher.get_layer("logits").bias.assign([-99.0, 99.0, 99.0])
    images = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    S = np.asarray(method.segmentation(images))
    np.testing.assert_array_equal(method(images), S * np.float32([0, 1, 1]))


def test_a_branch_has_to_be_another_method():
    assert BRANCHES.keys() == METHODS.keys() - {"mlmt"}
    for branch, message in (
        ("mlmt", "branch must be the method that trains the segmenter; got mlmt itself"),
        ("fixmatch", "branch must be one of supervised, .*, or package.module:Class .*; got 'fixmatch'"),
    ):
        with pytest.raises(ValueError, match=message):
            MLMT.from_segmenter(tiny.segmenter(), {"mlmt": {"branch": branch}})


def test_a_segmenter_that_nobody_trains_is_refused():
    with pytest.raises(ValueError, match="give --branch-run RUN"):
        MLMT.from_segmenter(tiny.segmenter(), {"mlmt": {"train_branch": False}})


# --- fusion ---


def test_the_gate_zeroes_absent_classes_and_leaves_an_image_without_any_alone():
    S = np.random.default_rng(0).random((2, 2, 2, 3)).astype(np.float32)
    present = np.array([[True, False, True], [False, False, False]])
    result = gated(tf.constant(S), tf.constant(present)).numpy()
    np.testing.assert_array_equal(result[0], S[0] * [1, 0, 1])
    np.testing.assert_array_equal(result[1], S[1])


def with_classifier_bias(method, network, logits):
    """Makes a classifier say `logits` for every image."""
    layer = getattr(method, network).get_layer("v")
    layer.set_weights([np.zeros_like(layer.get_weights()[0])])
    original = getattr(method, network)
    method_network = keras.Model(original.input, original.output + np.float32(logits))
    setattr(method, network, method_network)


def test_without_a_gate_nothing_is_switched_off():
    method = make(gate="none")
    for network in ("teacher", "student"):
        with_classifier_bias(method, network, [-9.0, 9.0, 9.0])
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(method(images), method.segmentation(images))


def test_the_classifiers_optimizer():
    student = make(steps=30, classifier_learning_rate=0.5, classifier_weight_decay=0.25).make_optimizers()["student"]
    assert (float(student.learning_rate), student.l2, student.momentum, student.nesterov) == (0.5, 0.25, 0.9, True)


@pytest.mark.parametrize("gate, network", [("mean_teacher", "teacher"), ("student", "student")])
def test_classes_at_most_tau_are_switched_off_by_the_chosen_classifier(gate, network):
    tau = 0.2
    at = float(np.log(tau / (1 - tau)))
    method = make(tau=tau, gate=gate)
    with_classifier_bias(method, network, [at - 0.1, at + 0.1, 9.0])
    images = np.random.default_rng(0).uniform(0, 255, (2, 4, 5, 3)).astype(np.float32)
    predictions = method.predictions(images)
    np.testing.assert_array_equal(predictions[""], predictions["without_gate"] * np.float32([0, 1, 1]))
    np.testing.assert_array_equal(predictions["without_gate"], method.segmentation(images))


def test_the_pixel_count_gate_switches_off_classes_on_few_pixels():
    images = np.random.default_rng(2).uniform(0, 255, (3, 8, 9, 3)).astype(np.float32)
    segmenter = tiny.segmenter()
    S = MLMT(Supervised(segmenter), tiny.classifier(), gate="none")(images).numpy()
    counts = np.stack([np.bincount(a.ravel(), minlength=tiny.K) for a in S.argmax(-1)])
    least = int(np.median(counts[counts > 0]))
    on = counts >= least
    on |= ~on.any(axis=1, keepdims=True)
    assert 0 < on.sum() < on.size
    gate = MLMT(Supervised(segmenter), tiny.classifier(), gate="pixel_count", min_pixels=(least,))
    expected = S * on[:, None, None]
    np.testing.assert_array_equal(gate(images), expected)
    by_class = MLMT(Supervised(segmenter), tiny.classifier(), gate="pixel_count", min_pixels=(0, 10**6, 0))
    np.testing.assert_array_equal(by_class(images), S * np.float32([1, 0, 1]))
    with pytest.raises(ValueError, match=r"1 number or one per class \(3\); got 2"):
        MLMT(Supervised(segmenter), tiny.classifier(), min_pixels=(1, 2))


# --- the classification branch ---


def still(method):
    """Takes the random views away, so that losses can be computed by hand."""
    method.flip, method.strong = (lambda images, training: images), (lambda images: images)
    return method


def forward(weights, image, statistics=None):
    """tiny.classifier in NumPy: logits, and the batch's statistics when none are given."""
    w, gamma, beta, mean, variance, v = (np.asarray(a, np.float64) for a in weights)
    x = image.astype(np.float64) / 255 @ w
    if statistics == "batch":
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    x = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    return x.mean(axis=(1, 2)) @ v


@pytest.mark.parametrize("classification", ["binary", "categorical"])
@pytest.mark.parametrize("consistency", ["squared", "cosine"])
def test_the_classifiers_losses(classification, consistency):
    x, y = tiny.batch(np.random.default_rng(0))
    method = still(
        make(
            steps=4,
            burn_in=0.0,
            ramp=1.0,
            lambda_cons=3.0,
            classification=classification,
            consistency=consistency,
        )
    )
    method.teacher.set_weights([w + 0.3 for w in method.teacher.get_weights()])
    method.compile()
    method.training_optimizers.student.iterations.assign(2)  # half of the ramp

    images = np.concatenate([x["labeled"], x["unlabeled"]])
    G = forward(method.student.get_weights(), images, "batch")
    H = forward(method.teacher.get_weights(), images)
    z = np.stack([np.isin(np.arange(tiny.K), labels).astype(float) for labels in y])
    if classification == "binary":
        probabilities = tiny.sigmoid
        p = tiny.sigmoid(G[:2])
        L_cls = -(z * np.log(p) + (1 - z) * np.log(1 - p)).mean()
    else:
        probabilities = tiny.softmax
        L_cls = -(z * np.log(tiny.softmax(G[:2]))).sum(axis=-1).mean()
    if consistency == "squared":
        L_cons = ((probabilities(G) - probabilities(H)) ** 2).mean()
    else:
        L_cons = (1 - (G * H).sum(-1) / np.linalg.norm(G, axis=-1) / np.linalg.norm(H, axis=-1)).mean()
    logs = method.update(tiny.batch_of(x, y))
    expected = {"L_cls": L_cls, "L_cons": L_cons, "L_MT": L_cls + 3.0 * 0.5 * L_cons}
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(expected, rel=1e-4)


def test_the_consistency_weight_ramps_up_after_the_burn_in():
    method = make(steps=100, burn_in=0.1, ramp=0.5, lambda_cons=2.0)
    method.compile()
    weights = []
    for step in (0, 10, 35, 60, 99):
        method.training_optimizers.student.iterations.assign(step)
        weights.append(float(method.consistency_weight()))
    assert weights == pytest.approx([0, 0, 1.0, 2.0, 2.0])


def test_the_teacher_follows_all_of_the_students_weights_batch_norm_statistics_included():
    x, y = tiny.batch(np.random.default_rng(0))
    method = still(make(ema_decay=0.6))
    method.compile()
    expected = method.teacher.get_weights()
    for step in (1, 2, 3):
        method.update(tiny.batch_of(x, y))
        decay = min(1 - 1 / (step + 1), 0.6)
        expected = [decay * t + (1 - decay) * s for t, s in zip(expected, method.student.get_weights(), strict=True)]
        for weight, value in zip(method.teacher.get_weights(), expected, strict=True):
            np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-7)
    assert np.abs(method.teacher.get_layer("bn").moving_mean.numpy()).max() > 0


def test_each_update_reaches_its_own_networks():
    x, y = tiny.batch(np.random.default_rng(0))
    method = make()
    method.compile()

    method.segmentation.compile()
    batch = tiny.batch_of(x, y)
    assert changes(method, lambda: method.update(batch)) == {"student", "teacher"}
    assert changes(method, lambda: method.segmentation.update(batch)) == {"segmenter", "discriminator"}


def test_an_already_trained_branch_is_left_as_it_is():
    x, y = tiny.batch(np.random.default_rng(0))
    method = MLMT(Supervised(tiny.segmenter()), tiny.classifier(), train_branch=False)
    method.compile()
    before = method.segmenter.get_weights()
    logs = method.train_step(tiny.tensors(x, y))
    assert set(logs) == {"L_MT", "L_cls", "L_cons"}
    for weight, old in zip(method.segmenter.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert method.config.branch == "supervised"


def test_weak_labels_feed_the_classifier_only():
    x, y = tiny.batch(np.random.default_rng(0))
    weak = np.random.default_rng(1).uniform(0, 255, x["labeled"].shape).astype(np.float32)
    z_weak = np.float32([[1, 1, 0], [0, 0, 1]])
    method = still(make(lambda_cons=0.0))
    method.compile()
    batch = x | {"image_labeled": weak, "image_labels": z_weak}
    images = np.concatenate([x["labeled"], weak, x["unlabeled"]])
    p = tiny.sigmoid(forward(method.student.get_weights(), images, "batch")[:4])
    z = np.concatenate([np.stack([np.isin(np.arange(tiny.K), labels).astype(float) for labels in y]), z_weak])
    expected = -(z * np.log(p) + (1 - z) * np.log(1 - p)).mean()
    np.testing.assert_allclose(method.update(tiny.batch_of(batch, y))["L_cls"], expected, rtol=1e-4)


def test_student_and_teacher_see_different_views():
    method = make()
    image = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype(np.float32)
    flipped, jittered = method.flip(image, training=True).numpy(), method.strong(image).numpy()
    for view, original in zip(flipped, image, strict=True):  # colours as they were, at most mirrored
        assert np.array_equal(view, original) or np.array_equal(view, original[:, ::-1])
    assert not np.allclose(jittered, image, atol=5) and jittered.min() >= 0 and jittered.max() <= 255


@pytest.mark.parametrize("perturb_labeled", [False, True])
def test_labeled_images_are_only_mirrored_unless_they_are_to_be_perturbed(perturb_labeled):
    x, y = tiny.batch(np.random.default_rng(0))
    method = still(make(perturb_labeled=perturb_labeled))
    method.compile()
    seen = []
    method.strong = lambda images: seen.append(np.asarray(images)) or images
    method.update(tiny.batch_of(x, y))
    np.testing.assert_array_equal(seen[0], x["unlabeled"])
    assert len(seen) == 1 + perturb_labeled


@pytest.mark.parametrize(
    "field, value",
    [
        ("tau", 1.0),
        ("lambda_cons", -1),
        ("ema_decay", 1.0),
        ("jitter", 2),
        ("burn_in", 2),
        ("ramp", 0),
        ("gate", "svm"),
        ("consistency", "l1"),
        ("classification", "softmax"),
        ("branch", "mlmt"),
        ("classifier_learning_rate", 0),
        ("classifier_weight_decay", -1),
    ],
)
def test_impossible_fields(field, value):
    with pytest.raises(ValueError, match=f"{field} .*got"):
        MLMT(tiny.segmenter(), tiny.classifier(), **{field: value})
