"""`report.html`: one page, needing nothing outside itself, that explains a run without any code.

    python -m training.report RUN [--compare OTHER_RUN ...]

It is made only from the files of the run folder, so it can be made again at any time, on any machine,
without TensorFlow.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import tyro
from markupsafe import Markup

from serving.common import cli
from serving.common.files import write_atomically
from training import glossary, plots
from training.image_scores import ImageScores, interval
from training.report_examples import colors_of, css_color, example_folders, examples, legend
from training.report_notes import (
    commands,
    comparison,
    duration,
    last_check,
    machine,
    notes,
    percent,
    plain,
    protocol,
    readable,
    require_comparable,
)
from training.run_folder import Curve, Run, flat, settings

ROLE_WORDS = {"labeled": "labelled", "image_labeled": "with image-level labels only", "unlabeled": "unlabelled"}


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
        require_comparable(run, other)

    curves, measured = list(figures(run, others)), diagnostics(run, others)
    scores = ImageScores.read(run.folder, run.classes)
    mistakes = confusion(run)
    script = (Path(__file__).parent / "report.js").read_text()
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
        comparisons=[comparison(run, other, scores) for other in others],
        interval=interval(scores) if scores else None,
        figures=curves,
        per_class=per_class(run, others, scores),
        confusion=mistakes,
        diagnostics=measured,
        examples=list(examples(run, others)),
        worst=list(examples(run, others, "worst")),
        last_check=last_check(run),
        example_count=len(example_folders(run)),
        legend=legend(run),
        role_words=ROLE_WORDS,
        protocol=list(protocol(run)),
        commands=commands(run, others),
        settings=[(name, plain(value)) for name, value in settings(run.config).items()],
        machine=machine(run),
        script=Markup(script),
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )
    drawings = curves + (measured["drawings"] if measured else [])
    if mistakes and mistakes["drawing"]:
        drawings.append(mistakes["drawing"])
    for drawing in drawings:
        path = run.folder / "figures" / drawing.file_name
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, plots.png(drawing.figure))
    path = run.folder / "report.html"
    write_atomically(path, page.encode())
    return path


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
    own_terms = run.config.get("terms", {})
    names_of: dict[str, list[str]] = {group: [] for group in glossary.GROUPS}
    for name in run.curve_names():
        names_of[glossary.term(name, own_terms).group].append(name)
    for group, names in names_of.items():
        if not names:
            continue
        curves = {name: run.curve(name) for name in names}
        title = glossary.GROUPS[group]
        described = "; ".join(_in_words(name, curve) for name, curve in curves.items())
        figure = _draw_group(run, group, curves, others)
        names_by_term: dict[glossary.Term, list[str]] = {}
        for name in names:
            names_by_term.setdefault(glossary.term(name, own_terms), []).append(name)
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
        fields = flat(run.config.get("fields", {}))  # mlmt also has the fields of its branch
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


MOST_MISTAKES, MOST_CLASSES_DRAWN = 10, 40


def confusion(run: Run) -> dict[str, Any] | None:
    """The mistakes that cost the most pixels, and the confusion matrix as a drawing where it is not too large; None
    where it was not measured."""
    if not (run.diagnostics and "confusion" in run.diagnostics):
        return None
    confusion_KK = np.array(run.diagnostics["confusion"], np.int64)
    wrong_KK = confusion_KK * ~np.eye(len(confusion_KK), dtype=bool)
    of_class_K, wrong = np.maximum(confusion_KK.sum(axis=1), 1), int(wrong_KK.sum())
    mistakes = []
    for cell in np.argsort(-wrong_KK, axis=None, kind="stable")[:MOST_MISTAKES]:
        truth, prediction = np.unravel_index(cell, wrong_KK.shape)
        if pixels := int(wrong_KK[truth, prediction]):
            names = {"truth": run.classes[truth], "prediction": run.classes[prediction]}
            mistakes.append(names | {"of_class": pixels / of_class_K[truth], "of_all": pixels / wrong})
    drawing = None
    if len(run.classes) <= MOST_CLASSES_DRAWN:
        figure = plots.confusion_figure(confusion_KK / of_class_K[:, np.newaxis], run.classes)
        drawing = Drawing("Confusion matrix", figure, "Share of each class's pixels by predicted class.", [])
    return {"mistakes": mistakes, "drawing": drawing}


def per_class(run: Run, others: Sequence[Run] = (), scores: ImageScores | None = None) -> dict[str, Any] | None:
    """The IoU of each class, best first; further columns for the run's other predictions and for other runs, and how
    often the class occurs in the label maps that were measured."""
    if not run.result:
        return None
    columns = [(readable(name), scores) for name, scores in run.variants.items()]
    columns += [(other.title, other.result) for other in others if other.result]
    values = run.result["per_class_IoU"]
    ranked = sorted((name for name in values if values[name] is not None), key=lambda name: -values[name])
    color_of = dict(zip(run.classes, colors_of(run), strict=True))
    occurs: dict[str, dict[str, Any]] = {}
    if scores:
        truth_NK = scores.counts_N3K[:, 1]
        shares_K, images_K = truth_NK.sum(axis=0) / max(truth_NK.sum(), 1), (truth_NK > 0).sum(axis=0)
        occurs = {
            name: {"pixels": float(share), "images": int(images)}
            for name, share, images in zip(run.classes, shares_K, images_K, strict=True)
        }
    return {
        "columns": [title for title, _ in columns],
        "rows": [
            {
                "name": name,
                "color": css_color(color_of[name]),
                "iou": values[name],
                "others": [theirs["per_class_IoU"].get(name) for _, theirs in columns],
            }
            | occurs.get(name, {})
            for name in ranked
        ],
        "counted": len(scores.names) if scores else None,
        "mean": run.result["mIoU"],
        "other_means": [theirs["mIoU"] for _, theirs in columns],
        "absent": [name for name in values if values[name] is None],
    }


# Reading and wording ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportConfig:
    """Which run, and which ones to show next to it."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder: the --out of kerasseg train."""
    compare: tuple[Path, ...] = ()
    """Other run folders to show next to it, for example a supervised run on the same split."""


def main(config: ReportConfig) -> dict[str, str]:
    return {"report": str(write_report(config.run, config.compare))}


COMMAND = cli.Command(main, ReportConfig, "Writes RUN/report.html from the files of a run folder.")

if __name__ == "__main__":
    COMMAND.run()
