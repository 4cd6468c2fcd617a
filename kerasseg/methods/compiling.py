"""What Keras users give to `compile`: optimizers by network, and further metrics."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import keras

from kerasseg import accumulation
from kerasseg.checks import require
from kerasseg.keras_internals import BuiltModel, all_layers, made_by, share_rate
from kerasseg.optimizers import LossScale

if TYPE_CHECKING:
    from kerasseg.methods.method import Method

Optimizers: TypeAlias = str | keras.optimizers.Optimizer | Mapping[str, str | keras.optimizers.Optimizer] | None


def optimizers_by_network(method: "Method", optimizer: Optimizers) -> dict[str, keras.optimizers.Optimizer]:
    """The method's own optimizers, by network, and those that `compile` was given in their place: a single one is for
    the networks that segment, or for the network that the method trains.

    Raises:
        ValueError: for a name that is no network that the method trains, an optimizer for two networks, or one that is
            unknown to Keras.
    """
    own = method.make_optimizers()
    if optimizer is None:
        return own
    if not isinstance(optimizer, Mapping):
        names = [name for name in method.segmenting if name in own] or [next(iter(own))]
        first = keras.optimizers.get(optimizer)
        copies = [first.from_config(first.get_config()) for _ in names[1:]]
        for each in copies:
            share_rate(each, first)
        return own | dict(zip(names, [first, *copies], strict=True))
    for name in optimizer:
        if name not in own:
            raise ValueError(f"{type(method).__name__} trains no network {name!r}; it trains {', '.join(own)}")
    given = {name: keras.optimizers.get(each) for name, each in optimizer.items()}
    require(len({id(each) for each in given.values()}) == len(given), "give each network an optimizer of its own")
    return own | given


def require_own_losses(method: "Method", loss: Any, others: Mapping[str, Any]) -> None:
    """ValueError where `compile` is given what a method has of its own, or cannot do."""
    require(others.get("steps_per_execution", 1) == 1, "steps_per_execution must be 1: the log has every step's terms")
    refused = [name for name in ("loss_weights", "weighted_metrics") if others.get(name) is not None]
    if loss is not None or refused:
        raise ValueError(
            f"{type(method).__name__} learns by the losses of its paper: leave out {', '.join(refused or ['loss'])}; "
            "their weights are its fields"
        )


def further_metrics(metrics: Any) -> list[keras.metrics.Metric]:
    """The metrics that `compile` was given: one, or several.

    Raises:
        ValueError: for a dictionary, a metric of class numbers, or the name of a metric that is there already.
    """
    require(not isinstance(metrics, Mapping), "give metrics as a list: a method has one output")
    found = [further_metric(each) for each in (metrics if isinstance(metrics, list | tuple) else [metrics])]
    for metric in found:
        if isinstance(metric, keras.metrics.IoU) and metric.sparse_y_pred:
            raise ValueError(
                f"{type(metric).__name__} gets class probabilities: give it sparse_y_pred=False; `mIoU` is measured "
                "anyway"
            )
        require(metric.name not in ("loss", "mIoU"), f"a metric {metric.name!r} is measured anyway: leave yours out")
    return found


def further_metric(metric: Any) -> keras.metrics.Metric:
    """The metric of class probabilities against class numbers that Keras knows by this name; a metric as it is; of a
    function its mean."""
    if callable(metric) and not isinstance(metric, keras.metrics.Metric):
        return keras.metrics.MeanMetricWrapper(metric, name=getattr(metric, "__name__", "metric"))
    if metric in ("accuracy", "acc"):  # Keras would choose the kind that fits the loss
        return keras.metrics.SparseCategoricalAccuracy(name=metric)
    return keras.metrics.get(metric)


def require_logits(segmenter: Any) -> None:
    """ValueError unless a segmenter maps one image tensor to the logits of at least two classes."""
    if not getattr(segmenter, "inputs", None) or not getattr(segmenter, "outputs", None):
        raise ValueError(
            "the segmenter must be a functional or Sequential model from images (B,H,W,3) to logits (B,H,W,K); got a "
            f"{type(segmenter).__name__} without inputs and outputs of its own"
        )
    for name in ("inputs", "outputs"):
        count = len(getattr(segmenter, name))
        require(count == 1, f"the segmenter must map images to logits; it has {count} {name}")
    classes = segmenter.output_shape[-1]
    require(classes >= 2, f"the segmenter must give the logits of two classes at least; it gives {classes}")
    if last := gives_probabilities(segmenter.outputs[0]):
        raise ValueError(f"the segmenter must give logits, and {last} gives probabilities: leave out its activation")


def require_backbone(config: Any, segmenter: keras.Model) -> None:
    """ValueError where fields are about the backbone, and it is not known where the segmenter's one ends."""
    used = [
        name for name, off in (("layer_decay", 1.0), ("freeze_backbone", False)) if getattr(config, name, off) != off
    ]
    if used and not hasattr(segmenter, "backbone"):
        raise ValueError(
            f"{used[0]} needs a segmenter that knows where its backbone ends: give it kerasseg.segmenters.cut(network, "
            f"'the last layer of the backbone'), or leave {used[0]} out"
        )


def gives_probabilities(tensor: keras.KerasTensor) -> str | None:
    """The name of the softmax or sigmoid that these values come from, if from one: within a network inside the network
    too, and before layers without weights, which enlarge or crop."""
    layer, inputs = made_by(tensor)
    activation = getattr(layer, "activation", None)
    if type(layer).__name__ in ("Softmax", "Sigmoid") or activation in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    ):
        return layer.name
    if isinstance(layer, keras.Model):
        return gives_probabilities(layer.outputs[0])
    return gives_probabilities(inputs[0]) if len(inputs) == 1 and not getattr(layer, "weights", ()) else None


class CompiledModel(BuiltModel):
    """The `compile` of a method, which gives it `config`, `network_names`, a network under each name, `segmenting` and
    `make_optimizers`."""

    config: Any
    network_names: tuple[str, ...]
    segmenting: tuple[str, ...]
    training_optimizers: SimpleNamespace
    accumulate: int
    further_metrics: Sequence[keras.metrics.Metric] = ()
    """The metrics that `compile` was given."""

    def compile(
        self,
        optimizer: Optimizers = None,
        loss=None,
        metrics: Any = None,
        *,
        jit_compile: bool | None = None,
        sync_batch_norm: bool = False,
        accumulate: int = 1,
        **kwargs,
    ):
        """Makes the optimizers and their state.

        Args:
            optimizer: instead of the paper's: by network name, or one for the networks that segment.
            loss: None; a method brings its own.
            metrics: of class probabilities (B,H,W,K) against labels (B,H,W); `evaluate` gives them in addition to mIoU.
            jit_compile: whether XLA compiles the step; by default not: on CPU it is slower with XLA.
            sync_batch_norm: whether batch norm uses the batches of all replicas together.
            accumulate: the number of parts in which networks take a batch, one after the other, for less memory; it
                divides the batches' sizes. Only batch norm is affected: it uses each part's statistics.
            kwargs: `run_eagerly` and so on, as `keras.Model.compile` takes them.

        Raises:
            ValueError: for a network that is not there, a loss, or `jit_compile` with a working size.
        """
        require_own_losses(self, loss, kwargs)
        if jit_compile and self.config.working_size is not None:
            raise ValueError(
                "XLA cannot compile how images are brought to the working size and back: leave jit_compile out, or "
                "make the method with working_size=None"
            )
        if getattr(self.config, "freeze_backbone", False):
            self.segmenter.backbone.trainable = False
        if getattr(self.config, "freeze_batch_norm", False):
            for layer in self.batch_norms(self.segmenting):
                layer.trainable = False
        if sync_batch_norm:
            for layer in self.batch_norms(self.network_names):
                layer.synchronized = True
        self.accumulate = accumulate
        if accumulate > 1:
            for network in (getattr(self, name) for name in self.network_names):
                if not isinstance(network, CompiledModel):
                    accumulation.accumulate(network)
        chosen = optimizers_by_network(self, optimizer)
        self.training_optimizers = SimpleNamespace()
        for network_name, each in chosen.items():
            if keras.config.dtype_policy().name == "mixed_float16":
                each = LossScale(each)
            # Before the first step, or two optimizers in one step fail under MirroredStrategy.
            each.build(getattr(self, network_name).trainable_variables)
            setattr(self.training_optimizers, network_name, each)
        self.further_metrics = further_metrics(metrics or [])
        first = next(iter(chosen), None)
        super().compile(
            optimizer=getattr(self.training_optimizers, first) if first else "sgd",
            jit_compile=bool(jit_compile),
            **kwargs,
        )

    def batch_norms(self, network_names: tuple[str, ...]) -> list[keras.layers.BatchNormalization]:
        """The batch-norm layers of these networks."""
        layers = (layer for name in network_names for layer in all_layers(getattr(self, name)))
        return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
