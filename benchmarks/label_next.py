"""`python -m benchmarks.label_next DATASET`: what it is worth to ask the model which images to label next.

For each seed a model is trained with few labels, more images are labelled in the order of `serving.batch --rank
diverse`, of `--rank uncertainty`, and by chance, and a model is trained from the start with each of these sets. Label
maps of the dataset stand for the person who draws them. It keeps finished runs and resumes unfinished ones.
"""

import csv
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.comparison import LABELED
from benchmarks.results_file import write_between_markers
from benchmarks.turns import circumstances
from kerasseg.data.folder import FolderDataset
from serving.common import cli

ORDERS = ("diverse", "uncertainty", "chance")


@dataclass(frozen=True, kw_only=True)
class LabelNext:
    """What to train, and where things go."""

    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """A dataset folder."""
    labeled: int | None = None
    """Labelled images of the first model; None for those of benchmarks.comparison."""
    more: int = 10
    """How many images are labelled next."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides which images are labelled at first, the initial weights and the batches."""
    method: str = "supervised"
    """What is trained."""
    steps: int = 1500
    """Steps of each training."""
    weights: str = "imagenet"
    """The backbone's initial weights, as training.run takes them."""
    runs: Path = Path("runs/label_next")
    """Where runs, models and rankings go."""
    results: Path = Path("benchmarks/results/label_next.md")
    """The result is written between the markers of this file."""


def run(*command: object) -> None:
    """A command of this project. Raises ValueError where it fails."""
    words = [sys.executable, "-m", *map(str, command)]
    if status := subprocess.run(words, stdout=subprocess.DEVNULL).returncode:
        raise ValueError(f"exit status {status} of {' '.join(words)}: see above")


class Experiment:
    """The runs of one seed."""

    def __init__(self, config: LabelNext, seed: int) -> None:
        self.config, self.seed = config, seed
        settings = f"{config.method}_{config.labeled}_{config.steps}steps"
        self.folder = config.runs / config.dataset.resolve().name / settings
        self.label_maps = FolderDataset(config.dataset).label_names("train")
        self.folder.mkdir(parents=True, exist_ok=True)

    def train(self, name: str, labeled: object) -> Path:
        """The folder of a finished run: `labeled` images, or those in a file of names."""
        out, config = self.folder / f"{name}_seed{self.seed}", self.config
        if not (out / "result.json").exists():
            flags = ["--method", config.method, "--seed", self.seed, "--steps", config.steps, "--average-weights"]
            resume = ["--resume"] if (out / "config.json").exists() else []
            paths = ["--dataset", config.dataset, "--weights", config.weights, "--out", out]
            run(
                "training.run",
                *flags,
                "--labeled",
                labeled,
                *([] if "/" in str(labeled) else ["--cover"]),
                *paths,
                *resume,
            )
        return out

    def chosen(self, before: Path, order: str) -> list[str]:
        """The names of the images that are labelled next."""
        labeled = (before / "split/labeled.txt").read_text().split("\n")[:-1]
        if order == "chance":
            others = sorted(set(self.label_maps) - set(labeled))
            return random.Random(f"label_next {self.seed}").sample(others, self.config.more)
        model, output = self.folder / f"models/seed{self.seed}", self.folder / f"answers_seed{self.seed}"
        label_maps = self.folder / f"labeled_seed{self.seed}"
        label_maps.mkdir(exist_ok=True)
        for name in labeled:
            (label_maps / f"{name}.png").touch()
        if not model.exists():
            run("export.run", before, "--out", model, "--formats", "onnx", "--parity-images", 4)
        images = self.config.dataset / "images/train"
        run("serving.batch", model, images, output, "--write", "--rank", order, "--label-maps", label_maps)
        with (output / "ranking.csv").open(newline="") as file:
            names = [Path(row["input"]).stem for row in csv.DictReader(file)]
        return [name for name in names if name in self.label_maps][: self.config.more]

    def rows(self) -> list[dict[str, Any]]:
        """The scores before, and after each order."""
        before = self.train("before", self.config.labeled)
        rows = [{"order": "before", "seed": self.seed, "mIoU": miou_of(before), "names": []}]
        for order in ORDERS:
            names = self.chosen(before, order)
            file = self.folder / f"{order}_seed{self.seed}.txt"
            file.write_text((before / "split/labeled.txt").read_text() + "".join(f"{name}\n" for name in names))
            rows.append({"order": order, "seed": self.seed, "mIoU": miou_of(self.train(order, file)), "names": names})
        return rows


def miou_of(run: Path) -> float:
    """On val, percent."""
    return 100 * json.loads((run / "result.json").read_text())["mIoU"]


def table(rows: Sequence[dict[str, Any]], config: LabelNext) -> str:
    """The rows by order, as Markdown."""
    labels = {"before": f"{config.labeled} labels", "chance": f"{config.more} more by chance"}
    labels |= {order: f"{config.more} more by `--rank {order}`" for order in ("diverse", "uncertainty")}
    seeds = sorted({row["seed"] for row in rows})
    text = f"| | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |\n"
    text += "| --- |" + " ---: |" * (len(seeds) + 1) + "\n"
    for order in ("before", "chance", "uncertainty", "diverse"):
        values = [row["mIoU"] for seed in seeds for row in rows if (row["order"], row["seed"]) == (order, seed)]
        cells = [f"{value:.1f}" for value in (*values, statistics.mean(values))]
        text += f"| {labels[order]} | {' | '.join(cells)} |\n"
    return text


def main(config: LabelNext) -> dict[str, Any]:
    """Trains what is missing; returns the rows."""
    name = config.dataset.resolve().name
    labeled = config.labeled or LABELED.get(name)
    if labeled is None:
        raise ValueError(f"how many labelled images? give --labeled N; only {', '.join(LABELED)} have a default")
    config = LabelNext(**vars(config) | {"labeled": labeled})
    before = circumstances("tensorflow", "keras")
    rows = [row for seed in config.seeds for row in Experiment(config, seed).rows()]
    text = f"{before}; {name}, `{config.method}`, {config.steps} steps, mIoU on val in percent.\n\n"
    write_between_markers(config.results, text + table(rows, config))
    return {"rows": rows}


if __name__ == "__main__":
    cli.run(main, LabelNext, __doc__)
