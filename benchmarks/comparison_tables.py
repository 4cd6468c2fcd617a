"""The tables and the plot of a comparison, made from the kept scores of its runs."""

import dataclasses
import json
import math
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.comparison_plot import labels_figure, svg
from benchmarks.comparison_runs import (
    PLAIN,
    Comparison,
    KeptRuns,
    Scores,
    of_method,
    read_kept,
    require_alike,
    require_same_for_all_seeds,
    seeds_kept,
)
from benchmarks.results_file import write_between_markers
from kerasseg.methods import METHODS
from serving.common.files import write_atomically
from training.compare import BASELINE, gains, mean_and_deviation
from training.run_folder import write_json

OF_THE_TABLE = ("backbone", "train_images", "labeled", "more_labels", "cover", "steps", "classifier_steps")
"""The data of a comparison that the table of all datasets needs; the file is next to the kept scores."""
ABOUT = "comparison.json"
AVERAGED, TWICE, ALL = "supervised, averaged weights", "supervised, twice the updates", "supervised, all labels"


class Kept(NamedTuple):
    """All kept scores of a comparison."""

    methods: dict[str, KeptRuns]
    by_labels: dict[str, KeptRuns]
    """Supervised, by the number of labelled images."""
    twice: KeptRuns
    """Supervised with twice as many updates."""


class Row(NamedTuple):
    """The table's row of a method."""

    name: str
    scores: Scores
    seconds: float | None
    """Seconds per step of the segmenter's training; None where not measured yet."""
    memory: int
    """The most memory that a run held, bytes."""


def read_all(config: Comparison) -> Kept:
    """The kept scores of the methods and of supervised; ValueError where they do not belong in one table."""
    methods = {}
    for method in METHODS:
        training = of_method(config, method, config.seeds[0])
        methods[method] = read_kept(config, method, training.labeled, training.steps)
    methods = {method: runs for method, runs in methods.items() if runs}
    if methods:
        require_alike(methods)
    amounts = (config.labeled, *config.more_labels)
    by_labels = {labeled: read_kept(config, BASELINE, labeled, config.steps) for labeled in amounts}
    twice = read_kept(config, BASELINE, config.labeled, 2 * config.steps)
    return Kept(methods, {labeled: runs for labeled, runs in by_labels.items() if runs}, twice)


def write_results(config: Comparison) -> dict[str, float]:
    """Writes the tables and the plot of the scores kept so far; returns the mean of each row.

    Raises:
        ValueError: kept scores do not belong in one table.
    """
    if config.tuning:
        return write_tuning(config)
    kept = read_all(config)
    rows = rows_of(kept)
    if not rows:
        return {}
    about = {name: value for name, value in dataclasses.asdict(config).items() if name in OF_THE_TABLE}
    write_json(config.folder / ABOUT, {"dataset": Path(config.dataset).resolve().name} | about)
    plot = config.table.with_suffix(".svg")
    points = {row.name: row.scores for row in rows if row.name in METHODS}
    write_atomically(plot, svg(labels_figure(config, label_scores(kept), points)))
    parts = [
        methods_table(config, kept, rows),
        labels_table(config, kept),
        gate_table(config, kept),
        critics_table(config, kept),
        [f"![mIoU by labelled images]({plot.name})"],
        commands(config, kept),
    ]
    if not config.table.exists():
        config.table.write_text(f"# {config.name}: {config.labeled} labelled images\n\n")
    write_between_markers(config.table, "\n\n".join("\n".join(part) for part in parts if part) + "\n")
    return {row.name: statistics.mean(row.scores.values()) for row in rows}


# Figures ----------------------------------------------------------------------------------------------------


def miou(runs: KeptRuns, variant: str | None = None) -> Scores:
    """mIoU of one of the predictions, by seed; `variant` None for the method's own."""
    return {seed: 100 * (run["result"][variant] if variant else run["result"])["mIoU"] for seed, run in runs.items()}


def own_scores(row: str, runs: KeptRuns) -> Scores:
    """mIoU of a method's own prediction: for supervised the one without averaged weights."""
    return miou(runs, PLAIN if row.partition("@")[0] == BASELINE else None)


def label_scores(kept: Kept) -> dict[str, Scores]:
    return {labeled: miou(runs, PLAIN) for labeled, runs in kept.by_labels.items()}


def rows_of(kept: Kept) -> list[Row]:
    """Supervised first, then the methods, the best first."""
    supervised = kept.methods.get(BASELINE, {})
    controls = [
        (BASELINE, supervised, PLAIN),
        (AVERAGED, supervised, None),
        (TWICE, kept.twice, PLAIN),
    ]
    rows = [Row(name, miou(runs, variant), *costs(runs)) for name, runs, variant in controls if runs]
    others = [
        Row(method, miou(runs), *costs(runs, kept.methods.get("s4gan", {}) if method == "mlmt" else None))
        for method, runs in kept.methods.items()
        if method != BASELINE
    ]
    return rows + sorted(others, key=lambda row: -statistics.mean(row.scores.values()))


def costs(runs: KeptRuns, branches: KeptRuns | None = None) -> tuple[float | None, int]:
    """Seconds per step of the segmenter's training, and the most memory, bytes. With `branches`, whose segmenters the
    runs take, the seconds of both are divided by the steps of the segmenter."""
    both = [[run] if branches is None else [branches.get(seed), run] for seed, run in runs.items()]
    whole = [[run["result"] for run in pair if run] for pair in both if all(pair)]
    seconds = [sum(result["seconds"] for result in pair) / pair[0]["steps"] for pair in whole]
    memory = max((result["peak_memory_bytes"] for pair in whole for result in pair), default=0)
    return (statistics.mean(seconds) if seconds else None), memory


def mean_and_error(differences: Sequence[float]) -> str:
    """Mean and its standard error; only the mean for a single difference."""
    if not differences:
        return "-"
    mean, deviation = mean_and_deviation(differences)
    return f"{mean:+.1f}" + ("" if deviation is None else f" ± {deviation / math.sqrt(len(differences)):.1f}")


def mean_of(differences: Sequence[float] | None) -> float:
    """The mean as a table shows it; -inf where there is none."""
    return round(statistics.mean(differences), 1) if differences else -math.inf


def paired(scores: Scores, baseline: Scores) -> str:
    """The cell of a table: each difference, their mean and its standard error."""
    differences = gains(scores, baseline)
    each = " ".join(f"{difference:+.1f}" for difference in differences)
    return f"{each} (mean {mean_and_error(differences)})" if differences else "-"


def closed_share(scores: Scores, few: Scores, full: Scores) -> float | None:
    """How much of the distance from few to all labels a method closes, over the seeds that all three have; None where
    there is no such seed, or more labels gain nothing."""
    seeds = scores.keys() & few.keys() & full.keys()
    distance = sum(full[seed] - few[seed] for seed in seeds)
    return sum(scores[seed] - few[seed] for seed in seeds) / distance if distance > 0 else None


def by_seed(seeds: Iterable[int], scores: Scores) -> list[str]:
    """Cells: the score of each seed, `-` where it is missing, and their mean."""
    return [f"{scores[seed]:.1f}" if seed in scores else "-" for seed in seeds] + [
        f"{statistics.mean(scores.values()):.1f}" if scores else "-"
    ]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table whose first column is words and whose others are numbers; nothing where there are no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1), *lines] if lines else []


def seconds_cell(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


def memory_cell(memory: int) -> str:
    return f"{memory / 2**30:.1f}" if memory else "-"


# Tables -----------------------------------------------------------------------------------------------------


def seeds_head(config: Comparison) -> list[str]:
    return [f"seed {seed}" for seed in seeds_kept(config)]


def methods_table(config: Comparison, kept: Kept, rows: Sequence[Row]) -> list[str]:
    each = [run for runs in (*kept.methods.values(), *kept.by_labels.values(), kept.twice) for run in runs.values()]
    dates = " and ".join(sorted({run["date"] for run in each}))
    machines = " or ".join(sorted({run["settings"]["machine"] for run in each}))
    few, full = own_scores(BASELINE, kept.methods.get(BASELINE, {})), label_scores(kept).get("all", {})
    head = [f"mIoU on val, %, {config.labeled} labelled images", *seeds_head(config), "mean"]
    head += ["to supervised, by seed", "closes of the distance to all labels", "seconds a step", "GiB"]
    lines = []
    for row in rows:
        share = closed_share(row.scores, few, full)
        closes = "-" if share is None or row.name == BASELINE else f"{100 * share:.0f} %"
        cells = [row.name, *by_seed(seeds_kept(config), row.scores)]
        lines.append([*cells, paired(row.scores, few), closes, seconds_cell(row.seconds), memory_cell(row.memory)])
    words = (
        f"{dates}; each run on {machines}; {config.steps} steps. Settings and scores by class are in the folder "
        f"{config.name}; `-` is to come. Differences are paired by seed, with the standard error of their mean. "
        "supervised is without averaged weights. The seconds of mlmt are those of both its branches, for each step of "
        "the segmenter; memory is the most that a run held."
    )
    return [words, "", *markdown(head, lines)]


def labels_table(config: Comparison, kept: Kept) -> list[str]:
    scores = label_scores(kept)
    rows = [
        [f"{config.count(labeled)} images", *by_seed(seeds_kept(config), scores[labeled])]
        for labeled in sorted(scores, key=config.count)
    ]
    return markdown(["supervised with", *seeds_head(config), "mean"], rows)


def gate_table(config: Comparison, kept: Kept) -> list[str]:
    """How mlmt's gate changes its score."""
    if not (runs := kept.methods.get("mlmt")):
        return []
    seeds, on, off = seeds_kept(config), miou(runs), miou(runs, "without_gate")
    differences = {seed: on[seed] - off[seed] for seed in on}
    cells = [f"{differences[seed]:+.1f}" if seed in differences else "-" for seed in seeds]
    rows = [
        ["gate on", *by_seed(seeds, on)],
        ["gate off", *by_seed(seeds, off)],
        ["difference", *cells, mean_and_error(list(differences.values()))],
    ]
    return markdown(["mlmt", *seeds_head(config), "mean"], rows)


def critics_table(config: Comparison, kept: Kept) -> list[str]:
    """How well each critic that judges pixels finds the wrong ones of val, and how well the softmax does."""
    rows = []
    for method, runs in kept.methods.items():
        areas = {
            seed: ", ".join(f"{run['confidence'][name]['error_detection_auc']:.3f}" for name in ("critic", "softmax"))
            for seed, run in runs.items()
            if "critic" in run.get("confidence", {})
        }
        if areas:
            rows.append([method, *(areas.get(seed, "-") for seed in seeds_kept(config))])
    return markdown(["area under the error-detection curve: critic, softmax", *seeds_head(config)], rows)


def commands(config: Comparison, kept: Kept) -> list[str]:
    """The commands that reproduce the tables, and those of the first table's runs."""
    places = {flag: flag.strip("-").upper() for flag in config.data_flags}
    places |= {"--dataset": "shapes"} if config.dataset == "shapes" else {}
    own = ["python", "-m", "benchmarks.comparison", places["--dataset"], "--labeled", config.labeled]
    own += ["--cover" if config.cover else "--no-cover", "--steps", str(config.steps)]
    own += ["--more-labels", *config.more_labels, "--seeds", *map(str, seeds_kept(config))]
    own += ["--backbone", config.backbone] if config.backbone else []
    own += ["--weights", places["--weights"]] if config.weights else []
    lines = ["```bash", shlex.join(own)]
    for method in kept.methods:
        training = of_method(config, method, config.seeds[0])
        paths = places | {"--out": str(training.folder(config))}
        arguments = [*training.flags(config), *(part for flag in paths.items() for part in flag)]
        lines.append(shlex.join(["python", "-m", "training.run", *arguments]))
    return [*lines, "```"]


# Settings that are tried ------------------------------------------------------------------------------------


def write_tuning(config: Comparison) -> dict[str, float]:
    """Writes the table of the settings tried on seeds that are not reported; returns the mean of each row."""
    found: dict[str, KeptRuns] = {}
    for path in sorted(config.folder.glob("*.json")):
        run = json.loads(path.read_text())
        match = re.fullmatch(r"(.+)_([^_]+)_(\d+)steps_seed(\d+)", path.stem)
        if match and match[2] == config.labeled and int(match[3]) in (config.steps, config.classifier_steps):
            found.setdefault(match[1], {})[int(match[4])] = run
    for row, runs in found.items():
        require_same_for_all_seeds(row, runs)
    if not found:
        return {}
    scores = {row: own_scores(row, runs) for row, runs in found.items()}
    seeds = seeds_kept(config)
    lines = []
    for row in sorted(found, key=lambda row: (list(METHODS).index(row.partition("@")[0]), row)):
        method, _, variant = row.partition("@")
        extra = next(iter(found[row].values())).get("extra", "")
        change = paired(scores[row], scores.get(method, {})) if variant else "-"
        flags = f"`{extra}`" if extra else "as in the recipe"
        lines.append([row, flags, *by_seed(seeds, scores[row]), change, paired(scores[row], scores.get(BASELINE, {}))])
    head = [f"mIoU on val, %, {config.labeled} labelled images", "flags", *seeds_head(config), "mean"]
    head += ["to the same without the flags", "to supervised"]
    table = config.folder.with_suffix(".md")
    if not table.exists():
        table.write_text(f"# {config.name}: what was tried, on seeds that are not reported\n\n")
    write_between_markers(table, "\n".join(markdown(head, lines)) + "\n")
    return {row: statistics.mean(values.values()) for row, values in scores.items()}


# All datasets -----------------------------------------------------------------------------------------------


def write_summary(results: Path) -> Path:
    """Writes the table of all methods on all datasets that have scores, and returns its file.

    Raises:
        ValueError: there are none.
    """
    kept = {}
    for about in sorted(results.glob(f"*/{ABOUT}"), key=dataset_order):
        facts = json.loads(about.read_text())
        config = Comparison(**facts | {"more_labels": tuple(facts["more_labels"])}, results=results)
        kept[config] = read_all(config)
    kept = {config: one for config, one in kept.items() if BASELINE in one.methods}
    if not kept:
        raise ValueError(f"{results} holds no scores of supervised yet: run benchmarks.comparison DATASET")
    table = results.with_suffix(".md")
    write_between_markers(table, "\n".join(summary_table(kept)) + "\n")
    return table


def dataset_order(about: Path) -> tuple[int, str]:
    known = ("msrc21", "neu_seg", "camvid", "shapes")
    name = about.parent.name
    return known.index(name) if name in known else len(known), name


def summary_table(kept: Mapping[Comparison, Kept]) -> list[str]:
    """Gains over supervised, the best of each dataset in bold; seconds and memory of a step on the first one."""
    rows = {config: {row.name: row for row in rows_of(one)} for config, one in kept.items()}
    few = {config: rows[config][BASELINE].scores for config in kept}
    differences: dict[str, dict[Comparison, list[float]]] = {}
    for config, one in kept.items():
        scores = {name: row.scores for name, row in rows[config].items()}
        for name, values in (scores | {ALL: label_scores(one).get("all", {})}).items():
            differences.setdefault(name, {})[config] = gains(values, few[config])

    def mean_gain(name: str) -> float:
        return statistics.mean(statistics.mean(each) for each in differences[name].values() if each)

    rated = [name for name in METHODS if name != BASELINE and any(differences.get(name, {}).values())]
    best = {
        config: max((mean_of(differences[name].get(config)) for name in rated), default=-math.inf) for config in kept
    }
    controls = [name for name in (AVERAGED, TWICE) if any(differences.get(name, {}).values())]
    ordered = [*controls, *sorted(rated, key=mean_gain, reverse=True)]
    first = next(iter(kept))
    head = ["gain over supervised, points of mIoU on val", *map(column_head, kept), "seconds a step", "GiB"]
    means = [f"mIoU {statistics.mean(few[config].values()):.1f} %" for config in kept]
    lines = [[BASELINE, *means, *cost_cells(rows[first].get(BASELINE))]]
    for name in ordered:
        cells = [mean_and_error(differences[name].get(config, [])) for config in kept]
        if name in rated:
            cells = [
                f"**{cell}**" if cell != "-" and mean_of(differences[name].get(config)) == best[config] else cell
                for config, cell in zip(kept, cells, strict=True)
            ]
        lines.append([f"`{name}`" if name in METHODS else name, *cells, *cost_cells(rows[first].get(name))])
    lines.append([ALL, *(mean_and_error(differences[ALL].get(config, [])) for config in kept), "-", "-"])
    words = f"Mean over seeds of differences by seed, and its standard error; steps and memory as on {first.name}."
    return [words, "", *markdown(head, lines)]


def column_head(config: Comparison) -> str:
    return f"[{config.name}](comparison/{config.name}.md), {config.labeled} of {config.train_images} labels"


def cost_cells(row: Row | None) -> list[str]:
    return ["-", "-"] if row is None else [seconds_cell(row.seconds), memory_cell(row.memory)]
