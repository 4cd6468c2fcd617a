"""The server's log: a JSON object a line on stderr, written by a thread, so that no reader of it holds requests up."""

import contextlib
import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

MAX_WAITING = 10_000
"""Lines kept for a reader that is slow; beyond it they are lost, and memory is not."""

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


class _Waiting(logging.handlers.QueueHandler):
    def prepare(self, record: logging.LogRecord) -> str:  # type: ignore[override]
        return self.format(record)

    def enqueue(self, record: str) -> None:  # type: ignore[override]
        # The queue itself has no bound, or the listener could not be stopped while it is full.
        if self.queue.qsize() < MAX_WAITING:  # type: ignore[attr-defined]
            self.queue.put_nowait(record)


class _Stderr(logging.Handler):
    def handle(self, record: str) -> bool:  # type: ignore[override]
        with contextlib.suppress(OSError, ValueError):  # the reader is gone: no reason to stop serving
            print(record, file=sys.stderr, flush=True)
        return True


@contextlib.contextmanager
def json_lines(requests: bool = True) -> Iterator[None]:
    """The log of everything in this process as JSON lines, from INFO up for ours and WARNING for that of libraries.

    Args:
        requests: whether each request is a line.
    """
    lines: queue.Queue[str] = queue.Queue()
    handler = _Waiting(lines)
    handler.setFormatter(JsonFormatter())
    listener = logging.handlers.QueueListener(lines, _Stderr())
    root, ours = logging.getLogger(), logging.getLogger("serving")
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    logging.getLogger("serving.requests").disabled = not requests
    logging.captureWarnings(True)
    listener.start()
    try:
        yield
    finally:
        logging.captureWarnings(False)
        listener.stop()
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])
