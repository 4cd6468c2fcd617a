"""How every command of kerasseg starts and ends: flags in, one JSON line out, one line for a mistake.

It lives in `serving` because that room has the fewest dependencies: a serving install has no TensorFlow.
"""

import contextlib
import errno
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import tyro

_FULL = "make room on the disk that is written to, and start again"
_FORBIDDEN = "choose another folder, or allow this user to use it"
REMEDIES = {
    errno.ENOENT: "see that it is there",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: _FORBIDDEN,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}
"""What to do where the system refuses something, by its number for it."""


def run(
    main: Callable[[Any], dict | None],
    config: Any,
    description: str,
    args: list[str] | None = None,
    default: Any = tyro.MISSING_NONPROP,
) -> NoReturn:
    """Parses the command line into `config`, calls `main` with it and exits.

    Args:
        main: takes the parsed configuration; returns the result, printed as one JSON object on the last line of
            stdout. A result with an `"exit_status"` entry ends the process with that status.
        config: a dataclass (or function) that tyro turns into flags.
        description: the first lines of `--help`.
        args: the command line; `sys.argv` when None.
        default: an instance of `config` that holds the defaults, in place of the class's own.

    Exit status: 0; 2 and 130 as `command` says.
    """
    # What Pillow thinks of a file (its size, damaged EXIF data): what matters is said by us, with the file's name.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    # Its telemetry has no variable; it does without this package where it is not installed, or seems so.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    with command():
        result = dict(main(_parse(config, description, args, default)) or {})
        status = result.pop("exit_status", 0)
        line = json.dumps(result)
        try:
            print(line, flush=True)
        except ValueError as error:  # what was worked for must not be lost with it
            raise ValueError(f"{error}; all else is done, and the result is {line}") from error
    sys.exit(status)


@contextlib.contextmanager
def command() -> Iterator[None]:
    """What a command does happens inside.

    A mistake of the user's (`ValueError`, `OSError`), and what the system refuses, whatever raises it, end the process
    with exit status 2 and one line on stderr, or by the traceback where the environment variable KERASSEG_TRACEBACK is
    set; Ctrl-C with exit status 130. That nothing can be written to stderr ends nothing.
    """
    with (
        contextlib.closing(_Stderr(sys.stderr)) as stderr,
        contextlib.redirect_stderr(stderr),  # type: ignore[type-var]
        contextlib.redirect_stdout(_Stdout(sys.stdout)),  # type: ignore[type-var]
    ):
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except Exception as error:
            message = error_line(error)
            if message is None or os.environ.get("KERASSEG_TRACEBACK"):
                raise
            fail(message)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr, flush=True)
            sys.exit(130)


class _Stream:
    """A standard stream, with its errors put right."""

    def __init__(self, stream: Any):
        self._stream = getattr(stream, "_stream", stream)  # of a command within another

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    def _give_up(self) -> None:
        """What it still holds goes nowhere; else Python would try once more in the end, and exit with status 120."""
        with contextlib.suppress(OSError, ValueError):  # it has no file descriptor, and holds nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


class _Stdout(_Stream):
    """One whose errors say what it is, and what to do."""

    def _try(self, function, *args):
        try:
            return function(*args)
        except OSError as error:
            self._give_up()
            raise ValueError(
                f"standard output cannot be written to ({error.strerror}): send it to a file on a disk with room, or "
                "to a program that reads all of it"
            ) from error


class _Stderr(_Stream):
    """One that loses what cannot be written: no reason to stop working."""

    def _try(self, function, *args):
        with contextlib.suppress(OSError):
            return function(*args)

    def close(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()


def error_line(error: Exception) -> str | None:
    """The line for a mistake; None for a fault of ours, or of a library, about which a traceback says more."""
    if isinstance(error, ValueError):
        return str(error)
    words = str(error).partition("\n")[0]
    if number := refusal(error):
        return f"{words}: {REMEDIES[number]}"
    if isinstance(error, OSError):
        return str(error)
    errors = getattr(sys.modules.get("tensorflow"), "errors", None)
    if isinstance(error, MemoryError) or (errors and isinstance(error, errors.ResourceExhaustedError)):
        return "out of memory: take smaller images or batches, or a machine with more"
    if errors and isinstance(error, (errors.NotFoundError, errors.DataLossError)):
        return f"a file went missing or is damaged: {words}"
    return None


def refusal(error: Exception) -> int | None:
    """Which of `REMEDIES` an error comes from. Libraries have exceptions of their own, with the system's words in them;
    a ValueError has its remedy already."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in REMEDIES else None
    words = "" if isinstance(error, ValueError) else str(error).partition("\n")[0]
    return next((number for number in REMEDIES if os.strerror(number) in words), None)


def _parse(config: Any, description: str, args: list[str] | None, default: Any) -> Any:
    """tyro.cli, but what it prints about a wrong flag, in a frame, becomes one line, as for every other mistake."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(config, prog=_command(), description=description, args=args, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip(" ╭╮╰╯│─") for line in printed.getvalue().splitlines()]
        words = " ".join(line for line in lines[1:] if line.strip("-")).split(" For full helptext")[0]
        words, _, similar = words.partition(" Perhaps you meant: ")
        hint = f" (perhaps {similar.split()[0]}?)" if similar else ""
        words, helptext, _ = words.partition(" Argument helptext:")
        if parsing := re.fullmatch(r"Error parsing (.+?): (.*)", words):
            # Without a help text it is an error of the whole configuration, which names its flag.
            words = _wrong_value(*parsing.groups()) if helptext else parsing[2]
        if choice := re.fullmatch(r"invalid choice ('.*') for argument '(.*)'\. Expected one of \((.*)\) ?\.", words):
            got, flag, listed = choice.groups()
            choices = re.findall(r"'(.*?)'", listed)
            if "None" in choices:  # tyro lists those of an optional flag in any order
                choices = sorted({*choices} - {"None"})
            words = f"{flag} must be one of {', '.join(choices)}; got {got}"
        raise ValueError(f"{words}{hint}; --help lists the flags") from None


def _wrong_value(flag: str, words: str) -> str:
    """What tyro says about a value that has not the flag's type, in our words."""
    if number := re.search(r"(invalid literal for int|could not convert string to float)[^']*('.*?')(?= |$)", words):
        kind = "a whole number" if number[1].endswith("int") else "a number"
        return f"{flag} must be {kind}; got {number[2]}"
    if optional := re.match(r"no type matching \{None\}\|\{?(.*?)\}? could .*? from \[(.*?)\]\.", words):
        return f"{flag} must be {optional[1]}; got {optional[2]}"
    return f"{flag}: {words}"


def _command() -> str | None:
    """What this process was started as, where that was a module; None leaves it to tyro."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


def fail(message: str) -> NoReturn:
    """Ends the process as a user's mistake does: one line on stderr, exit status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)
