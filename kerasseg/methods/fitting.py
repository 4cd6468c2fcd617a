"""What Keras users give to `compile` and `fit`, and what they get to see of a training."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from kerasseg.distribution import number
from kerasseg.keras_internals import BuiltModel
from kerasseg.losses import IGNORE_LABEL, valid_pixels
from kerasseg.methods.batch import image_batch, label_maps
from kerasseg.methods.config import require

if TYPE_CHECKING:
    from kerasseg.methods.method import Method

Optimizers: TypeAlias = str | keras.optimizers.Optimizer | Mapping[str, str | keras.optimizers.Optimizer] | None
BATCH_SIZE = 32
"""Where `fit` is given arrays and no other: Keras' own."""


# compile ----------------------------------------------------------------------------------------------------


def optimizers_by_network(method: "Method", optimizer: Optimizers) -> dict[str, keras.optimizers.Optimizer]:
    """The optimizers that `compile` was given, by network: one by itself is for the networks that segment.

    Raises:
        ValueError: for a name that is no network of the method, or an optimizer that Keras does not know.
    """
    if optimizer is None:
        return {}
    if not isinstance(optimizer, Mapping):
        first = keras.optimizers.get(optimizer)
        copies = [first.from_config(first.get_config()) for _ in method.segmenting[1:]]
        return dict(zip(method.segmenting, [first, *copies], strict=True))
    for name in optimizer:
        if name not in method.network_names:
            raise ValueError(
                f"{type(method).__name__} has no network {name!r}; its networks: {', '.join(method.network_names)}"
            )
    return {name: keras.optimizers.get(each) for name, each in optimizer.items()}


def further_metric(metric: str | keras.metrics.Metric) -> keras.metrics.Metric:
    """A metric of class probabilities against class numbers, by Keras' name for it, or itself."""
    if metric in ("accuracy", "acc"):  # which Keras takes for the kind that fits the loss
        return keras.metrics.SparseCategoricalAccuracy(name=metric)
    return keras.metrics.get(metric)


def require_logits(segmenter: keras.Model | None) -> None:
    """ValueError where a segmenter ends in a softmax or a sigmoid."""
    last: Any = next(reversed(getattr(segmenter, "layers", [])), None)
    activation = getattr(last, "activation", None)
    if isinstance(last, keras.layers.Softmax) or activation in (keras.activations.softmax, keras.activations.sigmoid):
        raise ValueError(
            f"the segmenter must give logits, and its last layer {last.name} gives probabilities: leave out its "
            "activation"
        )


# fit --------------------------------------------------------------------------------------------------------


def repeated_batches(x: Mapping[str, Any], y: Any, batch_size: int, shuffle: bool) -> tf.data.Dataset:
    """Batches without end of arrays of different lengths.

    Args:
        x: images by what they are for: (N,H,W,3) under "labeled", (M,H,W,3) under "unlabeled".
        y: labels of the N, (N,H,W) or (N,H,W,1).
        batch_size: of each.
        shuffle: whether each is drawn in a new order each time.
    """
    arrays = {name: (y, images) if name == "labeled" else (images,) for name, images in x.items()}
    streams = {}
    for name, each in arrays.items():
        items = tf.data.Dataset.from_tensor_slices(tuple(map(np.asarray, each)))
        items = items.shuffle(len(each[0])) if shuffle else items
        streams[name] = items.repeat().batch(batch_size, drop_remainder=True)
    return tf.data.Dataset.zip(streams).map(
        lambda batch: ({name: each[-1] for name, each in batch.items()}, batch["labeled"][0])
    )


def require_images_and_labels(x: Any, labels: Any, num_classes: int) -> None:
    """ValueError where arrays are not what `fit` takes: their shapes, and their values as far as they can be seen."""
    arrays = x if isinstance(x, Mapping) else {"labeled": x}
    require(
        "labeled" in arrays,
        f"fit takes {{'labeled': images, 'unlabeled': images}}; got only {', '.join(sorted(arrays))}",
    )
    for each in arrays.values():
        if each.shape[-1] != 3 or len(each.shape) != 4:
            raise ValueError(f"images must be (N,H,W,3), RGB in 0..255; got an array of shape {tuple(each.shape)}")
        if isinstance(each, np.ndarray) and np.issubdtype(each.dtype, np.floating) and each.size and each.max() <= 1.0:
            raise ValueError(
                f"images must be RGB in 0..255, and the largest value is {each.max():.3g}: multiply by 255, the "
                "network does the rest"
            )
    if isinstance(labels, np.ndarray):
        wrong = np.setdiff1d(np.unique(labels), [*range(num_classes), IGNORE_LABEL])
        if wrong.size:
            raise ValueError(
                f"labels must be class numbers 0..{num_classes - 1}, or {IGNORE_LABEL} where a pixel counts for "
                f"nothing; got {wrong[0]:g}"
            )


class EpochMeans(keras.callbacks.Callback):
    """Makes the log of an epoch, as history and CSVLogger keep it, means over its steps, `loss` first."""

    def on_epoch_begin(self, epoch, logs=None):
        self.values: dict[str, list[float]] = {}

    def on_train_batch_end(self, batch, logs=None):
        for name, value in (logs or {}).items():
            self.values.setdefault(name, []).append(value)

    def on_epoch_end(self, epoch, logs):
        means = {name: float(np.mean(values)) for name, values in self.values.items()}
        replace(logs, self.model.loss_first(logs | means))


class LossFirst(keras.callbacks.Callback):
    """Puts `loss` before the terms on Keras' bar, which comes after it."""

    def on_train_batch_end(self, batch, logs=None):
        if logs:
            replace(logs, self.model.loss_first(logs))


class EndOfSchedule(keras.callbacks.Callback):
    """Warns once when the learning rate has reached 0."""

    warned = False

    def on_epoch_begin(self, epoch, logs=None):
        method = self.model
        optimizer = method.main_optimizer
        ended = number(optimizer.iterations) >= method.config.steps * method.config.main_updates
        if ended and not self.warned and float(optimizer.learning_rate) == 0.0:
            self.warned = True
            warnings.warn(
                f"the learning rate of {type(method).__name__} is 0 after the {method.config.steps} steps of its "
                "schedule, so nothing more is learned: build it with more steps, or set a rate",
                stacklevel=2,
            )


def replace(logs: dict[str, float], values: Mapping[str, float]) -> None:
    """Other values in the same dictionary, which the callbacks after this one are given too."""
    values = dict(values)
    logs.clear()
    logs.update(values)


class FittedModel(BuiltModel):
    """What Keras users know of a model: `fit`, `evaluate` and `export`, by what a method gives.

    That is `num_classes`, `predictions`, `confusion` (a metric for each prediction), `main_optimizer` and `config`.
    """

    config: Any
    num_classes: Any
    main_optimizer: Any
    confusion: dict[str, keras.metrics.Metric]
    predictions: Callable[..., dict[str, tf.Tensor]]
    further_metrics: Sequence[keras.metrics.Metric] = ()
    """Those that `compile` was given."""
    term_names: tuple[str, ...] = ()
    """The terms of a training step in their order, the total first."""

    def loss_first(self, logs: Mapping[str, float]) -> dict[str, float]:
        """The values of a log in order: the total as `loss`, the terms of the paper, all others."""
        terms = {name: logs[name] for name in self.term_names if name in logs}
        return ({"loss": logs[self.term_names[0]]} if terms else {}) | terms | dict(logs)

    def fit(
        self,
        x=None,
        y=None,
        batch_size: int | None = None,
        *,
        steps_per_epoch: int | None = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight=None,
        callbacks=None,
        **kwargs,
    ):
        """As `keras.Model.fit`, with means over the epoch in its history, `loss` first.

        Args:
            x: batches (`tf.data.Dataset`, `keras.utils.PyDataset`, generator) of `({"labeled": images, "unlabeled":
                images}, labels)`, or arrays: `{"labeled": images, "unlabeled": images}`, the shorter of which repeat,
                or images where the method needs no unlabelled ones.
            y: with arrays the labels (N,H,W) or (N,H,W,1).
            class_weight: from class to the weight of its pixels in the loss on labels, 1 where a class is left out; a
                weighted mean.
            sample_weight: None; label 255 leaves pixels out.
            kwargs: the further arguments of `keras.Model.fit`.

        Raises:
            ValueError: for arrays of other shapes or values, or weights that the method has no use for.
        """
        require(sample_weight is None, "sample_weight is not used: give a pixel the label 255 to leave it out")
        if class_weight is not None:
            self.weigh_classes(class_weight)
        if isinstance(x, Mapping | np.ndarray):
            require_images_and_labels(x, y, self.num_classes)
        if isinstance(x, Mapping):
            steps_per_epoch = steps_per_epoch or -(-max(map(len, x.values())) // (batch_size or BATCH_SIZE))
            x, y, batch_size, shuffle = repeated_batches(x, y, batch_size or BATCH_SIZE, shuffle), None, None, False
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks or ())
            callbacks = [EpochMeans(), EndOfSchedule(), *callbacks, LossFirst()]
        return super().fit(
            x,
            y,
            batch_size=batch_size,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
            callbacks=callbacks,
            **kwargs,
        )

    def weigh_classes(self, class_weight: Mapping[int, float]) -> None:
        """Sets the field `class_weights`; ValueError where the method has none, or for a class that there is not."""
        require(
            hasattr(self.config, "class_weights"), f"{type(self).__name__} has no use for class_weight: leave it out"
        )
        if unknown := sorted(set(class_weight) - set(range(self.num_classes))):
            raise ValueError(f"class_weight names class {unknown[0]}, and there are 0..{self.num_classes - 1}")
        weights = tuple(float(class_weight.get(number, 1.0)) for number in range(self.num_classes))
        if weights != self.config.class_weights:
            self.config = dataclasses.replace(self.config, class_weights=weights)
            self.make_train_function(force=True)  # a graph that exists already has the weights of before

    def test_step(self, data):
        images, labels = data[:2]
        images_BHW3, labels_BHW = image_batch(images), label_maps(labels)
        predictions = self.predictions(images_BHW3)
        for variant, probabilities_BHWK in predictions.items():
            self.confusion[variant or "mIoU"].update_state(labels_BHW, tf.argmax(probabilities_BHWK, axis=-1))
        valid_BHW = valid_pixels(labels_BHW)
        for metric in self.further_metrics:
            metric.update_state(tf.where(valid_BHW, labels_BHW, 0), predictions[""], sample_weight=valid_BHW)
        return {metric.name: metric.result() for metric in self.metrics}

    @property
    def metrics(self):
        return [*self.confusion.values(), *self.further_metrics]

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """As `keras.Model.export`, at any time; by default of images (B,H,W,3) float32 to class probabilities.

        `python -m export.run` makes more of a run: labels and confidence, uint8 in, ONNX, a proof that they agree.
        """
        images = [keras.InputSpec(shape=(None, None, None, 3), dtype="float32")]
        super().export(filepath, format, verbose, input_signature or images, **kwargs)
