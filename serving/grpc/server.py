"""The server's gRPC side: the V2 protocol, as `tritonclient.grpc` speaks it, and gRPC's own health service.

Needs the extra `grpc`. Shares the event loop, queues, limits and statistics of HTTP.
"""

import asyncio
import contextlib
import functools
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict
from prometheus_client import Counter

from serving.grpc.messages import MESSAGES
from serving.grpc.tensor_codec import GrpcTensorCodec, parse_message, read_infer
from serving.model.repository import UnknownModel
from serving.service.failures import (
    FAILURES,
    ClientGone,
    DeadlineExceeded,
    Loading,
    TooLarge,
    Unauthorized,
    client_message,
)
from serving.service.limits import MAX_SHORT_BODY
from serving.service.requests import RequestRecord
from serving.service.service import Service

log = logging.getLogger("serving")

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

OPEN = {"ServerLive": "ServerLive", "ServerReady": "ServerReady", "Check": "HealthCheck"}
"""Methods answered without a token, since what asks for them, such as Kubernetes, has none; by the names of their
messages."""

SMALL_MESSAGE = 2**20
"""Bytes of a message from which on the next one's turn comes only when this one is decoded."""

RECEIVE_SECONDS = 10.0
"""How long images may take to arrive while others wait for their turn."""

SHORT_SECONDS = 1.0
"""The same of a message that is short."""

CONNECTION_SECONDS = 300.0
"""After this time a client is asked to connect once more. What it has asked for before may take `ENDING_SECONDS` longer
than `--timeout`. gRPC knows no other way to be rid of a client that reads nothing of its answer."""

ENDING_SECONDS = 30.0

RETRY_MILLISECONDS = "1000"
"""When a client whose policy is to retry does so, if the server cannot take its request now."""

Handler = Callable[[RequestRecord, grpc.aio.ServicerContext], Awaitable[bytes]]
"""From a call, whose message is in its context, to the message of the answer."""


class ReceiveSlots:
    """How many clients may send a message at a time.

    Args:
        seconds: how long one may take while others wait.
    """

    def __init__(self, number: int, seconds: float):
        self.free = asyncio.Semaphore(number)
        self.waiting = 0
        self.seconds = seconds


class GrpcServer:
    """Listens from `start` to `stop`.

    Args:
        max_calls: at a time; beyond it they are refused, as are more connections.
    """

    def __init__(self, service: Service, max_calls: int):
        self._service = service
        self._counter = Counter(
            "kerasseg_grpc_requests", "Calls answered, by status", ["method", "status"], registry=service.registry
        )
        self._max_calls = max_calls
        # What has arrived of a message is not known before it is whole, so each counts as large as may be.
        number = max(1, service.limits.max_bodies // service.limits.max_body)
        self._slots = ReceiveSlots(number, RECEIVE_SECONDS)
        # Apart, so that who sends images slowly holds up nothing else.
        self._short_slots = ReceiveSlots(number, SHORT_SECONDS)
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_worth_a_line)

    async def start(self, host: str, port: int) -> str:
        """Returns the address, host:port, where a `port` of 0 is a free one.

        Raises:
            ValueError: it cannot be had.
        """
        grace = self._service.limits.timeout + ENDING_SECONDS
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=self._max_calls,
            options=[
                ("grpc.so_reuseport", 0),  # or a second server would share the port in silence
                ("grpc.max_receive_message_length", self._service.limits.max_body),
                ("grpc.max_allowed_incoming_connections", self._max_calls),
                ("grpc.http2.bdp_probe", 0),  # or what is not asked for yet arrives by the megabyte
                ("grpc.keepalive_time_ms", 60_000),  # a client that vanished is noticed
                ("grpc.max_connection_age_ms", round(CONNECTION_SECONDS * 1000)),
                ("grpc.max_connection_age_grace_ms", round(min(grace * 1000, 2**31 - 1))),
            ],
        )
        self._add(SERVICE, {**self._metadata_handlers(), "ModelInfer": self._infer})
        self._add(HEALTH, {"Check": self._json_handler("HealthCheck", self._health)})
        name = f"[{host}]" if ":" in host else host
        try:
            port = self._server.add_insecure_port(f"{name}:{port}")
        except RuntimeError as error:
            raise ValueError(f"cannot listen at {host}, port {port}, for gRPC: --grpc-port chooses another") from error
        await self._server.start()
        return f"{name}:{port}"

    async def stop(self, seconds: float) -> None:
        """Takes no more calls; returns once those that run are answered, or cut off after that time."""
        await self._server.stop(seconds)

    def _add(self, name: str, handlers: Mapping[str, Handler]) -> None:
        by_method = {
            # As if there were several messages: a call is then refused before it has sent its one.
            method: grpc.stream_unary_rpc_method_handler(functools.partial(self._serve, name, method, handler))
            for method, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, by_method),))

    async def _serve(
        self,
        service: str,
        method: str,
        handler: Handler,
        messages: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext,
    ) -> bytes:
        """Around every call: its id, the token, the line in the log, and a status for whatever happens."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        client, path = _client(context.peer()), f"/{service}/{method}"
        record = RequestRecord("gRPC", path, client, metadata.get("x-request-id", ""))
        code, reply, message = "CANCELLED", b"", ""
        try:
            if method not in OPEN and not self._service.is_authorized(metadata.get("authorization", "")):
                raise Unauthorized("send the server's token as metadata, authorization: Bearer TOKEN")
            reply = await handler(record, context)
            code = "OK"
            sending = contextlib.ExitStack()
            sending.enter_context(self._service.sending(len(reply)))
            context.add_done_callback(lambda _: sending.close())
        except Exception as error:
            failure = FAILURES.get(type(error))
            code, message = (failure.code, client_message(error)) if failure else ("INTERNAL", record.internal_error())
            if not failure:
                log.exception("request failed", extra={"id": record.id, "path": path})
        finally:
            self._counter.labels(method, code).inc()
            record.write(code, len(reply))
        trailing = [("x-request-id", record.id)]
        if code == "UNAVAILABLE":
            trailing.append(("grpc-retry-pushback-ms", RETRY_MILLISECONDS))
        context.set_trailing_metadata(tuple(trailing))
        if code != "OK":
            await context.abort(grpc.StatusCode[code], message, tuple(trailing))
        return reply

    # What there is

    def _metadata_handlers(self) -> dict[str, Handler]:
        service = self._service
        functions: dict[str, Callable[[Any], Any]] = {
            "ServerLive": lambda request: {"live": True},
            "ServerReady": lambda request: {"ready": service.ready},
            "ModelReady": self._model_ready,
            "ServerMetadata": lambda request: service.server_metadata(),
            "ModelMetadata": lambda request: service.model_metadata(request.name, request.version or None),
            "ModelConfig": lambda request: {"config": service.model_config(request.name, request.version or None)},
            "ModelStatistics": lambda request: service.statistics(request.name or None, request.version or None),
            "RepositoryIndex": lambda request: {"models": service.index(request.ready)},
            "RepositoryModelLoad": lambda request: service.load(request.model_name, request.parameters),
            "RepositoryModelUnload": lambda request: service.unload(request.model_name),
        }
        return {method: self._json_handler(method, function) for method, function in functions.items()}

    def _json_handler(self, name: str, function: Callable[[Any], Any]) -> Handler:
        """What `function` makes of the request, in the form of JSON, as the message of the answer."""
        parse = functools.partial(_parse_short, f"{name}Request")

        async def handle(record: RequestRecord, context: grpc.aio.ServicerContext) -> bytes:
            if name in OPEN.values():  # its message says nothing, and may be of any length: it stays unread
                answer = function(None)
            else:
                async with self._received(context, parse, self._short_slots) as request:
                    answer = function(request)
                    if inspect.isawaitable(answer):
                        answer = await answer
            # Metadata has properties that the message has no field for.
            message = ParseDict(answer or {}, MESSAGES[f"{name}Response"](), ignore_unknown_fields=True)
            return message.SerializeToString()

        return handle

    def _health(self, request: Any) -> dict[str, str]:
        """The server's health, whichever service is asked about."""
        return {"status": "SERVING" if self._service.ready else "NOT_SERVING"}

    def _model_ready(self, request: Any) -> dict[str, bool]:
        with contextlib.suppress(UnknownModel, Loading):
            self._service.model(request.name, request.version or None)
            return {"ready": self._service.ready}
        return {"ready": False}

    # Inference

    async def _infer(self, record: RequestRecord, context: grpc.aio.ServicerContext) -> bytes:
        async with contextlib.AsyncExitStack() as received:
            name, version, *body = await received.enter_async_context(self._received(context, read_infer, self._slots))
            codec = GrpcTensorCodec(self._service.limits)
            reply, _ = await self._service.infer(record, name, version, _released_after(received, body), codec)
            return reply

    @contextlib.asynccontextmanager
    async def _received(
        self, context: grpc.aio.ServicerContext, read: Callable[[bytes], Any], slots: ReceiveSlots
    ) -> AsyncIterator[Any]:
        """The call's message, as `read` has it; its bytes count as held until the block ends."""
        seconds = self._service.limits.body_timeout
        late = DeadlineExceeded(f"the message did not arrive within {seconds:g} seconds")
        until = time.monotonic() + seconds
        with contextlib.ExitStack() as slot:
            slots.waiting += 1
            try:
                async with asyncio.timeout(seconds):
                    await slots.free.acquire()
            except TimeoutError:
                raise late from None
            finally:
                slots.waiting -= 1
            slot.callback(slots.free.release)
            # The iterator of messages would hold this one until Python looks for cycles.
            next_message = asyncio.ensure_future(context.read())
            try:
                await asyncio.wait({next_message}, timeout=min(until - time.monotonic(), slots.seconds))
                if not next_message.done() and not slots.waiting:
                    await asyncio.wait({next_message}, timeout=until - time.monotonic())
                if not next_message.done():
                    raise late
                message = next_message.result()
            finally:
                next_message.cancel()
            if message is grpc.aio.EOF:  # or one came that was too large, which gRPC has answered
                raise ClientGone("no message came")
            if len(message) < SMALL_MESSAGE:
                slot.close()
            with self._service.receiving() as count:
                count(len(message))
                yield await self._service.pool.run(read, message)


@contextlib.asynccontextmanager
async def _released_after(received: contextlib.AsyncExitStack, contents: Any) -> AsyncIterator[Any]:
    """`contents`; what was received counts no longer once the block ends."""
    async with received:
        yield contents


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Not that an answer could not be sent: its client had cancelled the call, which has its line in the log."""
    return not (record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == "ExecuteBatchError")


def _parse_short(name: str, message: bytes) -> Any:
    if len(message) > MAX_SHORT_BODY:
        raise TooLarge(f"{len(message)} bytes of a {name}, at most {MAX_SHORT_BODY} are read")
    return parse_message(name, message)


def _client(peer: str) -> str:
    """The address in `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
