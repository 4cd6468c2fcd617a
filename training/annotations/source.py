"""The files of a folder with annotations, and how images are found in it."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from kerasseg.data.folder import usable_name
from kerasseg.data.imports import ANNOTATIONS
from serving.common.images import SUFFIXES
from serving.common.inputs import comparable, printable, read_text
from serving.common.predictions import is_predicted

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
KIND_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "data", "photos", "leftimg8bit")
"""Folders that say only that images are in them, lower case."""

VIEWS = ("overlays", "confidence", "reliability")
"""Folders of a batch job's output with images that are none of the source."""


def split_of(folder: str) -> str | None:
    """The split that the name of a folder or file stands for: "valid" and "val2017" are "val"; None for no split."""
    return SPLIT_FOLDERS.get(re.sub(r"[\d_-]*$", "", folder.lower()))


class Source:
    """The files of a source, listed once.

    Args:
        path: a folder, or one annotation file; the folder of such a file is then the source, with no other annotation
            file in it.
        elsewhere: images in other folders, which the annotations may name too.

    Attributes:
        elsewhere: those of them that are not in the source, by their paths from there.
        unusable: files whose names cannot be used, as messages show them.

    Raises:
        ValueError: there is nothing at the path.
    """

    def __init__(self, path: str | Path, elsewhere: Iterable[Path] = ()) -> None:
        given = Path(path)
        if not given.exists():
            raise ValueError(f"nothing found at {given}: give the folder with images and annotations")
        self.root = given if given.is_dir() else given.parent
        files, self.unusable = _walk(self.root)
        if given.is_file():
            files = [f for f in files if f == given.name or PurePosixPath(f).suffix.lower() not in ANNOTATIONS]
        self.files: list[str] = files
        """Paths relative to the folder, with "/"."""
        self.images = [file for file in self.files if PurePosixPath(file).suffix.lower() in SUFFIXES]
        root = os.path.realpath(self.root)
        others = [Path(os.path.relpath(os.path.realpath(image), root)).as_posix() for image in elsewhere]
        self.elsewhere = frozenset(others) - set(self.files)
        self.images += sorted(self.elsewhere)
        self._exact = set(self.images)
        self._folder = os.path.realpath(self.root)
        self._parsed: tuple[str, Any] = ("", None)
        self._by_name: dict[str, list[str]] = {}
        for file in self.images:
            self._by_name.setdefault(comparable(PurePosixPath(file).name), []).append(file)

    def __getitem__(self, file: str) -> Path:
        """The path of a file in the source."""
        return self.root / file

    def ending(self, *suffixes: str) -> list[str]:
        """The files whose names end so, in any letter case."""
        return [file for file in self.files if file.lower().endswith(suffixes)]

    def saved_first(self, *suffixes: str) -> list[str]:
        """`ending(...)`, with predictions that nobody has corrected last: where an image is in two files, they lose."""
        return sorted(self.ending(*suffixes), key=lambda file: is_predicted(self[file]))

    def find_image(self, said: str, near: Iterable[str] = ()) -> str | None:
        """The image that an annotation file names.

        Args:
            said: a path, perhaps of another machine, with "/" or "\\".
            near: folders in the source that are looked into first.

        Returns:
            The file, also where the path starts from a folder above the source; else the only one of that name in the
            source, whatever its folder and letter case; None otherwise.
        """
        said = said.replace("\\", "/")
        for folder in (*near, ""):
            candidate = os.path.normpath(f"{folder}/{said}" if folder else said)
            if candidate in self._exact:
                return candidate
        above, inside = "", said.lstrip("/")
        while "/" in inside:
            folder, _, inside = inside.partition("/")
            above += f"/{folder}"
            if inside in self._exact and self._folder.endswith(above):
                return inside
        alike = self._by_name.get(comparable(PurePosixPath(said).name), [])
        parts = said.split("/")
        for count in range(len(parts), 0, -1):  # the longest common end decides between images of one name
            ending = "/" + comparable("/".join(parts[-count:]))
            found = [file for file in alike if f"/{comparable(file)}".endswith(ending)]
            if len(found) == 1:
                return found[0]
            if found:
                return None
        return None

    def json(self, file: str) -> Any:
        """The content of a JSON file; None for one that cannot be read."""
        if self._parsed[0] != file:  # readers look at the same file in turn, and those of COCO are large
            try:
                self._parsed = file, json.loads(read_text(self[file]))
            except (OSError, ValueError, RecursionError):
                self._parsed = file, None
        return self._parsed[1]


def name_of(file: str) -> str:
    """The name of an image's path without folders that say only its split or that it is an image."""
    *folders, name = file.split("/")
    kept = [folder for folder in folders if split_of(folder) is None and folder.lower() not in KIND_FOLDERS]
    return "/".join([*kept, name])


def split_in(file: str) -> str | None:
    """The split that the folders of a path name; None where none does."""
    return next((split for folder in reversed(file.split("/")[:-1]) if (split := split_of(folder))), None)


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """The files of a folder that can be used, sorted, and those whose names cannot."""
    files: list[str] = []
    unusable: list[str] = []
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it would never end
            subfolders.clear()
            continue
        seen.add(real)
        skipped = VIEWS if any(re.fullmatch(r"manifest(-\d+-of-\d+)?\.jsonl", name) for name in names) else ()
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "__MACOSX")) and name not in skipped]
        where = Path(folder).relative_to(root).as_posix()
        for name in names:
            file = name if where == "." else f"{where}/{name}"
            if not name.startswith("."):
                (files if usable_name(file) else unusable).append(file)
    return sorted(files), [printable(file) for file in sorted(unusable)]
