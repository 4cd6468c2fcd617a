"""What a batch job has to do: the images that INPUT names, what their results are called, and a shard of them."""

import functools
import glob
import hashlib
import io
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from serving.common.files import read_bounded
from serving.common.images import SUFFIXES, SUFFIXES_SHOWN
from serving.common.inputs import MAX_TEXT_BYTES, Names, comparable, decode_text, is_text

Kind = Literal[
    "labels", "overlay", "confidence", "reliability", "features", "rle", "labelme", "coco", "cvat", "label-studio"
]

FILES: dict[Kind, str] = {
    "labels": "labels/{}.png",
    "overlay": "overlays/{}.jpg",
    "confidence": "confidence/{}.png",
    "reliability": "reliability/{}.png",
    "features": "features/{}.npy",
    "labelme": "labelme/{}.json",
}
"""What is written of an image, and where; other kinds have one file for all images, which goes with the manifest."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image and what its results are called. Text, not paths: there may be a million of them."""

    source: str
    name: str
    """The image's path below INPUT, with forward slashes."""
    output_name: str
    """The same without suffix where that is unambiguous."""


def find_jobs(input: str, output: Path, recursive: bool) -> list[Job]:
    """The images that `input` names, in order of their names.

    Args:
        input: a folder or a pattern, of which files with an image's suffix are taken, hidden ones and earlier
            results left out; an image; or a list, a `.txt` file or `-` for standard input, with the path of an image
            on each line, from the list's folder (the working directory) on where it is relative. What a list names is
            taken as it is, or else as the only file whose name looks the same (`serving.common.inputs.comparable`): an
            image that is not there fails when its turn comes.
        output: where results go.
        recursive: take the images of a folder's subfolders too.

    Raises:
        ValueError: there are none, or a list is in another encoding than `serving.common.inputs.read_text` knows.
    """
    path = Path(input)
    if input == "-":
        if sys.stdin is None:
            raise ValueError("INPUT is -, and standard input is closed: pipe a list of images in")
        text = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        if len(text) > MAX_TEXT_BYTES:
            raise ValueError(f"standard input has more than {MAX_TEXT_BYTES} bytes: pipe a list of images in")
        return _name_outputs(_listed(text, "standard input", Path()))
    if path.is_file() and path.suffix.lower() == ".txt":
        return _name_outputs(_listed(read_bounded(path, MAX_TEXT_BYTES), str(path), path.parent))
    if path.is_file():
        return _name_outputs({path.name: path})
    if path.is_dir():
        root, found = path, list(path.rglob("*") if recursive else path.iterdir())
    elif glob.has_magic(input):
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        found = [Path(match) for match in glob.iglob(input, recursive=True)]
    else:
        raise ValueError(
            f"{input} does not exist: give a folder, an image, a pattern in quotes, or a list of images (.txt)"
        )
    results = [(output / file).parent.absolute() for file in FILES.values()]
    sources = [
        source
        for source in found
        if source.suffix.lower() in SUFFIXES
        and not source.name.startswith(".")
        and source.is_file()
        and not any(source.absolute().is_relative_to(result) for result in results)
    ]
    if not sources:
        if path.is_dir() and not recursive and any(child.is_dir() for child in found):
            raise ValueError(f"no images in {input} itself: add --recursive to look into its subfolders")
        raise ValueError(f"no images in {input}: expected files ending in {SUFFIXES_SHOWN}")
    return _name_outputs({source.relative_to(root).as_posix(): source for source in sources})


def labeled_among(jobs: Iterable[Job], output: Path, label_maps: Path | None) -> set[str]:
    """The names of the images that have a label map.

    Args:
        jobs: the images.
        output: of the job, whose own label maps do not count.
        label_maps: the folder with PNGs of the images' names; None to look where a dataset folder has them: those of
            `images/train` in `labels/train`.

    Raises:
        ValueError: there is no such folder.
    """
    if label_maps is not None and not label_maps.is_dir():
        raise ValueError(f"--label-maps {label_maps} is no folder: give the one with the label maps (PNG)")
    names_in = functools.cache(_names_in)
    found = set()
    for job in jobs:
        if label_maps is None:
            parts = Path(job.source).parts
            at = [index for index, part in enumerate(parts[:-1]) if part == "images"]
            places = [Path(*parts[:index], "labels", *parts[index + 1 :]) for index in at]
            places = [place for place in places if not place.is_relative_to((output / "labels").absolute())]
        else:
            places = [label_maps / job.name]
        if any(names_in(place.parent).find(f"{place.stem}.png") for place in places):
            found.add(job.name)
    return found


def shard_of(jobs: list[Job], shard: tuple[int, int]) -> list[Job]:
    """The jobs of one shard. An image's name decides, so that images that come later move no other ones."""
    index, count = shard
    digests = (hashlib.sha256(os.fsencode(job.name)).digest() for job in jobs)
    return [job for job, digest in zip(jobs, digests, strict=True) if int.from_bytes(digest[:8]) % count == index - 1]


def parse_shard(shard: str) -> tuple[int, int]:
    """`"2/8"`, the second of eight parts, as numbers.

    Raises:
        ValueError: anything else.
    """
    index, _, count = shard.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"--shard is i/n, from 1/n to n/n: the second of eight hosts takes 2/8; got {shard}")
    return int(index), int(count)


def _listed(contents: bytes, list_name: str, folder: Path) -> dict[str, Path]:
    """Sources by name: the path below `folder` where they are there, and from the root of the file system elsewhere."""
    sources: dict[str, Path] = {}
    names_in = functools.cache(_names_in)
    # Names need not be text: bytes that are none may still be a file's.
    for line in io.StringIO(decode_text(contents, list_name, "surrogateescape"), newline=None):
        if written := line.rstrip("\n"):
            source = Path(os.path.abspath(folder / written))
            inside = source.is_relative_to(folder.absolute())
            name = source.relative_to(folder.absolute() if inside else source.anchor).as_posix()
            if not os.path.lexists(source):
                if not is_text(written):
                    decode_text(contents, list_name)  # which says where it is not UTF-8
                source = source.with_name(names_in(source.parent).find(source.name) or source.name)
            if sources.setdefault(name, source) != source:
                raise ValueError(f"{sources[name]} and {source} would both be called {name}: use two lists")
    if not sources:
        raise ValueError("the list of images is empty: it has the path of an image on each line")
    return sources


def _names_in(folder: Path) -> Names:
    try:
        return Names(os.listdir(folder))
    except OSError:  # then its images fail, each when its turn comes
        return Names(())


def _name_outputs(sources: dict[str, Path]) -> list[Job]:
    """Drops the suffix from output names; inputs that would then share one keep their whole name.

    a.jpg and A.png share one too: what looks alike is the same to some file systems.
    """
    stems = {name: name.removesuffix(PurePath(name).suffix) for name in sources}
    taken = Counter(map(comparable, stems.values())) + Counter(map(comparable, sources))
    return [
        Job(os.path.abspath(sources[name]), name, stems[name] if taken[comparable(stems[name])] == 1 else name)
        for name in sorted(sources)
    ]
