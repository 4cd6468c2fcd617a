"""Files that no failure leaves half-written, and folders for one process at a time.

Needs the standard library only.
"""

import contextlib
import fcntl
import os
import platform
import re
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

_BESIDE = re.compile(r"\..+\.\d+-\d+\.tmp", re.DOTALL)


def read_bounded(path: Path, most: int, pipes: bool = False) -> bytes:
    """The contents of a file that somebody names, who may be wrong about it.

    Args:
        most: bytes that are read.
        pipes: read one, too, if somebody writes to it, as to that of a shell's `<(...)`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a pipe or a device, which may never end, or has more than `most` bytes.
    """

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # a pipe that nobody writes to would hold up who opens it

    with naming(path), open(path, "rb", opener=opened) as file:
        status = os.fstat(file.fileno())
        if pipes and stat.S_ISFIFO(status.st_mode):
            os.set_blocking(file.fileno(), True)
            contents = file.read(most + 1)
            if not 0 < len(contents) <= most:
                what = "with nothing in it" if not contents else f"with more than {most} bytes"
                raise ValueError(f"{path} is a pipe {what}: give a file")
            return contents
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is a pipe or a device: give a file")
        if status.st_size > most:
            raise ValueError(f"{path} has {status.st_size} bytes, at most {most} are read")
        contents = file.read(status.st_size + 1)
    if len(contents) > status.st_size:
        raise ValueError(f"{path} grew while it was read: give a file that is whole")
    return contents


def write_atomically(path: Path, contents: bytes) -> None:
    """Writes a file next to `path`, then renames it: nobody sees half a file, not even of a killed process."""
    with temporary_file(path) as file:
        file.write(contents)


@contextlib.contextmanager
def temporary_file(path: Path, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` once it is written in full, and is gone if that fails.

    Args:
        durable: wait until it is on the disk, so that not even a power cut leaves less than the whole.
    """
    # Unlike tempfile's, this file gets the usual permissions. The thread is in its name because pools write
    # at once; of the path's own name there is room for no more than a part.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}.tmp")
    with naming(path, temporary):
        try:
            with temporary.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):  # it is not there, or cannot be there
                temporary.unlink()


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """An OSError inside says that it was about `path`: what is written to an open file fails without a name, and what
    is written to `temporary` with one that a user does not know."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_leftovers(files: Iterable[Path], before: Path) -> None:
    """Removes those that killed processes left of `temporary_file`, last written before the file `before` was."""
    limit = before.stat().st_mtime_ns
    for file in files:
        if _BESIDE.fullmatch(file.name):
            with contextlib.suppress(OSError):  # another process was faster
                if file.stat().st_mtime_ns < limit:
                    file.unlink()


def in_use(lock: Path) -> bool:
    """Whether a process has this file, of `locked`, or perhaps has it."""
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock", *, user: str, remedy: str) -> Iterator[None]:
    """The folder, made when missing, for this process only; a folder still empty at the end is removed.

    The lock is the system's, and goes with the process, however that ends.

    Args:
        name: of the file in `folder` that is locked.
        user: what the process is, for the message of another one.
        remedy: what else can be done, for messages: "choose another --out".

    Raises:
        ValueError: another process has it, or it cannot be written to.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): {remedy}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by another {user} ({file.read().strip()}): wait for it, or {remedy}"
            ) from None
        except OSError as error:  # some shared file systems have no locks
            print(f"{folder} cannot be locked ({error.strerror}): see that no other {user} uses it", file=sys.stderr)
        with naming(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        try:
            yield
        finally:
            if made and list(folder.iterdir()) == [path]:
                path.unlink()
                with contextlib.suppress(OSError):  # something else may have come into a folder above it
                    for each in made:
                        each.rmdir()
