"""`python -m training.compare RUN RUN ...`: mean and deviation of methods over seeds, and their gain over supervised.

Reads config.json and result.json only, without TensorFlow.
"""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from serving.common import cli
from training.recorded import mark
from training.run_folder import Run

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
    own = _flat(settings(run))
    theirs = [_flat(settings(other)) for other in others if other.config["method"] == run.config["method"]]
    names = sorted({name for other in theirs for name in own.keys() | other.keys() if own.get(name) != other.get(name)})
    shown = ", ".join(f"{name.rpartition('.')[2]} {own.get(name)}" for name in names)
    return f" ({shown})" if names else ""


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


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
    """Run folders of finished runs, in the order of the table's rows."""
    mixed_splits: bool = False
    """Also compare methods that were trained on different splits: their means then depend on the splits too."""


def main(config: CompareConfig) -> dict[str, Any]:
    runs = [Run.read(folder) for folder in config.runs]
    if not runs:
        raise ValueError("nothing to compare: give run folders, the --out of kerasseg train")
    for run in runs:
        run.require_finished()
        if scores_of(run, "")["mIoU"] is None:
            raise ValueError(f"the run in {run.folder} has no mIoU, since nothing was measured: leave it out")
    rows = rows_of(runs)
    require_comparable(runs, rows, config.mixed_splits)
    baselines = [row for row in rows if row.runs[0].config["method"] == BASELINE]
    if len(baselines) > 1:
        names = ", ".join(row.name for row in baselines)
        raise ValueError(
            f"gains are over supervised, of which there are {len(baselines)}: {names}; give the runs of one"
        )
    baseline = baselines[0].by_split if baselines else {}
    print("\n".join(table(rows, baseline)), flush=True)
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


def table(rows: Sequence[Row], baseline: Mapping[str, float]) -> list[str]:
    """Markdown: mIoU by seed, mean and deviation, difference to supervised paired by split."""
    protocol = scores_of(rows[0].runs[0], "")["protocol"]
    seeds = sorted({run.config.get("seed", 0) for row in rows for run in row.runs})
    lines = [
        f"| mIoU on {protocol['split']}, %, {protocol['name']} | {' | '.join(f'seed {seed}' for seed in seeds)} "
        "| mean | deviation | to supervised, by split |",
        "| --- |" + " ---: |" * (len(seeds) + 3),
    ]
    for row in rows:
        scores = {run.config.get("seed", 0): 100 * score for run, score in zip(row.runs, row.scores, strict=True)}
        paired = [100 * gain for gain in gains(row.by_split, baseline)]
        cells = [row.name, *spread([scores.get(seed) for seed in seeds]), gains_cell(paired)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


COMMAND = cli.Command(
    main, CompareConfig, "Compares finished runs: mean and deviation over seeds, and gains over supervised."
)

if __name__ == "__main__":
    COMMAND.run()
