"""Files that no failure leaves half-written, and folders for one process at a time.

Needs the standard library only.
"""

import contextlib
import fcntl
import os
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def write_atomically(path: Path, contents: bytes) -> None:
    """Writes beside `path`, then renames: a reader, or a killed process, never leaves or sees half a file."""
    with file_beside(path) as file:
        file.write(contents)


@contextlib.contextmanager
def file_beside(path: Path, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` once it is written in full, and is gone if that fails.

    Args:
        durable: wait until it is on the disk, so that not even a power cut leaves less than the whole.
    """
    # Unlike tempfile's, this file gets the usual permissions. The thread is in its name because pools write
    # at once; of the path's own name there is room for no more than a part.
    beside = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}.tmp")
    with naming(path, beside):
        try:
            with beside.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            beside.replace(path)
        finally:
            with contextlib.suppress(OSError):  # it is not there, or cannot be there
                beside.unlink()


@contextlib.contextmanager
def naming(path: Path, beside: Path | None = None) -> Iterator[None]:
    """An OSError inside says that it was about `path`: what is written to an open file fails without a name, and what
    is written `beside` with one that says nothing to a user."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(beside)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def locked(folder: Path, name: str = ".lock", *, user: str, remedy: str) -> Iterator[None]:
    """The folder, made when missing, for this process alone; a folder still empty at the end is removed.

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
