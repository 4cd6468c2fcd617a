"""`python -m benchmarks.comparison DATASET`: all methods with few labels, and the gain from more labels.

Trains every method with every seed, and supervised with other numbers of labels and of updates, evaluates on val at
native size, and writes tables and a plot after each run. It keeps the scores of finished runs and resumes unfinished
ones, so it can be stopped and started; on another machine the kept scores count and the other runs are trained.

  DATASET --weights FILE --jobs 2 --max-hours 3               the table of the seeds that are reported
  DATASET --seeds 10 --methods unimatch                       on a seed that is not reported
  DATASET --backbone efficientnet_lite0 --weights FILE        on another backbone
  ... --variant low --extra="--learning-rate 5e-4"            the same with other settings, in a table of its own
  --summary                                                   one table of all datasets
"""

import concurrent.futures
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.comparison_runs import Comparison, Training, keep, to_train
from benchmarks.comparison_tables import write_results, write_summary
from kerasseg.data import open_dataset
from kerasseg.methods import METHODS
from kerasseg.recipes import choose
from serving.common import cli

LABELED = {"msrc21": 42, "neu_seg": 28, "camvid": 12, "shapes": 20}
"""Labelled images of known datasets, by the folder's name."""
STOPPED = {status for number in (signal.SIGINT, signal.SIGTERM) for status in (128 + number, -number)}
"""Exit statuses of a run that a signal ended; --resume continues it."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Which runs, and how many at a time."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")] = ""
    """shapes, or the path of a dataset folder."""
    labeled: int | None = None
    """Labelled images of all methods; None for 42 of msrc21, 28 of neu_seg, 12 of camvid and 20 of shapes."""
    more_labels: tuple[str, ...] | None = None
    """Further numbers of labelled images, for supervised; None for half, twice and four times as many, and all."""
    cover: bool = True
    """Draw labelled images so that they cover the classes."""
    backbone: str | None = None
    """Another backbone than the recipe's, in tables of its own."""
    weights: Path | None = None
    """File with the backbone's weights; None for those of the recipe."""
    steps: int | None = None
    """Steps of the segmenter's training; None for the recipe's: 1500 for a folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides which images are labelled, the initial weights and the batches. Those from 10 on are for tuning:
    only the methods are run, and their scores are kept separately."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods to train; the tables show all that have scores."""
    variant: str = ""
    """Name of the methods with the flags of --extra, on seeds from 10 on."""
    extra: str = ""
    """Flags of training.run for --variant: --extra="--learning-rate 5e-4"."""
    jobs: int = 1
    """Runs at a time, each with its share of the cores."""
    max_hours: float | None = None
    """After this time start no new run, and stop those in progress with a checkpoint; the next call continues."""
    summary: bool = False
    """Write the table of all datasets, and train nothing."""
    runs: Path = Path("runs/comparison")
    """Where the run folders go."""
    results: Path = Path("benchmarks/results/comparison")
    """Folder of tables, plots and scores; the table of all datasets goes next to it."""

    def __post_init__(self):
        for name in ("labeled", "steps", "jobs"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1; got {value}")
        for labeled in self.more_labels or ():
            if labeled != "all" and not labeled.isdecimal():
                raise ValueError(f"--more-labels takes numbers of images, and all; got {labeled}")


def comparison(config: ComparisonConfig, train_images: int | None = None) -> Comparison:
    """The comparison that the flags and the dataset describe.

    Args:
        train_images: how many training images have a label map; None to count them in the dataset.

    Raises:
        ValueError: the dataset or --labeled is not given and not known.
    """
    if not config.dataset:
        raise ValueError("which dataset? shapes, or the path of a dataset folder; or --summary")
    name = Path(config.dataset).resolve().name
    labeled = config.labeled or LABELED.get(name)
    if labeled is None:
        raise ValueError(f"how many labelled images? give --labeled N; only {', '.join(LABELED)} have a default")
    if train_images is None:
        train_images = len(open_dataset(config.dataset).label_names("train"))
    numbers = (labeled // 2, 2 * labeled, 4 * labeled)
    usual = (*(str(number) for number in numbers if 0 < number < train_images), "all")
    recipe, fields = choose("auto", "mlmt", config.dataset)
    steps = config.steps or recipe.steps
    assert steps and recipe.steps
    return Comparison(
        dataset=config.dataset,
        backbone=config.backbone,
        weights=config.weights,
        train_images=train_images,
        labeled=str(labeled),
        more_labels=usual if config.more_labels is None else config.more_labels,
        cover=config.cover,
        steps=steps,
        classifier_steps=max(1, round(fields["mlmt"]["steps"] * steps / recipe.steps)),
        seeds=config.seeds,
        methods=config.methods,
        variant=config.variant,
        extra=config.extra,
        runs=config.runs,
        results=config.results,
    )


class Queue:
    """The runs still to train; several workers take them, until its time is over.

    Args:
        seconds: until then; None for no limit.
    """

    def __init__(self, config: Comparison, seconds: float | None = None):
        self.config = config
        self.waiting = to_train(config)
        self.unfinished = set(self.waiting)
        self.failures: list[str] = []
        self.until = float("inf") if seconds is None else time.monotonic() + seconds
        self.signal = 0
        self.lock = threading.Lock()

    @property
    def open(self) -> bool:
        return time.monotonic() < self.until

    def take(self) -> Training | None:
        """The first run that can start now; None where there is none. A worker that gets none can end: the worker of a
        run in progress takes the runs that wait for it."""
        with self.lock:
            if not self.open:
                return None
            for training in self.waiting:
                needs = training.needs(self.config)
                if needs not in self.unfinished:
                    self.waiting.remove(training)
                    return training
            return None

    def done(self, training: Training) -> None:
        with self.lock:
            self.unfinished.discard(training)

    def stop(self, number: int = 0, frame: Any = None) -> None:
        """No run starts from now on, and those in progress are stopped; takes the arguments of a signal's handler."""
        self.signal = number
        self.until = float("-inf")

    @contextlib.contextmanager
    def stopped_by_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop it, in the main thread of a process."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(config: Comparison, training: Training, cores: Sequence[int], queue: Queue) -> bool:
    """Trains one run on the given cores, from its checkpoint where there is one; False where it was stopped.

    Raises:
        ValueError: the run failed, or has other settings than it would have now.
    """
    if training.finished(config):
        keep(config, training)
        return True
    out = training.folder(config)
    resume = ["--resume"] if (out / "config.json").exists() else []
    paths = config.data_flags | {"--out": str(out)}
    command = [sys.executable, "-m", "training.run", *training.flags(config)]
    command += [part for flag in paths.items() for part in flag] + resume
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.log").open("a") as log:
        # In a group of its own Ctrl-C reaches it once, from here: a second signal would end it without a checkpoint.
        pin = functools.partial(os.sched_setaffinity, 0, cores)
        status = wait(subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=pin, process_group=0), queue)
    if status in STOPPED:
        queue.stop(queue.signal)
        return False
    if status:
        raise ValueError(f"{training.name} ended with exit status {status}: see {log.name}")
    keep(config, training)
    return True


def wait(process: subprocess.Popen, queue: Queue) -> int:
    """The exit status of a run, which is stopped when the queue's time is over."""
    while queue.open:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    return process.wait()


def main(config: ComparisonConfig) -> dict[str, Any]:
    if config.summary:
        return {"table": str(write_summary(config.results))}
    return compare(comparison(config), config.jobs, config.max_hours)


def compare(config: Comparison, jobs: int = 1, max_hours: float | None = None) -> dict[str, Any]:
    """Trains runs without scores; returns where the table is, the mean of each row and the number of runs left.

    Raises:
        ValueError: kept scores do not belong in one table, or runs failed, after all others are done.
    """
    write_results(config)  # first of all: checks whether kept scores belong together
    queue = Queue(config, None if max_hours is None else 3600 * max_hours)
    cores = sorted(os.sched_getaffinity(0))
    jobs = min(jobs, len(cores))
    share = len(cores) // jobs
    writing = threading.Lock()

    def work(job: int) -> None:
        while training := queue.take():
            try:
                if train(config, training, cores[job * share : (job + 1) * share], queue):
                    queue.done(training)
                with writing:
                    write_results(config)
            except (ValueError, OSError) as error:
                queue.failures.append(str(error))
                print(f"error: {error}", file=sys.stderr)

    with queue.stopped_by_signals(), concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        working = [pool.submit(work, job) for job in range(jobs)]
        # Python handles a signal in this thread, but one that comes just before it waits, or to another thread, does
        # not wake it.
        while concurrent.futures.wait(working, timeout=1).not_done:
            pass
        for each in working:
            each.result()
    means = write_results(config)
    if queue.failures:
        raise ValueError(f"{len(queue.failures)} runs failed, the first: {queue.failures[0]}")
    ended = {"exit_status": 128 + queue.signal} if queue.signal else {}
    table = config.folder.with_suffix(".md") if config.tuning else config.table
    return {"table": str(table), "mIoU": means, "runs_to_come": len(queue.unfinished), **ended}


if __name__ == "__main__":
    cli.run(main, ComparisonConfig, __doc__ or "")
