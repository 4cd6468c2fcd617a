"""`python -m benchmarks.camvid`: supervised, s4gan and mlmt on CamVid with 12 labelled frames, on two CPU cores.

Trains every method with every seed, evaluates on val at native size, and writes the table. What a finished run scored
is kept beside the table, and an unfinished run is resumed, so it can be stopped and started; on another machine kept
scores count and the rest is trained. mlmt adds its classifier to the s4gan run of the same seed: the two branches are
trained separately in the paper too.
"""

import dataclasses
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from kerasseg.methods.method import SegmenterConfig
from serving import cli
from serving.pictures import write_atomically
from training.run_folder import Run

METHODS = ("supervised", "s4gan", "mlmt")


@dataclass(frozen=True)
class CamVidConfig:
    """Where the data are and what to run."""

    dataset: Path
    """CamVid as a dataset folder: 367 train and 101 val frames, 480x360, 11 classes."""
    weights: Path
    """MobileNetV2 trained on ImageNet (alpha 1.0, no top), as keras.applications loads it."""
    runs: Path = Path("runs/camvid")
    """Where the run folders go."""
    results: Path = Path("benchmarks/results/camvid.md")
    """The table is written between the markers of this file; the folder of its name keeps the scores of each run."""
    labeled: int = 12
    """Labelled frames."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each decides a labelled subset, the initial weights and the batches."""
    methods: tuple[str, ...] = METHODS
    """Rows of the table; mlmt needs s4gan."""
    steps: int = 1500
    """Of the segmenter's training."""
    classifier_steps: int = 750
    """Of mlmt's classifier."""
    jobs: int = 1
    """Seeds at a time, each with its share of the cores."""

    def __post_init__(self):
        if self.methods != METHODS[: len(self.methods)] or not self.methods:
            raise ValueError(
                f"--methods must be {', then '.join(METHODS)}, leaving out only from the end; got {self.methods}"
            )


def flags(config: CamVidConfig, method: str, seed: int) -> list[str]:
    """The command line of one run, less --dataset, --weights and --out."""
    own = ["--method", method, "--labeled", str(config.labeled), "--seed", str(seed)]
    if method == "mlmt":
        return [
            *own,
            "--steps",
            str(config.classifier_steps),
            "--branch-run",
            str(folder(config, "s4gan", seed)),
        ]
    return [*own, "--steps", str(config.steps)]


def folder(config: CamVidConfig, method: str, seed: int) -> Path:
    steps = config.classifier_steps if method == "mlmt" else config.steps
    return config.runs / f"{method}_{config.labeled}_{steps}steps_seed{seed}"


def kept(config: CamVidConfig, method: str, seed: int) -> Path:
    """Where the scores of a run are kept when its folder is gone."""
    return config.results.with_suffix("") / f"{folder(config, method, seed).name}.json"


def keep(config: CamVidConfig, method: str, seed: int) -> None:
    """Keeps the settings and scores of a finished run, without the paths of the machine it ran on."""
    run = Run.read_finished(folder(config, method, seed))
    local = ("command", "dataset", "weights", "branch_run", "palette", "finished")
    settings = {key: value for key, value in run.config.items() if key not in local}
    day = date.fromtimestamp((run.folder / "result.json").stat().st_mtime)
    path = kept(config, method, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = {"date": str(day), "settings": settings, "result": run.result}
    write_atomically(path, (json.dumps(scores, indent=2) + "\n").encode())


def read_kept(config: CamVidConfig, method: str) -> list[dict]:
    """What is kept of a method by seed; ValueError where the seeds were not run with the same settings."""
    runs = [json.loads(kept(config, method, seed).read_text()) for seed in config.seeds]
    of_a_run = {"seed", "split_fingerprint", "commit", "machine", "versions"}
    first = runs[0]["settings"]
    for seed, run in zip(config.seeds, runs, strict=True):
        names = (first.keys() | run["settings"].keys()) - of_a_run
        if changed := [name for name in sorted(names) if first.get(name) != run["settings"].get(name)]:
            raise ValueError(
                f"the kept scores of {method} with seeds {config.seeds[0]} and {seed} differ in {', '.join(changed)}: "
                f"delete those to be run anew in {kept(config, method, seed).parent}"
            )
    return runs


def require_alike(kept_runs: dict[str, list[dict]]) -> None:
    """ValueError unless all methods trained their segmenters with the same settings."""

    def of_the_segmenter(method: str) -> dict:
        settings = kept_runs[method][0]["settings"]
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


def train(config: CamVidConfig, method: str, seed: int, cores: list[int]) -> None:
    """Trains one run to its end on the given cores, going on from its checkpoint where there is one."""
    out = folder(config, method, seed)
    needed_by_mlmt = method == "s4gan" and "mlmt" in config.methods and not kept(config, "mlmt", seed).exists()
    if kept(config, method, seed).exists() and not needed_by_mlmt:
        return
    if (out / "config.json").exists() and Run.read(out).finished:
        return keep(config, method, seed)
    resume = ["--resume"] if (out / "config.json").exists() else []
    command = [sys.executable, "-m", "training.run", *flags(config, method, seed)]
    command += [
        "--dataset",
        str(config.dataset),
        "--weights",
        str(config.weights),
        "--out",
        str(out),
        *resume,
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=log, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    if status.returncode:
        raise ValueError(f"a run ended with exit status {status.returncode}: see {log.name}")
    keep(config, method, seed)


def main(config: CamVidConfig) -> dict:
    config.results.parent.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    jobs = min(config.jobs, len(cores))
    share = len(cores) // jobs
    free = [cores[i * share : (i + 1) * share] for i in range(jobs)]

    def work(seed: int) -> None:
        mine = free.pop()
        try:
            for method in config.methods:
                train(config, method, seed, mine)
        finally:
            free.append(mine)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, config.seeds))
    kept_runs = {method: read_kept(config, method) for method in config.methods}
    require_alike(kept_runs)
    text = table(config, kept_runs)
    before, _, rest = (
        config.results.read_text().partition("<!-- table -->\n") if config.results.exists() else ("", "", "")
    )
    after = rest.partition("<!-- end of table -->\n")[2]
    marked = f"{before}<!-- table -->\n{text}<!-- end of table -->\n{after}"
    write_atomically(config.results, marked.encode())
    return {method: statistics.mean(run["result"]["mIoU"] for run in runs) for method, runs in kept_runs.items()}


def table(config: CamVidConfig, kept_runs: dict[str, list[dict]]) -> str:
    """Markdown: mIoU by seed, mean and deviation, difference to supervised paired by seed; then the commands."""
    results = {method: [run["result"] for run in runs] for method, runs in kept_runs.items()}
    rows = {}
    for method, scored in results.items():
        rows[f"{method} (gate on)" if method == "mlmt" else method] = [100 * result["mIoU"] for result in scored]
        if method == "mlmt":
            rows["mlmt (gate off)"] = [100 * result["without_gate"]["mIoU"] for result in scored]
    seeds = " | ".join(f"seed {seed}" for seed in config.seeds)
    each = [run for runs in kept_runs.values() for run in runs]
    dates = " and ".join(sorted({run["date"] for run in each}))
    machines = " or ".join(sorted({run["settings"]["machine"] for run in each}))
    lines = [
        f"{dates}; each run on {machines}. Settings and scores by class are in the folder beside.",
        "",
        f"| mIoU on val, % | {seeds} | mean | deviation | to supervised, by seed | seconds a run |",
        "| --- |" + " ---: |" * (len(config.seeds) + 4),
    ]
    for name, values in rows.items():
        gains = [value - base for value, base in zip(values, rows["supervised"], strict=True)]
        seconds = statistics.mean(result["seconds"] for result in results[name.split()[0]])
        lines.append(
            f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} | {statistics.mean(values):.1f} | "
            f"{statistics.stdev(values) if len(values) > 1 else 0:.1f} | "
            f"{' '.join(f'{gain:+.1f}' for gain in gains)} (mean {statistics.mean(gains):+.1f}) | {seconds:.0f} |"
        )
    lines += ["", "```bash"]
    for method in config.methods:
        command = ["python", "-m", "training.run", *flags(config, method, config.seeds[0])]
        command += [
            "--dataset",
            "CAMVID",
            "--weights",
            "WEIGHTS",
            "--out",
            str(folder(config, method, config.seeds[0])),
        ]
        lines.append(shlex.join(command))
    others = ", ".join(str(seed) for seed in config.seeds[1:])
    lines += ["```", "", f"and the same with seeds {others}." if others else "", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, CamVidConfig, __doc__ or "")
