"""What a Keras user types."""

import csv
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasseg
from kerasseg.methods import METHODS, MLMT, S4GAN, Latent, Supervised, UniMatch
from tests.kerasseg.methods import tiny


def arrays(labeled: int = 5, unlabeled: int = 8, seed: int = 0):
    """Images, labels and unlabelled images."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (labeled + unlabeled, 4, 5, 3), np.uint8)
    y = rng.integers(0, tiny.K, (labeled, 4, 5)).astype(np.uint8)
    return x[:labeled], y, x[labeled:]


def s4gan(**fields) -> S4GAN:
    return S4GAN(tiny.segmenter(), tiny.discriminator(), **{"steps": 100} | fields)


# compile


def test_one_optimizer_is_the_segmenters():
    method = s4gan()
    papers = type(s4gan().make_optimizers()["discriminator"])
    method.compile(optimizer="adam")
    assert type(method.training_optimizers.segmenter) is keras.optimizers.Adam
    assert type(method.training_optimizers.discriminator) is papers
    assert method.optimizer is method.training_optimizers.segmenter
    own = keras.optimizers.SGD(0.25)
    method.compile(own)
    assert method.optimizer is own
    method.compile({"discriminator": "rmsprop"})
    assert type(method.training_optimizers.discriminator) is keras.optimizers.RMSprop
    with pytest.raises(ValueError, match="S4GAN trains no network 'generator'; it trains segmenter, discriminator"):
        method.compile({"generator": "adam"})


def test_one_optimizer_is_for_each_network_that_segments():
    method = Latent(tiny.BranchingSegmenter(), None, tiny.pixel_discriminator(), steps=5, labeled_images=2)
    method.compile(keras.optimizers.SGD(0.25))
    first, second = method.training_optimizers.segmenter, method.training_optimizers.latent_head
    assert first is not second and type(second) is keras.optimizers.SGD and float(second.learning_rate) == 0.25
    method.optimizer.learning_rate = 0.125  # as a callback sets it
    assert float(second.learning_rate) == 0.125


def test_a_loss_is_refused_and_further_metrics_are_measured():
    x, y, _ = arrays()
    y[0, 0] = 255
    method = Supervised(tiny.segmenter(), steps=5)
    for given in ({"loss": "mse"}, {"loss_weights": [1.0]}, {"weighted_metrics": ["accuracy"]}):
        with pytest.raises(
            ValueError, match=f"Supervised learns by the losses of its paper: leave out {next(iter(given))}"
        ):
            method.compile("adam", **given)
    method.compile("adam", metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(name="log_loss")])
    scores = method.evaluate(x, y, batch_size=5, return_dict=True, verbose=0)
    S = method.predict(x, verbose=0)
    known = y != 255
    assert scores.keys() == {"loss", "mIoU", "accuracy", "log_loss"}
    assert scores["accuracy"] == pytest.approx((S.argmax(-1) == y)[known].mean())
    likelihood = np.take_along_axis(S, np.where(known, y, 0)[..., None].astype(int), -1)[..., 0]
    assert scores["log_loss"] == scores["loss"] == pytest.approx(-np.log(likelihood[known]).mean(), rel=1e-5)


# learning rates


def test_a_rate_that_a_callback_sets_takes_the_place_of_the_schedule():
    x, y, _ = arrays(4)
    method = Supervised(
        tiny.segmenter(), steps=10, learning_rate=0.5, head_multiplier=1.0, momentum=0.0, weight_decay=0.0
    )
    method.compile()
    before = method.segmenter.get_weights()
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: [0.0, 0.25][epoch])
    with pytest.warns(UserWarning, match="the learning rate is set to 0 and no longer follows its schedule"):
        method.fit(x, y, batch_size=4, callbacks=[schedule], verbose=0)
    for weight, value in zip(method.segmenter.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)
    method.fit(x, y, batch_size=4, callbacks=[schedule], epochs=2, initial_epoch=1, verbose=0)
    twin = tiny.Segmenter.of([np.asarray(weight, np.float64) for weight in before])
    logits, cache = twin.forward(x)
    gradients = twin.backward(cache, tiny.cross_entropy(y, logits)[1])
    for weight, value, gradient in zip(method.segmenter.get_weights(), before, gradients, strict=True):
        np.testing.assert_allclose(weight, value - 0.25 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_plateau_lowers_the_rate(replicas, request):
    strategy = request.getfixturevalue("two_replicas") if replicas == 2 else tf.distribute.get_strategy()
    x, y, _ = arrays(4)
    with strategy.scope():
        method = Supervised(tiny.segmenter(), steps=100, learning_rate=0.5)
        method.compile()
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    with pytest.warns(UserWarning, match="no longer follows"):
        method.fit(x, y, batch_size=4, epochs=4, callbacks=[plateau], verbose=0)
    assert float(method.optimizer.learning_rate) < 0.25


def test_past_the_end_of_the_schedule_a_warning_says_that_nothing_is_learned():
    x, y, _ = arrays(4)
    method = Supervised(tiny.segmenter(), steps=2)
    method.compile()
    with pytest.warns(
        UserWarning, match="the learning rate of Supervised is 0 after the 2 steps of its schedule"
    ) as found:
        method.fit(x, y, batch_size=4, epochs=4, verbose=0)
    assert len([each for each in found if "of its schedule" in str(each.message)]) == 1


# data


def test_arrays_for_a_method_of_labelled_images():
    x, y, _ = arrays(4)
    losses = []
    for labels in (y, y[..., None], y.astype(np.int64)):
        keras.utils.set_random_seed(0)
        method = kerasseg.Supervised(tiny.segmenter(), steps=100, learning_rate=0.5)
        method.compile()
        history = method.fit(x, labels, batch_size=2, epochs=3, shuffle=False, verbose=0, validation_data=(x, labels))
        losses.append(history.history["loss"])
        assert len(history.history["val_mIoU"]) == 3
    assert losses[0] == losses[1] == losses[2] and losses[0][2] < losses[0][0]


def test_the_shorter_of_two_arrays_repeats():
    x, y, u = arrays(3, 8)
    seen = []

    class Noted(S4GAN):
        registry_name = "noted"

        def update(self, batch):
            seen.append((batch.labeled.numpy(), batch.labels.numpy(), batch.unlabeled.numpy()))
            return super().update(batch)

    method = Noted(tiny.segmenter(), tiny.discriminator(), steps=100)
    method.compile(run_eagerly=True)
    method.fit({"labeled": x, "unlabeled": u}, y[..., None], batch_size=2, shuffle=False, verbose=0)
    assert len(seen) == 4
    np.testing.assert_array_equal(np.concatenate([each[0] for each in seen]), x[[0, 1, 2, 0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(np.concatenate([each[1] for each in seen]), y[[0, 1, 2, 0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(np.concatenate([each[2] for each in seen]), u)
    method.fit({"labeled": x, "unlabeled": u}, y, batch_size=2, epochs=2, verbose=0)
    drawn = np.concatenate([each[2] for each in seen[4:8]])
    assert not np.array_equal(drawn, u) and sorted(map(np.sum, drawn)) == sorted(map(np.sum, u.astype(np.float32)))


def test_a_dataset_of_keras_own_kind():
    x, y, u = arrays(4, 4)

    class Images(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, number):
            part = slice(2 * number, 2 * number + 2)
            return {"labeled": x[part], "unlabeled": u[part]}, y[part]

    method = s4gan()
    method.compile()
    assert len(method.fit(Images(), epochs=2, verbose=0).history["L_fm"]) == 2


def test_class_weights_are_those_of_a_weighted_mean_in_a_graph_of_before_too():
    x, y, _ = arrays(4)
    method = Supervised(tiny.segmenter(), steps=100, learning_rate=1e-9)
    method.compile()
    twin = tiny.Segmenter(method.segmenter)
    logits, _ = twin.forward(x)
    log_p = np.log(np.take_along_axis(tiny.softmax(logits), y[..., None].astype(int), -1)[..., 0])
    for weights in (None, {1: 5.0}, {0: 0.0, 2: 2.0}, None):
        w = np.array([(weights or {}).get(number, 1.0) for number in range(tiny.K)])[y]
        loss = method.fit(x, y, batch_size=4, class_weight=weights, verbose=0).history["loss"][0]
        assert loss == pytest.approx(-(w * log_p).sum() / w.sum(), rel=1e-4)
    with pytest.raises(ValueError, match=r"class_weight names class 3, and the classes are 0\.\.2"):
        method.fit(x, y, class_weight={3: 1.0})
    mlmt = MLMT(Supervised(tiny.segmenter()), tiny.classifier(), train_branch=False)
    mlmt.compile()
    with pytest.raises(ValueError, match="MLMT does not use class_weight"):
        mlmt.fit({"labeled": x, "unlabeled": x}, y, class_weight={0: 1.0})


class Batches(keras.utils.PyDataset):
    """One batch."""

    def __init__(self, images, labels):
        super().__init__()
        self.batch = images, labels

    def __len__(self):
        return 1

    def __getitem__(self, number):
        return self.batch


@pytest.mark.parametrize("as_batches", [Batches, lambda x, y: tf.data.Dataset.from_tensors((x, y))])
@pytest.mark.parametrize(
    "scale, label, message",
    [(1 / 255, 0, "the largest value is 1: multiply by 255"), (1, 7, r"class numbers 0\.\.2, or 255 .*; got 7")],
)
def test_values_of_batches_are_checked_in_the_first_one(as_batches, scale, label, message):
    images, labels = np.full((2, 4, 5, 3), 255 * scale, np.float32), np.full((2, 4, 5), label)
    method = s4gan()
    method.compile()
    with pytest.raises(ValueError, match=message):
        method.fit(as_batches({"labeled": images, "unlabeled": images}, labels), verbose=0)


def test_a_fit_can_stop_by_the_loss_on_val():
    x, y, _ = arrays(4)
    method = Supervised(tiny.segmenter(), steps=100)
    method.compile()
    stop = keras.callbacks.EarlyStopping(patience=0, min_delta=1e9)
    history = method.fit(x, y, epochs=5, validation_data=(x, y), callbacks=stop, verbose=0).history
    assert len(history["val_loss"]) == 2 and list(history)[-2:] == ["val_loss", "val_mIoU"]


@pytest.mark.parametrize(
    "x, y, message",
    [
        (
            np.zeros((2, 4, 5, 1)),
            np.zeros((2, 4, 5)),
            r"images must be \(N,H,W,3\), RGB in 0..255; got .*\(2, 4, 5, 1\)",
        ),
        (np.zeros((2, 5, 3)), np.zeros((2, 4, 5)), r"images must be \(N,H,W,3\)"),
        (np.full((2, 4, 5, 3), 0.9), np.zeros((2, 4, 5)), "the largest value is 0.9: multiply by 255"),
        (np.full((2, 4, 5, 3), -0.9), np.zeros((2, 4, 5)), "their values go from -0.9 to -0.9: give them as they are"),
        (np.full((2, 4, 5, 3), 900), np.zeros((2, 4, 5)), "their values go from 900 to 900"),
        (np.full((2, 4, 5, 3), np.nan), np.zeros((2, 4, 5)), "their values go from nan to nan"),
        (np.zeros((0, 4, 5, 3)), np.zeros((0, 4, 5)), "there are no labeled images: the array is empty"),
        (np.full((2, 4, 5, 3), 9.0), np.full((2, 4, 5), 7), r"class numbers 0\.\.2, or 255 .*; got 7"),
        (np.full((2, 4, 5, 3), 9.0), np.full((2, 4, 5), 0.5), r"class numbers 0\.\.2, or 255 .*; got 0.5"),
        (np.full((2, 4, 5, 3), 9.0), np.zeros((2, 4, 5, 3)), r"got \(.*, 4, 5, 3\): take the argmax of one-hot labels"),
        (np.full((2, 4, 5, 3), 9.0), np.zeros((2, 4)), r"labels must be class numbers \(B,H,W\)"),
    ],
)
def test_wrong_arrays_are_refused_in_a_line(x, y, message):
    method = Supervised(tiny.segmenter())
    method.compile()
    with pytest.raises(ValueError, match=message):
        method.fit(x, y, verbose=0)


def test_what_else_is_refused_in_a_line():
    x, y, _ = arrays()
    method = s4gan()
    method.compile()
    with pytest.raises(ValueError, match="S4GAN learns from unlabelled images too: give fit {'labeled': images"):
        method.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="give a pixel the label 255"):
        method.fit(x, y, sample_weight=np.ones(len(x)))
    with pytest.raises(ValueError, match=r"fit takes arrays as {'labeled': images, .*; got unlabeled"):
        method.fit({"unlabeled": x}, y, verbose=0)


@pytest.mark.parametrize(
    "x, y, message",
    [
        ({"labeled": np.full((3, 4, 5, 3), 9.0), "unlabeled": [1, 2]}, np.zeros((3, 4, 5)), "one array .*; got a list"),
        ({"labeled": np.full((3, 4, 5, 3), 9.0)}, np.zeros((2, 4, 5)), "there are 3 labelled images and 2 label maps"),
        ({"labeled": np.full((3, 4, 5, 3), 9.0)}, None, "labels are missing"),
        (np.full((3, 4, 5, 3), 9.0), np.zeros((3, 4, 6)), r"labels must be as large as the labelled images, \(4, 5\)"),
        (
            {"labeled": np.full((3, 4, 5, 3), 9.0), "unlabeled": np.full((3, 4, 4, 3), 9.0)},
            np.zeros((3, 4, 5)),
            r"unlabeled must be as large as the labelled images",
        ),
    ],
)
def test_arrays_that_do_not_fit_each_other(x, y, message):
    method = s4gan() if isinstance(x, dict) else Supervised(tiny.segmenter())
    method.compile()
    with pytest.raises(ValueError, match=message):
        method.fit(x, y, verbose=0)


def test_unimatch_takes_two_unlabelled_images_for_each():
    x, y, u = arrays(3, 8)
    method = UniMatch(tiny.BranchingSegmenter(), steps=10)
    method.compile(run_eagerly=True)
    assert len(method.fit({"labeled": x, "unlabeled": u}, y, batch_size=1, verbose=0).history["loss"]) == 1
    with pytest.raises(ValueError, match="unimatch needs an even number of unlabelled images; got 3"):
        method.train_on_batch({"labeled": x, "unlabeled": u[:3]}, y)


def test_keras_arguments_by_position():
    x, y, _ = arrays(4)
    method = Supervised(tiny.segmenter(), steps=100)
    method.compile("adam", metrics="accuracy")
    assert len(method.fit(x, y, 2, 3, 0).history["loss"]) == 3
    assert np.isfinite(method.train_on_batch(x, y)).all()
    assert method.evaluate({"labeled": x}, y, verbose=0, return_dict=True).keys() == {"loss", "mIoU", "accuracy"}
    with pytest.raises(ValueError, match="steps_per_execution must be 1"):
        method.compile(steps_per_execution=5)


@pytest.mark.parametrize("ending", ["softmax", "sigmoid", "layer", "operation", "before", "within", "sequential"])
def test_a_segmenter_that_gives_probabilities_is_refused(ending):
    image = keras.Input((None, None, 3))
    activation = ending if ending in ("softmax", "sigmoid") else None
    x = keras.layers.Conv2D(3, 1, name="scores", activation=activation)(image)
    x = x if activation or ending == "operation" else keras.layers.Softmax(name="scores_softmax")(x)
    x = keras.ops.softmax(x) if ending == "operation" else x
    x = keras.layers.UpSampling2D()(x) if ending == "before" else x
    network = keras.Model(image, x)
    if ending == "within":
        network = keras.Model(image, keras.layers.Resizing(8, 8)(network(image)))
    if ending == "sequential":
        network = keras.Sequential([image, network])
    with pytest.raises(ValueError, match="must give logits, and (scores|softmax).* gives probabilities: leave out its"):
        Supervised(network)


class Subclassed(keras.Model):
    def call(self, images):
        return images


@pytest.mark.parametrize(
    "network, message",
    [
        (Subclassed, "functional or Sequential model .* got a Subclassed without inputs"),
        (lambda: network_of(1), "the logits of two classes at least; it gives 1"),
        (lambda: network_of(3, strides=2), "logits as large as the image; got .* add UpSampling2D"),
    ],
)
def test_other_networks_are_refused(network, message):
    x, y, _ = arrays(4)
    with pytest.raises(ValueError, match=message):
        method = Supervised(network())
        method.compile()
        method.fit(x, y, verbose=0)


def network_of(classes: int, strides: int = 1) -> keras.Model:
    image = keras.Input((None, None, 3))
    return keras.Model(image, keras.layers.Conv2D(classes, 1, strides=strides)(image))


@pytest.mark.parametrize(
    "metrics, message",
    [
        (lambda: keras.metrics.MeanIoU(3), "MeanIoU gets class probabilities: give it sparse_y_pred=False; `mIoU` is"),
        (lambda: {"a": "accuracy"}, "give metrics as a list"),
        (lambda: [keras.metrics.Mean(name="mIoU")], "a metric 'mIoU' is measured anyway"),
    ],
)
def test_metrics_that_cannot_be_measured(metrics, message):
    with pytest.raises(ValueError, match=message):
        Supervised(tiny.segmenter()).compile(metrics=metrics())


def test_two_pipelines_in_a_tuple_are_no_batches():
    x, y, u = arrays(4, 4)
    labeled, unlabeled = (tf.data.Dataset.from_tensors(each) for each in ((x, y), u))
    method = s4gan()
    method.compile()
    with pytest.raises(ValueError, match="a batch is"):
        method.fit(tf.data.Dataset.zip((labeled, unlabeled)), verbose=0)


def test_latent_counts_the_labelled_images_of_arrays():
    x, y, u = arrays(4, 4)
    method = Latent(tiny.BranchingSegmenter(), None, tiny.pixel_discriminator(), steps=5)
    method.compile()
    with pytest.raises(ValueError, match="latent needs to know how many images have labels: labeled_images=N"):
        method.fit(tf.data.Dataset.from_tensors(({"labeled": x, "unlabeled": u}, y)), verbose=0)
    method.fit({"labeled": x, "unlabeled": u}, y, batch_size=2, verbose=0)
    assert method.config.labeled_images == 4


# what is seen of a training


def test_history_and_csv_hold_means_over_the_epoch_with_the_loss_first(tmp_path):
    x, y, u = arrays(4, 4)
    steps = []

    class Noted(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(dict(logs))

    method = s4gan(learning_rate=0.5)
    method.compile()
    callbacks = [Noted(), keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    data = {"labeled": x, "unlabeled": u}
    history = method.fit(
        data, y, batch_size=2, epochs=2, callbacks=callbacks, verbose=0, validation_data=(x, y)
    ).history
    assert list(history)[:3] == ["loss", "L_S", "L_ce"] and list(history)[-1] == "val_mIoU"
    for name in ("L_S", "L_ce", "L_D"):
        assert history[name] == pytest.approx(
            [(steps[0][name] + steps[1][name]) / 2, (steps[2][name] + steps[3][name]) / 2]
        )
    assert history["loss"] == history["L_S"] and steps[0]["L_S"] != steps[1]["L_S"]
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == pytest.approx(history["loss"], rel=1e-5)


def test_the_bar_begins_with_the_loss(capsys):
    x, y, u = arrays(4, 4)
    method = s4gan()
    method.compile()
    method.fit({"labeled": x, "unlabeled": u}, y, batch_size=2, verbose=2)
    out = capsys.readouterr().out
    assert 0 < out.index("loss: ") < out.index("L_S: ") < out.index("L_D: ")


def test_callbacks_see_the_loss_of_a_step(tmp_path):
    x, y, u = arrays(4, 4)
    method = s4gan()
    method.compile()
    method.labeled_loss = lambda *_: tf.constant(np.nan)
    method.fit({"labeled": x, "unlabeled": u}, y, epochs=3, callbacks=keras.callbacks.TerminateOnNaN(), verbose=0)
    assert method.stop_training and int(method.optimizer.iterations) == 1


def test_callbacks_know_that_a_larger_mIoU_is_better(tmp_path):
    x, y, _ = arrays(4)
    method = Supervised(tiny.segmenter(), steps=100)
    method.compile()
    callbacks = [
        keras.callbacks.EarlyStopping("val_mIoU", patience=5),
        keras.callbacks.ReduceLROnPlateau("val_mIoU"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_mIoU", save_best_only=True),
    ]
    history = method.fit(x, y, epochs=2, validation_data=(x, y), callbacks=callbacks, verbose=0).history
    best = keras.saving.load_model(tmp_path / "best.keras")
    best.compile()
    assert best.evaluate(x, y, verbose=0, return_dict=True)["mIoU"] == pytest.approx(max(history["val_mIoU"]))


def test_the_end_of_the_schedule_is_said_within_an_epoch():
    x, y, _ = arrays(4)
    method = Supervised(tiny.segmenter(), steps=2)
    method.compile()
    with pytest.warns(UserWarning, match="the learning rate of Supervised is 0 after the 2 steps of its schedule"):
        method.fit(x, y, batch_size=1, verbose=0)


# models


def test_nothing_of_keras_is_hidden():
    ours = {"call", "compile", "fit", "evaluate", "export", "metrics", "get_config", "from_config", "train_step"}
    ours |= {"test_step", "get_compile_config"}
    for method in METHODS.values():
        names = {name for each in method.__mro__ if each.__module__.startswith("kerasseg") for name in vars(each)}
        hidden = {name for name in names & set(dir(keras.Model)) if not name.startswith("_")}
        assert hidden <= ours, hidden - ours
    s4gan().summary(print_fn=lambda *_: None)


def test_a_loaded_method_trains_on(tmp_path):
    x, y, _ = arrays(4)
    method = Supervised(tiny.segmenter(), steps=100, learning_rate=0.5)
    method.compile()
    method.fit(x, y, batch_size=4, epochs=3, verbose=0)
    method.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.compile()
    before = loaded.segmenter.get_weights()
    loaded.fit(x, y, batch_size=4, verbose=0)
    assert np.abs(loaded.segmenter.get_weights()[0] - before[0]).max() > 0


@pytest.mark.parametrize("called", [False, True])
def test_export_at_any_time(tmp_path, called):
    x, _, _ = arrays(4)
    method = Supervised(tiny.segmenter())
    if called:
        method.predict(x, verbose=0)
    method.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(saved.serve(tf.constant(x[:2], tf.float32)), method.predict(x[:2], verbose=0), rtol=1e-5)


def test_what_stands_at_the_top():
    for method in METHODS.values():
        assert getattr(kerasseg, method.__name__) is method
    assert kerasseg.DeepLabV3Plus is kerasseg.segmenters.DeepLabV3Plus
    assert kerasseg.data.open_dataset("shapes").name == "shapes"


def test_nothing_of_this_warns_in_ordinary_use():
    x, y, u = arrays(4, 4)
    method = UniMatch(tiny.BranchingSegmenter(), steps=4)
    method.compile("adam")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.fit({"labeled": x, "unlabeled": u}, y, batch_size=4, epochs=2, verbose=0)
