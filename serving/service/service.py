"""What the server does, in whatever protocol it is asked: what models there are, and a request's way through one.

    body --> pool: codec.decode --> batcher --> pool: codec.encode --> answer

The event loop only moves bytes; whatever computes runs in the pool or in the batcher's thread. Knows neither HTTP nor
gRPC (`serving.http`, `serving.grpc`), which bring bodies and codecs.
"""

import asyncio
import contextlib
import ctypes
import gc
import hmac
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version as installed_version
from typing import Any, Literal

from serving.model.batcher import QueueFull, Ticket
from serving.model.model import Answer, Model
from serving.model.repository import Repository
from serving.service import v2_protocol
from serving.service.failures import (
    FAILURES,
    BackendError,
    BadRequest,
    ClientGone,
    DeadlineExceeded,
    Forbidden,
    Loading,
    value_errors_as_failures,
)
from serving.service.limits import RequestLimits
from serving.service.metrics import new_registry
from serving.service.pool import Disconnected, Pool, wait
from serving.service.requests import Codec, DecodedRequest, RequestRecord

IDLE_SECONDS = 10.0
"""Between two looks whether memory can be given back."""


class Service:
    """What can be asked of the server. Answers have the form of the V2 protocol's JSON.

    Whatever has a model's name and version raises UnknownModel where it is not served, and Loading while there are none
    yet.

    Args:
        token: what requests must carry; None for nothing.
        allow_load: whether clients may load and unload models.

    Attributes:
        state: "loading" at first, when inference is refused, then "ready". While it is "draining" the server says that
            it is not ready, and still answers requests.
        pool: the threads that read requests and write answers.
        registry: of the metrics.
    """

    def __init__(self, repository: Repository, limits: RequestLimits, token: str | None, allow_load: bool):
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.repository = repository
        self.limits = limits
        self.pool = Pool()
        self._token = token
        self._allow_load = allow_load
        self._held_bytes = 0
        self._running = 0
        self._has_served = False
        self.registry = new_registry(repository.models)

    def close(self) -> None:
        self.pool.close()

    @property
    def needs_token(self) -> bool:
        return self._token is not None

    def is_authorized(self, authorization: str) -> bool:
        """Whether a request may be answered whose header, or metadata, `authorization` says this."""
        if self._token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        is_right = hmac.compare_digest(given.strip(" ").encode(), self._token.encode())
        return is_right and scheme.lower() == "bearer"

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
        """The statistics of one model, or of all that are served."""
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
        record: RequestRecord,
        name: str,
        version: str | None,
        body: AbstractAsyncContextManager[Any],
        codec: Codec,
        disconnected: Disconnected | None = None,
    ) -> tuple[Any, dict[str, int]]:
        """The way of every inference request, counted whatever becomes of it.

        Args:
            record: learns the model, and the id that the body gives.
            body: is entered once there is room for the request, and left when it is decoded.
            disconnected: for protocols in which a client that goes does not cancel this call.

        Returns:
            What `codec.encode` made, and nanoseconds by phase (`serving.model.statistics.PHASES`).

        Raises:
            What `FAILURES` lists, and what `body` and `codec.decode` raise of their own.
        """
        model = record.model = self.model(name, version)
        until = record.arrived / 1e9 + min(self.limits.timeout, codec.timeout)
        self._running += 1
        try:
            if model.full:  # before its body is read: refusing has to be cheap
                raise QueueFull("the queue is full")
            async with body as contents:
                model, ticket = self.repository.admit(name, version)
                with (
                    ticket,
                    value_errors_as_failures(),
                    self.pool.submitted(_decode_and_submit, model, ticket, codec, contents) as work,
                ):
                    request, future = await wait(work, until, disconnected, finish=False)
            if request.id is not None:
                record.take_body_id(request.id)
            if request.timeout is not None:
                until = min(until, record.arrived / 1e9 + request.timeout)
            try:
                answer = await wait(future, until, disconnected, finish=True)
            except (DeadlineExceeded, ClientGone):
                raise
            except Exception as error:
                raise BackendError(f"the model failed: {error}") from error
            answered = time.perf_counter_ns()
            encoded = await self.pool.run(codec.encode, model, request, answer)
        except BaseException as error:
            failure = FAILURES.get(type(error))
            model.statistics.failed(failure.reason if failure else "OTHER", time.perf_counter_ns() - record.arrived)
            raise
        finally:
            self._running -= 1
        ended = time.perf_counter_ns()
        durations = dict(answer.durations)
        durations["compute_input"] += answer.submitted - record.arrived
        durations["compute_output"] += ended - answered
        model.statistics.succeeded(len(request.images_NHWC), durations | {"success": ended - record.arrived})
        return encoded, durations

    async def give_back_memory(self) -> None:
        """Gives the system what requests have left behind, whenever there are none; until it is cancelled.

        onnxruntime keeps a gigabyte after an image of 4 megapixels, and the C library what lies below something small.
        """
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            if self._has_served and not self._running and not self._held_bytes:
                self._has_served = False
                await asyncio.to_thread(_trim, self.repository.models())

    def is_crowded(self) -> bool:
        """Whether there is no room for more bodies."""
        return self._held_bytes > self.limits.max_bodies

    @contextlib.contextmanager
    def receiving(self) -> Iterator[Callable[[int], None]]:
        """Yields a function that counts bytes of a body as they arrive, until the block ends; it raises QueueFull."""
        held = 0
        self._has_served = True

        def count(length: int) -> None:
            nonlocal held
            held += length
            self._held_bytes += length
            if self.is_crowded():
                raise QueueFull("too many large bodies are arriving at once")

        try:
            yield count
        finally:
            self._held_bytes -= held

    @contextlib.contextmanager
    def sending(self, length: int) -> Iterator[None]:
        """Counts the bytes of an answer until the block ends. It is never refused: bodies that come meanwhile are."""
        self._held_bytes += length
        try:
            yield
        finally:
            self._held_bytes -= length


def _decode_and_submit(
    model: Model, ticket: Ticket, codec: Codec, contents: Any
) -> tuple[DecodedRequest, "Future[Answer]"]:
    request = codec.decode(model, contents)
    return request, model.submit(ticket, request.images_NHWC, request.outputs)


def _trim(models: Iterable[Model]) -> None:
    gc.collect()
    for model in models:
        with contextlib.suppress(Exception):  # what onnxruntime raises, out of memory for one, has no public base class
            model.give_back_memory()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
