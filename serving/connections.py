"""Limits on connections that uvicorn does not have: slow clients, endless headers, too many at once."""

import asyncio
from typing import Any

from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 2**16

HEADER_SECONDS = 10.0
"""From a connection, or the first byte of a request, to the end of its headers."""

WRITE_SECONDS = 30.0
"""How long a client may read nothing of an answer."""

LINGER_SECONDS = 5.0
"""How long the rest of a body is swallowed that was answered before its end."""


async def too_many_connections(scope: Any, receive: Any, send: Any) -> None:
    response = JSONResponse(
        {"error": "too many connections: try again later"}, 503, headers={"Retry-After": "1", "Connection": "close"}
    )
    await response(scope, receive, send)


class Connection(HttpToolsProtocol):
    """uvicorn's connection, cut off where its client is too slow for the phase it is in.

    Args:
        max_connections: beyond it requests are answered with 503.
    """

    def __init__(self, *args: Any, max_connections: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections
        self._served_app = self.app
        self._timer: asyncio.TimerHandle | None = None
        self._header_bytes: int | None = 0
        """None while no header is being read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._allow(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            # A large body may come in one piece with its header.
            if self._header_bytes > MAX_HEADER_BYTES and b"\r\n\r\n" not in data:
                self.transport.abort()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._header_bytes or 0
        self._allow(HEADER_SECONDS)

    def on_headers_complete(self) -> None:
        self._header_bytes = None
        self._allow(None)
        crowded = len(self.connections) > self._max_connections
        self.app = too_many_connections if crowded else self._served_app
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._header_bytes = 0
        self._allow(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
            self._allow(LINGER_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._allow(WRITE_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._allow(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._allow(None)
        super().connection_lost(exc)

    def _allow(self, seconds: float | None) -> None:
        """Starts the time of the next phase; None ends the present one's."""
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort) if seconds else None
