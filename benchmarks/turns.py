"""Processes that are measured in turns, so that other work of the machine slows all of them.

The measured process prints a line of JSON when it is ready, then one for each line it reads (`take_turns`).
"""

import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path

Record = dict[str, float]


def hold_to_cores(count: int) -> None:
    """Limits this process and its later threads to so many cores, the last ones. Call it before TensorFlow or PyTorch
    starts."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-count:])


def require_cores(count: int) -> None:
    """ValueError unless this process may use so many cores."""
    if count > len(os.sched_getaffinity(0)):
        raise ValueError(f"--cores is {count}, and this process may use {len(os.sched_getaffinity(0))}")


def take_turns(ready: dict, turn: Callable[[], Record]) -> None:
    """Says that this process is ready, then measures a turn whenever it is asked."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)


def measure(commands: dict[str, list[str]], repeats: int) -> tuple[dict[str, dict], dict[str, list[Record]]]:
    """Runs the commands, one process each; returns the facts each gave when it was ready, and its turns.

    Raises:
        ValueError: where a process ends before it has answered.
    """
    turns: dict[str, list[Record]] = {side: [] for side in commands}
    with ExitStack() as stack:
        sides = {side: stack.enter_context(measured(command, side)) for side, command in commands.items()}
        for _ in range(repeats):
            for side, (_, ask) in sides.items():
                turns[side].append(ask())
    return {side: ready for side, (ready, _) in sides.items()}, turns


@contextmanager
def measured(command: list[str], side: str) -> Iterator[tuple[dict, Callable[[], Record]]]:
    """A process that takes turns: the facts it gave when it was ready, and a function that asks it for a turn.

    Raises:
        ValueError: where it ends before it has answered.
    """
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask() -> Record:
        print(file=process.stdin, flush=True)
        return _answer(process, side)

    try:
        yield _answer(process, side), ask
    finally:
        process.stdin.close()
        process.wait()


def _answer(process: subprocess.Popen, side: str) -> dict:
    line = process.stdout.readline()
    if not line:
        raise ValueError(f"the process of {side} failed; its own message is above")
    return json.loads(line)


def processor_seconds() -> float:
    """User and system time of this process and its children so far, seconds."""
    ticks = 0
    for process in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def circumstances(*packages: str) -> str:
    """Date, machine, its load at the moment, and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    load = os.getloadavg()[0]
    return (
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores with a load of {load:.1f} before the start; "
        f"{versions}"
    )


def spread(values: list[float], middle: float | None = None) -> str:
    """The median (or another middle) with the smallest and the largest."""
    digits = 2 if max(values) < 10 else 0 if min(values) >= 100 else 1
    middle = statistics.median(values) if middle is None else middle
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def resident_mib(pid: int | str, which: str = "VmRSS") -> int:
    """MiB of a process' resident memory, or of its peak ("VmHWM"); `pid` "self" is this process."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(which)]
    return int(line.split()[1]) // 1024
