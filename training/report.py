"""`report.html`: one page, needing nothing outside itself, that explains a run without any code.

    python -m training.report RUN [--compare OTHER_RUN ...]

It is made only from the files of the run folder, so it can be made again at any time, on any machine,
without TensorFlow.
"""

import base64
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import tyro
from markupsafe import Markup
from PIL import Image

from serving.common import cli, pictures
from serving.common.files import write_atomically
from training import glossary, plots
from training.run_folder import Curve, Run, is_number

PICTURE_WIDTH = 400
"""Pixels: wider example images are reduced to this."""

ROLE_WORDS = {"labeled": "labelled", "weak": "with image-level labels only", "unlabeled": "unlabelled"}

MAX_EXAMPLES = 12
"""The most examples on a page, so that it stays small enough for an e-mail."""


def write_report(run_folder: Path, compare: Sequence[Path] = ()) -> Path:
    """Writes `report.html` into the run folder, and its plots as PNG into the folder `figures` there.

    Args:
        run_folder: the --out of `training.run`; finished or not.
        compare: other runs' folders, shown next to this one where they differ.

    Returns:
        The file written.

    Raises:
        ValueError: not a run folder; or a compared run has other classes, or was evaluated in another way.
    """
    run = Run.read(Path(run_folder))
    others = [Run.read(Path(folder)) for folder in compare]
    for other in others:
        _check_comparable(run, other)

    curves, measured = list(figures(run, others)), diagnostics(run, others)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration}
    page = environment.get_template("report.html.jinja").render(
        run=run,
        config=run.config,
        result=run.result,
        method_words=run.config.get("about_method", ""),
        notes=list(notes(run, others)),
        comparisons=[_comparison(run, other) for other in others],
        figures=curves,
        per_class=per_class(run, others),
        diagnostics=measured,
        examples=list(examples(run, others)),
        last_check=last_check(run),
        example_count=len(_example_folders(run)),
        legend=legend(run),
        role_words=ROLE_WORDS,
        protocol=list(protocol(run)),
        commands=commands(run, others),
        settings=settings(run),
        machine=machine(run),
    )
    for drawing in curves + (measured["drawings"] if measured else []):
        path = run.folder / "figures" / drawing.file_name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, plots.png(drawing.figure))
    path = run.folder / "report.html"
    write_atomically(path, page.encode())
    return path


# What is said about the run ---------------------------------------------------------------------------------


def notes(run: Run, others: Sequence[Run] = ()) -> Iterator[str]:
    """What a reader should know before trusting the numbers, the most important first."""
    if not run.finished:
        yield (
            f"This run is unfinished at step {run.last_step} of {run.config['steps']}. "
            "The command that started it continues it with --resume added."
        )
    if run.result and run.result["mIoU"] is None:
        yield "Nothing was measured: all pixels of the label maps are ignored."
    elif run.result and "without_gate" in run.variants:
        lost = 100 * (run.variants["without_gate"]["mIoU"] - run.result["mIoU"])
        # Below this the rounded numbers next to the sentence would be equal.
        if lost >= 0.05:
            yield (
                f"The gate lowered mIoU by {lost:.1f} points, because most classes are in most "
                "images here or because the classifier has not learned enough; prefer the ungated output."
            )
    if taps := run.config.get("untrained_taps"):
        crop = "x".join(map(str, run.config["crop"]))
        yield (
            f"The outer taps of {', '.join(taps)} never learned: training crops of {crop} pixels are too small for "
            "their dilation. They keep random weights, which affect larger images. Choose smaller --rates or a "
            "larger --crop."
        )
    yield from _discriminator_notes(run)
    for other in others:
        if other.config.get("split_fingerprint") != run.config.get("split_fingerprint"):
            yield f"{other.title} was trained on another split: the difference is not only the method's."


def _discriminator_notes(run: Run) -> Iterator[str]:
    for D in ("D", "D1"):
        real, fake = (_mean_of_last_quarter(run, f"{D}_{shown}") for shown in ("real", "fake"))
        if real is None or fake is None or real <= 0.95 or fake >= 0.05:
            continue
        yield (
            "The discriminator overpowers the segmenter: over the last quarter of training it scored label "
            f"maps {real:.2f} and predictions {fake:.2f} on average. The segmenter learns little from a discriminator "
            "that is never in doubt. A lower learning rate of the discriminator usually helps."
        )
    real, fake = (_mean_of_last_quarter(run, name) for name in ("acc_real", "acc_fake"))
    if real is not None and fake is not None and real + fake < 1.1:
        yield (
            f"The discriminator is guessing: over the last quarter of training it recognised {percent(real, 0)} of the "
            f"real label maps and {percent(fake, 0)} of the predictions. A constant answer makes these two add up to "
            "100 %. The segmenter learns nothing from it: a higher learning rate of the discriminator may help."
        )
    right, wrong = (_mean_of_last_quarter(run, name) for name in ("acc_right", "acc_wrong"))
    if right is not None and wrong is not None and right + wrong < 1.1:
        yield (
            "The critic does not find wrong pixels: over the last quarter of training it recognised "
            f"{percent(right, 0)} of the right and {percent(wrong, 0)} of the wrong pixels of labelled images. A "
            "constant answer makes these two add up to 100 %. Do not trust its scores of unlabelled images."
        )
    selected = run.curve("selected").values
    if selected and max(selected) == 0:
        yield (
            "Nothing was ever selected for self-training: no prediction passed the "
            "threshold, so no prediction ever served as a label. A lower threshold or more steps may help."
        )
    late = _mean_of_last_quarter(run, "selected")
    if late is not None and late > 0.99 and any(run.curve(name).values for name in ("acc_real", "acc_right")):
        yield (
            f"Nearly everything is selected for self-training ({percent(late, 0)} over the last quarter of "
            "training): the critic filters out no mistake of the segmenter. A higher threshold may help."
        )


def _mean_of_last_quarter(run: Run, key: str) -> float | None:
    """The mean of a quantity over the last quarter of the steps that logged it: mlmt's discriminator ends before its
    classifier begins."""
    steps, values = run.curve(key)
    late = [value for step, value in zip(steps, values, strict=True) if step >= 0.75 * steps[-1]]
    return float(np.mean(late)) if late else None


def _check_comparable(run: Run, other: Run) -> None:
    if other.classes != run.classes:
        raise ValueError(
            f"--compare {other.folder} has {len(other.classes)} classes ({', '.join(other.classes)}), this "
            f"run has {len(run.classes)} ({', '.join(run.classes)}): compare runs on the same dataset"
        )
    if run.result and other.result and run.result["protocol"] != other.result["protocol"]:
        raise ValueError(
            f"--compare {other.folder} was evaluated as {other.result['protocol']}, this run as "
            f"{run.result['protocol']}: evaluate both in the same way (python -m training.evaluate)"
        )


def _comparison(run: Run, other: Run) -> dict[str, Any]:
    ours, theirs = ((one.result or {}).get("mIoU") for one in (run, other))
    difference = None if ours is None or theirs is None else 100 * (ours - theirs)
    return {"title": other.title, "mIoU": theirs, "difference": difference}


def protocol(run: Run) -> Iterator[str]:
    """How the numbers were measured, sentence by sentence."""
    if not run.result:
        return
    facts = dict(run.result["protocol"])
    name, split, count = facts.pop("name"), facts.pop("split"), facts.pop("images")
    words = facts.pop("description", "")
    yield f"Protocol “{name}” on the {count} images of the {split} split{': ' if words else ''}{words}."
    yield (
        "The IoU (intersection over union) of a class is the number of pixels that have this class and were "
        "predicted to have it, divided by the number of pixels that have it or were predicted to have it, "
        "counted over all images together. mIoU is the mean over classes."
    )
    if "mIoU_reference" in run.result:  # not in runs from before it was measured
        yield (
            f"The mean over only those classes of which at least one pixel is right is "
            f"{percent(run.result['mIoU_reference'])}: what the published code of advsemiseg and s4gan calls mIoU."
        )
    if absent := run.result.get("absent_classes"):
        yield f"Left out of the mean, because no label map and no prediction holds them: {', '.join(absent)}."
    if facts:
        yield "; ".join(f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in facts.items()) + "."


def last_check(run: Run) -> dict[str, Any] | None:
    """The last mIoU measured while training: the only score of a run that has no result yet."""
    steps, values = run.curve("val_mIoU")
    return {"step": steps[-1], "mIoU": values[-1]} if steps else None


def commands(run: Run, others: Sequence[Run] = ()) -> list[tuple[str, str]]:
    """Commands to type next: (what it does, command)."""
    folder, model = _shown(run.folder), f"models/{run.folder.resolve().name}"
    started = run.config.get("command")
    if run.finished:
        rows = [
            ("Train it again, into the folder that --out names", started),
            ("Export it, to run without TensorFlow", _python("export.run", folder, "--out", model)),
            (
                "Segment a folder of images with the export",
                _python("serving.batch", model, "PICTURES", "OUTPUT"),
            ),
        ]
    else:
        rows = [("Continue it", started and f"{started} --resume")]
    compare = ["--compare", *(_shown(other.folder) for other in others)] if others else []
    rows.append(("Make this page again", _python("training.report", folder, *compare)))
    return [(what, command) for what, command in rows if command]


def _python(module: str, *arguments: str) -> str:
    return shlex.join(["python", "-m", module, *arguments])


def settings(run: Run) -> list[tuple[str, str]]:
    """Every setting by name, except what other parts of the page show."""
    shown_elsewhere = {"classes", "palette", "versions", "machine", "commit", "command", "finished"}
    config = {key: value for key, value in run.config.items() if key not in shown_elsewhere}
    return [(name.removeprefix("fields."), _plain(value)) for name, value in _flat(config)]


def machine(run: Run) -> list[tuple[str, str]]:
    """The machine and the versions, and the time and memory that the run took."""
    facts: list[tuple[str, str]] = []
    measured = run.result or {}
    if is_number(measured.get("seconds")):
        facts.append(("training time", duration(measured["seconds"])))
    if is_number(measured.get("images_per_second")):
        facts.append(("speed", f"{measured['images_per_second']:.1f} images/s"))
    if is_number(measured.get("peak_memory_bytes")):
        facts.append(("peak memory", f"{measured['peak_memory_bytes'] / 2**30:.2f} GiB"))
    for key in ("machine", "versions", "commit"):
        if run.config.get(key):
            facts += [(name.split(".")[-1], _plain(value)) for name, value in _flat({key: run.config[key]})]
    return facts


# What is drawn ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """A figure of the page, with its words."""

    title: str
    figure: plots.Figure
    description: str
    """What a screen reader says."""
    terms: list[tuple[str, glossary.Term]]

    @property
    def svg(self) -> Markup:
        return Markup(plots.inline_svg(self.figure, self.description))

    @property
    def file_name(self) -> str:
        return re.sub("[^a-z0-9]+", "_", self.title.lower().replace("'s", "")) + ".png"


def figures(run: Run, others: Sequence[Run] = ()) -> Iterator[Drawing]:
    """The curves of the run, one drawing for each group of quantities that was logged."""
    names_of: dict[str, list[str]] = {group: [] for group in glossary.GROUPS}
    for name in run.curve_names():
        names_of[glossary.term(name).group].append(name)
    for group, names in names_of.items():
        if not names:
            continue
        curves = {name: run.curve(name) for name in names}
        title = glossary.GROUPS[group]
        described = "; ".join(_in_words(name, curve) for name, curve in curves.items())
        figure = _draw_group(run, group, curves, others)
        names_by_term: dict[glossary.Term, list[str]] = {}
        for name in names:
            names_by_term.setdefault(glossary.term(name), []).append(name)
        yield Drawing(
            title,
            figure,
            f"{title} over training steps. {described}.",
            [(", ".join(those), term) for term, those in names_by_term.items()],
        )


def diagnostics(run: Run, others: Sequence[Run] = ()) -> dict[str, Any] | None:
    """How well confidences and critics separate right pixels from wrong ones, in figures and a table; None before the
    end of the run."""
    if run.diagnostics is None:
        return None
    confidences = dict(run.diagnostics["confidence"])
    words = [(name, term) for name, term in glossary.CONFIDENCES.items() if name in confidences]
    training = run.diagnostics.get("training", {})
    rows = confidences | {
        f"{name}, {ROLE_WORDS[role]} training images": summary
        for role, of_role in training.items()
        for name, summary in of_role["confidence"].items()
    }
    for other in others:
        theirs = (other.diagnostics or {}).get("confidence", {})
        theirs = {f"{name} of {other.title}": summary for name, summary in theirs.items()}
        confidences |= theirs
        rows |= theirs
    errors = (f"{name} {summary['expected_calibration_error']:.3f}" for name, summary in confidences.items())
    drawings = [
        Drawing(
            "Confidence and accuracy",
            plots.reliability_figure(confidences),
            f"Share of right pixels by confidence. Calibration errors: {', '.join(errors)}.",
            words,
        )
    ]
    if "latent_given_class" in run.diagnostics:
        P_KL = np.array(run.diagnostics["latent_given_class"])
        used = run.diagnostics["effective_latent_classes"].items()
        counts = ", ".join(f"{count} hold more than {100 * float(share):.0f} % of some class" for share, count in used)
        term = glossary.LATENT_CLASSES._replace(expect=f"has {P_KL.shape[1]} columns: {counts}")
        drawings.append(
            Drawing(
                "Latent classes",
                plots.heat_map(P_KL, run.classes, "latent class", "P(latent class | class)"),
                f"Which latent classes each class goes to. Of {P_KL.shape[1]} latent classes {counts}.",
                [("latent classes", term)],
            )
        )
    if "classifiers" in run.diagnostics:
        curves = {name.replace("_", " "): curve for name, curve in run.diagnostics["classifiers"].items()}
        for other in others:
            theirs = (other.diagnostics or {}).get("classifiers", {})
            curves |= {f"{name.replace('_', ' ')} of {other.title}": curve for name, curve in theirs.items()}
        areas = ", ".join(f"{name} {curve['auc']:.3f}" for name, curve in curves.items() if curve["auc"] is not None)
        drawings.append(
            Drawing(
                "Which classes are there",
                plots.roc_figure(curves),
                f"Share of present classes found, over share of absent classes taken for present. Areas: {areas}.",
                [("classifiers", glossary.CLASSIFIERS)],
            )
        )
    corrector = _corrector(run) if "corrector" in run.diagnostics else None
    if corrector:
        names, ious, correlations = zip(*corrector["rows"], strict=True)
        series = dict(zip(corrector["columns"], zip(*correlations, strict=True), strict=True))
        drawings.append(
            Drawing(
                "The corrector",
                plots.by_class_figure({"IoU": {f"IoU, {corrector['split']}": ious}, "rank correlation": series}, names),
                "IoU and rank correlations of the corrector by class, as in the table below.",
                [("corrector", glossary.CORRECTOR)],
            )
        )
    return {
        "drawings": drawings,
        "rows": list(rows.items()),
        "split": run.diagnostics["split"],
        "training": [ROLE_WORDS[role] for role in training],
        "corrector": corrector,
    }


def _corrector(run: Run) -> dict[str, Any]:
    """The table of ecs' corrector: a row for each class and one for "right as it is"."""
    assert run.diagnostics is not None
    of_val = run.diagnostics["corrector"]
    of_training = {role: found["corrector"] for role, found in run.diagnostics.get("training", {}).items()}
    correlations = [found["spearman"] for found in (of_val, *of_training.values())]
    return {
        "split": run.diagnostics["split"],
        "columns": [run.diagnostics["split"], *(f"{ROLE_WORDS[role]} training images" for role in of_training)],
        "rows": [
            *zip(run.classes, of_val["IoU"], zip(*correlations, strict=True), strict=False),
            ("right as it is", of_val["IoU"][-1], [None] * len(correlations)),
        ],
        "mIoU": of_val["mIoU"],
    }


def _draw_group(run: Run, group: str, curves: dict[str, Curve], others: Sequence[Run]) -> plots.Figure:
    if group == "scores":
        fields = dict(_flat(run.config.get("fields", {})))  # mlmt also has the fields of its branch
        thresholds = [fields[name] for name in ("s4gan.gamma", "advsemiseg.T_semi") if name in fields]
        rules = {f"threshold {value:g}": value for value in thresholds}
        return plots.curves_figure(curves, smooth=True, y_range=(0, 1), areas=("selected",), rules=rules)
    if group == "accuracy":
        return plots.curves_figure(curves, smooth=True, percent=True, y_range=(0, 1.02))
    if group == "gradients":
        return plots.curves_figure(curves, log=True)
    if group == "validation":
        theirs = {f"{name} of {other.title}": other.curve(name) for other in others for name in curves}
        return plots.curves_figure(curves | {k: c for k, c in theirs.items() if c.steps}, percent=True)
    rules = {"guessing 0.69": math.log(2)} if "L_D" in curves else {}
    return plots.curves_figure(curves, smooth=True, magnify=True, rules=rules)


def _in_words(name: str, curve: Curve) -> str:
    first, last = curve.values[0], curve.values[-1]
    return f"{name} goes from {first:.3g} at step {curve.steps[0]} to {last:.3g} at step {curve.steps[-1]}"


def per_class(run: Run, others: Sequence[Run] = ()) -> dict[str, Any] | None:
    """The IoU of each class, best first; further columns for the run's other predictions and for other
    runs."""
    if not run.result:
        return None
    columns = [(_title(name), scores) for name, scores in run.variants.items()]
    columns += [(other.title, other.result) for other in others if other.result]
    values = run.result["per_class_IoU"]
    ranked = sorted((name for name in values if values[name] is not None), key=lambda name: -values[name])
    color_of = dict(zip(run.classes, run.config["palette"], strict=True))
    return {
        "columns": [title for title, _ in columns],
        "rows": [
            {
                "name": name,
                "color": css_color(color_of[name]),
                "iou": values[name],
                "others": [theirs["per_class_IoU"].get(name) for _, theirs in columns],
            }
            for name in ranked
        ],
        "mean": run.result["mIoU"],
        "other_means": [theirs["mIoU"] for _, theirs in columns],
        "absent": [name for name in values if values[name] is None],
    }


def examples(run: Run, others: Sequence[Run] = ()) -> Iterator[dict[str, Any]]:
    """Images with their label map and the predictions."""
    palette = run.config["palette"]
    for folder in _example_folders(run)[:MAX_EXAMPLES]:
        name = folder.relative_to(run.folder / "examples").as_posix()
        truth = _label_map(folder / "truth.png")
        cells = [{"title": "image", "uri": _picture_uri(folder / "image.png"), "score": ""}]
        if truth is not None:
            cells.append({"title": "label map", "uri": _label_uri(truth, palette), "score": ""})
        known = {"image.png", "truth.png", "prediction.png", "student.png", "reliability.png"}
        answer = "with gate" if (folder / "without_gate.png").is_file() else "prediction"
        variants = [  # in the order of the page's first figures
            *((other.title, other.folder / "examples" / name / "prediction.png") for other in others),
            *((_title(file.stem), file) for file in sorted(folder.glob("*.png")) if file.name not in known),
            (answer, folder / "prediction.png"),
            ("student", folder / "student.png"),
        ]
        for title, file in variants:
            if (labels := _label_map(file)) is not None:
                uri = _label_uri(labels, palette)
                cells.append({"title": title, "uri": uri, "score": _agreement(labels, truth)})
        if (reliability := folder / "reliability.png").is_file():
            cells.append(
                {"title": "reliability", "uri": _picture_uri(reliability), "score": "dark: the critic doubts it"}
            )
        yield {"name": name, "cells": cells}


def _example_folders(run: Run) -> list[Path]:
    # An image's name may hold folders.
    return sorted(file.parent for file in (run.folder / "examples").rglob("prediction.png"))


def _agreement(labels: np.ndarray, truth: np.ndarray | None) -> str:
    if truth is None or truth.shape != labels.shape or not (counted := truth != 255).any():
        return ""
    return f"{percent((labels == truth)[counted].mean(), 0)} of pixels right"


def _label_map(file: Path) -> np.ndarray | None:
    return np.array(Image.open(file)) if file.is_file() else None


def _label_uri(labels_HW: np.ndarray, palette: Sequence[Sequence[int]]) -> str:
    # Nearest neighbour: it makes no third class between two.
    reduced = np.array(_reduced(Image.fromarray(labels_HW), Image.Resampling.NEAREST))
    return _data_uri("image/png", pictures.index_png(reduced, palette))


def _picture_uri(file: Path) -> str:
    reduced = _reduced(Image.fromarray(pictures.load_picture(file)), Image.Resampling.LANCZOS)
    return _data_uri("image/jpeg", pictures.jpeg(np.array(reduced), quality=85))


def _reduced(picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
    if picture.width <= PICTURE_WIDTH:
        return picture
    return picture.resize((PICTURE_WIDTH, round(picture.height * PICTURE_WIDTH / picture.width)), resampling)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def legend(run: Run) -> list[tuple[str, str]]:
    """(class, CSS colour), and the colour of ignored pixels last."""
    colors = [css_color(color) for color in [*run.config["palette"], pictures.IGNORE_COLOR]]
    return list(zip([*run.classes, "ignored (255)"], colors, strict=True))


def css_color(color: Sequence[int]) -> str:
    red, green, blue = (int(part) for part in color)
    return f"rgb({red} {green} {blue})"


# Reading and wording ----------------------------------------------------------------------------------------


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _title(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _shown(path: Path) -> str:
    """The path as a user in the current folder would type it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class Config:
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder: the --out of a training.run."""
    compare: tuple[Path, ...] = ()
    """Other run folders to show next to it, for example a supervised run on the same split."""


def main(config: Config) -> dict[str, str]:
    return {"report": str(write_report(config.run, config.compare))}


if __name__ == "__main__":
    cli.run(main, Config, "Writes RUN/report.html from the files of a run folder.")
