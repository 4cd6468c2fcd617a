"""`python -m training.run`: trains a method, evaluates it and writes the run folder."""

import argparse
import contextlib
import dataclasses
import errno
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

# isort: off
import kerasseg  # noqa: F401 (first: it prepares the start of TensorFlow)

# isort: on
import tensorflow as tf

from kerasseg.data import DATASETS, naming_unreadable
from kerasseg.distribution import separate_random_numbers
from kerasseg.methods import METHODS, Method
from kerasseg.recipes import RECIPES, choose
from kerasseg.segmenters import SEGMENTERS, LoadedWeights
from serving.common import cli
from serving.common.files import locked, write_atomically
from serving.common.help import owner
from training.callbacks import (
    CheckpointEvery,
    Evaluation,
    Interruption,
    MetricsLog,
    Progress,
    StopAtNonFinite,
)
from training.checkpoints import Checkpoint, Checkpoints
from training.config import COMMON, SYNONYMS, RunConfig, defaults, with_groups
from training.console import print_scores
from training.diagnostics import diagnose
from training.dry_run import dry_run
from training.evaluation import Examples, evaluate
from training.lists import BACKBONE_LIST, RECIPE_LIST, method_table
from training.recorded import mark
from training.report import write_report
from training.run_folder import Run, write_json
from training.session import Evaluator, Session, assemble, peak_memory, prepare_backend, untrained_taps
from training.trackers import require_installed, trackers
from training.workers import fail_together, gather, is_chief, make_strategy, own_config

DESCRIPTION = f"""Trains a segmentation model from a few labelled images and many unlabelled ones.

Defaults come from --recipe; --list-recipes shows them all, --list-backbones the image networks. The method's own fields
are flags too, such as --s4gan.gamma: --method NAME --help.

Which method?
{method_table()}
"""
PACKAGES = ("tensorflow", "keras", "keras-cv", "numpy")
EXAMPLES, WORST = 8, 4
"""Val images shown in the report: evenly spaced ones, and those with the smallest share of right pixels."""


def train(config: RunConfig) -> dict[str, Any]:
    """Runs a training as configured and returns what result.json holds, with the folder's path.

    Raises:
        ValueError: for a mistake in the settings or the data, or a loss that is no longer finite.
    """
    require_installed(config.log_to)
    prepare_backend(config)
    strategy = make_strategy(config)  # of several workers before anything uses a device
    with contextlib.ExitStack() as stack:
        with fail_together(strategy):
            if is_chief(strategy):
                stack.enter_context(locked(config.folder, user="training", remedy="choose another --out"))
            check_folder(config)
        result = train_worker(stack.enter_context(own_config(config, strategy)), strategy)
        gather(strategy, 0)  # a worker that leaves before the chief has written everything would count as lost
    report = {"report": str(config.folder / "report.html")} if result["finished"] else {}
    return {"run": str(config.folder)} | report | result


def train_worker(config: RunConfig, strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """`train` as one of the strategy's workers, whose run folder is its own; the result without the folder."""
    folder = config.folder
    before = Checkpoint.latest(folder / "checkpoints") if config.resume else None
    session = assemble(config, strategy, resumed=before is not None)
    method, split = session.method, session.split
    settings = open_folder(session)
    steps, start_step = session.steps, 0
    if before is not None:
        if before.split_fingerprint != split.fingerprint:
            raise ValueError(f"{before.file} was trained on another split than {folder / 'split'} has: put it back")
        before.restore(method)
        before = dataclasses.replace(before, arrays={})  # as large as all networks and optimizers
        start_step = before.step
        print(f"continuing from step {start_step} of {steps}", file=sys.stderr)
    if len(set(gather(strategy, start_step))) > 1:
        raise ValueError(f"the workers do not read the same checkpoints: {folder} must lie on a file system they share")
    separate_random_numbers(method)

    evaluator = Evaluator(session)
    interruption = Interruption(start_step, lambda received: max(gather(strategy, received)))
    with (
        interruption,
        Progress(start_step, steps, session.images_per_step) as progress,
        Checkpoints(folder / "checkpoints", method, split.fingerprint, before) as checkpoints,
        trackers(config.log_to if is_chief(strategy) else (), folder, settings) as services,
    ):
        pending = before.log if before else None
        log = MetricsLog(folder, start_step, steps, session.log_every, session.images_per_step, pending, services)
        log.describe(settings)
        evaluation = Evaluation(start_step, config.evaluate_every, steps, checkpoints, log, evaluator)
        checkpoint = CheckpointEvery(start_step, config.checkpoint_every, checkpoints, log, evaluation)
        callbacks = [StopAtNonFinite(start_step), progress, evaluation, log, checkpoint, interruption]
        for stage in session.stages:
            step = evaluation.step
            if interruption.agreed or step > stage.end:
                continue
            evaluator.stage = stage
            log.set_model(stage.method)
            if step == start_step > stage.begin and evaluation.due and checkpoints.scores[step] is None:
                checkpoint.finish_step()
            if step < stage.end:
                stage.method.fit(
                    session.batches(stage, step),
                    steps_per_epoch=stage.end - step,
                    epochs=1,
                    shuffle=False,
                    check_values=False,  # of a dataset whose files were checked
                    verbose=0,
                    callbacks=callbacks,
                )
    step = evaluation.step
    if step < steps:
        if is_chief(strategy):
            write_model(session, evaluator.examples)
            write_report(folder)
        print(f"stopped at step {step} of {steps}; continue with --resume", file=sys.stderr)
        return {"finished": False, "steps": step, "exit_status": 128 + interruption.agreed}

    if session.protocol == evaluator.measure.protocol:
        scores = evaluation.latest or evaluator.measure()  # the latter where there was no step left to make
    else:
        scores = evaluate(method, session.dataset, protocol=session.protocol)
    result = scores | {
        "initial_weights": settings.get("initial_weights"),
        "split_fingerprint": split.fingerprint,
        "steps": step,
        "seconds": round(log.seconds, 1),
        "images_per_second": round(step * session.images_per_step / log.seconds, 2),
        "peak_memory_bytes": peak_memory(),
    }
    if is_chief(strategy):
        write_model(session, evaluator.examples)
        write_json(folder / "result.json", result)
        write_diagnostics(session, evaluator.examples)
        write_json(folder / "config.json", settings | {"finished": True})
        print_scores(result)
        print(f"report: {write_report(folder)}", file=sys.stderr)
    shown = ("mIoU", "mIoU_reference", *filter(None, method.variants), "pixel_accuracy", "seconds", "steps")
    return {"finished": True} | {name: result[name] for name in shown}


def run(config: RunConfig) -> dict[str, Any]:
    """`train` or `dry_run`; TensorFlow's own errors become a ValueError that says what to do."""
    try:
        with naming_unreadable(config.dataset, then="continue with --resume"):
            return dry_run(config) if config.dry_run else train(config)
    except (OSError, tf.errors.ResourceExhaustedError) as error:
        if cli.refusal(error) in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(
                f"the disk is full ({error}): make room, then --resume continues from the last checkpoint; no complete "
                "file is lost"
            ) from error
        if isinstance(error, OSError):
            raise
        raise ValueError(
            "out of memory: start again, with another --out and --accumulate 2 (or more), which takes each batch in "
            "parts; or with a lower --batch-size, --crop or --head-channels, a smaller --backbone, or "
            "--no-gradient-norms; --dry-run says how much memory a run needs"
        ) from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if config.strategy != "multiworker":
            raise
        raise ValueError(
            "another worker stopped or cannot be reached; its own message says why. Start all of them again with "
            "--resume"
        ) from error


def check_folder(config: RunConfig) -> None:
    """ValueError unless the run folder is new, or is that of a run to resume."""
    exists = (config.folder / "config.json").exists()
    if config.resume and not exists:
        raise ValueError(f"{config.folder} holds no run to resume; start without --resume")
    if exists and not config.resume:
        raise ValueError(f"{config.folder} holds a run already: continue it with --resume, or choose another --out")


def open_folder(session: Session) -> dict[str, Any]:
    """Makes the run folder with config.json and split/, or checks that a resumed run is the same; returns the settings.

    Raises:
        ValueError: when resuming, the run has other settings.
    """
    config, method, folder = session.config, session.method, session.config.folder
    settings = describe(session)
    path = folder / "config.json"
    if config.resume:
        before = json.loads(path.read_text())
        known = with_defaults(before)
        known["dataset"] = whole_path(known["dataset"])
        changed = [key for key in sorted(settings) if mark(key).resumed and known.get(key) != settings[key]]
        if changed == ["fields", "steps"] and settings["steps"] > known["steps"]:
            raise ValueError(
                f"{folder} was planned for {known['steps']} steps, over which its learning rate falls to 0: for more, "
                f"start from its model, with --weights {folder / 'model.keras'} and another --out"
            )
        if changed:
            raise ValueError(
                f"{folder} was started with other settings ({', '.join(changed)}): resume with those, or start again "
                "with another --out"
            )
        return before
    session.split.save(folder / "split")
    write_json(path, settings)
    if loaded := loaded_weights(method):
        write_atomically(folder / "weights.txt", loaded.listing().encode())
        more = f"\n  all of them: {folder / 'weights.txt'}" if loaded.reinitialised or loaded.skipped else ""
        print(loaded.summary() + more, file=sys.stderr)
    return settings


def with_defaults(before: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config.json, and the defaults of those that did not exist when it was written."""
    known = defaults(RunConfig) | before
    if "rates" not in before:  # the published ones, whatever the crop was
        known["rates"] = list(SEGMENTERS[known["segmenter"]].published_rates(known["output_stride"]))
    groups = {name: defaults(METHODS[name].Config) | fields for name, fields in known.get("fields", {}).items()}
    return known | {"fields": groups}


def describe(session: Session) -> dict[str, Any]:
    """Everything that decides a run's result, resolved; JSON types only."""
    config, method, dataset = session.config, session.method, session.dataset
    names = sorted(field.name for field in dataclasses.fields(RunConfig))
    flags = {name: getattr(config, name) for name in names if mark(name).recorded}
    flags["dataset"] = whole_path(config.dataset)
    loaded = loaded_weights(method)
    flags["initial_weights"] = loaded.counts() if loaded else {"source": Path(config.weights).name}
    if config.branch_run is not None:  # the flags about the segmenter do not apply
        branch = Run.read(config.branch_run)
        flags |= {
            name: branch.config[name]
            for name in ("segmenter", "backbone", "output_stride", "head_channels", "head_dropout", "weights")
        }
        flags["initial_weights"] = branch.config.get("initial_weights")
        flags["branch_method"] = branch.config.get("branch_method") or branch.config["method"]
    elif ":" in (named := getattr(config.groups.get("mlmt"), "branch", "")):
        flags["branch_method"] = named
    flags |= {"steps": session.steps, "log_every": session.log_every, "fields": method.fields()}
    flags |= {"learning_rate": getattr(method.config, "learning_rate", config.learning_rate)}
    flags |= {"rates": list(getattr(method.segmenter, "head_config", {}).get("rates") or ()) or config.rates}
    flags |= {"untrained_taps": untrained_taps(method, config.crop)}
    flags |= {"classes": dataset.classes, "palette": dataset.palette, "split_fingerprint": session.split.fingerprint}
    flags |= {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores, "
        f"{len(tf.config.list_physical_devices('GPU'))} GPUs",
        "commit": commit(),
        "command": f"{cli.program() or 'python -m training.run'} {shlex.join(sys.argv[1:])}",
        "finished": False,
        "about_method": config.method_class.about,  # both for the report, which does without TensorFlow
        "terms": config.method_class.terms,
    }
    return json.loads(json.dumps(flags, default=str))


def whole_path(dataset: str) -> str:
    """A dataset folder by its absolute path, so that what reads the run finds it from any folder; names as they are."""
    return dataset if dataset in DATASETS else str(Path(dataset).absolute())


def loaded_weights(method: Method) -> LoadedWeights | None:
    """What was loaded from the file of --weights; None where there was none, or a checkpoint replaced it."""
    return getattr(method.segmenter, "loaded_weights", None)


def commit() -> str | None:
    """The commit of a checkout; None for an installed package."""
    project = Path(__file__).parents[1]
    git = ["git", "-C", str(project), "describe", "--always", "--dirty", "--abbrev=40"]
    if not (project / ".git").exists():
        return None
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_diagnostics(session: Session, examples: Examples) -> None:
    """Writes diagnostics.json, val_images.jsonl and the images that were segmented worst."""
    folder = session.config.folder
    diagnostics, images = diagnose(session.method, session.dataset, session.split)
    write_json(folder / "diagnostics.json", diagnostics)
    images.write(folder, list(session.dataset.classes))
    examples.write(folder / "worst", images.worst(WORST))


def write_model(session: Session, examples: Examples) -> None:
    """Writes model.keras, first under another name, so that a failure leaves the old one; and the example images."""
    folder = session.config.folder
    part = folder / ".part.model.keras"
    try:
        session.method.save(part)
        part.replace(folder / "model.keras")
    finally:
        part.unlink(missing_ok=True)
    examples.write(folder / "examples", examples.evenly_spaced(EXAMPLES))


class FlagParser(argparse.ArgumentParser):
    """A parser whose error is a ValueError."""

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
    settings, fields = choose(known.recipe, known.method, known.dataset)
    if known.branch is not None:
        fields["mlmt"] = fields["mlmt"] | {"branch": known.branch}
    needs = RECIPES[known.recipe].needs if known.recipe in RECIPES else {}
    for flag, what in needs.items():
        if not {flag, *cli.HELP} & {argument.split("=")[0] for argument in arguments}:
            raise ValueError(f"recipe {known.recipe} needs {flag}: {what}")
    return with_groups(settings, fields, known.recipe)


def common_flags(arguments: list[str]) -> set[str]:
    """The flags that `--help` shows: those that most trainings need, and the own fields of a method that is named."""
    common = set(COMMON)
    if any(argument.split("=")[0] == "--method" for argument in arguments):
        for name, group in configuration(arguments).groups.items():
            own = (entry.name for entry in dataclasses.fields(group) if owner(type(group), entry.name) is type(group))
            common |= {f"--{name}.{entry}".replace("_", "-") for entry in own}
    return common


COMMAND = cli.Command(run, RunConfig, DESCRIPTION, default=configuration, common=common_flags, synonyms=SYNONYMS)


def main(arguments: list[str] | None = None) -> NoReturn:
    arguments = sys.argv[1:] if arguments is None else arguments
    for flag, command in (("--list-recipes", RECIPE_LIST), ("--list-backbones", BACKBONE_LIST)):
        if flag in arguments:
            command.run([])
    COMMAND.run(arguments)


if __name__ == "__main__":
    main()
