"""Bodies of requests: received within the limits, and decompressed."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from serving.http.connections import BROKEN
from serving.service.failures import BadRequest, ClientGone, TooLarge
from serving.service.service import Service


@contextlib.asynccontextmanager
async def received(request: Request, service: Service, max_bytes: int | None = None) -> AsyncIterator[bytes]:
    """The body, of at most `max_bytes`, or what the limits allow; its bytes count as held until the block ends."""
    limits, chunks, length = service.limits, [], 0
    most = max_bytes or limits.max_body
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 20 or int(announced) > most):
        raise HTTPException(413, f"the body has {announced[:20]} bytes, at most {most} are taken")
    with service.receiving() as count:
        try:
            async with asyncio.timeout(limits.body_timeout):
                async for chunk in request.stream():
                    length += len(chunk)
                    if length > most:
                        raise HTTPException(413, f"the body has more than {most} bytes")
                    count(len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {limits.body_timeout:g} seconds") from None
        except ClientDisconnect:
            raise ClientGone from None
        if why := getattr(request.state, BROKEN, None):
            raise BadRequest(why)
        yield b"".join(chunks)


def content_encoding(headers: Headers) -> str:
    return headers.get("content-encoding", "").strip().lower()


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undoes the Content-Encoding `gzip`, `deflate` (which means zlib's frame) or `identity`.

    Raises:
        TooLarge: more than `max_bytes` come out; found without letting them out.
        ValueError: another encoding, or damaged.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise ValueError(f"Content-Encoding is {encoding}: send gzip, deflate, or the body as it is")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    try:
        inflated = inflate.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"the body is not {encoding}: {error}") from error
    if len(inflated) > max_bytes:
        raise TooLarge(f"the body holds more than {max_bytes} bytes")
    if not inflate.eof:
        raise ValueError(f"the body ends within its {encoding} data")
    return inflated
