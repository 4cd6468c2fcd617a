"""What a batch job has done, in `manifest.jsonl`.

Such a file has a line, a JSON object, per image, with the image's name as `"input"`. It is appended to as
images are finished; of several lines with a name the last counts. Only names and places are held in memory.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from serving.batch.jobs import FILES
from serving.common.files import in_use, locked, naming, remove_leftovers, temporary_file

RUNS = "rle"
PIECES = "pieces-{}"
"""The stem of a file with what an annotation tool's file will have of each image."""


def file_name(stem: str, shard: tuple[int, int]) -> str:
    """`stem.jsonl`; of the second of eight shards, which may be hosts that write at once, `stem-2-of-8.jsonl`."""
    index, count = shard
    return f"{stem}.jsonl" if count == 1 else f"{stem}-{index}-of-{count}.jsonl"


class LinePosition(NamedTuple):
    """Where in a file a line is, bytes."""

    offset: int
    length: int


class JsonLines:
    """One such file, to append to; put in order, a line per image, when it is opened and when it is closed.

    Attributes:
        keys: by name, of the images in it when it was opened.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Self:
        self.keys = self._tidy() if self.path.exists() else {}
        self._file = self.path.open("a", encoding="utf-8", buffering=1)  # a line at a time
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self.path):
            self._file.close()
        self._tidy()

    def append(self, record: dict[str, Any]) -> None:
        with naming(self.path):
            self._file.write(json.dumps(record) + "\n")

    def _tidy(self) -> dict[str, str | None]:
        places, keys = {}, {}
        for place, record in read_lines(self.path):
            places[record["input"]], keys[record["input"]] = place, record.get("key")
        names = sorted(places)
        starts = [places[name].offset for name in names]
        if starts == sorted(starts) and sum(place.length for place in places.values()) == self.path.stat().st_size:
            return keys
        with self.path.open("rb") as old, temporary_file(self.path) as new:
            for name in names:
                old.seek(places[name].offset)
                new.write(old.read(places[name].length))
        return keys


def read_lines(path: Path) -> Iterator[tuple[LinePosition, dict[str, Any]]]:
    """The lines of such a file. What is no whole line is left out: a killed job's last words."""
    with path.open("rb") as file:
        offset = 0
        for line in file:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("input"), str):
                    yield LinePosition(offset, len(line)), record
            offset += len(line)


class EarlierRecords:
    """What earlier jobs wrote of each image, read as it is asked for; may be used by several threads.

    Args:
        folder: the job's output, with the manifests of all its shards. Where several have an image, what was finished
            last counts.
        stem: of other files with a line per image than the manifests.
    """

    def __init__(self, folder: Path, stem: str = "manifest"):
        self._places: dict[str, tuple[int, LinePosition]] = {}
        self._stack = contextlib.ExitStack()
        finished: dict[str, float] = {}
        for path in sorted(folder.glob(f"{stem}*.jsonl")):
            file = self._stack.enter_context(path.open("rb")).fileno()
            for place, record in read_lines(path):
                name, when = record["input"], record.get("finished", 0.0)
                if when >= finished.get(name, 0.0):
                    self._places[name], finished[name] = (file, place), when

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self, name: str) -> dict[str, Any]:
        """The image's record; an empty one if there is none."""
        if name not in self._places:
            return {}
        file, place = self._places[name]
        try:
            return json.loads(os.pread(file, place.length, place.offset))
        except (OSError, ValueError):  # another host has replaced its file on a network disk: as if it were not there
            return {}


class Manifest:
    """The manifest of one job, or of one of its shards, and its files of run lengths and of pieces for annotation
    tools; for one process at a time.

    Args:
        folder: the job's output, made when missing.
        runs: whether there are run lengths to write.
        tools: for which there are pieces to write.

    Raises:
        ValueError: on entering, if another process is at it, the folder cannot be written to, or holds results that no
            batch job has written.
    """

    def __init__(self, folder: Path, shard: tuple[int, int], runs: bool, tools: Iterable[str] = ()):
        self._folder = folder
        self._pieces = {tool: JsonLines(folder / file_name(PIECES.format(tool), shard)) for tool in tools}
        self._lines = JsonLines(folder / file_name("manifest", shard))
        self._runs = JsonLines(folder / file_name(RUNS, shard)) if runs else None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._require_own()  # before a lock is left in a folder that is not ours
            lock = f".{self._lines.path.stem}.lock"
            stack.enter_context(locked(self._folder, lock, user="batch job", remedy="choose another OUTPUT"))
            self._remove_leftovers(self._folder / lock)
            for lines in filter(None, (self._lines, self._runs, *self._pieces.values())):
                stack.enter_context(lines)
            self._earlier_pieces = {
                tool: stack.enter_context(EarlierRecords(self._folder, PIECES.format(tool))) for tool in self._pieces
            }
            self._earlier = stack.enter_context(EarlierRecords(self._folder))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self, name: str) -> dict[str, Any]:
        """What earlier jobs wrote of an image, see `EarlierRecords.find`, less run lengths and pieces that are not
        there."""
        record = self._earlier.find(name)
        for tool, pieces in self._earlier_pieces.items():
            if pieces.find(name).get("key") != record.get("key"):
                record.get("outputs", {}).pop(tool, None)
        if self._runs and self._runs.keys.get(name) != record.get("key"):
            record.get("outputs", {}).pop("rle", None)
        return record

    def _require_own(self) -> None:
        """A dataset's folder of label maps must not be taken for the results of a job, and be written over."""
        # In this order, as another shard makes them in the other one.
        found = [folder for file in FILES.values() if (folder := (self._folder / file).parent).exists()]
        if found and not any(self._folder.glob("manifest*.jsonl")):
            raise ValueError(f"{found[0]} is there already, and no batch job has made it: choose another OUTPUT")

    def _remove_leftovers(self, lock: Path) -> None:
        """What killed jobs left half-written goes, unless other shards are at work: it could be theirs."""
        if any(in_use(other) for other in self._folder.glob(".manifest*.lock") if other != lock):
            return
        results = (os.walk((self._folder / file).parent) for file in FILES.values())
        written = (Path(place, name) for result in results for place, _, names in result for name in names)
        remove_leftovers(itertools.chain(self._folder.glob(".*.tmp"), written), before=lock)

    def append(
        self,
        record: dict[str, Any],
        runs: dict[str, Any] | None = None,
        pieces: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        """An image is done, all its files are written but for its run lengths and pieces, which come first here too."""
        if self._runs and runs:
            self._runs.append(runs)
        for tool, piece in (pieces or {}).items():
            self._pieces[tool].append(piece)
        self._lines.append(record)
