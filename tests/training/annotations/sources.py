"""Small sources as annotation tools write them, and the import of one."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.common import cli
from tests.kerasseg.data.folders import save
from training.import_data import ImportConfig, main

SIZE = (12, 16)
"""Height and width of the images."""


def image(path: Path, size: tuple[int, int] = SIZE, value: int = 0) -> Path:
    """An image of one grey."""
    return save(path, np.full((*size, 3), value))


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


class Imported:
    """What an import gave: `status`, `result` (the JSON), `lines` of stderr, and the folder `out`."""

    def __init__(self, status: int, output: str, lines: list[str], out: Path) -> None:
        self.status, self.lines, self.out = status, lines, out
        self.result = json.loads(output.splitlines()[-1]) if output else {}

    @property
    def classes(self) -> list[str]:
        return json.loads((self.out / "classes.json").read_text())["classes"]

    def labels(self, name: str) -> np.ndarray:
        """The label map of an image, whatever its split."""
        (path,) = self.out.glob(f"labels/*/{name}.png")
        return np.asarray(Image.open(path))

    def files(self, kind: str = "images") -> list[str]:
        return sorted(path.relative_to(self.out / kind).as_posix() for path in (self.out / kind).rglob("*.*"))

    def warned(self, words: str) -> bool:
        """Whether a warning has these words."""
        return any(words in line for line in self.lines if line.startswith("warning: "))


def import_(capsys, source: Path, *flags: str, out: Path | None = None) -> Imported:
    """`python -m training.import_data SOURCE OUT`."""
    out = out or source.parent / "imported"
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(main, ImportConfig, "", args=[str(source), str(out), *flags])
    output = capsys.readouterr()
    return Imported(end.value.code, output.out, output.err.splitlines(), out)


def result_of_import(out: Path) -> dict[Path, np.ndarray]:
    """By image that has one, the label map in a dataset folder."""
    maps = {path.relative_to(out / "labels").with_suffix(""): path for path in (out / "labels").rglob("*.png")}
    images = {path.relative_to(out / "images").with_suffix(""): path for path in (out / "images").rglob("*.*")}
    return {images[name]: np.asarray(Image.open(path)) for name, path in maps.items()}


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def drawn(*shapes: tuple[int, int, int, int, int], size: tuple[int, int] = SIZE, rest: int = 0) -> np.ndarray:
    """A label map with rectangles (label, left, top, right, bottom), the last on top."""
    labels_HW = np.full(size, rest)
    for label, left, top, right, bottom in shapes:
        labels_HW[top:bottom, left:right] = label
    return labels_HW


def labelme(root: Path, name: str, *shapes: dict, size: tuple[int, int] = SIZE, **entries: object) -> Path:
    """An image and its labelme file."""
    image(root / f"{name}.png", size)
    return labelme_json(root, name, *shapes, **{"imageHeight": size[0], "imageWidth": size[1]} | entries)


def labelme_json(root: Path, name: str, *shapes: dict, **entries: object) -> Path:
    content = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": f"{name}.png", "imageData": None}
    return write_json(root / f"{name}.json", content | entries)


def polygon(label: str, points: list, shape_type: str = "polygon", **entries: object) -> dict:
    """A shape of labelme."""
    return {"label": label, "points": points, "group_id": None, "shape_type": shape_type, "flags": {}} | entries


def coco(path: Path, images: list[tuple[int, str]], annotations: list[dict], names: dict[int, str]) -> Path:
    """A COCO file; annotations get ids, and what COCO has in addition to what is given."""
    return write_json(
        path,
        {
            "images": [{"id": i, "file_name": f, "height": SIZE[0], "width": SIZE[1]} for i, f in images],
            "annotations": [{"id": n, "iscrowd": 0, "area": 1, "bbox": [], **a} for n, a in enumerate(annotations)],
            "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in names.items()],
        },
    )


def flat(*corners: int) -> list[int]:
    """A rectangle as COCO writes polygons."""
    return [value for point in rectangle(*corners) for value in point]
