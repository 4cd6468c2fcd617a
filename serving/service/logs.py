"""The server's log: a JSON object a line on stderr, written by a thread, so that no reader of it holds requests up."""

import contextlib
import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

MAX_WAITING = 10_000
"""Lines kept for a reader that is slow; beyond it they are lost, and memory is not."""

STALLED_SECONDS = 2.0
"""Seconds without a line written, after which nobody is thought to read."""

_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`logger.info("event", extra={...})` as `{"time": ..., "level": ..., "event": "event", ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _USUAL},
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class _QueueHandler(logging.handlers.QueueHandler):
    def prepare(self, record: logging.LogRecord) -> str:  # type: ignore[override]
        return self.format(record)

    def enqueue(self, record: str) -> None:  # type: ignore[override]
        # The queue itself has no bound, or the writer could not be stopped while it is full.
        if self.queue.qsize() < MAX_WAITING:  # type: ignore[attr-defined]
            self.queue.put_nowait(record)


class _Writer(threading.Thread):
    """Writes lines to stderr as they come, until a None."""

    def __init__(self, lines: "queue.Queue[str | None]"):
        super().__init__(name="log", daemon=True)
        self._lines = lines

    def run(self) -> None:
        for line in iter(self._lines.get, None):
            with contextlib.suppress(OSError, ValueError):  # the reader is gone: no reason to stop serving
                self.write(line)

    @staticmethod
    def write(line: str) -> None:
        try:
            descriptor = sys.stderr.fileno()
        except OSError:  # a test's
            print(line, file=sys.stderr)
            return
        # Not through Python's buffer: its lock would hold up the end of the process where nobody reads.
        rest = line.encode() + b"\n"
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    def stop(self) -> None:
        """Returns once all is written, or nothing has been for `STALLED_SECONDS`."""
        self._lines.put(None)
        left = -1
        while self.is_alive() and self._lines.qsize() != left:
            left = self._lines.qsize()
            self.join(STALLED_SECONDS)


@contextlib.contextmanager
def json_lines(requests: bool = True) -> Iterator[None]:
    """The log of everything in this process as JSON lines, from INFO up for ours and WARNING for that of libraries.

    Args:
        requests: whether each request is a line.
    """
    lines: queue.Queue[str | None] = queue.Queue()
    handler = _QueueHandler(lines)
    handler.setFormatter(JsonFormatter())
    writer = _Writer(lines)
    root, ours = logging.getLogger(), logging.getLogger("serving")
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    logging.getLogger("serving.requests").disabled = not requests
    logging.captureWarnings(True)
    writer.start()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        writer.stop()
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])
