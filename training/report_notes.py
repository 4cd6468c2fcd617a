"""What the report says of a run in words: notes, comparison, protocol, commands, settings."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.image_scores import ImageScores, interval
from training.run_folder import Run, flat, is_number


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


def require_comparable(run: Run, other: Run) -> None:
    if other.classes != run.classes:
        raise ValueError(
            f"--compare {other.folder} has {len(other.classes)} classes ({', '.join(other.classes)}), this "
            f"run has {len(run.classes)} ({', '.join(run.classes)}): compare runs on the same dataset"
        )
    if run.result and other.result and run.result["protocol"] != other.result["protocol"]:
        raise ValueError(
            f"--compare {other.folder} was evaluated as {other.result['protocol']}, this run as "
            f"{run.result['protocol']}: evaluate both in the same way (kerasseg evaluate)"
        )


def comparison(run: Run, other: Run, scores: ImageScores | None = None) -> dict[str, Any]:
    """How this run's mIoU differs from that of another one.

    Args:
        scores: this run's images.
    """
    ours, theirs = ((one.result or {}).get("mIoU") for one in (run, other))
    difference = None if ours is None or theirs is None else 100 * (ours - theirs)
    return {
        "title": other.title,
        "mIoU": theirs,
        "difference": difference,
        "caution": [] if difference is None else list(_caution(scores, other)),
    }


def _caution(scores: ImageScores | None, other: Run) -> Iterator[str]:
    """How far the difference of two runs can be trusted."""
    theirs = ImageScores.read(other.folder, other.classes)
    if scores and theirs and (found := interval(scores, theirs)):
        low, high = (100 * value for value in found)
        yield f"Measured on other images like these, the difference would be between {low:+.1f} and {high:+.1f} points."
    yield "These are two single runs: another seed may change the difference by several points."


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
        yield "; ".join(f"{key.replace('_', ' ')}: {plain(value)}" for key, value in facts.items()) + "."


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
            ("Export it, to run without TensorFlow", _kerasseg("export", folder, "--out", model)),
            ("Segment a folder of images with the export", _kerasseg("segment", model, "IMAGES", "OUTPUT")),
        ]
    else:
        rows = [("Continue it", started and f"{started} --resume")]
    compare = ["--compare", *(_shown(other.folder) for other in others)] if others else []
    rows.append(("Make this page again", _kerasseg("report", folder, *compare)))
    return [(what, command) for what, command in rows if command]


def _kerasseg(*arguments: str) -> str:
    return shlex.join(["kerasseg", *arguments])


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
            facts += [(name.split(".")[-1], plain(value)) for name, value in flat({key: run.config[key]}).items()]
    return facts


def readable(name: str) -> str:
    return name.replace("_", " ")


def plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
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
