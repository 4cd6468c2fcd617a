"""A dataset folder: images/{train,val,test}/NAME.{jpg,png}, labels/{train,val,test}/NAME.png, classes.json.

Reading is kept apart from judging: `kerasseg.data.check` uses the same readers to tell what is wrong with a
folder.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasseg.data.datasets import IGNORE, SPLITS, Dataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png",)


@dataclass(frozen=True)
class ClassTable:
    """classes.json, read. `palette` is None where the file has none; `ignore_label` is the value in the label
    files."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None = None
    ignore_label: int = IGNORE


class FolderDataset(Dataset):
    """A dataset folder.

    The name of the dataset is the name of the folder, so that moving a folder does not change its splits.
    Files are known by their names without extension. JPEG orientation tags are not applied: pixels are as
    stored, as the label maps were most likely drawn (`check_dataset` names such files).

    Args:
        path: the folder. Without classes.json the classes are inferred from the values in the label files,
            and `inferred` is true.

    Raises:
        ValueError: no pictures in it, or a classes.json that cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._images = {s: list_files(self.path / "images" / s, IMAGE_SUFFIXES) for s in SPLITS}
        self._labels = {s: list_files(self.path / "labels" / s, LABEL_SUFFIXES) for s in SPLITS}
        if not any(self._images.values()):
            raise ValueError(
                f"no pictures in {path}: expected images/train/NAME.jpg (or .png) and labels/train/NAME.png; "
                f"`python -m training.check_data {path}` tells what is wrong"
            )
        table = read_classes(self.path / "classes.json")
        self.inferred = table is None
        if table is None:
            table = ClassTable(tuple(f"class_{c}" for c in range(self._count_classes())))
        self._ignore_in_files = table.ignore_label
        self._tables: dict[str, tf.lookup.StaticHashTable] = {}
        super().__init__(self.path.name, table.classes, table.palette)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if self._images[split])

    def image_names(self, split: str) -> tuple[str, ...]:
        return tuple(sorted(self._images_of(split)))

    def label_names(self, split: str) -> tuple[str, ...]:
        return tuple(sorted(self._images_of(split).keys() & self._labels[split].keys()))

    def load_image(self, split: str, name: str) -> np.ndarray:
        return read_image(_find(self._images_of(split), name, f"{self.path}/images/{split}"))

    def load_label(self, split: str, name: str) -> np.ndarray:
        label_HW = read_label(_find(self._labels[split], name, f"{self.path}/labels/{split}"))
        if self._ignore_in_files != IGNORE:
            label_HW = np.where(label_HW == self._ignore_in_files, np.uint8(IGNORE), label_HW)
        return label_HW

    def describe(self, split: str, name: str) -> str:
        return str(self._images_of(split)[name])

    def tf_image(self, split: str, name: tf.Tensor) -> tf.Tensor:
        # Decoded in the graph, where Python's lock does not keep the cores from working side by side.
        return tf_decode_image(tf.io.read_file(self._paths(split).lookup(name)))

    def _images_of(self, split: str) -> dict[str, Path]:
        if not self._images.get(split):
            raise self._no_split(split)
        return self._images[split]

    def _paths(self, split: str) -> tf.lookup.StaticHashTable:
        # Made once and outside of any graph; tf.data captures it by reference, so it must outlive the
        # pipeline.
        if split not in self._tables:
            files = self._images_of(split)
            with tf.init_scope():
                pairs = tf.lookup.KeyValueTensorInitializer(list(files), [str(path) for path in files.values()])
                self._tables[split] = tf.lookup.StaticHashTable(pairs, default_value="")
        return self._tables[split]

    def _count_classes(self) -> int:
        files = [path for split in SPLITS for path in self._labels[split].values()]

        def highest(path: Path) -> int:
            try:
                label_HW = read_label(path)
            except (OSError, ValueError):  # for check_dataset to tell, with all its kind and the fix
                return 0
            return int(label_HW.max(initial=0, where=label_HW != IGNORE))

        with ThreadPoolExecutor() as pool:
            return 1 + max(pool.map(highest, files), default=0)


def list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Name without extension -> path, for the files of a folder with one of `suffixes`, in any case; {} for
    no folder."""
    if not folder.is_dir():
        return {}
    files = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return {path.stem: path for path in files if path.suffix.lower() in suffixes}


def tf_decode_image(contents: tf.Tensor) -> tf.Tensor:
    """`read_image` in a graph: scalar string tensor, the contents of a JPEG or PNG, to uint8 (H, W, 3)."""
    # The JPEG settings are those of Pillow, so that both readers give the same pixels.
    image_HWC = tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image_HWC, (None, None, 3))


def read_image(path: Path | BinaryIO) -> np.ndarray:
    """uint8 RGB (H, W, 3) of a JPEG or PNG of any kind: grey is repeated, alpha dropped, 16 bits cut to the
    upper 8.

    Raises:
        OSError: the file is missing, truncated or no picture.
    """
    with Image.open(path) as image:
        if image.mode.startswith("I"):  # 16-bit grey, which Pillow's convert would clip instead of scale
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
        return np.asarray(image.convert("RGB"))


def read_label(path: Path | BinaryIO) -> np.ndarray:
    """uint8 (H, W) of an index or palette PNG: the stored numbers, never the palette's colours.

    Raises:
        OSError: the file is missing, truncated or no picture.
        ValueError: the file does not hold one number 0..255 for each pixel.
    """
    with Image.open(path) as image:
        label = np.asarray(image)
    if label.ndim != 2:
        raise ValueError(f"{path} is a colour picture ({image.mode}); a label map holds one class number per pixel")
    if label.size and label.max() > 255:
        raise ValueError(f"{path} holds 16-bit values up to {label.max()}; class numbers end at 254, 255 = ignore")
    return label.astype(np.uint8)


def read_classes(path: Path) -> ClassTable | None:
    """classes.json, or None where there is none. Raises ValueError for one that cannot be used."""
    if not path.exists():
        return None
    table, problems = parse_classes(path.read_text(encoding="utf-8", errors="replace"))
    if table is None:
        raise ValueError(f"{path}: {problems[0]}")
    return table


def parse_classes(text: str) -> tuple[ClassTable | None, list[str]]:
    """A classes.json as a table, and everything that is wrong with it; the table is None where something
    is."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        return None, [f"not JSON ({error})"]
    if not isinstance(content, dict):
        return None, [f'expected an object {{"classes": [...]}}, found a {type(content).__name__}']

    problems = []
    known = {"classes", "palette", "ignore_label"}
    if unknown := sorted(content.keys() - known):
        problems.append(f"unknown keys {', '.join(unknown)}; known are classes, palette, ignore_label")

    classes = content.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str) and c for c in classes):
        problems.append(f'"classes" must be a list of names, one per label value, found {classes!r:.60}')
        classes = []
    elif len(classes) > IGNORE:
        problems.append(f'"classes" has {len(classes)} names; a label map has room for {IGNORE}')
    if repeated := sorted({c for c in classes if classes.count(c) > 1}):
        problems.append(f'"classes" names {", ".join(repeated)} more than once')

    palette = content.get("palette")
    if palette is not None:
        if not isinstance(palette, list) or not all(map(_is_color, palette)):
            problems.append('"palette" must be a list of [r, g, b] with whole numbers 0..255')
        elif len(palette) != len(classes):
            problems.append(f'"palette" has {len(palette)} colours for {len(classes)} classes')

    ignore = content.get("ignore_label", IGNORE)
    if not isinstance(ignore, int) or isinstance(ignore, bool) or not 0 <= ignore <= 255:
        problems.append(f'"ignore_label" must be a whole number 0..255, found {ignore!r:.60}')
    elif ignore < min(len(classes), IGNORE):
        problems.append(
            f'"ignore_label" {ignore} is also the value of class {classes[ignore]!r}; classes are numbered '
            "from 0, the label value to ignore lies outside of them"
        )
    if problems:
        return None, problems
    return ClassTable(tuple(classes), palette and tuple(map(tuple, palette)), ignore), []


def _is_color(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in value)
    )


def _find(files: dict[str, Path], name: str, folder: str) -> Path:
    try:
        return files[name]
    except KeyError:
        raise ValueError(f"no file named {name!r} in {folder}") from None
