"""Starts a process: what has to be so before any library is imported. Every room with commands imports it first.

Needs the standard library only.
"""

import os
import sys

# No library reports its use to its makers unless the user says so in the environment.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def open_standard_streams() -> None:
    """Opens those that the process was started without.

    Else the next file that is opened would get their number, and have written into it what a library says. What goes to
    stderr is lost then; to write to stdout is an error, as it was, since somebody wants the result.
    """
    for descriptor, flag in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flag), True)  # the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


open_standard_streams()
