"""The common part of the builders of published datasets: they find the archives, and check that all files exist.

Legend: H, W size of an image.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from kerasseg.data.builders.files import Files, files_of, require_published
from kerasseg.data.folder import read_image
from kerasseg.losses import IGNORE_LABEL

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One archive of a dataset, or the folder in it."""

    archive: str
    """Its name as published."""
    folder: str
    """The folder in the archive that has the files; extracted, it stands for the archive."""
    home: str
    """Where people get the archive."""
    url: str | None = None
    """Where it can be downloaded without an account; its size and sha256 are in checksums.tsv."""
    sha256: str | None = None
    """SHA-256 of an archive that has no such address, where it is known."""
    suffixes: tuple[str, ...] = ("",)
    """Endings of the files that are needed."""


class File(NamedTuple):
    files: Files
    path: str


class Item(NamedTuple):
    """An image and what its label map is made from."""

    image: File
    label: File


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder):
    """Images with label maps, by name. A subclass says where they are.

    An example has "name" (text), "image" (the image as published, a JPEG or PNG) and "label" (an 8-bit grey PNG of
    class numbers 0..K-1, 255 = ignore).
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the archives there as they are, or the folders in them."

    CLASSES: tuple[str, ...]
    HOMEPAGE: str
    COUNTS: Mapping[str, int]
    """How many images each split has; preparing fails at any other number."""

    @abstractmethod
    def items(self, downloads: tfds.download.DownloadManager) -> dict[str, dict[str, Item]]:
        """The images of each split, by name. `find` opens what they are read from."""

    @abstractmethod
    def decode_label(self, path: str, contents: bytes) -> np.ndarray:
        """The label map uint8 (H, W) in a file that `items` names; any error where it is damaged."""

    def find(self, source: Source, downloads: tfds.download.DownloadManager) -> Files:
        """The files of a source: from its archive in the manual directory, else its folder there, else a download.

        Raises:
            ValueError: it is nowhere, or damaged.
        """
        try:
            manual = Path(downloads.manual_dir)
            looked = f"neither it nor its folder {source.folder} is in {manual}"
            if (manual / source.archive).is_file():
                self.require_published(manual / source.archive, source)
                return files_of(manual / source.archive, source.folder, source.suffixes)
            if (manual / source.folder).is_dir():
                return files_of(manual / source.folder, suffixes=source.suffixes)
        except AssertionError as error:  # how tfds says that the directory does not exist or is empty
            looked = str(error).split(". ")[0]
        hint = f"get it from {source.home} and put it there, or set TFDS_MANUAL_DIR to where it is"
        if source.url is None:
            raise ValueError(f"{self.name} needs {source.archive}: {looked}; {hint}")
        try:
            archive = Path(downloads.download(source.url))
        except (OSError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{self.name} needs {source.archive}: {looked}, and it could not be downloaded ({reason}); {hint}"
            ) from error
        return files_of(archive, source.folder, source.suffixes)

    def require_published(self, archive: Path, source: Source) -> None:
        """ValueError unless an archive is the published one, as far as its checksum is known.

        One that was packed again is refused too: the folder in it does in its place.
        """
        try:
            if source.url is not None:
                known = self.url_infos[source.url]
                require_published(archive, known.checksum, known.size)
            elif source.sha256 is not None:
                require_published(archive, source.sha256)
        except ValueError as error:
            raise ValueError(
                f"{error}: download it again, to its end, from {source.home}; or, if it was packed again, extract "
                f"it and move it away, and its folder {source.folder} is read"
            ) from error

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(
                {
                    "name": tfds.features.Text(),
                    "image": tfds.features.Image(),
                    "label": tfds.features.LabeledImage(labels=list(self.CLASSES), encoding_format="png"),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        splits = self.items(dl_manager)
        for split, items in splits.items():
            files = [file for item in items.values() for file in item]
            missing = [file.path for file in files if file.path not in file.files]
            if missing:
                raise ValueError(
                    f"{self.name}: {len(missing)} of {len(files)} files of {split} are missing, such as {missing[0]}; "
                    "download or extract its archive again, to the end"
                )
            if len(items) != self.COUNTS[split]:
                raise ValueError(
                    f"{self.name} has {self.COUNTS[split]} {split} images, found {len(items)}; download or extract "
                    "its archives again, to the end"
                )
        return {split: self._generate_examples(items) for split, items in splits.items()}

    def _generate_examples(self, items: dict[str, Item]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, (image, label) in items.items():
            # The image is stored as it is. It is decoded once here, so that no training meets one that is cut off.
            encoded, image_HWC = self._read(image, lambda _, contents: read_image(contents, upright=False))
            _, label_HW = self._read(label, self.decode_label)
            if image_HWC.shape[:2] != label_HW.shape:
                raise ValueError(
                    f"{self.name}: {image.path} and {label.path} differ in size ({image_HWC.shape[:2]} and "
                    f"{label_HW.shape}); get both from the published archives"
                )
            if foreign := set(np.unique(label_HW).tolist()) - {*range(len(self.CLASSES)), IGNORE_LABEL}:
                raise ValueError(
                    f"{self.name}: {label.path} holds {min(foreign)}; expected classes 0..{len(self.CLASSES) - 1} and "
                    "255 = ignore; get it from the published archive"
                )
            yield name, {"name": name, "image": encoded, "label": label_HW[..., None]}

    def _read(self, file: File, decode: Callable[[str, bytes], T]) -> tuple[bytes, T]:
        """The contents of a file, as stored and decoded."""
        try:
            contents = file.files[file.path]()
            return contents, decode(file.path, contents)
        except Exception as error:  # a damaged file makes its reader raise nearly anything
            raise ValueError(
                f"{self.name}: {file.path} is damaged ({error}); download or extract its archive again, to the end"
            ) from error
