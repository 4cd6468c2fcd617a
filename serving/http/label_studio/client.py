"""Fetches images from Label Studio: from the one that the operator named, and from nowhere else."""

import asyncio
import base64
import contextlib
import json
import posixpath
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httptools

from serving.model.batcher import QueueFull
from serving.service.failures import BadRequest, TooLarge

FETCH_SECONDS = 20.0
"""The most time that an image may take to arrive, redirects included."""

TURN_SECONDS = 8.0
"""The most time that an image may wait until it is fetched. With `FETCH_SECONDS` it is less than `--timeout`."""

CHECK_SECONDS = 2.0
"""The most time for the check of the token. Label Studio waits 3 seconds for the answer to /setup."""

FETCHES = 4
"""Images that are fetched at a time."""

ACCESS_SECONDS = 60.0
"""How long a token that Label Studio gave for a personal access token is used; it is valid for five minutes."""

MAX_REDIRECTS = 2

MAX_SHORT_ANSWER = 2**16
"""Bytes of an answer that is no image."""

IMAGE_PATHS = re.compile(
    r"/data/upload/.+|/data/local-files/?|/storage-data/uploaded/?|/(tasks|projects)/\d+/(resolve|presign)/?"
)
"""Where Label Studio has images. Nothing else is asked for with the operator's token."""

CLOUD = ("s3:", "gs:", "azure-blob:", "azure_spi:")
"""Addresses of storages, whose files Label Studio hands on."""

_PORTS = {"http": 80, "https": 443}

MAX_HEADERS = 100
"""The most headers that are kept of an answer."""


@dataclass
class _Answer:
    """An HTTP answer, as httptools' parser fills it."""

    most: int
    """The most bytes that are kept of its body."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    is_whole: bool = False
    too_large: bool = False

    def on_message_begin(self) -> None:
        """Before it there may have been some with a status below 200, which only inform."""
        self.headers.clear()
        self.body.clear()
        self.is_whole = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) < MAX_HEADERS:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        if len(self.body) + len(data) > self.most:
            self.too_large = True
        else:
            self.body += data

    def on_message_complete(self) -> None:
        self.is_whole = True


class LabelStudio:
    """A Label Studio, from which images are fetched.

    Args:
        url: where it is, `http://host:8080`, perhaps with a path.
        token: a personal access token, or one of the older kind.
        max_bytes: the most bytes of an image.

    Raises:
        ValueError: the address is not one of HTTP.
    """

    def __init__(self, url: str, token: str, max_bytes: int):
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or "@" in parts.netloc:
            raise ValueError(f"--label-studio-url {url}: expected an address such as http://localhost:8080")
        if parts.query or parts.fragment:
            raise ValueError(f"--label-studio-url {url}: expected an address without ? and #")
        self.url = url.rstrip("/")
        self.max_bytes = max_bytes
        self._host = parts.hostname
        self._port = port or _PORTS[parts.scheme]
        self._netloc = parts.netloc
        self._origin = parts.scheme, self._host, self._port
        self._prefix = parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._token = token
        self._access = "", -ACCESS_SECONDS
        self._renewing = asyncio.Lock()
        self._free = asyncio.Semaphore(FETCHES)

    async def check(self) -> None:
        """Raises BadRequest where Label Studio cannot be reached, or refuses the token."""
        async with self._patience(CHECK_SECONDS):
            status, _ = await self._get("/api/current-user/whoami", MAX_SHORT_ANSWER, _not_counted)
        if status != 200:
            raise BadRequest(f"{self.url} answers {status} to a question who its user is: is it a Label Studio?")

    async def image(self, address: str, task: int, count: Callable[[int], None]) -> bytes:
        """The file at the address of a task's image.

        Args:
            task: its number.
            count: is given the number of bytes as they arrive.

        Raises:
            BadRequest, TooLarge: it cannot be had, or is not one of this Label Studio; the message says why.
            QueueFull: its turn does not come.
            What `count` raises.
        """
        target = self._target(address, task)
        async with self._turn(), self._patience(FETCH_SECONDS):
            for _ in range(MAX_REDIRECTS + 1):
                status, answer = await self._get(target, self.max_bytes, count)
                if status == 200:
                    return bytes(answer.body)
                location = answer.headers.get("location", "")
                if status not in (301, 302, 303, 307, 308) or not location:
                    why = _REASONS.get(status, "its log says why")
                    raise BadRequest(f"task {task}: {self.url} answers {status} to {_short(target)}: {why}")
                if not self._is_own(location):
                    raise BadRequest(
                        f"task {task}: {self.url} redirects {_short(target)} to another address, and only images that "
                        "it sends itself are fetched: switch off pre-signed URLs in the settings of the storage"
                    )
                target = self._target(location, task)
        raise BadRequest(f"task {task}: {self.url} redirects {_short(address)} more than {MAX_REDIRECTS} times")

    def _target(self, address: str, task: int) -> str:
        """The path to ask for."""
        if address.startswith(CLOUD):
            encoded = base64.urlsafe_b64encode(address.encode("utf-8", "replace")).decode()
            return f"/tasks/{task}/presign/?fileuri={encoded}"
        if not self._is_own(address):
            raise BadRequest(
                f"task {task}: its image is at {_short(address)}, and only images of {self.url} are fetched: "
                "upload it, or add its storage to the project"
            )
        parts = urlsplit(address)
        path = parts.path
        if self._prefix and path.startswith(f"{self._prefix}/"):
            path = path.removeprefix(self._prefix)
        plain = unquote(path)
        if posixpath.normpath(plain) != plain.rstrip("/") or not IMAGE_PATHS.fullmatch(plain) or "\\" in plain:
            raise BadRequest(
                f"task {task}: {_short(address)} is no address of an image in Label Studio, such as "
                "/data/upload/1/photo.jpg or /data/local-files/?d=photo.jpg"
            )
        query = f"?{quote(parts.query, safe='/%:=&?+,;@~')}" if parts.query else ""
        return quote(path, safe="/%:=+,;@~") + query

    def _is_own(self, address: str) -> bool:
        """Whether an address, or a path, is of this Label Studio."""
        try:
            parts = urlsplit(address)
            origin = parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            return False
        if not parts.scheme and not parts.netloc:
            return True
        is_below = f"{parts.path}/".startswith(f"{self._prefix}/")
        return origin == self._origin and "@" not in parts.netloc and is_below

    async def _get(self, target: str, most: int, count: Callable[[int], None]) -> tuple[int, _Answer]:
        for renew in (False, True):
            headers = {"Authorization": await self._authorization(renew)}
            status, answer = await self._send("GET", target, headers, b"", most, count)
            if status != 401:
                break
        if status == 401:
            raise BadRequest(
                f"{self.url} refuses the token of --label-studio-token-file: make one there, under Account & Settings, "
                "Personal Access Token"
            )
        return status, answer

    async def _authorization(self, renew: bool) -> str:
        if self._token.count(".") != 2:  # a JSON web token has three parts
            return f"Token {self._token}"
        async with self._renewing:
            access, since = self._access
            if not access or renew or time.monotonic() - since > ACCESS_SECONDS:
                body = json.dumps({"refresh": self._token}).encode()
                headers = {"Content-Type": "application/json"}
                status, answer = await self._send(
                    "POST", "/api/token/refresh/", headers, body, MAX_SHORT_ANSWER, _not_counted
                )
                access = _access_in(bytes(answer.body)) if status == 200 else ""
                if not access:
                    raise BadRequest(
                        f"{self.url} answers {status} to the token of --label-studio-token-file: make one there, under "
                        "Account & Settings, Personal Access Token"
                    )
                self._access = access, time.monotonic()
        return f"Bearer {access}"

    async def _send(
        self, method: str, target: str, headers: dict[str, str], body: bytes, most: int, count: Callable[[int], None]
    ) -> tuple[int, _Answer]:
        """One request; raises OSError, ValueError, or TooLarge."""
        lines = {"Host": self._netloc, "Connection": "close", "Accept-Encoding": "identity", **headers}
        if method == "POST":
            lines["Content-Length"] = str(len(body))
        head = [f"{method} {self._prefix}{target} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items())]
        answer = _Answer(most)
        parser = httptools.HttpResponseParser(answer)
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        try:
            writer.write("\r\n".join([*head, "", ""]).encode("ascii") + body)
            await writer.drain()
            while not answer.is_whole and (data := await reader.read(2**16)):
                before = len(answer.body)
                parser.feed_data(data)
                if parser.get_status_code() < 200:
                    answer.is_whole = False
                if answer.too_large:
                    raise TooLarge(f"{self.url} sends more than {most} bytes for {_short(target)}")
                count(len(answer.body) - before)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise ValueError(f"its answer is not HTTP: {error}") from error
        finally:
            writer.close()
        is_framed = "content-length" in answer.headers or "transfer-encoding" in answer.headers
        status = parser.get_status_code()
        if not answer.is_whole and (is_framed or not answer.headers or status < 200):
            raise ValueError("it ends its answer too early")
        return status, answer

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One of `FETCHES`, that all requests share; QueueFull where none is free for too long."""
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise QueueFull(f"too many images are being fetched from {self.url} at once: try again later") from None
        try:
            yield
        finally:
            self._free.release()

    @contextlib.asynccontextmanager
    async def _patience(self, seconds: float) -> Any:
        """Failures to reach Label Studio in the block, within so many seconds, become BadRequest."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise BadRequest(f"{self.url} does not answer within {seconds:g} seconds") from error
        except TooLarge:
            raise
        except (OSError, ValueError) as error:
            raise BadRequest(f"{self.url} cannot be reached: {error}; --label-studio-url names another") from error


_REASONS = {
    403: "the token's user is no member of the project",
    404: "the file is not there, or the token's user is no member of the project",
}


def _access_in(body: bytes) -> str:
    """The token in the answer to a refresh; empty where there is none that can stand in a header."""
    try:
        access = json.loads(body)["access"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return access if isinstance(access, str) and re.fullmatch(r"[\w.~+/=-]+", access, re.ASCII) else ""


def _not_counted(length: int) -> None:
    """For answers that are too short to count."""


def _short(text: str) -> str:
    """An address for a message, without what is not printable."""
    tidy = "".join(letter for letter in text[:100] if letter.isprintable())
    return tidy if len(text) <= 100 else f"{tidy}..."
