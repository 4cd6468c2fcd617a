"""`python -m training.compare RUN RUN ...`: mean and deviation of methods over seeds, and their gain over supervised.

Reads config.json and result.json only, without TensorFlow.
"""

import csv
import io
import re
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from serving.common import cli
from serving.common.files import write_atomically
from training.recorded import mark
from training.run_folder import Run, flat

BASELINE = "supervised"


# What tables say about several runs -------------------------------------------------------------------------


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of a sample; None for one value."""
    values = list(values)
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float | None]) -> list[str]:
    """The cells of a table's row: each value (None: not there yet), their mean and standard deviation."""
    mean, deviation = mean_and_deviation(value for value in values if value is not None)
    return ["-" if value is None else f"{value:.1f}" for value in (*values, mean, deviation)]


def gains(values: Mapping[Any, float], baseline: Mapping[Any, float]) -> list[float]:
    """Differences for the keys that both have, in the order of `values`."""
    return [value - baseline[key] for key, value in values.items() if key in baseline]


def gains_cell(differences: Sequence[float]) -> str:
    """The cell of a table: each difference, and their mean."""
    if not differences:
        return "-"
    return f"{' '.join(f'{gain:+.1f}' for gain in differences)} (mean {statistics.mean(differences):+.1f})"


# The command ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One method with one set of settings, and one of its predictions."""

    name: str
    runs: tuple[Run, ...]
    """The runs of the row, by seed."""
    variant: str = ""

    @property
    def scores(self) -> list[float]:
        """mIoU of each run, 0..1."""
        return [scores_of(run, self.variant)["mIoU"] for run in self.runs]

    @property
    def by_split(self) -> dict[str, float]:
        """mIoU by split fingerprint; the mean where several seeds share a split."""
        found: dict[str, list[float]] = {}
        for run, score in zip(self.runs, self.scores, strict=True):
            found.setdefault(run.config["split_fingerprint"], []).append(score)
        return {split: statistics.mean(values) for split, values in found.items()}


def scores_of(run: Run, variant: str) -> dict[str, Any]:
    """The scores of one of a run's predictions, from result.json."""
    assert run.result is not None
    return run.result[variant] if variant else run.result


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """The runs by method and settings, each further prediction of a method in a row of its own.

    Raises:
        ValueError: two runs of one method, one seed and the same settings.
    """
    groups: list[list[Run]] = []
    for run in runs:
        alike = next((group for group in groups if settings(group[0]) == settings(run)), None)
        if alike is None:
            groups.append([run])
            continue
        if twin := next((other for other in alike if other.config.get("seed") == run.config.get("seed")), None):
            raise ValueError(
                f"{twin.folder} and {run.folder} are the same training ({run.config['method']}, seed "
                f"{run.config.get('seed')}): leave one out"
            )
        alike.append(run)
    rows = []
    for group in groups:
        group.sort(key=lambda run: run.config.get("seed", 0))
        name = group[0].config["method"] + _differing_settings(
            group[0], [other[0] for other in groups if other is not group]
        )
        rows.append(Row(name, tuple(group)))
        rows += [Row(f"{name}, {variant.replace('_', ' ')}", tuple(group), variant) for variant in group[0].variants]
    return rows


def settings(run: Run) -> dict[str, Any]:
    """The settings that runs must share to be averaged."""
    shared = {key: value for key, value in run.config.items() if mark(key).compared}
    # How many images have labels, however --labeled says it: 1/8, 50, or a list of names for each seed.
    shared |= {"labeled": len(run.split["labeled"]), "image_labels": len(run.split["image_labeled"])}
    if shared.get("class_weights", "none") != "none":  # numbers that follow from the split of each seed
        shared["fields"] = {
            name: {field: value for field, value in fields.items() if field != "class_weights"}
            for name, fields in shared["fields"].items()
        }
    return shared | {"dataset": run.dataset, "weights": Path(str(run.config.get("weights"))).name}


def other_differences(rows: Sequence[Row]) -> list[str]:
    """Settings of the run, not of the method, in which rows differ: a gain is then not only the method's."""
    of_the_method = {"method", "fields", "steps", "learning_rate"}
    all_settings = [settings(row.runs[0]) for row in rows]
    names = sorted({name for one in all_settings for name in one} - of_the_method)
    return [name for name in names if any(one.get(name) != all_settings[0].get(name) for one in all_settings)]


def _differing_settings(run: Run, others: Sequence[Run]) -> str:
    """The settings in which a run differs from others of its method, in brackets."""
    own = flat(settings(run))
    theirs = [flat(settings(other)) for other in others if other.config["method"] == run.config["method"]]
    names = {name for other in theirs for name in own.keys() | other.keys() if own.get(name) != other.get(name)}
    # A method has the run's steps and learning rate among its fields, and a file of weights its name and its hash.
    if {"weights", "initial_weights.source"} & names:
        names = {name for name in names if not name.startswith("initial_weights.")} | {"weights"}
    shown = dict.fromkeys(f"{name.rpartition('.')[2]} {_short(own.get(name))}" for name in sorted(names))
    return f" ({', '.join(shown)})" if shown else ""


def _short(value: Any) -> str:
    """A setting as a table shows it: a hash by its first digits."""
    text = str(value)
    return text[:8] if re.fullmatch("[0-9a-f]{64}", text) else text


def require_comparable(runs: Sequence[Run], rows: Sequence[Row], mixed_splits: bool) -> None:
    """ValueError unless all runs have the same classes and protocol and, without `mixed_splits`, all rows the same
    splits."""
    first = runs[0]
    for run in runs[1:]:
        if run.classes != first.classes:
            raise ValueError(f"{first.folder} and {run.folder} have other classes: compare runs on the same dataset")
        ours, theirs = (scores_of(one, "")["protocol"] for one in (first, run))
        if ours != theirs:
            raise ValueError(
                f"{first.folder} was evaluated as {ours}, {run.folder} as {theirs}: compare runs evaluated in the same "
                "way (kerasseg train --protocol)"
            )
    for row in rows[1:]:
        if not mixed_splits and row.by_split.keys() != rows[0].by_split.keys():
            raise ValueError(
                f"{rows[0].name} was trained on {_splits(rows[0])}, {row.name} on {_splits(row)}: give runs on the "
                "same splits (--labeled and --seed), or --mixed-splits"
            )


def _splits(row: Row) -> str:
    return f"the splits {', '.join(sorted(split[:8] for split in row.by_split))}"


@dataclass(frozen=True)
class CompareConfig:
    """Which runs to compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, in the order of the table's rows; folders without a finished run are left out, with a word."""
    mixed_splits: bool = False
    """Also compare methods that were trained on different splits: their means then depend on the splits too."""
    csv: Path | None = None
    """Also write the table to this file, as comma-separated values."""
    latex: Path | None = None
    """Also write the table to this file, as a LaTeX tabular (of the package booktabs)."""


def main(config: CompareConfig) -> dict[str, Any]:
    runs = comparable(config.runs)
    rows = rows_of(runs)
    require_comparable(runs, rows, config.mixed_splits)
    baselines = [row for row in rows if row.runs[0].config["method"] == BASELINE]
    if len(baselines) > 1:
        names = ", ".join(row.name for row in baselines)
        raise ValueError(
            f"gains are over supervised, of which there are {len(baselines)}: {names}; give the runs of one"
        )
    baseline = baselines[0].by_split if baselines else {}
    cells = table(rows, baseline)
    print("\n".join(markdown(cells)), flush=True)
    for file, text in ((config.csv, comma_separated(cells)), (config.latex, latex(cells))):
        if file is not None:
            write_atomically(file, text.encode())
    if others := other_differences(rows):
        print(f"note: these methods were also run with different {', '.join(others)}", file=sys.stderr)
    return {
        "protocol": scores_of(runs[0], "")["protocol"],
        "rows": [summary(row, baseline) for row in rows],
    }


def summary(row: Row, baseline: Mapping[str, float]) -> dict[str, Any]:
    """A row in numbers, 0..1: "mIoU" of each run, "mean", "deviation" (None for one run), and its gains over supervised
    on each split ("to_supervised") and in the mean ("mean_to_supervised"), None where nothing is paired."""
    mean, deviation = mean_and_deviation(row.scores)
    differences = gains(row.by_split, baseline)
    return {
        "method": row.name,
        "runs": [str(run.folder) for run in row.runs],
        "seeds": [run.config.get("seed") for run in row.runs],
        "mIoU": row.scores,
        "mean": mean,
        "deviation": deviation,
        "to_supervised": differences or None,
        "mean_to_supervised": statistics.mean(differences) if differences else None,
    }


def comparable(folders: Iterable[Path]) -> list[Run]:
    """The finished runs; stderr says which folders are left out, and why.

    Raises:
        ValueError: there is none.
    """
    runs: list[Run] = []
    left_out: list[str] = []
    for folder in folders:
        try:
            run = Run.read(folder)
            run.require_finished()
            if scores_of(run, "")["mIoU"] is None:
                raise ValueError(f"the run in {folder} has no mIoU, since nothing was measured")
            runs.append(run)
        except ValueError as error:
            left_out.append(str(error))
    if not runs:
        why = left_out[0] if left_out else "give run folders, the --out of kerasseg train"
        raise ValueError(f"nothing to compare: {why}")
    for why in left_out:
        print(f"left out: {why}", file=sys.stderr)
    return runs


def table(rows: Sequence[Row], baseline: Mapping[str, float]) -> list[list[str]]:
    """Cells, the head first: mIoU by seed, mean and deviation, difference to supervised paired by split."""
    protocol = scores_of(rows[0].runs[0], "")["protocol"]
    seeds = sorted({run.config.get("seed", 0) for row in rows for run in row.runs})
    head = [f"mIoU on {protocol['split']}, %, {protocol['name']}", *(f"seed {seed}" for seed in seeds)]
    lines = [[*head, "mean", "deviation", "to supervised, by split"]]
    for row in rows:
        scores = {run.config.get("seed", 0): 100 * score for run, score in zip(row.runs, row.scores, strict=True)}
        paired = [100 * gain for gain in gains(row.by_split, baseline)]
        lines.append([row.name, *spread([scores.get(seed) for seed in seeds]), gains_cell(paired)])
    return lines


def markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    head, *rows = (f"| {' | '.join(row)} |" for row in cells)
    return [head, "| --- |" + " ---: |" * (len(cells[0]) - 1), *rows]


def comma_separated(cells: Sequence[Sequence[str]]) -> str:
    """A table as comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


LATEX = {mark: rf"\{mark}" for mark in "#$%&_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
"""How LaTeX writes characters that it has other uses for."""


def latex(cells: Sequence[Sequence[str]]) -> str:
    """A table as a LaTeX tabular."""
    escaped = [["".join(LATEX.get(mark, mark) for mark in cell) for cell in row] for row in cells]
    head, *rows = (" & ".join(row) + r" \\" for row in escaped)
    begin = rf"\begin{{tabular}}{{l{'r' * (len(cells[0]) - 1)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""])


COMMAND = cli.Command(
    main, CompareConfig, "Compares finished runs: mean and deviation over seeds, and gains over supervised."
)

if __name__ == "__main__":
    COMMAND.run()
