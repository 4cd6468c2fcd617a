"""What every method owes its users. A method's test file subclasses `MethodContract` and adds its own paper."""

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401
from export.graph import serving_function, to_onnx
from kerasseg.methods import METHODS, Method
from kerasseg.methods.gradient_norms import gradient_norms
from kerasseg.segmenters import build_segmenter
from tests.kerasseg.methods import tiny
from training.checkpoints import training_variables

ADVERSARIAL = {"learning_rate": 0.3, "discriminator_learning_rate": 0.03}
RATES = {
    "advsemiseg": ADVERSARIAL,
    "s4gan": {"learning_rate": 0.3, "discriminator_learning_rate": 1e-3, "gamma": 0.0},
    "mlmt": {"classifier_learning_rate": 0.3},
    "ecs": {"learning_rate": 0.3, "corrector_learning_rate": 0.03},
    "latent": ADVERSARIAL,
    "dualgan": ADVERSARIAL,
}
"""By which each of ten steps changes a tiny network's losses by percents."""


def quickened(method: Method) -> Method:
    """The method with `RATES`: by the paper's, hardly anything moves."""
    for part in (method, getattr(method, "segmentation", method)):
        part.config = dataclasses.replace(part.config, **RATES.get(part.registry_name, {"learning_rate": 0.3}))
    return method


class MethodContract:
    """Give `name`; override `make` where the method takes more than a segmenter.

    `network` is one that the method trains, `loss` the term that labels have a part in; `minimized` is a network and
    the loss of its one update in a step. A few steps run eagerly: tracing a graph would take longer.
    """

    name: str
    fields: dict = {}
    network = "segmenter"
    loss = "L_ce"
    minimized = ("segmenter", "L_S")

    def make(self, segmenter: keras.Model) -> Method:
        return METHODS[self.name](segmenter, **{"steps": 10} | self.fields)

    @pytest.fixture
    def deeplab(self) -> keras.Model:
        return build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=tiny.K, weights="none", head_channels=8)

    @pytest.fixture
    def data(self):
        batch = tiny.batch(np.random.default_rng(1), size=2, height=40, width=48)
        return tf.data.Dataset.from_tensors(batch).repeat()

    # The network that is looked at has a rate of its own; those of the others end after 10 of the 15 steps.
    @pytest.mark.filterwarnings("ignore:the learning rate of .* is 0 after")
    @pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
    def test_fit_lowers_the_loss_on_labels(self, data, precision):
        keras.config.set_dtype_policy(precision)
        method = self.make(tiny.segmenter())
        method.compile({self.network: keras.optimizers.SGD(0.5)})
        losses = [
            method.fit(data, steps_per_epoch=5, epochs=1, shuffle=False, verbose=0).history[self.loss][-1]
            for _ in range(3)
        ]
        assert np.isfinite(losses).all()
        assert losses[2] < losses[1] < losses[0]
        assert method(np.zeros((1, 16, 16, 3), np.float32)).dtype == tf.float32

    @pytest.mark.slow
    def test_what_is_saved_and_what_is_exported_give_the_same_probabilities(self, deeplab, data, tmp_path):
        """Without custom objects, and without Keras. After some steps at a high rate, so that a teacher that predicts
        and the student differ."""
        method = quickened(self.make(deeplab))
        method.compile(run_eagerly=True)
        method.fit(data, steps_per_epoch=3, epochs=1, shuffle=False, verbose=0)
        method.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")

        assert type(loaded) is type(method)
        assert loaded.config == method.config
        images_NHW3 = np.random.default_rng(0).integers(0, 256, (2, 33, 47, 3), np.uint8)
        probabilities = method(images_NHW3.astype(np.float32))
        np.testing.assert_array_equal(loaded(images_NHW3.astype(np.float32)), probabilities)

        graph = to_onnx(serving_function(loaded))
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, {"image": images_NHW3}), strict=True))
        np.testing.assert_allclose(outputs["confidence"], np.max(probabilities, axis=-1), atol=1e-5)
        ours_NHW1 = np.take_along_axis(np.asarray(probabilities), outputs["labels"][..., None], axis=-1)
        np.testing.assert_allclose(ours_NHW1[..., 0], outputs["confidence"], atol=1e-5)
        if method.variants[-1] == "student":
            student = method.predictions(images_NHW3.astype(np.float32))["student"]
            assert np.abs(np.max(student, axis=-1) - outputs["confidence"]).max() > 1e-3
        reliability = method.reliability(images_NHW3.astype(np.float32))
        assert ("reliability" in outputs) == (reliability is not None)
        if reliability is not None:
            np.testing.assert_allclose(outputs["reliability"], reliability, atol=1e-5)

    def test_probabilities_are_those_of_a_distribution_or_gated_ones(self, data):
        method = self.make(tiny.segmenter())
        x, _ = next(iter(data))
        for variant, probabilities in method.predictions(x["labeled"]).items():
            total = np.sum(probabilities, axis=-1)
            if variant == "without_gate" or len(method.variants) == 1:
                np.testing.assert_allclose(total, 1, rtol=1e-5)
            assert (total <= 1 + 1e-5).all() and np.min(probabilities) >= 0
        np.testing.assert_array_equal(method(x), method(x["labeled"]))
        np.testing.assert_array_equal(method.predict(x["labeled"], verbose=0), method(x["labeled"]))

    def test_evaluate_counts_pixels(self):
        method = self.make(tiny.segmenter())
        method.compile()
        rng = np.random.default_rng(3)
        images = rng.uniform(0, 255, (2, 4, 5, 3)).astype(np.float32)
        labels = rng.integers(0, tiny.K, (2, 4, 5)).astype(np.int32)
        method.evaluate(tf.data.Dataset.from_tensors((images, labels)), verbose=0)
        predicted = np.argmax(method(images), axis=-1)
        expected = np.zeros((tiny.K, tiny.K), np.int64)
        np.add.at(expected, (labels.ravel(), predicted.ravel()), 1)
        np.testing.assert_array_equal(method.confusion["mIoU"].matrix, expected)

    def test_the_same_seed_gives_the_same_losses(self, data):
        runs = []
        for _ in range(2):
            keras.utils.set_random_seed(5)
            method = self.make(tiny.segmenter())
            method.compile(run_eagerly=True)
            history = method.fit(data, steps_per_epoch=3, epochs=1, shuffle=False, verbose=0).history
            runs.append({name: values[-1] for name, values in history.items()})
        assert runs[0] == pytest.approx(runs[1], rel=1e-4)

    @pytest.mark.parametrize("label", [1, 255], ids=["one class only", "all ignored"])
    def test_labels_without_variety(self, label):
        x, y = tiny.batch(np.random.default_rng(1))
        method = self.make(tiny.segmenter())
        method.compile(run_eagerly=True)
        data = tf.data.Dataset.from_tensors((x, np.full_like(y, label)))
        S_BHWK = tiny.softmax(np.asarray(method.segmenter(x["labeled"]), np.float64))
        history = method.fit(data, epochs=1, shuffle=False, verbose=0).history
        assert all(np.isfinite(values).all() for values in history.values()), history
        assert all(np.isfinite(weight).all() for weight in method.get_weights())
        if "L_ce" in history:
            expected = 0.0 if label == 255 else -np.log(S_BHWK[..., label]).mean()
            assert history["L_ce"][-1] == pytest.approx(expected, rel=1e-4)

    def test_ten_losses_are_those_on_file(self, data):
        """A change of results is seen. Where it is meant, delete the file: the test fails once and writes it again."""
        keras.utils.set_random_seed(8)
        method = quickened(self.make(tiny.segmenter()))
        method.compile(run_eagerly=True)
        history = method.fit(data, steps_per_epoch=1, epochs=10, shuffle=False, verbose=0).history
        assert abs(history[self.loss][-1] / history[self.loss][0] - 1) > 0.02
        losses = {name: [float(f"{value:.6g}") for value in history[name]] for name in history if name[:2] == "L_"}
        file = Path(__file__).parent / "losses" / f"{type(self).__name__}.json"
        if not file.exists():
            lines = (f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in losses.items())
            file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            pytest.fail(f"{file} was missing and is written now: look at it")
        expected = json.loads(file.read_text())
        assert losses.keys() == expected.keys()
        for name, values in expected.items():
            assert losses[name] == pytest.approx(values, rel=2e-3, abs=1e-5), name

    def test_training_goes_on_from_its_variables(self, data):
        """What a checkpoint holds is enough: a second method given these variables takes the same next step."""
        methods = []
        for _ in range(2):
            keras.utils.set_random_seed(6)
            methods.append(self.make(tiny.segmenter()))
            methods[-1].compile(run_eagerly=True)
        first, second = methods
        first.fit(data, steps_per_epoch=2, epochs=1, shuffle=False, verbose=0)
        stored = {name: variable.numpy() for name, variable in training_variables(first).items()}
        targets = training_variables(second)
        assert targets.keys() == stored.keys()
        for name, variable in targets.items():
            variable.assign(stored[name])
        losses = [method.fit(data, steps_per_epoch=1, epochs=1, shuffle=False, verbose=0).history for method in methods]
        assert losses[0].keys() == losses[1].keys()
        for name, values in losses[0].items():
            assert values == pytest.approx(losses[1][name], rel=1e-5), name

    def test_gradient_norms_are_those_of_the_update_and_train_nothing(self, data):
        name, total = self.minimized
        method = self.make(tiny.segmenter())
        method.compile({name: keras.optimizers.SGD(1.0)})
        batch, variables = next(iter(data)), getattr(method, name).trainable_variables
        chance = [(variable, variable.numpy()) for variable in method.non_trainable_variables]
        before = method.get_weights()

        norms = gradient_norms(method, batch)
        for variable, value in chance:
            variable.assign(value)
        for weight, value in zip(method.get_weights(), before, strict=True):
            np.testing.assert_array_equal(weight, value)

        start = [variable.numpy() for variable in variables]
        assert norms.keys() <= method.update(method.batch(batch)).keys()
        moved = [variable.numpy() - value for variable, value in zip(variables, start, strict=True)]
        assert float(norms[total]) == pytest.approx(np.sqrt(sum(np.sum(change**2) for change in moved)), rel=1e-4)

    @pytest.mark.slow
    def test_two_replicas_follow_the_same_losses_as_one(self, two_replicas):
        batch = tiny.batch(np.random.default_rng(4), size=4)
        data = tf.data.Dataset.from_tensor_slices(batch).repeat().batch(4)
        logs = []
        for strategy in (tf.distribute.get_strategy(), two_replicas):
            keras.utils.set_random_seed(7)
            with strategy.scope():
                method = quickened(self.make_without_chance(tiny.segmenter()))
                method.compile(run_eagerly=strategy is not two_replicas)
            logs.append(method.fit(data, steps_per_epoch=1, epochs=10, shuffle=False, verbose=0).history)
        for name, values in logs[0].items():
            assert logs[1][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name

    @pytest.mark.slow
    def test_a_batch_in_two_parts_gives_the_losses_of_a_whole_one(self):
        batch = tiny.batch(np.random.default_rng(4), size=4)
        data = tf.data.Dataset.from_tensors(batch).repeat()
        logs = []
        for parts in (1, 2):
            keras.utils.set_random_seed(7)
            method = quickened(self.make_without_chance(tiny.segmenter()))
            method.compile(accumulate=parts, run_eagerly=parts == 1)
            logs.append(method.fit(data, steps_per_epoch=1, epochs=4, shuffle=False, verbose=0).history)
        for name, values in logs[0].items():
            assert logs[1][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name

    def make_without_chance(self, segmenter: keras.Model) -> Method:
        """The method without dropout, random views or batch norm, which differ on a replica's share of the batch."""
        return self.make(segmenter)

    def test_an_unknown_or_impossible_field_is_named(self):
        with pytest.raises(ValueError, match="no field 'gama'"):
            METHODS[self.name](tiny.segmenter(), gama=1)
        with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
            METHODS[self.name](tiny.segmenter(), steps=0)
