"""What the server does, in whatever protocol it is asked: what models there are, and a request's way through one.

    body --> thread pool: decode --> batcher --> thread pool: encode --> answer

The event loop only moves bytes; whatever computes runs in a pool or in the batcher's thread. Knows neither HTTP
(`serving.http.app`) nor gRPC (`serving.grpc.server`), which bring bodies and tell answers.
"""

import asyncio
import contextlib
import ctypes
import gc
import hmac
import logging
import math
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from serving.common.pictures import TooManyPixels, check_pixels
from serving.model.batcher import Closed, QueueFull, Ticket
from serving.model.engine import usable_cpus
from serving.model.model import Answer, Model
from serving.model.repository import Repository, UnknownModel
from serving.service import v2_protocol
from serving.service.metrics import new_registry

request_log = logging.getLogger("serving.requests")

R = TypeVar("R")

MAX_SHORT_BODY = 2**16
"""Bytes of a request that is none for inference, of which a field or two are asked: it is read on the event loop."""

IDLE_SECONDS = 10.0
"""Between two looks whether memory can be given back."""


class BadRequest(Exception):
    """The client sent what cannot be answered."""


class RequestTooLarge(BadRequest):
    """The client sent more than the limits allow."""


class Unauthorized(Exception):
    """The client does not bear the server's token."""


class Forbidden(Exception):
    """The server was started without what is asked for."""


class Loading(Exception):
    """The models are not there yet."""


class DeadlineExceeded(Exception):
    """The request's time was over before its batch ran."""


class ClientGone(Exception):
    """Nobody waits for the answer."""


class BackendError(Exception):
    """The model failed on a request that was right."""


class Failure(NamedTuple):
    """What a request that failed is answered."""

    status: int
    """HTTP's."""
    code: str
    """gRPC's."""
    reason: str
    """Triton's, in the metrics."""


FAILURES: dict[type[BaseException], Failure] = {
    BadRequest: Failure(400, "INVALID_ARGUMENT", "OTHER"),
    RequestTooLarge: Failure(413, "INVALID_ARGUMENT", "OTHER"),
    Unauthorized: Failure(401, "UNAUTHENTICATED", "OTHER"),
    Forbidden: Failure(403, "PERMISSION_DENIED", "OTHER"),
    UnknownModel: Failure(404, "NOT_FOUND", "OTHER"),
    Loading: Failure(503, "UNAVAILABLE", "REJECTED"),
    QueueFull: Failure(503, "UNAVAILABLE", "REJECTED"),
    Closed: Failure(503, "UNAVAILABLE", "REJECTED"),
    DeadlineExceeded: Failure(503, "DEADLINE_EXCEEDED", "REJECTED"),
    ClientGone: Failure(499, "CANCELLED", "CANCELED"),  # nobody reads it; nginx' number, for the log
    asyncio.CancelledError: Failure(499, "CANCELLED", "CANCELED"),
    BackendError: Failure(500, "INTERNAL", "BACKEND"),
}
"""What becomes of a request that is not answered. What is not here is nobody's mistake but ours."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for."""

    max_body: int = 2**26
    """Bytes of a body, compressed and not."""
    max_bodies: int = 2**28
    """Bytes of all bodies that are being read or decoded, and of all answers that are being sent."""
    max_pixels: int = 2**24
    """Of a picture, or of a tensor's pictures together; `check_pixels` says how thin ones count."""
    timeout: float = 30.0
    """Seconds that a request may wait to be decoded and for its batch."""
    body_timeout: float = 30.0
    """Seconds that its body may take to arrive."""


@dataclass(frozen=True)
class Asked:
    """A decoded request: pictures of one size, and how to tell the answer."""

    images_NHWC: np.ndarray
    outputs: tuple[str, ...]
    timeout: float | None
    encode: Callable[[Model, Answer], Any]
    id: str | None = None


Decode = Callable[[Model, Any], Asked]
"""From a model and a body, in the form that the protocol gives it. A ValueError tells the client what is wrong."""

Gone = Callable[[], Coroutine[Any, Any, None]]
"""Returns once the client is gone."""


class Call:
    """A request from its arrival to its line in the log.

    Args:
        client: its address.
        id: what the client calls the request in its header; empty where it does not.

    Attributes:
        id: of the log and the answer: the client's, tidied, or a new one.
        model: which one it asked for, once that is known.
        arrived: when, by `time.perf_counter_ns`.
    """

    def __init__(self, method: str, path: str, client: str, id: str):
        self._method, self._path, self._client = method, path, client
        self._given = _safe_id(id)
        self.id = self._given or uuid.uuid4().hex
        self.model: Model | None = None
        self.arrived = time.perf_counter_ns()

    def has_body_id(self, id: str) -> None:
        """The body names the request too, which counts where no header does."""
        self.id = self._given or _safe_id(id) or self.id

    def unforeseen(self) -> str:
        """What the client is answered where nothing better can be said."""
        return f"internal error; the server's log tells more of request {self.id}"

    def ended(self, status: int | str, sent: int) -> None:
        """Writes the line, with the protocol's status and the bytes of the answer."""
        model = self.model
        request_log.info(
            "request",
            extra={
                "id": self.id,
                "client": self._client,
                "method": self._method,
                "path": self._path,
                "status": status,
                "ms": round((time.perf_counter_ns() - self.arrived) / 1e6, 2),
                "bytes": sent,
                **({"model": f"{model.info.name}/{model.info.version}"} if model else {}),
            },
        )


class Service:
    """What can be asked of the server. What it says is in the form of the V2 protocol's JSON.

    Whatever has a model's name and version raises UnknownModel where it is not served, and Loading while there are none
    yet.

    Attributes:
        state: "loading" at first, when inference is refused, then "ready". While it is "draining" the server says that
            it is not ready, and answers requests all the same.
        registry: of the metrics.
    """

    def __init__(self, repository: Repository, limits: Limits, *, allow_load: bool = False):
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.repository = repository
        self.limits = limits
        self._allow_load = allow_load
        self._pool = ThreadPoolExecutor(usable_cpus(), "pictures")
        self._held_bytes = 0
        self._under_way = 0
        self._may_give_back = False
        self.registry = new_registry(repository.models)

    def close(self) -> None:
        self._pool.shutdown()

    # What there is

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    def model(self, name: str, version: str | None = None) -> Model:
        """The one that answers at the moment; its newest version where none is given."""
        if self.state == "loading":
            raise Loading("the models are being loaded")
        return self.repository.get(name, version)

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "kerasseg", "version": installed_version("kerasseg"), "extensions": v2_protocol.EXTENSIONS}

    def model_metadata(self, name: str, version: str | None = None) -> dict[str, Any]:
        model = self.model(name, version)
        return v2_protocol.model_metadata(model.info, self.repository.versions(model.info.name), model.provider)

    def model_config(self, name: str, version: str | None = None) -> dict[str, Any]:
        model = self.model(name, version)
        return v2_protocol.model_config(
            model.info, model.provider, model.max_batch_size, model.max_delay, model.buckets
        )

    def statistics(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Of one model, or of all that are served."""
        models = self.repository.models() if name is None else [self.model(name, version)]
        return {"model_stats": [model.statistics.to_json(model.info.name, model.info.version) for model in models]}

    def index(self, only_ready: bool) -> list[dict[str, str]]:
        entries = self.repository.index()
        return [entry for entry in entries if not only_ready or entry["state"] == "READY"]

    async def load(self, name: str, given: Iterable[str] = ()) -> None:
        """See `Repository.load_one`.

        Args:
            name: of the model.
            given: names of what the request brings along: Triton takes a config, or files, in the disk's stead.

        Raises:
            Forbidden, UnknownModel, BadRequest.
        """
        if self._allow_load and (names := ", ".join(given)):
            raise BadRequest(f"failed to load {name!r}: models are served as they lie on the disk, without {names}")
        await self._change(self.repository.load_one, name)

    async def unload(self, name: str) -> None:
        """Raises Forbidden or UnknownModel; see `Repository.unload`."""
        await self._change(self.repository.unload, name)

    async def _change(self, change: Callable[[str], None], name: str) -> None:
        if not self._allow_load:
            raise Forbidden("clients may not load or unload models here: start the server with --allow-load")
        try:
            await asyncio.to_thread(change, name)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    # Inference

    async def infer(
        self,
        call: Call,
        name: str,
        version: str | None,
        body: AbstractAsyncContextManager[Any],
        decode: Decode,
        gone: Gone | None = None,
        timeout: float = math.inf,
    ) -> tuple[Any, dict[str, int]]:
        """The way of every inference request, counted whatever becomes of it.

        Args:
            call: learns the model, and the id that the body gives.
            body: is entered once there is room for the request, and left when it is decoded.
            gone: for protocols in which a client that goes does not cancel this call.
            timeout: seconds that the client wants to wait at most, where that is known before the body is.

        Returns:
            What `Asked.encode` made, and nanoseconds by phase (`serving.model.statistics.PHASES`).

        Raises:
            What `FAILURES` lists, and what `body` and `decode` raise of their own.
        """
        model = call.model = self.model(name, version)
        until = call.arrived / 1e9 + min(self.limits.timeout, timeout)
        self._under_way += 1
        try:
            if model.full:  # before its body is read: refusing has to be cheap
                raise QueueFull("the queue is full")
            async with body as contents:
                model, ticket = self.repository.admit(name, version)
                with ticket, _bad_requests(), self._submitted(self._prepare, model, ticket, decode, contents) as work:
                    asked, future = await _wait(work, until, gone, finish=False)
            if asked.id is not None:
                call.has_body_id(asked.id)
            if asked.timeout is not None:
                until = min(until, call.arrived / 1e9 + asked.timeout)
            try:
                answer: Answer = await _wait(future, until, gone, finish=True)
            except (DeadlineExceeded, ClientGone):
                raise
            except Exception as error:
                raise BackendError(f"the model failed: {error}") from error
            answered = time.perf_counter_ns()
            encoded = await self.in_pool(asked.encode, model, answer)
        except BaseException as error:
            failure = FAILURES.get(type(error))
            model.statistics.failed(failure.reason if failure else "OTHER", time.perf_counter_ns() - call.arrived)
            raise
        finally:
            self._under_way -= 1
        ended = time.perf_counter_ns()
        durations = dict(answer.durations)
        durations["compute_input"] += answer.submitted - call.arrived
        durations["compute_output"] += ended - answered
        model.statistics.succeeded(len(asked.images_NHWC), durations | {"success": ended - call.arrived})
        return encoded, durations

    async def give_back_memory(self) -> None:
        """Gives the system what requests have left behind, whenever there are none; until it is cancelled.

        onnxruntime keeps a gigabyte after a picture of 4 megapixels, and the C library what lies below something small.
        """
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            if self._may_give_back and not self._under_way and not self._held_bytes:
                self._may_give_back = False
                await asyncio.to_thread(_trim, self.repository.models())

    def is_crowded(self) -> bool:
        """Whether there is no room for more bodies."""
        return self._held_bytes > self.limits.max_bodies

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Yields what counts the bytes of a body that arrives, until the block ends; it raises QueueFull."""
        held = 0
        self._may_give_back = True

        def hold(length: int) -> None:
            nonlocal held
            held += length
            self._held_bytes += length
            if self.is_crowded():
                raise QueueFull("too many large bodies are arriving at once")

        try:
            yield hold
        finally:
            self._held_bytes -= held

    @contextlib.contextmanager
    def answering(self, length: int) -> Iterator[None]:
        """Counts the bytes of an answer until the block ends. It is never refused: bodies that come meanwhile are."""
        self._held_bytes += length
        try:
            yield
        finally:
            self._held_bytes -= length

    async def in_pool(self, function: Callable[..., R], *args: Any) -> R:
        """Runs what reads a request or writes an answer; its ValueErrors tell the client what is wrong."""
        with _bad_requests(), self._submitted(function, *args) as work:
            return await asyncio.wrap_future(work)

    @contextlib.contextmanager
    def _submitted(self, function: Callable[..., R], *args: Any) -> "Iterator[Future[R]]":
        """`function` in the pool. What has not begun when the block ends is let go, with its arguments.

        The pool's queue keeps cancelled work until a thread is free, and with it would keep bodies that count no
        longer.
        """
        work = [(function, args)]

        def run() -> R:
            function, args = work.pop()
            return function(*args)

        try:
            yield self._pool.submit(run)
        finally:
            work.clear()

    @staticmethod
    def _prepare(model: Model, ticket: Ticket, decode: Decode, contents: Any) -> tuple[Asked, "Future[Answer]"]:
        asked = decode(model, contents)
        return asked, model.submit(ticket, asked.images_NHWC, asked.outputs)


def _trim(models: Iterable[Model]) -> None:
    gc.collect()
    for model in models:
        with contextlib.suppress(Exception):  # what onnxruntime raises, out of memory for one, has no public base class
            model.give_back_memory()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _bad_requests() -> Iterator[None]:
    """Makes ValueErrors answers to the client."""
    try:
        yield
    except ValueError as error:
        too_large = isinstance(error, (v2_protocol.TooLarge, TooManyPixels))
        raise (RequestTooLarge if too_large else BadRequest)(str(error)) from error


async def _wait(future: "Future[R]", until: float, gone: Gone | None, *, finish: bool) -> R:
    """What the future brings, unless the client goes or the time is over first: then it is cancelled.

    Args:
        until: by `time.perf_counter`, seconds.
        finish: what runs already when the time is over is waited for, late as it may be. Otherwise it is left to
            itself: a thread cannot be stopped.

    Raises:
        DeadlineExceeded, ClientGone, or what the future raises.
    """
    done: asyncio.Future[R] = asyncio.wrap_future(future)
    ends: set[asyncio.Future[Any]] = {done} | ({asyncio.ensure_future(gone())} if gone else set())
    try:
        ended, _ = await asyncio.wait(
            ends, timeout=max(until - time.perf_counter(), 0), return_when=asyncio.FIRST_COMPLETED
        )
        if not ended:
            if future.cancel() or not finish:
                raise DeadlineExceeded("the request's time was over before its turn came")
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientGone
        return done.result()
    finally:
        for end in ends:
            end.cancel()
        # An error holds this frame by its traceback: a cycle, which would keep the request in memory.
        del future, done, ends, end


def tensor_asked(
    model: Model, request: v2_protocol.InferRequest, limits: Limits, encode: Callable[[Model, Answer], Any]
) -> Asked:
    """A request of the V2 protocol, decoded.

    Raises:
        ValueError: more pictures than the model takes at a time, or more pixels than the limits allow.
    """
    [images_NHWC] = request.inputs.values()
    count, height, width, _ = images_NHWC.shape
    if count > model.max_batch_size:
        raise ValueError(f"{count} pictures in a tensor, at most {model.max_batch_size} are taken")
    check_pixels(height, width, limits.max_pixels, count)
    return Asked(images_NHWC, tuple(request.outputs), request.timeout, encode, request.id)


def bears(token: str | None, authorization: str) -> bool:
    """Whether a request's `authorization` is the server's token, where it has one."""
    scheme, _, given = authorization.partition(" ")
    right = token is None or hmac.compare_digest(given.strip(" ").encode(), token.encode())
    return right and (token is None or scheme.lower() == "bearer")


def message_of(error: BaseException) -> str:
    """What a client is answered for one of `FAILURES`."""
    return str(error) or "the server is stopping"


def _safe_id(text: str) -> str:
    """What may stand in a header and in a line of a log."""
    return "".join(character for character in text[:1024] if "!" <= character <= "~")[:128]
