"""A server in a process of its own, for benchmarks."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace


@contextlib.contextmanager
def server_process(models: Path, more: Sequence[str] = ()) -> Iterator[tuple[SimpleNamespace, int, list[str]]]:
    """`python -m serving.run` on the CPU: its addresses (`url`, `grpc_address`), its process number, and the errors of
    its log.

    Args:
        more: further flags.
    """
    flags = ["--port", "0", "--grpc-port", "0", "--provider", "cpu", "--no-access-log"]
    command = [sys.executable, "-m", "serving.run", str(models), *flags, *more]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        lines, errors = map(json.loads, process.stderr), []
        ready = next(line for line in lines if line["event"] == "ready")
        reader = threading.Thread(target=lambda: errors.extend(line for line in lines if line["level"] == "error"))
        reader.start()
        try:
            yield SimpleNamespace(url=ready["url"], grpc_address=ready["grpc"]), process.pid, errors
        finally:
            process.terminate()
            reader.join()
