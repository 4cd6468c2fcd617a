"""Files of a dataset as it is published: below a folder, or in an archive, which is read where it lies.

Nothing is extracted, so nothing half-extracted stays behind, and a dataset does not take its room twice.
"""

import functools
import hashlib
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from serving.common.inputs import decode_text, failed_copy

# Path relative to the folder -> what reads the file.
Files = dict[str, Callable[[], bytes]]

# What Python's readers raise for an archive, or one of its files, that is cut off or damaged.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)


def require_published(path: Path, sha256: str, size: int | None = None) -> None:
    """ValueError unless a file is the one with this sha256 (hexadecimal).

    Its size in bytes is compared first, where it is known: reading the whole file takes a while, which a bar on stderr
    shows.
    """
    found = path.stat().st_size
    if size not in (None, found):
        raise ValueError(f"{path} has {found:,} bytes, the published file {size:,}")
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(total=found, desc=f"checking {path.name}", unit="B", unit_scale=True, file=sys.stderr, leave=False) as bar,
    ):
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != sha256:
        raise ValueError(f"{path} has the sha256 {digest.hexdigest()}, the published file {sha256}")


def files_of(path: Path, folder: str = "", suffixes: tuple[str, ...] = ("",)) -> Files:
    """The files below `path`/`folder`, where `path` is a folder or a .zip, .tar, .tar.gz or .tgz archive.

    Args:
        suffixes: only files that end in one of these. The files of a compressed tar archive are kept in memory, since
            it can only be read from its beginning.

    Raises:
        ValueError: `path` is an archive that cannot be read to its end.
    """
    prefix = f"{folder}/" if folder else ""
    found: Files = {}
    try:
        for name, read in _files(path, suffixes):
            if name.startswith(prefix) and name.endswith(suffixes):
                found[name.removeprefix(prefix)] = read
    except BROKEN as error:
        if known := failed_copy(path):
            raise ValueError(f"{path} is {known.what}, and no archive: {known.remedy}") from error
        raise ValueError(f"{path} is damaged or was not downloaded to its end ({error}): download it again") from error
    return found


def _files(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file():
                yield file.relative_to(path).as_posix(), file.read_bytes
    elif path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, functools.partial(archive.read, info)
    else:
        compressed = path.suffix != ".tar"
        with tarfile.open(path, "r:gz" if compressed else "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if not member.isfile() or not name.endswith(suffixes):
                    continue
                read = functools.partial(_read_part, path, member.offset_data, member.size)
                if compressed:
                    contents = tar.extractfile(member)
                    assert contents is not None  # it is a file
                    read = functools.partial(bytes, contents.read())
                yield name, read


def _read_part(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        contents = file.read(size)
    if len(contents) < size:
        raise EOFError(f"{path} ends too early")
    return contents


def names_in(files: Files, path: str) -> list[str]:
    """The names in a list of images, one per line; none where there is no such file."""
    return decode_text(files[path](), path).split() if path in files else []
