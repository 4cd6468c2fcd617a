"""The server's gRPC side: the V2 protocol, as `tritonclient.grpc` speaks it, and gRPC's own health service.

Needs the extra `grpc`. Shares the event loop, queues, limits and statistics of HTTP.
"""

import asyncio
import contextlib
import functools
import inspect
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from serving.common.artifact import ModelInfo
from serving.grpc.messages import MESSAGES
from serving.model.model import Answer, Model
from serving.model.repository import UnknownModel
from serving.service import v2_protocol
from serving.service.service import (
    FAILURES,
    MAX_SHORT_BODY,
    Asked,
    Call,
    ClientGone,
    DeadlineExceeded,
    Loading,
    Service,
    Unauthorized,
    bears,
    message_of,
    tensor_asked,
)

log = logging.getLogger("serving")

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

OPEN = {"ServerLive": "ServerLive", "ServerReady": "ServerReady", "Check": "HealthCheck"}
"""Methods answered without a token, since what asks for them, such as Kubernetes, has none; by the names of their
messages."""

MAX_ELEMENTS = 2**22
"""Of a tensor in typed contents, which take many times their size in memory; larger ones travel raw only."""

MAX_FIELDS = 2**12
"""Of an inference request, those within others too. Each becomes an object, however few bytes it has."""

MAX_FIELD_BYTES = 2**23
"""Of a field that is no raw tensor."""

MAX_RANK = 32
"""Dimensions of a tensor that are looked at."""

SMALL_MESSAGE = 2**20
"""Bytes of a message from which on the next one's turn comes only when this one is decoded."""

RECEIVE_SECONDS = 10.0
"""How long pictures may take to arrive while others wait for their turn."""

SHORT_SECONDS = 1.0
"""The same of a message that is short."""

CONNECTION_SECONDS = 300.0
"""After this time a client is asked to connect once more. What it has asked for before may take `ENDING_SECONDS` longer
than `--timeout`. gRPC knows no other way to be rid of a client that reads nothing of its answer."""

ENDING_SECONDS = 30.0

RETRY_MILLISECONDS = "1000"
"""When a client whose policy is to retry does so, if the server cannot take its request now."""

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where a tensor's numbers are, by datatype, if they are not raw. FP16 has no such place."""

Reply = Callable[[Call, grpc.aio.ServicerContext], Awaitable[bytes]]
"""From a call, whose message is in its context, to that of the answer."""


class Turns:
    """Who may send a message: so many at a time.

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
        token: what the metadata `authorization` has to say after `Bearer`; None for nothing.
        max_calls: at a time; beyond it they are refused, as are more connections.
    """

    def __init__(self, service: Service, token: str | None, max_calls: int):
        self._service = service
        self._token = token
        self._counter = Counter(
            "kerasseg_grpc_requests", "Calls answered, by status", ["method", "status"], registry=service.registry
        )
        self._max_calls = max_calls
        # What has arrived of a message is not known before it is whole, so each counts as large as may be.
        number = max(1, service.limits.max_bodies // service.limits.max_body)
        self._turns = Turns(number, RECEIVE_SECONDS)
        self._short_turns = Turns(number, SHORT_SECONDS)  # so that who sends pictures slowly holds up nothing else
        logging.getLogger("grpc._cython.cygrpc").addFilter(_tells_something)

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
        self._add(SERVICE, {**self._told(), "ModelInfer": self._infer})
        self._add(HEALTH, {"Check": self._says("HealthCheck", self._health)})
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

    def _add(self, name: str, answers: Mapping[str, Reply]) -> None:
        handlers = {
            # As if there were several messages: a call is then refused before it has sent its one.
            method: grpc.stream_unary_rpc_method_handler(functools.partial(self._serve, name, method, answer))
            for method, answer in answers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    async def _serve(
        self,
        service: str,
        method: str,
        answer: Reply,
        messages: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext,
    ) -> bytes:
        """Around every call: its id, the token, the line in the log, and a status for whatever happens."""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        call = Call("gRPC", f"/{service}/{method}", _client(context.peer()), metadata.get("x-request-id", ""))
        code, reply, said = "CANCELLED", b"", ""
        try:
            if method not in OPEN and not bears(self._token, metadata.get("authorization", "")):
                raise Unauthorized("send the server's token as metadata, authorization: Bearer TOKEN")
            reply = await answer(call, context)
            code = "OK"
            sending = contextlib.ExitStack()
            sending.enter_context(self._service.answering(len(reply)))
            context.add_done_callback(lambda _: sending.close())
        except Exception as error:
            failure = FAILURES.get(type(error))
            code, said = (failure.code, message_of(error)) if failure else ("INTERNAL", call.unforeseen())
            if not failure:
                log.exception("request failed", extra={"id": call.id, "path": f"/{service}/{method}"})
        finally:
            self._counter.labels(method, code).inc()
            call.ended(code, len(reply))
        trailing = [("x-request-id", call.id)]
        if code == "UNAVAILABLE":
            trailing.append(("grpc-retry-pushback-ms", RETRY_MILLISECONDS))
        context.set_trailing_metadata(tuple(trailing))
        if code != "OK":
            await context.abort(grpc.StatusCode[code], said, tuple(trailing))
        return reply

    # What there is

    def _told(self) -> dict[str, Reply]:
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
        return {method: self._says(method, function) for method, function in functions.items()}

    def _says(self, name: str, function: Callable[[Any], Any]) -> Reply:
        """What `function` makes of the request, in the form of JSON, as the message of the answer."""
        parse = functools.partial(_parse_short, f"{name}Request")

        async def answer(call: Call, context: grpc.aio.ServicerContext) -> bytes:
            if name in OPEN.values():  # its message says nothing, and may be of any length: it stays unread
                said = function(None)
            else:
                async with self._received(context, parse, self._short_turns) as request:
                    said = function(request)
                    if inspect.isawaitable(said):
                        said = await said
            # Metadata has properties that the message has no field for.
            return ParseDict(said or {}, MESSAGES[f"{name}Response"](), ignore_unknown_fields=True).SerializeToString()

        return answer

    def _health(self, request: Any) -> dict[str, str]:
        """Of the server as a whole, whichever service is asked about."""
        return {"status": "SERVING" if self._service.ready else "NOT_SERVING"}

    def _model_ready(self, request: Any) -> dict[str, bool]:
        with contextlib.suppress(UnknownModel, Loading):
            self._service.model(request.name, request.version or None)
            return {"ready": self._service.ready}
        return {"ready": False}

    # Inference

    async def _infer(self, call: Call, context: grpc.aio.ServicerContext) -> bytes:
        def decode(model: Model, request: tuple[dict[str, Any], memoryview]) -> Asked:
            asked = v2_protocol.read_request(*request, model.info, 3 * self._service.limits.max_pixels)

            def encode(model: Model, answer: Answer) -> bytes:
                return write_response(model.info, asked, answer.outputs)

            return tensor_asked(model, asked, self._service.limits, encode)

        async with contextlib.AsyncExitStack() as received:
            name, version, *request = await received.enter_async_context(
                self._received(context, read_infer, self._turns)
            )
            reply, _ = await self._service.infer(call, name, version, _leaving(received, request), decode)
            return reply

    @contextlib.asynccontextmanager
    async def _received(
        self, context: grpc.aio.ServicerContext, read: Callable[[bytes], Any], turns: "Turns"
    ) -> AsyncIterator[Any]:
        """The call's message, as `read` has it; its bytes count as held until the block ends."""
        seconds = self._service.limits.body_timeout
        late = DeadlineExceeded(f"the message did not arrive within {seconds:g} seconds")
        until = time.monotonic() + seconds
        with contextlib.ExitStack() as turn:
            turns.waiting += 1
            try:
                async with asyncio.timeout(seconds):
                    await turns.free.acquire()
            except TimeoutError:
                raise late from None
            finally:
                turns.waiting -= 1
            turn.callback(turns.free.release)
            # The iterator of messages would hold this one until Python looks for cycles.
            next_message = asyncio.ensure_future(context.read())
            try:
                await asyncio.wait({next_message}, timeout=min(until - time.monotonic(), turns.seconds))
                if not next_message.done() and not turns.waiting:
                    await asyncio.wait({next_message}, timeout=until - time.monotonic())
                if not next_message.done():
                    raise late
                message = next_message.result()
            finally:
                next_message.cancel()
            if message is grpc.aio.EOF:  # or one came that was too large, which the client has been told
                raise ClientGone("no message came")
            if len(message) < SMALL_MESSAGE:
                turn.close()
            with self._service.holding() as hold:
                hold(len(message))
                yield await self._service.in_pool(read, message)


@contextlib.asynccontextmanager
async def _leaving(received: contextlib.AsyncExitStack, contents: Any) -> AsyncIterator[Any]:
    """`contents`; what was received counts no longer once the block ends."""
    async with received:
        yield contents


def _tells_something(record: logging.LogRecord) -> bool:
    """Not that an answer could not be sent: its client had cancelled the call, which has its line in the log."""
    return not (record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == "ExecuteBatchError")


def _parse(name: str, message: bytes) -> Any:
    try:
        return MESSAGES[name].FromString(message)
    except DecodeError as error:
        raise ValueError(f"the message is no {name}: {error}") from error


def _parse_short(name: str, message: bytes) -> Any:
    if len(message) > MAX_SHORT_BODY:
        raise v2_protocol.TooLarge(f"{len(message)} bytes of a {name}, at most {MAX_SHORT_BODY} are read")
    return _parse(name, message)


def _count_fields(of: Any, message: memoryview, most: int = MAX_FIELDS) -> int:
    """How many fields a message has, with those of messages in it, before anything is made of them.

    Args:
        of: its descriptor.

    Raises:
        TooLarge: more than `most`, or one of more than `MAX_FIELD_BYTES` that is no raw tensor.
        ValueError: it is cut off, or not a message.
    """
    count, at = 0, 0
    try:
        while at < len(message):
            count += 1
            key, at = _varint(message, at)
            field, kind = of.fields_by_number.get(key >> 3), key & 7
            if kind == 2:
                length, at = _varint(message, at)
                if length > MAX_FIELD_BYTES and not (field and field.name == "raw_input_contents"):
                    raise v2_protocol.TooLarge(f"a field of {length} bytes, at most {MAX_FIELD_BYTES} are read")
                if field and field.message_type:
                    count += _count_fields(field.message_type, message[at : at + length], most - count)
                at += length
            elif kind == 0:
                _, at = _varint(message, at)
            else:
                at += {1: 8, 5: 4}[kind]
            if count > most:
                raise v2_protocol.TooLarge(f"more than {MAX_FIELDS} fields in a message")
    except (IndexError, KeyError) as error:
        raise ValueError(f"the message is no {of.name}") from error
    return count


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            break
    return number, at


def read_infer(contents: bytes) -> tuple[str, str | None, dict[str, Any], memoryview]:
    """A ModelInferRequest as model, version, and what `protocol.read_request` takes.

    Raises:
        TooLarge: it has more fields, or longer ones, than are read.
        ValueError: it is none, or has tensors both raw and not.
    """
    _count_fields(MESSAGES["ModelInferRequest"].DESCRIPTOR, memoryview(contents))
    message = _parse("ModelInferRequest", contents)
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise ValueError(
            f"{len(message.inputs)} inputs and {len(raw)} raw_input_contents: expected one for each, or none"
        )
    inputs = []
    for index, tensor in enumerate(message.inputs):
        described = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape[:MAX_RANK],
            "parameters": _parameters(tensor),
        }
        if not raw:
            described["data"] = _numbers(tensor)
        elif tensor.HasField("contents"):
            raise ValueError(f"{tensor.name} has contents, beside raw_input_contents: send one of them")
        else:
            described["parameters"]["binary_data_size"] = len(raw[index])
        inputs.append(described)
    request = {
        "inputs": inputs,
        "outputs": [{"name": output.name, "parameters": _parameters(output)} for output in message.outputs],
        "parameters": _parameters(message),
        "id": message.id or None,
    }
    blob = memoryview(raw[0] if len(raw) == 1 else b"".join(raw))
    return message.model_name, message.model_version or None, request, blob


def write_response(info: ModelInfo, asked: v2_protocol.InferRequest, outputs: Mapping[str, np.ndarray]) -> bytes:
    """A ModelInferResponse, with raw tensors: they have a form for every datatype, and cost the least."""
    message = MESSAGES["ModelInferResponse"](model_name=info.name, model_version=str(info.version), id=asked.id or "")
    datatypes = {tensor.name: tensor.datatype for tensor in info.outputs}
    for name in asked.outputs:
        message.outputs.add(name=name, datatype=datatypes[name], shape=outputs[name].shape)
        message.raw_output_contents.append(v2_protocol.to_bytes(outputs[name], datatypes[name]))
    return message.SerializeToString()


def _numbers(tensor: Any) -> list[Any] | None:
    numbers = getattr(tensor.contents, CONTENTS.get(tensor.datatype, ""), None)
    if numbers is not None and len(numbers) > MAX_ELEMENTS:
        raise v2_protocol.TooLarge(
            f"{tensor.name}: {len(numbers)} numbers in contents, at most {MAX_ELEMENTS} are read: send them raw"
        )
    if numbers is None:
        return None
    pieces = (numbers[start : start + v2_protocol.PIECE] for start in range(0, len(numbers), v2_protocol.PIECE))
    return list(itertools.chain.from_iterable(pieces))


def _parameters(message: Any) -> dict[str, Any]:
    return {key: next((value for _, value in choice.ListFields()), None) for key, choice in message.parameters.items()}


def _client(peer: str) -> str:
    """The address in `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
