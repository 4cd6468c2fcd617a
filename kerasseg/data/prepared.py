"""A dataset that tensorflow-datasets has prepared, read by name: every record at any time, decoded in the graph.

tensorflow-datasets itself is slow to import: whoever brings a builder imports it (`kerasseg.data.builders`), not this.
Legend: H, W size of an image.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from PIL import Image

from kerasseg.data.datasets import Dataset
from kerasseg.data.folder import read_image, read_label, tf_decode_image
from kerasseg.data.problems import naming_file
from serving.common.files import write_atomically

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

NAMES_AT_ONCE = 64  # records: those of Cityscapes have 2 MB


class PreparedDataset(Dataset):
    """A dataset in records of encoded images, which is prepared first where that has not been done.

    It is in the folder array_record of the directory where tensorflow-datasets keeps its data: the environment variable
    TFDS_DATA_DIR, else ~/tensorflow_datasets. So it does not meet what `tfds.load` prepares, whose usual records cannot
    be read by position. Archives are taken from the directory TFDS_MANUAL_DIR, else downloads/manual of TFDS_DATA_DIR.

    Args:
        builder: what makes the builder, given `data_dir` and `file_format`.
        records: the builder's split for each of ours.
        name_feature: the feature with the name of an image; an extension is dropped.
        label_feature: the feature with the label map, a grey PNG.
        first_label: the value of class 0 in it.

    Raises:
        ValueError: the archives are missing or incomplete.
    """

    def __init__(
        self,
        name: str,
        builder: "Callable[..., tfds.core.DatasetBuilder]",
        classes: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None,
        *,
        records: Mapping[str, str] | None = None,
        name_feature: str = "name",
        label_feature: str = "label",
        first_label: int = 0,
    ) -> None:
        super().__init__(name, classes, palette)
        prepared = prepare(name, builder)
        self._label_feature, self._first_label = label_feature, first_label
        self._records, self._positions = {}, {}
        for split, source in (records or {"train": "train", "val": "val"}).items():
            self._records[split] = prepared.as_data_source(source).data_source  # their bytes, by position
            index = Path(prepared.data_dir) / f"{source}_names.txt"
            names = _names(index, self._records[split], name_feature)
            self._positions[split] = {n: position for position, n in enumerate(names)}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._positions)

    def image_names(self, split: str) -> tuple[str, ...]:
        if split not in self._positions:
            raise self._no_split(split)
        return tuple(sorted(self._positions[split]))

    def load_image(self, split: str, name: str) -> np.ndarray:
        with naming_file(self.describe(split, name)):
            return read_image(self._file(split, name, "image"), upright=False)  # as published

    def image_size(self, split: str, name: str) -> tuple[int, int]:
        with Image.open(io.BytesIO(self._file(split, name, "image"))) as image:  # reads its header only
            return image.size[::-1]

    def load_label(self, split: str, name: str) -> np.ndarray:
        with naming_file(f"the label map of {self.describe(split, name)}"):
            label_HW = read_label(self._file(split, name, self._label_feature))
        return label_HW - np.uint8(self._first_label)  # unsigned, so that a value below the first class is 255, ignored

    def tf_image(self, split: str, name: tf.Tensor) -> tf.Tensor:
        return tf_decode_image(self._tf_file(split, name, "image"))

    def tf_label(self, split: str, name: tf.Tensor) -> tf.Tensor:
        label_HW1 = tf.io.decode_png(self._tf_file(split, name, self._label_feature))
        # One channel as it is stored: asked for one, TensorFlow would turn a palette's colours into grey.
        return tf.ensure_shape(label_HW1, (None, None, 1))[..., 0] - tf.constant(self._first_label, tf.uint8)

    def _record(self, split: str, name: str) -> bytes:
        try:
            return self._records[split][self._positions[split][name]]
        except KeyError:
            raise ValueError(f"{self.name} has no {split} image {name!r}") from None

    def _file(self, split: str, name: str, feature: str) -> bytes:
        return _parse(self._record(split, name), feature).numpy()

    def _tf_file(self, split: str, name: tf.Tensor, feature: str) -> tf.Tensor:
        # Only reading the record's bytes is Python. It is an array of objects, since an array of bytes loses zeros at
        # the end. stateful=False: as in Dataset._in_graph.
        record = tf.numpy_function(
            lambda n: np.array(self._record(split, np.asarray(n).item().decode()), object),
            [name],
            tf.string,
            stateful=False,
        )
        return _parse(tf.ensure_shape(record, ()), feature)


def prepare(name: str, builder: "Callable[..., tfds.core.DatasetBuilder]") -> "tfds.core.DatasetBuilder":
    """The builder of a dataset that has been downloaded and prepared, now or before.

    Raises:
        ValueError: the archives are missing or incomplete. Nothing half-prepared stays behind.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.constants import get_default_data_dir
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError

    root = Path(get_default_data_dir()).expanduser()
    made = builder(data_dir=root / "array_record", file_format="array_record")
    if Path(made.data_dir).exists():
        return made
    manual = Path(os.environ.get("TFDS_MANUAL_DIR") or root / "downloads/manual").expanduser()
    for left in Path(made.data_dir).parent.glob("incomplete.*"):  # tensorflow-datasets has no use for it; it is large
        print(f"{left} was left by a preparation that was cut short: delete it, unless one is running", file=sys.stderr)
    print(f"preparing {name} in {made.data_dir}, once; archives are looked for in {manual}", file=sys.stderr)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where tfds says the same, and our result belongs
            made.download_and_prepare(
                download_dir=root / "downloads",
                download_config=tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False),
            )
    except (tfds.download.DownloadError, NonMatchingChecksumError, ExtractError) as error:
        raise ValueError(f"{name} could not be downloaded: {str(error).splitlines()[0]}") from error
    return made


def _names(index: Path, records: Sequence[bytes], feature: str) -> list[str]:
    """The names of the images in the order of the records; kept in a file, since finding them reads all records."""
    if index.exists():
        return index.read_text("utf-8").splitlines()
    names = []
    for start in range(0, len(records), NAMES_AT_ONCE):
        batch = [records[position] for position in range(start, min(start + NAMES_AT_ONCE, len(records)))]
        names += [Path(name.decode()).stem for name in _parse(batch, feature).numpy()]
    with contextlib.suppress(OSError):  # shared data may be read-only: then the records are read each time
        write_atomically(index, "".join(f"{name}\n" for name in names).encode())
    return names


def _parse(record: "tf.Tensor | bytes | list[bytes]", feature: str) -> tf.Tensor:
    """One feature of a record or of several: a string tensor."""
    return tf.io.parse_example(record, {feature: tf.io.FixedLenFeature((), tf.string)})[feature]
