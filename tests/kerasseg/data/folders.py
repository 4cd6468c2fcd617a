"""Small dataset folders for the tests to read and to break."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["ground", "cat", "dog"]


def make_folder(root: Path, train: int = 4, val: int = 2, size: tuple[int, int] = (24, 32)) -> Path:
    """A sound dataset folder: every label map has all three classes, in columns; classes.json is there."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            label = np.arange(size[1]) * len(CLASSES) // size[1] * np.ones((size[0], 1))
            save(root / f"images/{split}/{split}_{index}.png", rng.integers(0, 255, (*size, 3)))
            save(root / f"labels/{split}/{split}_{index}.png", label)
    write_classes(root, classes=CLASSES)
    return root


def save(path: Path, array, **options) -> Path:
    """Writes an array as an image, uint8 unless it is uint16 already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(array)
    Image.fromarray(array if array.dtype == np.uint16 else array.astype(np.uint8)).save(path, **options)
    return path


def write_classes(root: Path, **content) -> None:
    (root / "classes.json").write_text(json.dumps(content))
