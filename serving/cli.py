"""How every command of kerasseg starts and ends: flags in, one JSON line out, one line for a mistake.

It lives in `serving` because that room has the fewest dependencies: a serving install has no TensorFlow.
"""

import contextlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import tyro


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

    Exit status: 0; 2 for a user's mistake (`ValueError`, `OSError`), told in one line on stderr, or by its traceback
    where the environment variable KERASSEG_TRACEBACK is set; 130 for Ctrl-C.
    """
    # What Pillow thinks of a file (its size, damaged EXIF data): what matters is told by us, with the file's name.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    try:
        result = main(_parse(config, description, args, default))
    except (ValueError, OSError) as error:
        if os.environ.get("KERASSEG_TRACEBACK"):
            raise
        fail(error)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    result = dict(result or {})
    status = result.pop("exit_status", 0)
    print(json.dumps(result), flush=True)
    sys.exit(status)


def _parse(config: Any, description: str, args: list[str] | None, default: Any) -> Any:
    """tyro.cli, with the framed text it prints about a wrong flag told as one line like every other mistake."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(config, prog=_command(), description=description, args=args, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip(" ╭╮╰╯│─") for line in told.getvalue().splitlines()]
        words = " ".join(line for line in lines[1:] if line.strip("-")).split(" For full helptext")[0]
        words, _, similar = words.partition(" Perhaps you meant: ")
        hint = f" (perhaps {similar.split()[0]}?)" if similar else ""
        raise ValueError(re.sub(r"^Error parsing \w+: ", "", words) + hint + "; --help lists the flags") from None


def _command() -> str | None:
    """What this process was started as, where that was a module; None leaves it to tyro."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


def fail(error: Exception | str) -> NoReturn:
    """Ends the process as a user's mistake does: one line on stderr, exit status 2."""
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)
