"""`python -m training.run`: trains a method, evaluates it and writes the run folder."""

import argparse
import dataclasses
import functools
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

# isort: off
import kerasseg  # noqa: F401 (first: it starts TensorFlow)

# isort: on
import keras
import tensorflow as tf

from kerasseg.data import Dataset, Split, make_split, open_dataset, train_dataset
from kerasseg.data.check import require_sound
from kerasseg.methods import Method
from kerasseg.segmenters import LoadedWeights, build_segmenter
from serving import cli
from serving.pictures import write_atomically
from training.callbacks import (
    CheckpointEvery,
    Evaluation,
    Interruption,
    MetricsLog,
    Progress,
    StopAtNonFinite,
)
from training.checkpoints import Checkpoints
from training.config import RunConfig, with_groups
from training.diagnostics import GradientNorms, diagnose
from training.evaluation import Examples, Measurement, evaluate
from training.protocols import make_protocol
from training.recipes import RECIPES, choose, table
from training.report import write_report
from training.run_folder import Run, write_json
from training.workers import gather, is_chief, make_strategy, together, workplace

DESCRIPTION = """Trains a segmentation model from a few labelled images and many unlabelled ones.

Defaults come from --recipe; --list-recipes shows them all. The method's own fields are flags too, such as
--s4gan.gamma: --method NAME --help."""
PACKAGES = ("tensorflow", "keras", "keras-cv", "numpy")
EXAMPLES = 8
PANELS = 4


def train(config: RunConfig) -> dict[str, Any]:
    """Runs a training as configured and returns what result.json holds, with the folder's path.

    Raises:
        ValueError: for a mistake in the settings or the data, or a loss that is no longer finite.
    """
    prepare_backend(config)
    strategy = make_strategy(config)  # of several workers before anything uses a device
    with together(strategy):
        check_folder(config)
    with workplace(config, strategy) as own:
        result = train_worker(own, strategy)
        gather(strategy, 0)  # no worker leaves before the chief has written everything: it would count as lost
    report = {"report": str(config.folder / "report.html")} if result["finished"] else {}
    return {"run": str(config.folder)} | report | result


def train_worker(config: RunConfig, strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """`train` as one of the strategy's workers, whose run folder is its own; the result without the folder."""
    chief, folder = is_chief(strategy), config.folder
    with together(strategy):
        protocol = make_protocol(config.protocol, config.crop)
        dataset = open_dataset(config.dataset) if chief else None  # which may have to prepare it
    with together(strategy):
        dataset = dataset or open_dataset(config.dataset)
        split = open_split(config, dataset)
        for warning in require_sound(dataset, split):
            print(warning, file=sys.stderr)
    if len(set(gather(strategy, int(split.fingerprint[:7], 16)))) > 1:
        raise ValueError("the workers do not see the same images: give all of them the same --dataset and flags")
    with strategy.scope():
        method = build_method(config, dataset, split)
        method.compile(sync_batch_norm=config.sync_batch_norm, accumulate=config.accumulate)
    settings = open_folder(config, method, dataset, split)
    steps = method.total_steps
    checkpoints = Checkpoints(folder / "checkpoints", method, split.fingerprint)
    start_step = checkpoints.restore() if config.resume else 0
    method.separate_random_numbers()

    unlabeled = (config.unlabeled_batch_size or config.batch_size) * method.unlabeled_sets
    if not method.needs_unlabeled:
        unlabeled = 0
    batches_from = functools.partial(
        train_dataset,
        dataset,
        split,
        config.augmentation,
        batch_size=config.batch_size,
        unlabeled_batch_size=unlabeled,
        seed=config.seed,
    )

    def shares_from(context: tf.distribute.InputContext) -> tf.data.Dataset:
        shares = context.num_replicas_in_sync
        each = shares // context.num_input_pipelines
        own = range(context.input_pipeline_id * each, (context.input_pipeline_id + 1) * each)
        return batches_from(start_step=start_step, shares=shares, own_shares=own)

    images_per_step = config.batch_size + unlabeled
    log = MetricsLog(folder, start_step, config.log_every, images_per_step)
    measure, examples = Measurement(method, dataset), Examples(method, dataset, "val", PANELS)
    gradient_norms = None
    if config.gradient_norms:
        gradient_norms = GradientNorms(method, next(iter(batches_from(start_step=0))))

    def look() -> tuple[dict, dict, Any]:
        result = measure()
        noted = {"val_mIoU": result["mIoU"]}
        noted |= {f"val_mIoU_{name}": result[name]["mIoU"] for name in method.variants if name}
        noted |= gradient_norms() if gradient_norms else {}
        return result, noted, examples.panels()

    evaluation = Evaluation(start_step, config.evaluate_every, steps, log, look)
    interruption = Interruption(start_step, lambda received: max(gather(strategy, received)))
    if start_step < steps:
        with Progress(start_step, steps, images_per_step) as progress:
            method.fit(
                strategy.distribute_datasets_from_function(shares_from),
                steps_per_epoch=steps - start_step,
                epochs=1,
                shuffle=False,
                verbose=0,
                callbacks=[
                    StopAtNonFinite(start_step),
                    progress,
                    evaluation,
                    log,
                    CheckpointEvery(start_step, config.evaluate_every, checkpoints),
                    interruption,
                ],
            )
    step = int(checkpoints.step)
    if chief:
        save_model(method, folder)
        Examples(method, dataset, "val", EXAMPLES).write(folder / "examples")
    if step < steps:
        if chief:
            write_report(folder)
        print(f"stopped at step {step} of {steps}; go on with --resume", file=sys.stderr)
        return {
            "finished": False,
            "steps": step,
            "exit_status": 128 + (interruption.received or 0),
        }

    if protocol == measure.protocol:
        scores = evaluation.latest or measure()  # the latter where there was no step left to make
    else:
        scores = evaluate(method, dataset, protocol=protocol)
    result = scores | {
        "initial_weights": settings.get("initial_weights"),
        "split_fingerprint": split.fingerprint,
        "steps": step,
        "seconds": round(log.seconds, 1),
        "images_per_second": round(step * images_per_step / log.seconds, 2),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if chief:
        write_json(folder / "result.json", result)
        write_json(folder / "diagnostics.json", diagnose(method, dataset, split))
        write_json(folder / "config.json", settings | {"finished": True})
        print(f"report: {write_report(folder)}", file=sys.stderr)
    shown = ("mIoU", "mIoU_reference", *filter(None, method.variants), "pixel_accuracy", "seconds", "steps")
    return {"finished": True} | {name: result[name] for name in shown}


def run(config: RunConfig) -> dict[str, Any]:
    """`train`, with what TensorFlow itself raises told as a mistake with its remedy."""
    try:
        return train(config)
    except tf.errors.ResourceExhaustedError as error:
        raise ValueError(
            "out of memory: give --accumulate 2 or more, lower --batch-size, --crop or --head-channels, or use a "
            "smaller --backbone"
        ) from error
    except (tf.errors.NotFoundError, tf.errors.DataLossError) as error:
        raise ValueError(f"a file went missing or is damaged: {error.message.splitlines()[0]}") from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if config.strategy != "multiworker":
            raise
        raise ValueError(
            "another worker stopped or cannot be reached; its own message says why. Start all of them again, with "
            "--resume where there is a checkpoint"
        ) from error


def prepare_backend(config: RunConfig) -> None:
    """Seeds, precision and determinism; before anything else touches TensorFlow."""
    if config.deterministic:
        # Without the second, one run in three still differed: ops of one step ran in another order.
        tf.config.experimental.enable_op_determinism()
        tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)


def open_split(config: RunConfig, dataset: Dataset) -> Split:
    """The labelled, weak and unlabelled images; those of the run itself when it is resumed."""
    if config.resume and (config.folder / "split").is_dir():
        return Split.load(config.folder / "split")
    if config.image_labels is not None and not config.method_class.uses_weak:
        raise ValueError(f"{config.method} has no use for --image-labels: leave it out, or use --method mlmt")
    split = make_split(dataset, config.labeled, config.seed, config.image_labels)
    if config.method_class.needs_unlabeled and not split.without_masks:
        raise ValueError(
            f"{config.method} learns from unlabelled images, and --labeled {config.labeled} leaves none of "
            f"{len(split.labeled)}: label fewer, or use --method supervised"
        )
    return split


def check_folder(config: RunConfig) -> None:
    """ValueError unless the run folder is new, or is that of a run to resume."""
    exists = (config.folder / "config.json").exists()
    if config.resume and not exists:
        raise ValueError(f"{config.folder} holds no run to resume; start without --resume")
    if exists and not config.resume:
        raise ValueError(f"{config.folder} holds a run already: go on with it by --resume, or choose another --out")


def open_folder(config: RunConfig, method: Method, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Makes the run folder with config.json and split/, or checks that a resumed run is the same; returns the settings.

    Raises:
        ValueError: when resuming, the run has other settings.
    """
    folder = config.folder
    settings = describe(config, method, dataset, split)
    path = folder / "config.json"
    if config.resume:
        before = json.loads(path.read_text())
        free = ("versions", "commit", "command", "finished", "machine", "initial_weights")
        changed = [key for key in sorted(settings) if key not in free and before.get(key) != settings[key]]
        if changed:
            raise ValueError(
                f"{folder} was started with other settings ({', '.join(changed)}): resume with those, or start anew "
                "with another --out"
            )
        return before
    folder.mkdir(parents=True, exist_ok=True)
    split.save(folder / "split")
    write_json(path, settings)
    if loaded := loaded_weights(method):
        write_atomically(folder / "weights.txt", loaded.listing().encode())
        more = f"\n  all of them: {folder / 'weights.txt'}" if loaded.reinitialised or loaded.skipped else ""
        print(loaded.summary() + more, file=sys.stderr)
    return settings


def describe(config: RunConfig, method: Method, dataset: Dataset, split: Split) -> dict[str, Any]:
    """Everything that decides a run's result, resolved; JSON types only."""
    recorded = {field.name for field in dataclasses.fields(RunConfig)} - {"out", "resume", "gradient_norms", "protocol"}
    flags = {name: getattr(config, name) for name in sorted(recorded)}
    loaded = loaded_weights(method)
    flags["initial_weights"] = loaded.counts() if loaded else {"source": Path(config.weights).name}
    if config.branch_run is not None:  # what the flags say of the segmenter does not apply
        branch = Run.read(config.branch_run)
        flags |= {
            name: branch.config[name]
            for name in ("segmenter", "backbone", "output_stride", "head_channels", "head_dropout", "weights")
        }
        flags["initial_weights"] = branch.config.get("initial_weights")
    flags |= {"steps": method.total_steps, "fields": method.fields()}
    flags |= {"learning_rate": getattr(method.config, "learning_rate", config.learning_rate)}
    flags |= {"classes": dataset.classes, "palette": dataset.palette, "split_fingerprint": split.fingerprint}
    flags |= {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores, "
        f"{len(tf.config.list_physical_devices('GPU'))} GPUs",
        "commit": commit(),
        "command": "python -m training.run " + shlex.join(sys.argv[1:]),
        "finished": False,
    }
    return json.loads(json.dumps(flags, default=str))


def loaded_weights(method: Method) -> LoadedWeights | None:
    """What became of the file of --weights; None where there was none, or a checkpoint took its place."""
    return getattr(method.segmenter, "loaded_weights", None)


def commit() -> str | None:
    """The commit of a checkout, None of an installed package."""
    project = Path(__file__).parents[1]
    git = ["git", "-C", str(project), "describe", "--always", "--dirty", "--abbrev=40"]
    if not (project / ".git").exists():
        return None
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def build_method(config: RunConfig, dataset: Dataset, split: Split) -> Method:
    """The networks and the method around them, not yet compiled."""
    fields = config.method_class.with_split(config.method_fields, len(split.labeled))
    if config.branch_run is not None:
        return config.method_class.from_trained(open_branch(config.branch_run, dataset, split), fields)
    head: dict[str, Any] = {}
    if config.segmenter == "deeplab_v3plus":
        head = {"head_dropout": config.head_dropout}
        head |= {} if config.head_channels is None else {"head_channels": config.head_channels}
    segmenter = build_segmenter(
        config.segmenter,
        backbone=config.backbone,
        num_classes=dataset.num_classes,
        output_stride=config.output_stride,
        weights="none" if has_checkpoint(config) else config.weights,  # a checkpoint brings its own
        **head,
    )
    return config.method_class.from_segmenter(segmenter, fields)


def has_checkpoint(config: RunConfig) -> bool:
    return config.resume and tf.train.latest_checkpoint(str(config.folder / "checkpoints")) is not None


def open_branch(folder: Path, dataset: Dataset, split: Split) -> Method:
    """The method of a finished run on the same split."""
    run = Run.read_finished(folder)
    if run.config["split_fingerprint"] != split.fingerprint:
        raise ValueError(f"{folder} was trained on another split: give the same --dataset, --labeled and --seed")
    if run.classes != list(dataset.classes):
        raise ValueError(f"{folder} was trained on other classes: {', '.join(run.classes)}")
    return keras.saving.load_model(run.model)


def save_model(method: Method, folder: Path) -> None:
    """Writes model.keras: beside first, so that a failure leaves the one before."""
    part = folder / ".part.model.keras"
    method.save(part)
    part.replace(folder / "model.keras")


class FlagParser(argparse.ArgumentParser):
    """One whose complaint is a ValueError."""

    def error(self, message):
        raise ValueError(message)


def configuration(arguments: list[str]) -> RunConfig:
    """The defaults that the recipe, the method and the dataset on the command line stand for.

    Raises:
        ValueError: for an unknown recipe, method or branch, or a recipe that needs a flag which is not given.
    """
    first = FlagParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="auto")
    first.add_argument("--method")
    first.add_argument("--dataset")
    first.add_argument("--mlmt.branch", dest="branch")
    known, _ = first.parse_known_args(arguments)
    config, fields = choose(known.recipe, known.method, known.dataset)
    if known.branch is not None:
        fields["mlmt"] = fields["mlmt"] | {"branch": known.branch}
    needs = RECIPES[known.recipe].needs if known.recipe in RECIPES else {}
    for flag, what in needs.items():
        if not {flag, "--help", "-h"} & {argument.split("=")[0] for argument in arguments}:
            raise ValueError(f"recipe {known.recipe} needs {flag}: {what}")
    return with_groups(dataclasses.replace(config, recipe=known.recipe), fields)


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--list-recipes" in arguments:
        print(table())
        return
    try:
        default = configuration(arguments)
    except ValueError as error:
        cli.fail(error)
    cli.run(run, type(default), DESCRIPTION, args=arguments, default=default)


if __name__ == "__main__":
    main()
