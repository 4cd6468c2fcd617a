"""How every command of kerasseg starts and ends: flags in, one JSON line out, one line for a mistake.

It lives in `serving` because that room has the fewest dependencies: a serving install has no TensorFlow.
"""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn, Union

import tyro

from serving.common import help

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


HELP = {"-h", "--help", "--help-all"}
"""What asks for a page of help."""

started_as: list[str] = []
"""The command's name and its subcommand, where this process was started by them: `kerasseg`, `train`."""


@dataclass(frozen=True)
class Command:
    """What `python -m MODULE` runs, and `kerasseg NAME` too."""

    main: Callable[[Any], dict[str, Any] | str | None]
    """Takes the parsed configuration. A dictionary is the result, printed as one JSON object on the last line of
    stdout; its entry `"exit_status"` becomes the exit status. A text is printed as it is."""
    config: Any
    """A dataclass (or function) that tyro turns into flags."""
    description: str
    """The first lines of `--help`."""
    default: Callable[[list[str]], Any] | None = None
    """From the command line to an instance of `config` that holds the defaults, in place of the class's own. Its
    `decided_defaults`, if it has such an attribute, are shown for flags that are None."""
    common: Callable[[list[str]], Collection[str]] | None = None
    """From the command line to the flags that `--help` shows; `--help-all` shows all."""
    synonyms: Mapping[str, str] = field(default_factory=dict)
    """Flags that other tools have, and what to write here."""
    prepare: Callable[[], None] | None = None
    """Called first, with nothing but the process's command to prepare for."""

    def run(self, args: Sequence[str] | None = None) -> NoReturn:
        """Parses the command line into `config`, calls `main` with it and exits.

        Args:
            args: the command line; `sys.argv` when None.

        Exit status: 0; 2 and 130 as `command` says.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        # What Pillow thinks of a file (its size, damaged EXIF data): what matters is said by us, with the file's name.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        # Its telemetry has no variable; it does without this package where it is not installed, or seems so.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        with command():
            if self.prepare:
                self.prepare()
            config = self._parse(arguments)
            result = self.main(config) if config is not None else None
            status = 0
            if isinstance(result, str):
                show(result)
            elif config is not None:
                status = self._show_result(dict(result or {}))
        sys.exit(status)

    def _show_result(self, result: dict[str, Any]) -> int:
        """Prints the result, and returns the exit status."""
        status = result.pop("exit_status", 0)
        line = json.dumps(result)
        try:
            print(line, flush=True)
        except ValueError as error:  # what was worked for must not be lost with it
            raise ValueError(f"{error}; all else is done, and the result is {line}") from error
        return status

    def _parse(self, arguments: list[str]) -> Any:
        """The configuration; None where a page of help was asked for, and is printed."""
        asked = {argument.split("=")[0] for argument in arguments}
        for flag, instead in self.synonyms.items():
            if flag in asked:
                raise ValueError(f"there is no {flag} here: {instead}")
        default = tyro.MISSING_NONPROP if self.default is None else self.default(arguments)
        config = self.config if self.default is None else type(default)
        if asked & HELP:
            common = None if self.common is None or "--help-all" in asked else self.common(arguments)
            title = program() or os.path.basename(sys.argv[0])
            columns = shutil.get_terminal_size().columns
            printed, defaults = _printed_help(config, default), getattr(default, "decided_defaults", {})
            show(help.page(printed, config, title, self.description, common, defaults, columns))
            return None
        listing = "--help" if self.common is None else "--help-all"
        return _parse(config, self.description, arguments, default, listing)


def run(
    main: Callable[[Any], dict | None],
    config: Any,
    description: str,
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Runs a `Command` that has no more than these."""
    Command(main, config, description).run(args)


def completion(shell: str, program: str, commands: Mapping[str, Command]) -> str:
    """A shell's script that completes subcommands and their flags.

    Args:
        shell: bash, zsh or fish.
        program: the name that is completed.
        commands: by subcommand.
    """
    kinds: list[Any] = []
    for name, entry in commands.items():
        given = {} if entry.default is None else {"default": entry.default([])}
        config = type(given["default"]) if given else entry.config
        kinds.append(Annotated[config, tyro.conf.subcommand(name, description=entry.description, **given)])
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        every: Any = Union[tuple(kinds)]  # noqa: UP007 (it has as many as there are)
        tyro.cli(every, prog=program, args=["--tyro-print-completion", shell])
    # bash would offer the lines of a help text, but for the first, as completions.
    return re.sub(r"^COMPLETION_SPEC = .*", lambda line: re.sub(r"\\+n *", " ", line[0]), script.getvalue(), flags=re.M)


def show(text: str) -> None:
    """Prints what a person reads; a reader that stops early (`| head`) is no mistake."""
    try:
        print(text, flush=True)
    except ValueError as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            raise


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


def _printed_help(config: Any, default: Any) -> str:
    """What tyro prints for `--help`."""
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "129"  # as wide as it goes without setting groups next to each other
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            tyro.cli(config, description="", args=["--help"], default=default)
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return printed.getvalue()


def _parse(config: Any, description: str, args: list[str], default: Any, listing: str) -> Any:
    """tyro.cli, but what it prints about a wrong flag, in a frame, becomes one line, as for every other mistake."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(config, prog=program(), description=description, args=args, default=default)
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
            words = _wrong_value(*parsing.groups()) if helptext else _with_flag(config, *parsing.groups())
        if choice := re.fullmatch(r"invalid choice ('.*') for argument '(.*)'\. Expected one of \((.*)\) ?\.", words):
            got, flag, listed = choice.groups()
            choices = re.findall(r"'(.*?)'", listed)
            if "None" in choices:  # tyro lists those of an optional flag in any order
                choices = sorted({*choices} - {"None"})
            words = f"{flag} must be one of {', '.join(choices)}; got {got}"
        raise ValueError(f"{words}{hint}; {listing} lists the flags") from None


def _with_flag(config: Any, group: str, words: str) -> str:
    """What a group of flags says about one of its fields, with the flag in place of the field's name."""
    field, _, rest = words.partition(" ")
    kind = getattr(config, "__dataclass_fields__", {}).get(group.replace("-", "_"))
    if kind is None or field not in getattr(kind.type, "__dataclass_fields__", ()):
        return words
    return f"--{group}.{field}".replace("_", "-") + f" {rest}"


def _wrong_value(flag: str, words: str) -> str:
    """What tyro says about a value that has not the flag's type, in our words."""
    if number := re.search(r"(invalid literal for int|could not convert string to float)[^']*('.*?')(?= |$)", words):
        kind = "a whole number" if number[1].endswith("int") else "a number"
        return f"{flag} must be {kind}; got {number[2]}"
    if optional := re.match(r"no type matching \{None\}\|\{?(.*?)\}? could .*? from \[(.*?)\]\.", words):
        return f"{flag} must be {optional[1]}; got {optional[2]}"
    return f"{flag}: {words}"


def program() -> str | None:
    """What this process was started as: `kerasseg train` or `python -m training.run`; None for neither of these."""
    if started_as:
        return " ".join(started_as)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


def fail(message: str) -> NoReturn:
    """Ends the process as a user's mistake does: one line on stderr, exit status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)
