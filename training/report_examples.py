"""The report's example images, reduced and written into the page."""

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serving.common import images
from serving.common.palettes import Palette, readable_palette
from training.report_notes import percent, readable
from training.run_folder import Run

IMAGE_WIDTH = 640
"""Pixels: wider example images are reduced to this."""

MAX_EXAMPLES = 12
"""The most examples on a page, so that it stays small enough for an e-mail."""


def examples(run: Run, others: Sequence[Run] = (), part: str = "examples") -> Iterator[dict[str, Any]]:
    """Images with their label map and the predictions.

    Args:
        part: the folder in a run folder that they are taken from: "examples", or "worst".
    """
    palette = colors_of(run)
    for folder in example_folders(run, part)[:MAX_EXAMPLES]:
        name = folder.relative_to(run.folder / part).as_posix()
        truth = _label_map(folder / "truth.png")
        cells = [{"title": "image", "kind": "photo", "uri": _image_uri(folder / "image.png"), "score": ""}]
        if truth is not None:
            cells.append({"title": "label map", "kind": "labels", "uri": _label_uri(truth, palette), "score": ""})
        known = {"image.png", "truth.png", "prediction.png", "student.png", "reliability.png"}
        answer = "with gate" if (folder / "without_gate.png").is_file() else "prediction"
        variants = [  # in the order of the page's first figures
            *((other.title, other.folder / part / name / "prediction.png") for other in others),
            *((readable(file.stem), file) for file in sorted(folder.glob("*.png")) if file.name not in known),
            (answer, folder / "prediction.png"),
            ("student", folder / "student.png"),
        ]
        for title, file in variants:
            if (labels := _label_map(file)) is not None:
                uri = _label_uri(labels, palette)
                cells.append({"title": title, "kind": "labels", "uri": uri, "score": _agreement(labels, truth)})
        if (reliability := folder / "reliability.png").is_file():
            words = "dark: the critic doubts it"
            cells.append({"title": "reliability", "kind": "grey", "uri": _image_uri(reliability), "score": words})
        yield {"name": name, "cells": cells}


def example_folders(run: Run, part: str = "examples") -> list[Path]:
    # An image's name may hold folders.
    return sorted(file.parent for file in (run.folder / part).rglob("prediction.png"))


def colors_of(run: Run) -> Palette:
    """The classes' colours on the page: the dataset's own, unless they cannot be read on a photo."""
    return readable_palette(run.config["palette"], run.classes)


def _agreement(labels: np.ndarray, truth: np.ndarray | None) -> str:
    if truth is None or truth.shape != labels.shape or not (counted := truth != 255).any():
        return ""
    return f"{percent((labels == truth)[counted].mean(), 0)} of pixels right"


def _label_map(file: Path) -> np.ndarray | None:
    return np.array(Image.open(file)) if file.is_file() else None


def _label_uri(labels_HW: np.ndarray, palette: Sequence[Sequence[int]]) -> str:
    # Nearest neighbour: it makes no third class between two.
    reduced = np.array(_reduced(Image.fromarray(labels_HW), Image.Resampling.NEAREST))
    return _data_uri("image/png", images.index_png(reduced, palette))


def _image_uri(file: Path) -> str:
    reduced = _reduced(Image.fromarray(images.load_image(file)), Image.Resampling.LANCZOS)
    return _data_uri("image/jpeg", images.jpeg(np.array(reduced), quality=85))


def _reduced(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    if image.width <= IMAGE_WIDTH:
        return image
    return image.resize((IMAGE_WIDTH, round(image.height * IMAGE_WIDTH / image.width)), resampling)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def legend(run: Run) -> list[tuple[str, str]]:
    """(class, CSS colour), and the colour of ignored pixels last."""
    colors = [css_color(color) for color in [*colors_of(run), images.IGNORE_COLOR]]
    return list(zip([*run.classes, "ignored (255)"], colors, strict=True))


def css_color(color: Sequence[int]) -> str:
    red, green, blue = (int(part) for part in color)
    return f"rgb({red} {green} {blue})"
