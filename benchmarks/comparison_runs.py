"""The runs of a comparison, their order, and what it keeps from each."""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from kerasseg.methods import METHODS, SegmenterConfig, TrainingData
from kerasseg.recipes import choose
from kerasseg.segmenters import SEGMENTERS, fitting_rates
from serving.common.files import write_atomically
from training.compare import BASELINE
from training.config import RunConfig, defaults, with_groups
from training.recorded import mark
from training.run_folder import Run

TUNING_SEED = 10
"""Seeds from here on are for choosing settings; the tables report those below."""
METHOD_FLAGS = {
    # One training gives the figures with and without averaged weights.
    "supervised": ("--average-weights",),
}
PLAIN = "student"
"""The prediction of a run with averaged weights that is made without them."""

Scores = dict[int, float]
"""mIoU by seed, %."""
KeptRuns = dict[int, dict[str, Any]]
"""The kept scores of the runs of one row, by seed."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to train, and where things are."""

    dataset: str
    """shapes, or the path of a dataset folder."""
    backbone: str | None = None
    """Another backbone than the recipe's."""
    weights: Path | None = None
    """File with the backbone's weights; None for those of the recipe."""
    train_images: int
    """How many training images have a label map: the number for `all`."""
    labeled: str
    """Labelled images of all methods."""
    more_labels: tuple[str, ...]
    """Further numbers of labelled images, for supervised."""
    cover: bool
    """Draw the labelled images so that they cover the classes."""
    steps: int
    """Steps of the segmenter's training."""
    classifier_steps: int
    """Steps of mlmt's classifier."""
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = tuple(METHODS)
    variant: str = ""
    """Name of the methods with the flags of `extra`."""
    extra: str = ""
    runs: Path = Path("runs/comparison")
    results: Path = Path("benchmarks/results/comparison")

    def __post_init__(self):
        if unknown := set(self.methods) - set(METHODS):
            raise ValueError(f"--methods must be of {', '.join(METHODS)}; got {', '.join(sorted(unknown))}")
        if self.labeled in self.more_labels:
            raise ValueError(f"--more-labels are further ones than the {self.labeled} of --labeled")
        if bool(self.variant) != bool(self.extra):
            raise ValueError('--variant NAME goes with the flags that it adds: --extra="--mlmt.tau 0.3"')
        if not re.fullmatch(r"[\w.-]*", self.variant):
            raise ValueError(f"--variant names a file: letters, digits, dots, - and _; got {self.variant!r}")
        if not self.seeds or not self.methods:
            raise ValueError("--seeds and --methods need one value at least")
        tuning = [seed >= TUNING_SEED for seed in self.seeds]
        if self.variant and not all(tuning):
            raise ValueError(f"variants are tried on seeds that are not reported: --seeds {TUNING_SEED} or above")
        if any(tuning) and not all(tuning):
            raise ValueError(f"seeds below {TUNING_SEED} are reported, the others are for tuning: give one kind")

    @property
    def name(self) -> str:
        """The name of its table: the dataset's, with that of another backbone than the recipe's."""
        dataset = Path(self.dataset).resolve().name
        return f"{dataset}_{self.backbone}" if self.backbone else dataset

    @property
    def tuning(self) -> bool:
        return self.seeds[0] >= TUNING_SEED

    @property
    def table(self) -> Path:
        """The file with the tables; the plot is next to it."""
        return self.results / f"{self.name}.md"

    @property
    def folder(self) -> Path:
        """Where the scores of each run are kept."""
        return self.results / self.name / ("tuning" if self.tuning else "")

    def count(self, labeled: str) -> int:
        """How many labelled images `labeled` stands for."""
        return self.train_images if labeled == "all" else int(labeled)

    @property
    def data_flags(self) -> dict[str, str]:
        """The flags that say where data and weights are."""
        return {"--dataset": self.dataset} | ({"--weights": str(self.weights)} if self.weights else {})


class Training(NamedTuple):
    """One run of a comparison."""

    method: str
    labeled: str
    seed: int
    steps: int
    variant: str = ""

    @property
    def row(self) -> str:
        return f"{self.method}@{self.variant}" if self.variant else self.method

    @property
    def name(self) -> str:
        return f"{self.row}_{self.labeled}_{self.steps}steps_seed{self.seed}"

    def folder(self, config: Comparison) -> Path:
        return config.runs / config.name / self.name

    def kept(self, config: Comparison) -> Path:
        """The file with the scores of the run, which stays when the run folder is deleted."""
        return config.folder / f"{self.name}.json"

    def finished(self, config: Comparison) -> bool:
        folder = self.folder(config)
        return (folder / "config.json").exists() and Run.read(folder).finished

    def needs(self, config: Comparison) -> "Training | None":
        """The run whose segmenter this one takes: the two branches of mlmt are trained separately, as in the paper."""
        return Training("s4gan", self.labeled, self.seed, config.steps) if self.method == "mlmt" else None

    def covers(self, config: Comparison) -> bool:
        return config.cover and self.labeled != "all"

    def flags(self, config: Comparison) -> list[str]:
        """Its command line, without --dataset, --weights and --out."""
        own = ["--method", self.method, "--labeled", self.labeled, "--seed", str(self.seed)]
        own += ["--steps", str(self.steps), *METHOD_FLAGS.get(self.method, ())]
        own += ["--backbone", config.backbone] if config.backbone else []
        own += ["--size", "native"]  # as the first runs; the images are smaller than the size that auto chooses
        own += ["--cover" if self.covers(config) else "--no-cover"]
        if needs := self.needs(config):
            own += ["--branch-run", str(needs.folder(config))]
        return own + (shlex.split(config.extra) if self.variant else [])


# Which runs, in which order ---------------------------------------------------------------------------------


def of_method(config: Comparison, method: str, seed: int) -> Training:
    """A method's run with as many labels as all methods have."""
    steps = config.classifier_steps if method == "mlmt" else config.steps
    return Training(method, config.labeled, seed, steps, config.variant)


def trainings(config: Comparison) -> list[Training]:
    """All runs in the order in which a table needs them: seed by seed the methods and supervised with all labels, then
    supervised with other numbers of labels and with twice as many updates."""
    methods = sorted(config.methods, key=list(METHODS).index)
    if config.tuning:
        return [of_method(config, method, seed) for seed in config.seeds for method in methods]
    rows, controls = [], []
    for seed in config.seeds:
        for method in methods:
            rows.append(of_method(config, method, seed))
            if method == BASELINE and "all" in config.more_labels:
                rows.append(Training(BASELINE, "all", seed, config.steps))
        if BASELINE in methods:
            controls += [Training(BASELINE, labeled, seed, config.steps) for labeled in config.more_labels]
            controls.append(Training(BASELINE, config.labeled, seed, 2 * config.steps))
    return list(dict.fromkeys(rows + controls))


def to_train(config: Comparison) -> list[Training]:
    """The runs without kept scores, and before them those whose segmenter they need, where its folder is deleted.

    Raises:
        ValueError: kept scores are from a run with other settings than it would have now.
    """
    found: dict[Training, None] = {}
    for training in trainings(config):
        kept = training.kept(config)
        if kept.exists():
            require_as_now(config, training, json.loads(kept.read_text()), kept)
        else:
            needs = training.needs(config)
            if needs and not needs.finished(config):
                found[needs] = None
            found[training] = None
    return list(found)


# What is kept from them -------------------------------------------------------------------------------------


def keep(config: Comparison, training: Training) -> None:
    """Keeps the settings and scores of a finished run, without the paths of its machine, and how far its confidences
    can be trusted.

    Raises:
        ValueError: it was run with other settings than it would be now.
    """
    run = Run.read_finished(training.folder(config))
    settings = {key: value for key, value in run.config.items() if mark(key).kept}
    day = date.fromtimestamp((run.folder / "result.json").stat().st_mtime)
    confidence = {
        name: {figure: summary[figure] for figure in ("error_detection_auc", "expected_calibration_error")}
        for name, summary in (run.diagnostics or {}).get("confidence", {}).items()
    }
    scores = {"date": str(day), "settings": settings, "result": run.result, "confidence": confidence}
    if training.variant:
        scores["extra"] = config.extra
    require_as_now(config, training, scores, run.folder)
    path = training.kept(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(scores, indent=2) + "\n").encode())


def seeds_kept(config: Comparison) -> list[int]:
    """The seeds of the comparison, and further ones that have scores."""
    found = {int(match[1]) for path in config.folder.glob("*.json") if (match := re.search(r"_seed(\d+)$", path.stem))}
    return sorted(found | set(config.seeds))


def read_kept(config: Comparison, method: str, labeled: str, steps: int) -> KeptRuns:
    """The kept scores of a method by seed; ValueError where its settings differ between seeds, or differ from those of
    today."""
    each = [Training(method, labeled, seed, steps) for seed in seeds_kept(config)]
    runs = {one.seed: json.loads(one.kept(config).read_text()) for one in each if one.kept(config).exists()}
    require_same_for_all_seeds(method, runs)
    for one in each:
        if one.seed in runs:
            require_as_now(config, one, runs[one.seed], one.kept(config))
    return runs


def require_same_for_all_seeds(row: str, runs: KeptRuns) -> None:
    for seed, run in runs.items():
        first_seed, first = next(iter(runs.items()))
        if changed := differing(settings_that_count(first["settings"]), settings_that_count(run["settings"])):
            raise ValueError(
                f"the kept scores of {row} with seeds {first_seed} and {seed} differ in {', '.join(changed)}: "
                "delete those to be run again, and their run folders"
            )


def require_as_now(config: Comparison, training: Training, scores: dict[str, Any], where: Path) -> None:
    """ValueError where a run had other settings than it would have if it started now. Settings that a variant's flags
    change are not compared; the flags must be the same."""
    if training.variant:
        if scores["extra"] != config.extra:
            raise ValueError(
                f"{where} was run with {scores['extra']}: choose another --variant, or delete it and its run folder"
            )
        return
    now = settings_now(config, training)
    changed = differing(settings_that_count(scores["settings"]), now, everything=False)
    if training.method == BASELINE and PLAIN not in scores["result"]:
        changed.append("average_weights")
    if changed:
        raise ValueError(
            f"{where} was run with other settings than it would be now ({', '.join(changed)}): delete it to run it "
            "again, scores and run folder, or give the flags it was run with"
        )


def settings_now(config: Comparison, training: Training) -> dict[str, Any]:
    """The settings, decided by recipe and flags, that the run would record if it started now."""
    recipe, fields = choose("auto", training.method, config.dataset)
    flags = {"labeled": training.labeled, "steps": training.steps, "cover": training.covers(config), "size": "native"}
    flags["average_weights"] = training.method == BASELINE
    flags |= {"backbone": config.backbone} if config.backbone else {}
    run = dataclasses.replace(with_groups(recipe, fields), **flags)
    values = {entry.name: getattr(run, entry.name) for entry in dataclasses.fields(RunConfig)}
    values["rates"] = run.rates or fitting_rates(SEGMENTERS[run.segmenter], run.crop, run.stride)
    data = TrainingData(config.count(training.labeled), run.crop)
    groups = METHODS[training.method].with_data(run.method_fields, data)
    if needs := training.needs(config):
        groups["mlmt"] = groups["mlmt"] | {"branch": needs.method, "train_branch": False}
        groups |= settings_now(config, needs)["fields"]
    return settings_that_count(json.loads(json.dumps(values | {"fields": groups}, default=str)))


def settings_that_count(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded settings that decide a result. Settings that are newer than the record get the values that change
    nothing: today's defaults.

    The learning rate is in the method's fields.
    """
    groups = {
        name: defaults(METHODS[name].config_groups({})[name]) | own | {"class_weights": []}
        for name, own in settings["fields"].items()  # whose class weights follow from the split and the run's setting
    }
    counted = {name: value for name, value in (defaults(RunConfig) | dict(settings)).items() if mark(name).compared}
    return {name: value for name, value in counted.items() if name != "learning_rate"} | {"fields": groups}


def differing(settings: Mapping[str, Any], others: Mapping[str, Any], everything: bool = True) -> list[str]:
    """Names of the settings with other values, sorted; fields of methods by their own names.

    Args:
        everything: also settings that only one of them has; otherwise this holds only for fields of methods.
    """
    names = settings.keys() | others.keys() if everything else settings.keys() & others.keys()
    changed = set()
    for name in names:
        ours, theirs = settings.get(name), others.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            changed |= set(differing(ours, theirs))
        elif ours != theirs:
            changed.add(name)
    return sorted(changed)


# What may be in one table -----------------------------------------------------------------------------------


def require_alike(kept_runs: Mapping[str, KeptRuns]) -> None:
    """ValueError unless all methods trained their segmenters with the same settings, with as many updates and, by seed,
    on the same images."""
    first, *others = kept_runs
    for other in others:
        ours, theirs = (first_settings(kept_runs[method]) for method in (first, other))
        counts = [updates(settings, method) for settings, method in ((ours, first), (theirs, other))]
        if counts[0] != counts[1]:
            raise ValueError(
                f"the segmenter of {first} had {counts[0]} updates, that of {other} {counts[1]}: no comparison of "
                "methods; delete the kept scores of one, and their run folders"
            )
        changed = differing(of_the_segmenter(ours, first), of_the_segmenter(theirs, other))
        if same_seeds_other_splits(kept_runs[first], kept_runs[other]):
            changed.append("split_fingerprint")
        if changed:
            raise ValueError(
                f"the kept scores of {first} and {other} differ in {', '.join(changed)}: delete those to be run again, "
                "and their run folders"
            )


def same_seeds_other_splits(runs: KeptRuns, others: KeptRuns) -> bool:
    def split(kept: KeptRuns, seed: int) -> str:
        return kept[seed]["settings"]["split_fingerprint"]

    return any(split(runs, seed) != split(others, seed) for seed in runs.keys() & others.keys())


def first_settings(runs: KeptRuns) -> dict[str, Any]:
    return settings_that_count(next(iter(runs.values()))["settings"])


def segmenter_fields(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The fields of the method that trained the segmenter: mlmt takes one from s4gan."""
    return settings["fields"]["s4gan" if method == "mlmt" else method]


def updates(settings: Mapping[str, Any], method: str) -> int:
    """How often the optimizer changed the segmenter."""
    config = METHODS["s4gan" if method == "mlmt" else method].make_config(segmenter_fields(settings, method))
    return config.main_updates * config.steps


def of_the_segmenter(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The settings that methods must share, so that their difference is only the methods'."""
    of_the_method = {"method", "fields", "steps", "image_labels", "average_weights", "ema_decay", "untrained_taps"}
    shared = settings | segmenter_fields(settings, method)
    names = settings.keys() | {entry.name for entry in dataclasses.fields(SegmenterConfig)}
    return {name: shared[name] for name in names - of_the_method}
