"""What Keras users give to `fit`, and what they see of a training."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasseg.checks import require
from kerasseg.distribution import number
from kerasseg.losses import IGNORE_LABEL, valid_pixels
from kerasseg.methods.batch import as_batch, image_batch, label_maps
from kerasseg.methods.compiling import CompiledModel

BATCH_SIZE = 32
"""The batch size where `fit` is given arrays and no batch size: Keras' own."""


def repeated_batches(x: Mapping[str, Any], y: Any, batch_sizes: Mapping[str, int], shuffle: bool) -> tf.data.Dataset:
    """Endless batches from arrays of different lengths.

    Args:
        x: (N,H,W,3) under "labeled", (M,H,W,3) under "unlabeled".
        y: labels of the N, (N,H,W) or (N,H,W,1).
        batch_sizes: under the same names.
        shuffle: whether each array is drawn in a new order each time.
    """
    arrays = {name: (y, images) if name == "labeled" else (images,) for name, images in x.items()}
    streams = {}
    for name, each in arrays.items():
        items = tf.data.Dataset.from_tensor_slices(tuple(map(np.asarray, each)))
        items = items.shuffle(len(each[0])) if shuffle else items
        streams[name] = items.repeat().batch(batch_sizes[name], drop_remainder=True)
    return tf.data.Dataset.zip(streams).map(
        lambda batch: ({name: each[-1] for name, each in batch.items()}, batch["labeled"][0])
    )


def require_arrays(x: Any, labels: Any) -> None:
    """ValueError where the arrays that `fit` was given are not images and label maps, by their shapes."""
    arrays = x if isinstance(x, Mapping) else {"labeled": x}
    require(
        "labeled" in arrays and arrays.keys() <= {"labeled", "unlabeled"},
        f"fit takes arrays as {{'labeled': images, 'unlabeled': images}}; got {', '.join(sorted(arrays))}"
        + (": give the others in batches" if "labeled" in arrays else ""),
    )
    for name, each in arrays.items():
        require(hasattr(each, "shape"), f"the {name} images must be one array (N,H,W,3); got a {type(each).__name__}")
    require(labels is not None, "labels are missing: fit(images, labels)")
    count, labels_count = len(arrays["labeled"]), len(labels)
    require(count == labels_count, f"there are {count} labelled images and {labels_count} label maps")
    for name, each in arrays.items():
        require(len(each) > 0, f"there are no {name} images: the array is empty")
        if each.shape[-1] != 3 or len(each.shape) != 4:
            raise ValueError(f"images must be (N,H,W,3), RGB in 0..255; got an array of shape {tuple(each.shape)}")


def require_values(data: Any, num_classes: int) -> None:
    """ValueError where the images of `(images, labels)` are not in 0..255, or the labels no class numbers."""
    x, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
    images = x if isinstance(x, Mapping) else {"labeled": x}
    for each in (np.asarray(images[name]) for name in ("labeled", "unlabeled") if name in images):
        least, most = (float(each.min()), float(each.max())) if each.size else (0.0, 0.0)
        if not 0.0 <= least <= most <= 255.0:
            raise ValueError(
                f"images must be RGB in 0..255, and their values go from {least:.3g} to {most:.3g}: give them as they "
                "are in the file, the network normalises them"
            )
        if np.issubdtype(each.dtype, np.floating) and 0.0 < most <= 1.0:
            raise ValueError(
                f"images must be RGB in 0..255, and the largest value is {most:.3g}: multiply by 255, the network does "
                "the rest"
            )
    wrong = np.setdiff1d(np.unique(np.asarray(labels)), [*range(num_classes), IGNORE_LABEL])
    if wrong.size:
        raise ValueError(
            f"labels must be class numbers 0..{num_classes - 1}, or {IGNORE_LABEL} for ignored pixels; got {wrong[0]:g}"
        )


def first_batch(x: Any) -> Any:
    """The first batch of a PyDataset, or of a tf.data pipeline, which is started once more for it; None for all else
    that gives batches."""
    if isinstance(x, keras.utils.PyDataset):
        return x[0]
    return next(iter(x.take(1)), None) if isinstance(x, tf.data.Dataset) else None


class EpochMeans(keras.callbacks.Callback):
    """Makes the log of an epoch, for history and CSVLogger, hold means over its steps, with `loss` first."""

    def on_epoch_begin(self, epoch, logs=None):
        self.values: dict[str, list[float]] = {}

    def on_train_batch_end(self, batch, logs=None):
        for name, value in (logs or {}).items():
            self.values.setdefault(name, []).append(value)

    def on_epoch_end(self, epoch, logs):
        means = {name: float(np.mean(values)) for name, values in self.values.items()}
        replace(logs, self.model.loss_first(logs | means))


class LossFirst(keras.callbacks.Callback):
    """Puts `loss` before the terms for the callbacks after this one, such as Keras' bar and `TerminateOnNaN`."""

    def on_train_batch_end(self, batch, logs=None):
        if logs:
            replace(logs, self.model.loss_first(logs))


class EndOfSchedule(keras.callbacks.Callback):
    """Warns once when the learning rate has reached 0."""

    warned = False

    def on_epoch_begin(self, epoch, logs=None):
        method = self.model
        steps_done = number(method.main_optimizer.iterations) // method.config.main_updates
        self.steps_left = max(0, method.config.steps - steps_done)

    def on_train_batch_begin(self, batch, logs=None):
        self.steps_left -= 1
        if self.warned or self.steps_left != -1:  # the first step past the schedule, or of an epoch past it
            return
        method = self.model
        optimizers = vars(method.training_optimizers).items()
        if stopped := [name for name, each in optimizers if float(each.learning_rate) == 0.0]:
            self.warned = True
            warnings.warn(
                f"the learning rate of {type(method).__name__} is 0 after the {method.config.steps} steps of its "
                f"schedule, so {' and '.join(stopped)} learns nothing more: build it with more steps, or set a rate",
                stacklevel=2,
            )


def replace(logs: dict[str, float], values: Mapping[str, float]) -> None:
    """Puts other values into the same dictionary, which later callbacks get too."""
    values = dict(values)
    logs.clear()
    logs.update(values)


class FittedModel(CompiledModel):
    """The Keras side of a method: `fit`, `evaluate` and `export`.

    A method gives it `num_classes`, `predictions`, `confusion` (a metric for each prediction), `main_optimizer` and
    `config`.
    """

    num_classes: Any
    main_optimizer: Any
    confusion: dict[str, keras.metrics.Metric]
    evaluation_loss: keras.metrics.Metric
    """The cross-entropy of what is predicted, over all pixels that are not ignored: `loss` of `evaluate`."""
    predictions: Callable[..., dict[str, tf.Tensor]]
    unlabeled_sets: Any
    least_unlabeled: Any
    term_names: tuple[str, ...] = ()
    """The names of a training step's loss terms in their order, the total first."""

    def loss_first(self, logs: Mapping[str, float]) -> dict[str, float]:
        """The values of a log in order: the total as `loss`, the terms of the paper, all others."""
        terms = {name: logs[name] for name in self.term_names if name in logs}
        return ({"loss": logs[self.term_names[0]]} if terms else {}) | terms | dict(logs)

    def fit(
        self,
        x=None,
        y=None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: str | int = "auto",
        callbacks=None,
        *,
        validation_split: float = 0.0,
        validation_data=None,
        steps_per_epoch: int | None = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight=None,
        check_values: bool = True,
        **kwargs,
    ):
        """As `keras.Model.fit`, with means over the epoch in its history, `loss` first.

        Keras' own `BackupAndRestore` and `save_weights` keep the state of `method.optimizer` only, not of a critic's
        optimizer; `training.run --resume` keeps all.

        Args:
            x: batches (`tf.data.Dataset`, `keras.utils.PyDataset`, generator) of `({"labeled": images, "unlabeled":
                images}, labels)`; or arrays `{"labeled": images, "unlabeled": images}`, of which the shorter one
                repeats; or images where the method needs no unlabelled ones.
            y: with arrays the labels (N,H,W) or (N,H,W,1).
            class_weight: from class to the weight of its pixels in the loss on labels, 1 where a class is left out;
                the loss is the weighted mean. For this fit, in place of the field `class_weights`.
            check_values: check the first batch of a tf.data pipeline or PyDataset: images in 0..255, labels class
                numbers. This starts the pipeline once more. Arrays are always checked.
            sample_weight: None; label 255 leaves pixels out.
            kwargs: the further arguments of `keras.Model.fit`.

        Raises:
            ValueError: for arrays of other shapes or values, or weights that the method has no use for.
        """
        require(sample_weight is None, "sample_weight is not used: give a pixel the label 255 to leave it out")
        if isinstance(x, Mapping | np.ndarray | tf.Tensor):
            require_arrays(x, y)
            require_values((x, y), self.num_classes)
        elif check_values and (batch := first_batch(x)) is not None:
            as_batch(batch)  # which says what it should be
            require_values(batch, self.num_classes)
        if isinstance(validation_data, tuple):
            require_values(validation_data, self.num_classes)
        if isinstance(x, Mapping):
            require(validation_split == 0, "give validation_data in place of validation_split, which splits one array")
            size = batch_size or BATCH_SIZE
            sizes = {"labeled": size, "unlabeled": max(size * self.unlabeled_sets, self.least_unlabeled)}
            batches = max(-(-len(images) // sizes[name]) for name, images in x.items())
            x, y = repeated_batches(x, y, sizes, shuffle), None
            steps_per_epoch, batch_size, shuffle = steps_per_epoch or batches, None, False
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks or ())
            for each in callbacks:  # such as EarlyStopping: Keras knows the direction of its own metrics only
                if getattr(each, "mode", None) == "auto" and each.monitor.removeprefix("val_") in self.confusion:
                    each.mode = "max"
            callbacks = [EpochMeans(), LossFirst(), EndOfSchedule(), *callbacks]
        with self.weighed_classes(class_weight):
            return super().fit(
                x,
                y,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_split=validation_split,
                validation_data=validation_data,
                steps_per_epoch=steps_per_epoch,
                shuffle=shuffle,
                **kwargs,
            )

    @contextlib.contextmanager
    def weighed_classes(self, class_weight: Mapping[int, float] | None) -> Iterator[None]:
        """Inside, the field `class_weights` has these values; ValueError where the method has no such field, or for an
        unknown class."""
        if class_weight is None:
            yield
            return
        require(hasattr(self.config, "class_weights"), f"{type(self).__name__} does not use class_weight: leave it out")
        if unknown := sorted(set(class_weight) - set(range(self.num_classes))):
            raise ValueError(f"class_weight names class {unknown[0]}, and the classes are 0..{self.num_classes - 1}")
        weights = tuple(float(class_weight.get(number, 1.0)) for number in range(self.num_classes))
        before = self.config
        self.config = dataclasses.replace(before, class_weights=weights)
        self.make_train_function(force=True)  # a graph that exists already has the old weights
        try:
            yield
        finally:
            self.config = before
            self.make_train_function(force=True)

    def test_step(self, data):
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        require(weights is None, "sample_weight is not used: give a pixel the label 255 to leave it out")
        images = images["labeled"] if isinstance(images, Mapping) else images
        images_BHW3, labels_BHW = image_batch(images), label_maps(labels)
        predictions = self.predictions(images_BHW3)
        for variant, probabilities_BHWK in predictions.items():
            self.confusion[variant or "mIoU"].update_state(labels_BHW, tf.argmax(probabilities_BHWK, axis=-1))
        valid_BHW = valid_pixels(labels_BHW)
        known_BHW = tf.where(valid_BHW, labels_BHW, 0)
        cross_entropy_BHW = keras.losses.sparse_categorical_crossentropy(known_BHW, predictions[""])
        self.evaluation_loss.update_state(cross_entropy_BHW, sample_weight=valid_BHW)
        for metric in self.further_metrics:
            metric.update_state(known_BHW, predictions[""], sample_weight=valid_BHW)
        return {metric.name: metric.result() for metric in self.metrics}

    @property
    def metrics(self):
        return [self.evaluation_loss, *self.confusion.values(), *self.further_metrics]

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """As `keras.Model.export`, at any time; by default from images (B,H,W,3) float32 to class probabilities.

        `python -m export.run` gives more of a run: labels and confidence, uint8 input, ONNX, a proof that they agree.
        """
        images = [keras.InputSpec(shape=(None, None, None, 3), dtype="float32")]
        super().export(filepath, format, verbose, input_signature or images, **kwargs)
