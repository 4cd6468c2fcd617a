"""Clients for the benchmarks of servers: requests over HTTP on loopback, so many at a time, or so many a second."""

import asyncio
import io
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple

import uvloop
from PIL import Image

from benchmarks.inference import random_images


class Reply(NamedTuple):
    status: int
    seconds: float


def jpegs(size: tuple[int, int], count: int = 16) -> list[bytes]:
    """Images of one size, as files."""
    encoded = []
    for image_HW3 in random_images((count, *size)):
        file = io.BytesIO()
        Image.fromarray(image_HW3).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def post(path: str, body: bytes, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """One kept-alive connection to a server of this machine."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> Reply:
        began = time.perf_counter()
        # A server closes connections that were idle for some seconds.
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        reply = Reply(int(head[9:12]), time.perf_counter() - began)
        if b"connection: close" in head:
            self.close()
        return reply

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


async def closed_loop(
    port: int, requests: list[bytes], concurrency: int, seconds: float, lead: float = 0.0
) -> list[Reply]:
    """So many clients; each sends its next request once it has its answer. The replies within the time, at least one.

    The time begins `lead` seconds after the first requests, so that the server is as busy at its beginning as at its
    end. Requests under way at the end are awaited and not counted.
    """
    since = time.perf_counter() + lead
    until = since + seconds
    replies: list[Reply] = []

    async def client(number: int) -> None:
        connection, sent = Connection(port), number
        while time.perf_counter() < until:
            reply = await connection.send(requests[sent % len(requests)])
            now = time.perf_counter()
            if since <= now < until or (now >= until and not replies):
                replies.append(reply)
            sent += concurrency
        connection.close()

    await asyncio.gather(*map(client, range(concurrency)))
    return replies


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float) -> list[Reply]:
    """So many requests per second, whether they are answered or not."""
    free: list[Connection] = []
    replies: list[Reply] = []
    under_way: set[asyncio.Task] = set()

    async def one(number: int) -> None:
        connection = free.pop() if free else Connection(port)
        replies.append(await connection.send(requests[number % len(requests)]))
        free.append(connection)

    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        ahead = began + number / rate - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        elif number % 8 == 0:
            await asyncio.sleep(0)  # late already: the others still get their turn
        task = asyncio.create_task(one(number))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    for connection in free:
        connection.close()
    return replies


def rate_of(replies: list[Reply], seconds: float) -> float:
    """Answers per second; ValueError if one was no success."""
    if bad := [reply.status for reply in replies if reply.status != 200]:
        raise ValueError(f"{len(bad)} of {len(replies)} requests were answered with {sorted(set(bad))}")
    return len(replies) / seconds
