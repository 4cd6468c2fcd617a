"""All methods on one dataset with few labels, and what more labels are worth: `benchmarks.camvid`, `benchmarks.shapes`.

Trains every method with every seed, and supervised with other numbers of labels, evaluates on val at native size, and
writes tables and a plot after each run. What a finished run scored is kept beside them, and an unfinished run is
resumed, so it can be stopped and started; on another machine kept scores count and the rest is trained. mlmt adds its
classifier to the s4gan run of the same seed: the two branches are trained separately in the paper too.
"""

import dataclasses
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from benchmarks.results_file import write_between_markers
from kerasseg.methods import METHODS
from kerasseg.methods.method import SegmenterConfig
from serving.files import write_atomically
from training.compare import OF_A_MACHINE, OF_A_RUN, gains, gains_cell, mean_and_deviation, spread
from training.run_folder import Run


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to train, and where things are."""

    dataset: str
    """shapes, or the path of a dataset folder."""
    weights: Path | None
    """Of the backbone, trained on ImageNet, as keras.applications loads them; None for random ones."""
    train_images: int
    """How many training pictures have a mask: what `all` of them are."""
    runs: Path
    """Where the run folders go."""
    results: Path
    """The tables are written between the markers of this file; the plot lies beside it, and the folder of its name
    keeps the scores of each run."""
    labeled: str
    """Labelled pictures of all methods."""
    more_labels: tuple[str, ...]
    """Further numbers of labelled pictures, for supervised."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides a labelled subset, the initial weights and the batches."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Rows of the table; mlmt needs s4gan."""
    steps: int
    """Of the segmenter's training."""
    classifier_steps: int
    """Of mlmt's classifier."""
    jobs: int = 1
    """Seeds at a time, each with its share of the cores."""

    def __post_init__(self):
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"--methods must be of {', '.join(METHODS)}; got {', '.join(sorted(unknown))}")
        if "mlmt" in self.methods and "s4gan" not in self.methods:
            raise ValueError("mlmt adds a classifier to s4gan's runs: give --methods s4gan too, or leave mlmt out")
        if self.labeled in self.more_labels:
            raise ValueError(f"--more-labels are further ones than the {self.labeled} of --labeled")

    def count(self, labeled: str) -> int:
        """How many labelled pictures that is."""
        return self.train_images if labeled == "all" else int(labeled)

    @property
    def data_flags(self) -> dict[str, str]:
        """The flags that say where data and weights are."""
        return {"--dataset": self.dataset} | ({"--weights": str(self.weights)} if self.weights else {})


class Training(NamedTuple):
    """One run of the benchmark."""

    method: str
    labeled: str
    seed: int

    def steps(self, config: Comparison) -> int:
        return config.classifier_steps if self.method == "mlmt" else config.steps

    def name(self, config: Comparison) -> str:
        return f"{self.method}_{self.labeled}_{self.steps(config)}steps_seed{self.seed}"

    def folder(self, config: Comparison) -> Path:
        return config.runs / self.name(config)

    def kept(self, config: Comparison) -> Path:
        """Where the scores of the run are kept when its folder is gone."""
        return config.results.with_suffix("") / f"{self.name(config)}.json"

    def flags(self, config: Comparison) -> list[str]:
        """Its command line, less --dataset, --weights and --out."""
        own = ["--method", self.method, "--labeled", self.labeled, "--seed", str(self.seed)]
        own += ["--steps", str(self.steps(config))]
        if self.method == "mlmt":
            own += ["--branch-run", str(self._replace(method="s4gan").folder(config))]
        return own


def trainings(config: Comparison, seed: int) -> list[Training]:
    """All runs of a seed, in the order in which they are trained."""
    ordered = sorted(config.methods, key=list(METHODS).index)
    return [Training(method, config.labeled, seed) for method in ordered] + [
        Training("supervised", labeled, seed) for labeled in config.more_labels
    ]


def keep(config: Comparison, training: Training) -> None:
    """Keeps the settings and scores of a finished run, without the paths of the machine it ran on, and how far its
    confidences are to be trusted."""
    run = Run.read_finished(training.folder(config))
    settings = {key: value for key, value in run.config.items() if key not in OF_A_MACHINE}
    day = date.fromtimestamp((run.folder / "result.json").stat().st_mtime)
    path = training.kept(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    confidence = {
        name: {figure: summary[figure] for figure in ("error_detection_auc", "expected_calibration_error")}
        for name, summary in (run.diagnostics or {}).get("confidence", {}).items()
    }
    scores = {"date": str(day), "settings": settings, "result": run.result, "confidence": confidence}
    write_atomically(path, (json.dumps(scores, indent=2) + "\n").encode())


def read_kept(config: Comparison, method: str, labeled: str) -> dict[int, dict]:
    """What is kept of a method by seed; ValueError where the seeds were not run with the same settings."""
    paths = {seed: Training(method, labeled, seed).kept(config) for seed in config.seeds}
    runs = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}
    for seed, run in runs.items():
        first_seed, first = next(iter(runs.items()))
        if changed := sorted(set(differing(first["settings"], run["settings"])) - set(OF_A_RUN)):
            raise ValueError(
                f"the kept scores of {method} with seeds {first_seed} and {seed} differ in {', '.join(changed)}: "
                f"delete those to be run anew in {paths[seed].parent}"
            )
    return runs


def differing(settings: dict, others: dict) -> list[str]:
    """Names of the settings that both record, with other values. What one of them does not record yet came later, with
    a default that changes nothing."""
    pairs = {name: (value, others[name]) for name, value in settings.items() if name in others}
    return [
        name
        for name, (ours, theirs) in pairs.items()
        if (differing(ours, theirs) if isinstance(ours, dict) and isinstance(theirs, dict) else ours != theirs)
    ]


def require_alike(kept_runs: dict[str, dict[int, dict]]) -> None:
    """ValueError unless all methods trained their segmenters with the same settings."""

    def of_the_segmenter(method: str) -> dict:
        settings = next(iter(kept_runs[method].values()))["settings"]
        fields = settings["fields"]["s4gan" if method == "mlmt" else method]
        network = ("segmenter", "backbone", "output_stride", "head_channels", "head_dropout")
        views = ("labeled", "crop", "scale", "flip", "color_jitter", "blur", "batch_size", "precision")
        shared = {name: settings[name] for name in network + views}
        return shared | {field.name: fields[field.name] for field in dataclasses.fields(SegmenterConfig)}

    first, *others = kept_runs
    for other in others:
        theirs = of_the_segmenter(other)
        if changed := [name for name, value in of_the_segmenter(first).items() if theirs[name] != value]:
            raise ValueError(
                f"the kept scores of {first} and {other} differ in {', '.join(changed)}: delete those to be run anew, "
                "and their run folders"
            )


def train(config: Comparison, training: Training, cores: list[int]) -> None:
    """Trains one run to its end on the given cores, going on from its checkpoint where there is one."""
    out = training.folder(config)
    mlmt = training._replace(method="mlmt")
    needed_by_mlmt = training.method == "s4gan" and "mlmt" in config.methods and not mlmt.kept(config).exists()
    if training.kept(config).exists() and not needed_by_mlmt:
        return
    if (out / "config.json").exists() and Run.read(out).finished:
        return keep(config, training)
    resume = ["--resume"] if (out / "config.json").exists() else []
    command = [sys.executable, "-m", "training.run", *training.flags(config)]
    paths = config.data_flags | {"--out": str(out)}
    command += [part for flag in paths.items() for part in flag] + resume
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.log").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    if status.returncode:
        raise ValueError(f"a run ended with exit status {status.returncode}: see {log.name}")
    keep(config, training)


def main(config: Comparison) -> dict:
    config.results.parent.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    jobs = min(config.jobs, len(cores))
    share = len(cores) // jobs
    free = [cores[i * share : (i + 1) * share] for i in range(jobs)]
    writing = threading.Lock()

    def work(seed: int) -> None:
        mine = free.pop()
        try:
            for training in trainings(config, seed):
                train(config, training, mine)
                with writing:
                    write_results(config)
        finally:
            free.append(mine)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, config.seeds))
    return write_results(config)


def write_results(config: Comparison) -> dict[str, float]:
    """Writes the tables and the plot of what is kept so far; the mean of each method."""
    kept_runs = {method: read_kept(config, method, config.labeled) for method in METHODS if method in config.methods}
    kept_runs = {method: runs for method, runs in kept_runs.items() if runs}
    by_labels = {labeled: read_kept(config, "supervised", labeled) for labeled in (config.labeled, *config.more_labels)}
    by_labels = {labeled: runs for labeled, runs in by_labels.items() if runs}
    if not kept_runs:
        return {}
    require_alike(kept_runs)
    scores = {method: miou(runs) for method, runs in kept_runs.items()}
    plot = config.results.with_suffix(".svg")
    label_scores = {labeled: miou(runs) for labeled, runs in by_labels.items()}
    write_atomically(plot, svg(labels_figure(config, label_scores, scores)))
    text = "\n".join(
        [
            *methods_table(config, kept_runs),
            "",
            *labels_table(config, by_labels),
            "",
            *critics_table(config, kept_runs),
            f"![mIoU by labelled pictures]({plot.name})",
            "",
            *commands(config, kept_runs),
            "",
        ]
    )
    write_between_markers(config.results, text)
    return {method: statistics.mean(values.values()) for method, values in scores.items()}


def miou(runs: dict[int, dict], variant: str | None = None) -> dict[int, float]:
    """By seed, in %."""
    return {seed: 100 * (run["result"][variant] if variant else run["result"])["mIoU"] for seed, run in runs.items()}


def methods_table(config: Comparison, kept_runs: dict[str, dict[int, dict]]) -> list[str]:
    """Markdown: mIoU by seed, mean and deviation, difference to supervised paired by seed."""
    rows = {}
    for method, runs in kept_runs.items():
        rows[f"{method} (gate on)" if method == "mlmt" else method] = miou(runs)
        if method == "mlmt":
            rows["mlmt (gate off)"] = miou(runs, "without_gate")
    each = [run for runs in kept_runs.values() for run in runs.values()]
    dates = " and ".join(sorted({run["date"] for run in each}))
    machines = " or ".join(sorted({run["settings"]["machine"] for run in each}))
    seeds = " | ".join(f"seed {seed}" for seed in config.seeds)
    lines = [
        f"{dates}; each run on {machines}. Settings and scores by class are in the folder beside; `-` is to come.",
        "",
        f"| mIoU on val, %, {config.labeled} labelled pictures | {seeds} | mean | deviation | to supervised, by seed "
        "| seconds a run |",
        "| --- |" + " ---: |" * (len(config.seeds) + 4),
    ]
    baseline = rows.get("supervised", {})
    for name, values in rows.items():
        seconds = statistics.mean(run["result"]["seconds"] for run in kept_runs[name.split()[0]].values())
        by_seed = spread([values.get(seed) for seed in config.seeds])
        cells = [name, *by_seed, gains_cell(gains(values, baseline)), f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def labels_table(config: Comparison, by_labels: dict[str, dict[int, dict]]) -> list[str]:
    """Markdown: what supervised scores with each number of labels."""
    lines = [
        f"| supervised with | {' | '.join(f'seed {seed}' for seed in config.seeds)} | mean | deviation |",
        "| --- |" + " ---: |" * (len(config.seeds) + 2),
    ]
    for labeled in sorted(by_labels, key=config.count):
        values = miou(by_labels[labeled])
        cells = [f"{config.count(labeled)} pictures", *spread([values.get(seed) for seed in config.seeds])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def critics_table(config: Comparison, kept_runs: dict[str, dict[int, dict]]) -> list[str]:
    """Markdown: how well each critic that judges pixels finds the wrong ones of val, and the softmax beside it does."""
    lines = [
        f"| area under the error-detection curve: critic, softmax | {' | '.join(f'seed {s}' for s in config.seeds)} |",
        "| --- |" + " ---: |" * len(config.seeds),
    ]
    for method, runs in kept_runs.items():
        areas = {
            seed: ", ".join(f"{run['confidence'][name]['error_detection_auc']:.3f}" for name in ("critic", "softmax"))
            for seed, run in runs.items()
            if "critic" in run.get("confidence", {})
        }
        if areas:
            lines.append(f"| {method} | {' | '.join(areas.get(seed, '-') for seed in config.seeds)} |")
    return [*lines, ""] if len(lines) > 2 else []


def labels_figure(
    config: Comparison, by_labels: dict[str, dict[int, float]], scores: dict[str, dict[int, float]]
) -> Figure:
    """mIoU by number of labelled pictures: supervised as a line, the other methods as points above its `labeled`."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    counts = sorted(by_labels, key=config.count)

    if counts:
        means, deviations = zip(*(mean_and_deviation(by_labels[labeled].values()) for labeled in counts), strict=True)
        axes.errorbar(
            [config.count(n) for n in counts],
            means,
            [d or 0.0 for d in deviations],
            capsize=3,
            marker="o",
            label="supervised",
        )
    others = [method for method in scores if method != "supervised"]
    for index, method in enumerate(others, start=1):
        mean, deviation = mean_and_deviation(scores[method].values())
        place = config.count(config.labeled) * 1.06**index  # side by side
        axes.errorbar(place, mean, deviation or 0.0, capsize=3, marker="sD^vPX*"[index - 1], linestyle="", label=method)
    if others and config.labeled in by_labels:  # beside the points, what they are to be compared with
        baseline = statistics.mean(by_labels[config.labeled].values())
        axes.hlines(baseline, config.count(config.labeled), place, color="black", linewidth=1, linestyle="dotted")
    axes.set_xscale("log")
    axes.set_xlim(config.count(config.labeled) / 3, 1.2 * config.train_images)
    axes.set_xticks([config.count(n) for n in counts], [str(config.count(n)) for n in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"labelled pictures (all but supervised: {config.labeled}, side by side)")
    axes.set_ylabel("mIoU on val, %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def svg(figure: Figure) -> bytes:
    """The figure as a file; equal figures give equal files."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "kerasseg"}):
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None})
    return file.getvalue()


def commands(config: Comparison, kept_runs: Sequence[str]) -> list[str]:
    """Markdown: what reproduces the first table."""
    lines = ["```bash"]
    for method in kept_runs:
        training = Training(method, config.labeled, config.seeds[0])
        places = {flag: flag.strip("-").upper() for flag in config.data_flags} if config.weights else config.data_flags
        paths = places | {"--out": str(training.folder(config))}
        arguments = [*training.flags(config), *(part for flag in paths.items() for part in flag)]
        lines.append(shlex.join(["python", "-m", "training.run", *arguments]))
    lines.append("```")
    if others := ", ".join(str(seed) for seed in config.seeds[1:]):
        lines += ["", f"and the same with seeds {others}."]
    return lines
