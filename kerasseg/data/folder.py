"""A dataset folder: images/{train,val,test}/NAME.{jpg,png,...}, labels/{train,val,test}/NAME.png, classes.json.

Reading is kept apart from judging: `kerasseg.data.check` uses the same readers to find what is wrong with a
folder.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL.ImageFile import ImageFile

from kerasseg.data.datasets import SPLITS, Dataset
from kerasseg.data.image_header import ImageHeader, read_header
from kerasseg.data.imports import import_hint
from kerasseg.data.problems import FileError, naming_file
from kerasseg.losses import IGNORE_LABEL
from serving.common.images import FORMATS, SMALLER, SUFFIXES, TooManyPixels, open_image, read_file, to_rgb
from serving.common.inputs import COPY, SAVE, Names, contents_of, is_text, printable, read_text

LABEL_SUFFIXES = (".png",)
# Pillow's names of grey with fewer bits. It spreads them over 0..255: each number is multiplied by this.
SPREAD = {"L;2": "85", "L;4": "17"}


@dataclass(frozen=True)
class ClassTable:
    """classes.json, read. `palette` is None where the file has none; `ignore_label` is the value in the label
    files."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None = None
    ignore_label: int = IGNORE_LABEL


class FolderDataset(Dataset):
    """A dataset folder.

    The name of the dataset is the name of the folder, so that moving a folder does not change its splits.
    Files are known by their names without extension. Images are upright, as viewers and labelling tools show them:
    their EXIF orientation is applied, but not where the label map fits only the pixels as they are stored.

    Args:
        path: the folder. Without classes.json the classes are inferred from the values in the label files,
            and `inferred` is true.

    Raises:
        ValueError: no images in it, or a classes.json that cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not usable_name(str(self.path)):
            with naming_file(printable(str(path))):
                raise FileError("name")
        self._images, self._labels = list_pairs(self.path)
        if not any(self._images.values()):
            raise ValueError(
                f"no images in {path}: expected images/train/NAME.jpg (or .png) and labels/train/NAME.png; "
                + (import_hint(self.path) or f"`kerasseg check {path}` says what is wrong")
            )
        table = read_classes(self.path / "classes.json")
        self.inferred = table is None
        if table is None:
            table = ClassTable(tuple(f"class_{c}" for c in range(self._count_classes())))
        self._ignore_in_files = table.ignore_label
        self._tables: dict[str, tf.lookup.StaticHashTable] = {}
        self._headers: dict[tuple[str, str], ImageHeader | None] = {}
        super().__init__(self.path.name, table.classes, table.palette)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if self._images[split])

    def image_names(self, split: str) -> tuple[str, ...]:
        return tuple(sorted(self._images_of(split)))

    def label_names(self, split: str) -> tuple[str, ...]:
        return tuple(sorted(self._images_of(split).keys() & self._labels[split].keys()))

    def load_image(self, split: str, name: str) -> np.ndarray:
        path = _find(self._images_of(split), name, f"{self.path}/images/{split}")
        with naming_file(path):
            return read_image(read_file(path), self._is_upright(split, name))

    def load_label(self, split: str, name: str) -> np.ndarray:
        path = _find(self._labels[split], name, f"{self.path}/labels/{split}")
        with naming_file(path):
            label_HW = read_label(read_file(path))
        if self._ignore_in_files != IGNORE_LABEL:
            label_HW = np.where(label_HW == self._ignore_in_files, np.uint8(IGNORE_LABEL), label_HW)
        return label_HW

    def image_size(self, split: str, name: str) -> tuple[int, int]:
        header = self._header(split, name)
        if header is None:  # whatever is wrong with it, the whole file says it better
            return super().image_size(split, name)
        return header.upright if self._is_upright(split, name) else header.stored

    def describe(self, split: str, name: str) -> str:
        return str(self._images_of(split)[name])

    def tf_image(self, split: str, name: tf.Tensor) -> tf.Tensor:
        path, others = self._paths(split).lookup(name), self._not_in_graph(split)
        if not others:
            return tf_decode_image(tf.io.read_file(path))
        return tf.cond(
            tf.reduce_any(tf.constant(others) == name),
            lambda: super(FolderDataset, self).tf_image(split, name),
            lambda: tf_decode_image(tf.io.read_file(path)),
        )

    @tf.autograph.experimental.do_not_convert  # it is plain Python, called while a graph is made
    def _not_in_graph(self, split: str) -> list[str]:
        """The images that TensorFlow cannot decode, or leaves on their side."""
        names = self.image_names(split)
        with ThreadPoolExecutor() as pool:
            headers = list(pool.map(lambda name: self._header(split, name), names))
        # A file that cannot be opened stays in the graph, whose errors are those that are explained.
        return [name for name, header in zip(names, headers, strict=True) if header and not header.in_graph]

    def _header(self, split: str, name: str) -> ImageHeader | None:
        if (split, name) not in self._headers:
            self._headers[split, name] = read_header(self._images_of(split)[name])
        return self._headers[split, name]

    def _is_upright(self, split: str, name: str) -> bool:
        """Whether an image's EXIF orientation is applied."""
        header, label = self._header(split, name), self._labels[split].get(name)
        if header is None or header.stored == header.upright or label is None:
            return True
        drawn_on = read_header(label)
        return drawn_on is None or drawn_on.stored != header.stored

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
                label_HW = read_label(read_file(path))
            except (OSError, ValueError):  # check_dataset reports it, with all files of its kind and the fix
                return 0
            return int(label_HW.max(initial=0, where=label_HW != IGNORE_LABEL))

        with ThreadPoolExecutor() as pool:
            return 1 + max(pool.map(highest, files), default=0)


def list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Name without extension -> path, for the files of a folder with one of `suffixes`, in any case; {} for
    no folder. Files whose names are not usable (`usable_name`) are left out; `check_dataset` reports them."""
    if not folder.is_dir():
        return {}
    files = (folder / entry.name for entry in sorted(os.scandir(folder), key=lambda e: e.name) if entry.is_file())
    return {
        path.stem: path
        for path in files
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and usable_name(path.name)
    }


def list_pairs(root: Path) -> tuple[dict[str, dict[str, Path]], dict[str, dict[str, Path]]]:
    """The images and the label maps of a dataset folder, by split and by the image's name."""
    images = {s: list_files(root / "images" / s, SUFFIXES) for s in SPLITS}
    return images, {s: by_image(list_files(root / "labels" / s, LABEL_SUFFIXES), images[s]) for s in SPLITS}


def usable_name(name: str) -> bool:
    """Whether a file's name is UTF-8 in one line: splits are saved as lists of names, and TensorFlow opens no other."""
    return is_text(name) and len(name.splitlines()) == 1


def by_image(labels: dict[str, Path], images: Iterable[str]) -> dict[str, Path]:
    """The label maps by the names of their images, which may differ in Unicode form and letter case; a label map
    without an image by its own name."""
    names, found = Names(images), dict[str, Path]()
    for own, path in labels.items():
        name = names.find(own)
        alone = name is not None and name not in found and (name == own or name not in labels)
        found[name if name is not None and alone else own] = path
    return found


def tf_decode_image(contents: tf.Tensor) -> tf.Tensor:
    """`read_image` in a graph: scalar string tensor, the contents of a JPEG or PNG that need not be turned, to uint8
    (H, W, 3)."""
    # The JPEG settings are those of Pillow, so that both readers give the same pixels.
    image_HWC = tf.cond(
        tf.io.is_jpeg(contents),
        lambda: tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image_HWC, (None, None, 3))


def reason_of(error: tf.errors.OpError) -> str:
    """The message of a TensorFlow decoder, without the place in the graph."""
    return " ".join(re.sub(r"\{\{.*?\}\}|\[Op:.*", "", error.message).split())


def read_image(contents: bytes, upright: bool = True) -> np.ndarray:
    """uint8 RGB (H, W, 3) from the bytes of an image in one of `serving.common.images.FORMATS`, the same pixels as
    `load_image` there, by the decoder that training uses.

    Args:
        upright: apply the EXIF orientation.

    Raises:
        FileError: the bytes are cut off, too large, or no such image; a ValueError.
    """
    with _opened(contents, "image", *FORMATS) as image:
        header = ImageHeader.of(image, contents)
        if not header.decodable or (upright and header.orientation != 1):
            return to_rgb(image, upright)
        image.load()  # Pillow's errors know more than those of TensorFlow, and come without lines in the log
    del image  # perhaps half a gigabyte
    try:
        return tf_decode_image(tf.constant(contents)).numpy()
    except tf.errors.OpError as error:
        reason = reason_of(error)
        if contents.startswith(b"\x89PNG") and b"IEND" not in contents[-4096:]:
            reason = "its end is missing"
        remedy = f"{COPY}, or write again what can be read: Image.open(f).save(f)"
        raise FileError("unreadable image", reason, remedy) from error


def read_label(contents: bytes) -> np.ndarray:
    """uint8 (H, W) from the bytes of an index or palette PNG: the stored numbers, never the palette's colours.

    Raises:
        FileError: the bytes are cut off, too large or no PNG, or do not hold one number 0..255 for each pixel; a
            ValueError.
    """
    with _opened(contents, "label", "PNG") as image:
        if (coding := image.tile[0].args) in SPREAD:
            raise FileError("low-bit label", SPREAD[coding])
        label = np.asarray(image)
    if label.ndim != 2:
        raise FileError("colour label", image.mode)
    if label.size and label.max() > 255:
        raise FileError("16-bit label", str(label.max()))
    return label.astype(np.uint8)


@contextlib.contextmanager
def _opened(contents: bytes, what: str, *formats: str) -> Iterator[ImageFile]:
    known = contents_of(contents)
    if known is not None and known.format not in formats:
        remedy = known.remedy_as("PNG" if what == "label" else "JPEG or PNG")
        has_its_own = known.remedy != SAVE or known.for_photos
        raise FileError(f"{what} format", known.what, remedy if has_its_own else "")
    try:
        with open_image(contents, formats=formats) as image:
            yield image
    except FileError:  # what the caller found
        raise
    except TooManyPixels as error:
        raise FileError("too large", str(error).removesuffix(f": {SMALLER}")) from error
    except ValueError as error:
        raise FileError(f"unreadable {what}", str(error)) from error


def read_classes(path: Path) -> ClassTable | None:
    """classes.json, or None where there is none. Raises ValueError for one that cannot be used."""
    if not path.exists():
        return None
    table, problems = parse_classes(read_text(path))
    if table is None:
        raise ValueError(f"{path}: {problems[0]}")
    return table


def parse_classes(text: str) -> tuple[ClassTable | None, list[str]]:
    """A classes.json as a table, and everything that is wrong with it; the table is None where something
    is."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of lists within lists
        return None, [f"not JSON that can be read ({error})"]
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
    elif not all(map(is_text, classes)):
        halves = [name for name in classes if not is_text(name)]
        problems.append(f'"classes" has names with half a letter of UTF-16 in them: {halves!r:.60}')
    elif len(classes) > IGNORE_LABEL:
        problems.append(f'"classes" has {len(classes)} names; a label map has room for {IGNORE_LABEL}')
    if repeated := sorted({c for c in classes if classes.count(c) > 1}):
        problems.append(f'"classes" names {", ".join(repeated)} more than once')

    palette = content.get("palette")
    if palette is not None:
        if not isinstance(palette, list) or not all(map(_is_color, palette)):
            problems.append('"palette" must be a list of [r, g, b] with whole numbers 0..255')
        elif len(palette) != len(classes):
            problems.append(f'"palette" has {len(palette)} colours for {len(classes)} classes')

    ignore = content.get("ignore_label", IGNORE_LABEL)
    if not isinstance(ignore, int) or isinstance(ignore, bool) or not 0 <= ignore <= 255:
        problems.append(f'"ignore_label" must be a whole number 0..255, found {ignore!r:.60}')
    elif ignore < min(len(classes), IGNORE_LABEL):
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
