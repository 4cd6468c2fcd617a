"""The parts of a training: TensorFlow's settings, the images, the method, the batches."""

import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasseg.data import Dataset, Split, make_split, open_dataset
from kerasseg.data.check import require_sound
from kerasseg.data.shrunk import explain_size
from kerasseg.methods import Method
from kerasseg.segmenters import dead_taps
from training.checkpoints import open_method
from training.config import RunConfig
from training.diagnostics import GradientNorms
from training.evaluation import Examples, Measurement
from training.protocols import Protocol, make_protocol
from training.run_folder import Run
from training.workers import fail_together, gather, is_chief

PANELS = 4
"""Images shown in TensorBoard."""


class Stage(NamedTuple):
    """A method that is fitted in a run, and the steps of the run after which it begins and ends."""

    method: Method
    begin: int
    end: int


@dataclass(frozen=True)
class Session:
    """A method ready to be trained, with all that it needs."""

    config: RunConfig
    strategy: tf.distribute.Strategy
    protocol: Protocol
    """The protocol of the measurement at the end."""
    dataset: Dataset
    """The images at their own size, at which methods are measured."""
    training_dataset: Dataset
    """The same at the working size."""
    split: Split
    method: Method
    """Its stages are compiled."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The parts of the training in their order."""
        ends = list(accumulate(method.config.steps for method in self.method.stages()))
        return tuple(map(Stage, self.method.stages(), [0, *ends], ends))

    @property
    def steps(self) -> int:
        """How many training steps there are in all."""
        return self.stages[-1].end

    @property
    def log_every(self) -> int:
        """Steps between lines of the log."""
        return self.config.log_every or max(1, min(20, self.steps // 25))

    @property
    def unlabeled(self) -> int:
        """How many unlabelled images there are in a step."""
        return self.config.unlabeled_images(self.method, self.strategy.num_replicas_in_sync)

    def warnings(self) -> Iterator[str]:
        """Settings that are likely to lower the score, a line each."""
        crop = "x".join(map(str, self.config.crop))
        for name, rate in untrained_taps(self.method, self.config.crop).items():
            yield (
                f"the outer taps of {name}, {rate} positions apart, never learn from crops of {crop} pixels and keep "
                "their random weights: choose smaller rates or a larger --crop"
            )
        images = len(self.split.without_label_maps or self.split.labeled)
        if self.unlabeled > images:
            yield (
                f"a step takes {self.unlabeled} unlabelled images, and there are {images}: images repeat within a "
                "step; give a smaller --unlabeled-batch-size, or more images"
            )

    @property
    def images_per_step(self) -> int:
        return self.config.batch_size + self.unlabeled

    def whole_batches(self, stage: Stage, start_step: int, **share: Any) -> tf.data.Dataset:
        """A stage's batches for all devices together, from that step of the run on; `share` as in `train_dataset`."""
        whole = stage.method.learns_from_whole_images
        return self.config.batches(
            self.training_dataset, self.split, self.unlabeled, whole, start_step=start_step, **share
        )

    def batches(self, stage: Stage, start_step: int) -> tf.distribute.DistributedDataset:
        """The same, distributed over the strategy's devices."""

        def of_a_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            shares = context.num_replicas_in_sync
            each = shares // context.num_input_pipelines
            own = range(context.input_pipeline_id * each, (context.input_pipeline_id + 1) * each)
            return self.whole_batches(stage, start_step, shares=shares, own_shares=own)

        return self.strategy.distribute_datasets_from_function(of_a_worker)


def prepare_backend(config: RunConfig) -> None:
    """Seeds, precision and determinism; before anything else touches TensorFlow."""
    if config.deterministic:
        # Without the second, one run in three still differed: ops of one step ran in another order.
        tf.config.experimental.enable_op_determinism()
        tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)


def assemble(config: RunConfig, strategy: tf.distribute.Strategy, resumed: bool = False) -> Session:
    """Opens the dataset and builds the method; with several workers, every worker must call it.

    Args:
        resumed: a checkpoint will bring the weights.

    Raises:
        ValueError: for a mistake in the settings or the data.
    """
    with fail_together(strategy):
        protocol = make_protocol(config.protocol, config.crop, **config.protocol_settings.given)
        dataset = open_dataset(config.dataset) if is_chief(strategy) else None  # which may have to prepare it
    with fail_together(strategy):
        dataset = dataset or open_dataset(config.dataset)
        split = open_split(config, dataset)
        for problem in require_sound(dataset, split, config.cover):
            print(problem, file=sys.stderr)
        print(explain_images(split, config.method_class.needs_unlabeled), file=sys.stderr)
        print(explain_size(dataset, config.crop, config.working_size(dataset)), file=sys.stderr)
    if len(set(gather(strategy, int(split.fingerprint[:7], 16)))) > 1:
        raise ValueError("the workers do not see the same images: give all of them the same --dataset and flags")
    with strategy.scope():
        method = build_method(config, dataset, split, resumed)
        for stage in method.stages():
            stage.compile(sync_batch_norm=config.sync_batch_norm, accumulate=config.accumulate)
    session = Session(config, strategy, protocol, dataset, config.at_working_size(dataset), split, method)
    for warning in session.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    return session


def explain_images(split: Split, needs_unlabeled: bool) -> str:
    """How many images are used, and for what."""
    others = len(split.without_label_maps)
    weak = f", {len(split.image_labeled)} with image-level labels" if split.image_labeled else ""
    unlabeled = f", {others} unlabelled" if others else ", the same without their label maps as unlabelled"
    return f"images: {len(split.labeled)} with a label map{weak}" + (unlabeled if needs_unlabeled else "")


def open_split(config: RunConfig, dataset: Dataset) -> Split:
    """The labelled, image-labelled and unlabelled images; those of the run itself when it is resumed."""
    if config.resume and (config.folder / "split").is_dir():
        return Split.load(config.folder / "split")
    if config.image_labels is not None and not config.method_class.uses_image_labels:
        raise ValueError(f"{config.method} does not use --image-labels: leave it out, or use --method mlmt")
    return make_split(dataset, config.labeled, config.seed, config.image_labels, config.cover)


def build_method(config: RunConfig, dataset: Dataset, split: Split, resumed: bool) -> Method:
    """The networks and the method around them, not yet compiled.

    Args:
        resumed: a checkpoint will bring the weights.
    """
    if config.branch_run is not None:
        if config.average_weights or config.class_weights != "none" or config.rates:
            raise ValueError(
                "--average-weights, --class-weights and --rates decide how a segmenter is trained, and that of "
                "--branch-run is trained already: give these flags to its own run"
            )
        branch = open_branch(config.branch_run, dataset, split, config.working_size(dataset))
        start = "none" if resumed else Run.read(config.branch_run).config["weights"]
        fields = config.known_fields(dataset, split, config.method_fields)
        return config.method_class.from_trained(branch, fields, start)
    return config.build_method(dataset, split, config.method_fields, weights="none" if resumed else None)


def untrained_taps(method: Method, crop: tuple[int, int]) -> dict[str, int]:
    """`dead_taps` of all networks that a method trains, by the names of network and layer."""
    found: dict[str, int] = {}
    for name in method.network_names:
        network = getattr(method, name)
        if isinstance(network, Method):
            found |= untrained_taps(network, crop)
        else:
            found |= {f"{name}/{layer}": rate for layer, rate in dead_taps(network, crop).items()}
    return found


def open_branch(folder: Path, dataset: Dataset, split: Split, working_size: int | None) -> Method:
    """The method of a finished run on the same split, at the same working size."""
    run = Run.read_finished(folder)
    if run.config["split_fingerprint"] != split.fingerprint:
        raise ValueError(f"{folder} was trained on another split: give the same --dataset, --labeled and --seed")
    if run.classes != list(dataset.classes):
        raise ValueError(f"{folder} was trained on other classes: {', '.join(run.classes)}")
    method, _ = open_method(run)
    own = method.config.working_size
    if own != working_size:
        there, here = (f"{size} pixels" if size else "the images' own size" for size in (own, working_size))
        raise ValueError(f"{folder} was trained at {there}, and this run is at {here}: give --size {own or 'native'}")
    return method


class Evaluator:
    """Measures a method while it trains: its scores, how hard its losses pull, its predictions for a few images.

    Args:
        names: the val images that are scored; all when None.

    Attributes:
        stage: the stage in training; the first, until another is set.
    """

    def __init__(self, session: Session, names: Sequence[str] | None = None):
        method, dataset = session.method, session.dataset
        self.variants = [name for name in method.variants if name]
        self.measure, self.examples = (
            Measurement(method, dataset, names=names),
            Examples(method, dataset, "val"),
        )
        self.stage = session.stages[0]
        self.first_batch = None
        if session.config.gradient_norms:
            self.first_batch = next(iter(session.whole_batches(self.stage, start_step=0)))

    def __call__(self) -> tuple[dict, dict, np.ndarray]:
        """The result, scores from it for the log, and panels, as `Evaluation` needs them."""
        result = self.measure()
        noted = {"val_mIoU": result["mIoU"]}
        noted |= {f"val_mIoU_{name}": result[name]["mIoU"] for name in self.variants}
        noted = {name: score for name, score in noted.items() if score is not None}
        if self.first_batch is not None:
            noted |= GradientNorms(self.stage.method, self.first_batch)()
        return result, noted, self.examples.panels(PANELS)


def peak_memory() -> int:
    """The most memory that the process has held so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
