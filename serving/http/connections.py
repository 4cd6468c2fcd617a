"""Limits on connections that uvicorn does not have: slow clients, endless headers, too many at once.

And what it does otherwise: whatever is refused here is answered by the application, so that it is JSON, counted and
logged (`REFUSED`); requests are answered in their order whatever follows them; an offered upgrade is ignored.
"""

import asyncio
import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEADER_BYTES = 2**16
"""The longest request line and headers, trailers, or whatever else lies between two pieces of a body."""

HEADER_SECONDS = 10.0
"""From a connection, or the first byte of a request, to the end of its headers."""

WRITE_SECONDS = 30.0
"""How long a client may read nothing of an answer."""

LINGER_SECONDS = 5.0
"""How long the rest of a body is swallowed that was answered before its end."""

HALF_CLOSED_SECONDS = 1.0
"""Time after which a client that sends no more is asked whether it still reads, and between two such questions."""

MAX_REASON = 500
"""Characters of a message in a status line."""

REFUSED = "refused"
"""In a request's state: status and message of the answer that it gets in any case."""

BROKEN = "broken"
"""In a request's state, once its body cannot be read on: why."""

DRAINED = "drained"
"""In a request's state: a function to wait with until its client has taken what was sent; False if it never will."""


EXPLAIN = "explain"
"""In a request's state: a function that puts a message into the status line of its answer, `400 MESSAGE`, for clients
that show nothing else of a failure."""


@dataclass
class ConnectionLimit:
    """What the connections of a server share."""

    most: int
    """Beyond it requests are refused."""
    refused_at: float = -math.inf
    """When one last was, by the event loop's clock, seconds."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, cut off where its client is too slow for the phase it is in.

    Args:
        limit: of all connections; beyond it requests are answered with 503.
        is_crowded: whether there is no room for others' bodies. Then, or where somebody was refused for want of a
            connection, a client that takes `WRITE_SECONDS` for a piece of an answer is cut off; otherwise it may read
            as slowly as it likes.
    """

    def __init__(
        self, *args: Any, limit: ConnectionLimit, is_crowded: Callable[[], bool] = lambda: False, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self._limit = limit
        self._is_crowded = is_crowded
        self._timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._half_closed_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._pending_bytes = 0
        """Read since the last end of headers, piece of a body, or end of a request."""
        self._has_ended = False
        self._is_header = True
        self._is_over = False
        """Nothing more is read."""
        self._is_cut = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that the time of an unread answer always runs
        self._start_timer(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_cut = self._is_cut or exc is not None
        self._start_timer(None)
        for timer in (self._read_timer, self._half_closed_timer):
            if timer:
                timer.cancel()
        if self._running and not self._running.response_complete:  # uvicorn informs the last request only
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    # What is read

    def data_received(self, data: bytes) -> None:
        rest: bytes | None = data
        while rest is not None and not self._is_over:  # a loop: there may be thousands of offers in one piece
            self._unset_keepalive_if_required()
            self._has_ended = False
            rest = self._feed(rest)

    def _feed(self, data: bytes) -> bytes | None:
        """Lets the parser read; returns what it has still to read, after an upgrade that was offered."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._ignore_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(400, f"the request cannot be read as HTTP/1.1: {error.__context__ or error}")
        else:
            self._pending_bytes = 0 if self._has_ended else self._pending_bytes + len(data)
            if self._pending_bytes > MAX_HEADER_BYTES:
                self._refuse_headers()
        return None

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more: it may still wait for answers, or be gone. Only writing to it shows which."""
        waiting = self.cycle and not self.cycle.response_complete and not self.cycle.more_body
        if not waiting:
            return False
        self._is_over = True
        self._start_timer(None)
        self.cycle.keep_alive = False
        self._half_closed_timer = self.loop.call_later(HALF_CLOSED_SECONDS, self._probe_reader)
        return True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_header = True
        self._start_timer(HEADER_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_header:  # trailers say nothing here
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._has_ended, self._is_header = True, False
        self._start_timer(None)
        if self._is_over or self.parser.should_upgrade():
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEADER_BYTES:
            self._refuse_headers()
            return
        if len(self.connections) > self._limit.most:
            self._limit.refused_at = self.loop.time()
            self.scope["state"][REFUSED] = 503, "too many connections: try again later"
        super().on_headers_complete()
        self.scope["state"][DRAINED] = functools.partial(self._drained, self.cycle)
        self.scope["state"][EXPLAIN] = functools.partial(_explain, self.cycle)

    def on_body(self, body: bytes) -> None:
        self._has_ended = True
        if not self._is_over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_ended = True
        if self._is_over or self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._start_timer(None)

    def _ignore_upgrade(self, rest: bytes) -> bytes | None:
        """The request as if nothing had been offered: the parser would leave the body to another protocol."""
        if self.parser.get_method() == b"CONNECT":
            self._refuse(405, "this server is no proxy")
            return None
        head = [
            b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode()),
            *(b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"),
        ]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return b"\r\n".join([*head, b"", rest])

    def _refuse_headers(self) -> None:
        self._refuse(431, f"more than {MAX_HEADER_BYTES} bytes of headers or trailers")

    def _refuse(self, status: int, message: str) -> None:
        """Answers what is being read in its turn, by the application, and reads no more."""
        self._is_over = True
        self._start_timer(None)
        cycle = self.cycle
        if cycle and cycle.more_body:
            if cycle.response_complete:
                self.transport.close()
                return
            cycle.scope["state"][BROKEN] = message
            cycle.keep_alive = cycle.more_body = False
            cycle.transport = _LingeringTransport(self)  # type: ignore[assignment]
            cycle.message_event.set()
            return
        super().on_message_begin()
        self.scope |= {"method": "-", "path": "-", "raw_path": b"-", "query_string": b""}  # type: ignore[typeddict-item]
        self.scope["state"][REFUSED] = status, message
        self.cycle = RequestResponseCycle(
            scope=self.scope,
            transport=_LingeringTransport(self),  # type: ignore[arg-type]
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        self.cycle.more_body = False
        self.scope["state"][DRAINED] = functools.partial(self._drained, self.cycle)
        if cycle is None or cycle.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.pipeline.appendleft((self.cycle, self.app))

    def linger(self) -> None:
        """Closes once the client has had time to read its answer, which it could not if it still sends then."""
        self.transport.write_eof()
        self._start_timer(LINGER_SECONDS)

    # What is written

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
            self._start_timer(LINGER_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self._unread())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._read_timer:
            self._read_timer.cancel()

    async def _drained(self, cycle: RequestResponseCycle) -> bool:
        if not cycle.disconnected:
            await self.flow.drain()
        return not (cycle.disconnected or self._is_cut)

    def _watch_reader(self, unread: int) -> None:
        self._read_timer = self.loop.call_later(WRITE_SECONDS, self._check_reader, unread)

    def _check_reader(self, before: int) -> None:
        unread = self._unread()
        is_crowded = self._is_crowded() or self.loop.time() - self._limit.refused_at < WRITE_SECONDS
        if unread < before and not is_crowded:
            self._watch_reader(unread)
        else:
            self._cut()

    def _unread(self) -> int:
        """Bytes that the client has not taken: a slow one empties the system's buffer long before it asks for more."""
        unsent = 0
        if sys.platform == "linux":
            import fcntl
            import termios

            connection = self.transport.get_extra_info("socket")
            unsent = int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        return self.transport.get_write_buffer_size() + unsent

    def _probe_reader(self) -> None:
        """One that is gone refuses what is written to it."""
        cycle = self._running
        silent = cycle and not cycle.response_started and not self.transport.is_closing()
        if cycle and silent and cycle.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._half_closed_timer = self.loop.call_later(HALF_CLOSED_SECONDS, self._probe_reader)

    def _cut(self) -> None:
        self._is_cut = True
        self.transport.abort()

    def _start_timer(self, seconds: float | None) -> None:
        """Starts the time of the next phase; None ends the present one's."""
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._cut) if seconds else None


class _LingeringTransport:
    """A connection's transport, whose `close` waits for the client."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection.transport, name)

    def close(self) -> None:
        self._connection.linger()


class _ExplainingTransport:
    """A connection's transport that puts a reason into the next status line."""

    def __init__(self, cycle: RequestResponseCycle, reason: bytes):
        self._cycle, self._transport, self._reason = cycle, cycle.transport, reason

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._cycle.transport = self._transport
        status_line, end, rest = data.partition(b"\r\n")
        self._transport.write(b" ".join([*status_line.split(b" ", 2)[:2], self._reason]) + end + rest)


def _explain(cycle: RequestResponseCycle, message: str) -> None:
    printable = "".join(letter if " " <= letter <= "~" else "?" for letter in message[:MAX_REASON])
    cycle.transport = _ExplainingTransport(cycle, printable.encode())  # type: ignore[assignment]
