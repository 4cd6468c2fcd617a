"""The server's HTTP side: pictures in and masks out, the V2 protocol, health, metrics, and the page.

    bytes --> thread pool: decode --> batcher --> thread pool: encode --> bytes

The event loop only moves bytes; whatever computes runs in a pool or in the batcher's thread.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version as installed_version
from typing import Any, Literal, TypeVar

import numpy as np
import python_multipart
from prometheus_client import Counter
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving import page, protocol
from serving.artifact import ModelInfo
from serving.batcher import Closed, QueueFull, Ticket
from serving.engine import usable_cpus
from serving.metrics import new_registry, prometheus_text
from serving.pictures import WEB_FORMATS, TooManyPixels, coco_rle, index_png, jpeg, load_picture, overlay, png
from serving.repository import Answer, Model, Repository, UnknownModel

log = logging.getLogger("serving")
request_log = logging.getLogger("serving.requests")

MEDIA_TYPES = {
    "labels": "image/png",
    "overlay": "image/jpeg",
    "areas": "application/json",
    "rle": "application/x-coco-rle+json",
}
"""What a picture can be answered with, in the order in which `Accept: */*` chooses."""

MAX_INDEX_BODY = 2**16
"""Bytes of a request for the repository's index: it is read on the event loop, and says yes or no."""

OPEN_PATHS = ("/v2/health/",)
"""Answered without a token: what asks for them, such as Kubernetes, has none."""

R = TypeVar("R")


class DeadlineExceeded(Exception):
    """The request's time was over before its batch ran."""


class BackendError(Exception):
    """The model failed on a request that was right."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for."""

    max_body: int = 2**26
    """Bytes of a body, compressed and not."""
    max_bodies: int = 2**28
    """Bytes of all bodies that are being read or decoded."""
    max_pixels: int = 2**24
    """Of a picture, or of a tensor's pictures together."""
    timeout: float = 30.0
    """Seconds that a request may wait for its batch."""
    body_timeout: float = 30.0
    """Seconds that its body may take to arrive."""


@dataclass(frozen=True)
class Asked:
    """A decoded request: pictures of one size, and how to tell the answer."""

    images_NHWC: np.ndarray
    outputs: tuple[str, ...]
    timeout: float | None
    encode: Callable[[Model, Answer], Response]
    id: str | None = None


Decode = Callable[[Model, bytes], Asked]

# Status, and Triton's reason in the metrics, of what is not answered; what a client sent wrongly is an HTTPException.
FAILURES: dict[type[BaseException], tuple[int, str]] = {
    UnknownModel: (404, "OTHER"),
    QueueFull: (503, "REJECTED"),
    Closed: (503, "REJECTED"),
    DeadlineExceeded: (503, "REJECTED"),
    ClientDisconnect: (499, "CANCELED"),  # nobody reads it; nginx' number, for the log
    asyncio.CancelledError: (499, "CANCELED"),
    BackendError: (500, "BACKEND"),
}


class Service:
    """The endpoints.

    Attributes:
        state: "loading" at first, when inference is refused, then "ready", which `/v2/health/ready` tells. While it is
            "draining", that says no again, and requests are answered all the same.
    """

    def __init__(self, repository: Repository, limits: Limits, *, allow_load: bool = False):
        self.state: Literal["loading", "ready", "draining"] = "loading"
        self.repository = repository
        self._limits = limits
        self._allow_load = allow_load
        self._pool = ThreadPoolExecutor(usable_cpus(), "pictures")
        self._held_bytes = 0
        self.registry = new_registry(repository.models)

    def routes(self) -> list[BaseRoute]:
        def of_model(path: str, endpoint: Any, method: str) -> list[BaseRoute]:
            """Of its newest version, and of one by number."""
            before, after = path.split("{model}")
            paths = (path, f"{before}{{model}}/versions/{{version}}{after}")
            return [Route(path, endpoint, methods=[method]) for path in paths]

        return [
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.server_ready),
            Route("/v2/models/stats", self.statistics),
            *of_model("/v2/models/{model}", self.metadata, "GET"),
            *of_model("/v2/models/{model}/ready", self.model_ready, "GET"),
            *of_model("/v2/models/{model}/config", self.config, "GET"),
            *of_model("/v2/models/{model}/stats", self.statistics, "GET"),
            *of_model("/v2/models/{model}/infer", self.infer, "POST"),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=["POST"]),
            *of_model("/v1/segment/{model}", self.segment, "POST"),
            Route("/metrics", self.metrics),
            *page.routes(),
        ]

    def close(self) -> None:
        self._pool.shutdown()

    # Health and what there is

    async def live(self, request: Request) -> Response:
        return Response()

    async def server_ready(self, request: Request) -> Response:
        return Response(status_code=200 if self.state == "ready" else 503)

    async def model_ready(self, request: Request) -> Response:
        model = self._model(request)
        ready = self.state == "ready"
        return JSONResponse({"name": model.info.name, "ready": ready}, 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        return JSONResponse(
            {"name": "kerasseg", "version": installed_version("kerasseg"), "extensions": protocol.EXTENSIONS}
        )

    async def metadata(self, request: Request) -> Response:
        model = self._model(request)
        versions = self.repository.versions(model.info.name)
        return JSONResponse(protocol.model_metadata(model.info, versions, model.provider))

    async def config(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse(
            protocol.model_config(model.info, model.provider, model.max_batch_size, model.max_delay, model.buckets)
        )

    async def statistics(self, request: Request) -> Response:
        models = [self._model(request)] if "model" in request.path_params else self.repository.models()
        return JSONResponse(
            {"model_stats": [model.statistics.to_json(model.info.name, model.info.version) for model in models]}
        )

    async def metrics(self, request: Request) -> Response:
        return Response(prometheus_text(self.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def index(self, request: Request) -> Response:
        async with self._body(request, MAX_INDEX_BODY) as body:
            try:
                asked = json.loads(body) if body else {}
                only_ready = asked.get("ready", False)
            except (ValueError, AttributeError, RecursionError) as error:
                raise HTTPException(400, f'expected {{"ready": true}}, false, or nothing: {error}') from error
        entries = self.repository.index()
        return JSONResponse([entry for entry in entries if not only_ready or entry["state"] == "READY"])

    async def load(self, request: Request) -> Response:
        return await self._change(self.repository.load_one, request)

    async def unload(self, request: Request) -> Response:
        return await self._change(self.repository.unload, request)

    async def _change(self, change: Callable[[str], None], request: Request) -> Response:
        if not self._allow_load:
            raise HTTPException(403, "clients may not load or unload models here: start the server with --allow-load")
        try:
            await asyncio.to_thread(change, request.path_params["model"])
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        return Response()

    # Inference

    async def infer(self, request: Request) -> Response:
        """The V2 protocol: tensors in, tensors out."""
        encoding = request.headers.get("content-encoding", "").strip().lower()
        header_length = request.headers.get(protocol.HEADER_LENGTH)

        def decode(model: Model, body: bytes) -> Asked:
            body = protocol.decompress(body, encoding, self._limits.max_body)
            asked = protocol.parse_request(body, header_length, model.info, 3 * self._limits.max_pixels)
            [images_NHWC] = asked.inputs.values()
            if len(images_NHWC) > model.max_batch_size:
                raise ValueError(f"{len(images_NHWC)} pictures in a tensor, at most {model.max_batch_size} are taken")

            def encode(model: Model, answer: Answer) -> Response:
                content, length = protocol.write_response(model.info, asked, answer.outputs)
                if length is None:
                    return Response(content, media_type="application/json")
                headers = {protocol.HEADER_LENGTH: str(length)}
                return Response(content, media_type="application/octet-stream", headers=headers)

            return Asked(images_NHWC, tuple(asked.outputs), asked.timeout, encode, asked.id)

        return await self._answer(request, decode)

    async def segment(self, request: Request) -> Response:
        """A picture in; its mask, overlay, areas or run lengths out."""
        kind = request.headers.get("content-type", "")
        query, accept = request.query_params, request.headers.get("accept", "*/*")

        def decode(model: Model, body: bytes) -> Asked:
            output = choose_output(query, accept, model.info)
            opacity, timeout = _number(query, "opacity", 0.5, 1.0), _number(query, "timeout", math.inf, math.inf)
            contents = file_of_form(kind, body) if kind.lower().startswith("multipart/form-data") else body
            image_HWC = load_picture(contents, max_pixels=self._limits.max_pixels, formats=WEB_FORMATS)

            def encode(model: Model, answer: Answer) -> Response:
                outputs = {name: array[0] for name, array in answer.outputs.items()}
                return picture_response(model.info, output, image_HWC, outputs, opacity, request.state.id)

            wanted = {"areas": ("labels", "confidence"), "overlay": ("labels",), "rle": ("labels",)}
            return Asked(image_HWC[None], wanted.get(output, (output,)), timeout, encode)

        return await self._answer(request, decode)

    async def _answer(self, request: Request, decode: Decode) -> Response:
        """The way of every inference request, counted whatever becomes of it."""
        arrived = time.perf_counter_ns()
        model = self._model(request)
        request.state.model = f"{model.info.name}/{model.info.version}"
        try:
            if model.full:  # before its body is read: refusing has to be cheap
                raise QueueFull("the queue is full")
            async with self._body(request) as body:
                model, ticket = self.repository.admit(*_wanted_model(request))
                with ticket:
                    asked, future = await self._in_pool(self._prepare, model, ticket, decode, body)
            if asked.id is not None and "x-request-id" not in request.headers:
                request.state.id = _safe_id(asked.id)
            passed = (time.perf_counter_ns() - arrived) / 1e9
            seconds = self._limits.timeout if asked.timeout is None else min(self._limits.timeout, asked.timeout)
            answer = await self._wait(request, future, seconds - passed)
            answered = time.perf_counter_ns()
            response = await self._in_pool(asked.encode, model, answer)
        except BaseException as error:
            _, reason = FAILURES.get(type(error), (None, "OTHER"))
            model.statistics.failed(reason, time.perf_counter_ns() - arrived)
            raise
        ended = time.perf_counter_ns()
        durations = dict(answer.durations)
        durations["compute_input"] += answer.submitted - arrived
        durations["compute_output"] += ended - answered
        model.statistics.succeeded(len(asked.images_NHWC), durations | {"success": ended - arrived})
        response.headers["Server-Timing"] = ", ".join(f"{name};dur={ns / 1e6:.2f}" for name, ns in durations.items())
        return response

    @staticmethod
    def _prepare(model: Model, ticket: Ticket, decode: Decode, body: bytes) -> tuple[Asked, "Future[Answer]"]:
        asked = decode(model, body)
        return asked, model.submit(ticket, asked.images_NHWC, asked.outputs)

    async def _wait(self, request: Request, future: "Future[Answer]", seconds: float) -> Answer:
        """The answer, unless the client goes or the time is over first: then the request leaves its queue.

        A request whose batch runs already is answered, late as it may be.
        """
        answered: asyncio.Future[Any] = asyncio.wrap_future(future)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({answered, gone}, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
            if not answered.done() and not gone.done():
                if future.cancel():
                    raise DeadlineExceeded("the request's time was over before its turn came")
                await asyncio.wait({answered, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                raise ClientDisconnect
            try:
                return answered.result()
            except Exception as error:
                raise BackendError(f"the model failed: {error}") from error
        finally:
            gone.cancel()
            answered.cancel()

    @contextlib.asynccontextmanager
    async def _body(self, request: Request, most: int | None = None) -> AsyncIterator[bytes]:
        """The body, within the limits (`most` bytes of it); its bytes count as held until the block ends."""
        limits, chunks, length = self._limits, [], 0
        most = most or limits.max_body
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > most:
            raise HTTPException(413, f"the body has {announced} bytes, at most {most} are taken")
        try:
            try:
                async with asyncio.timeout(limits.body_timeout):
                    async for chunk in request.stream():
                        length += len(chunk)
                        self._held_bytes += len(chunk)
                        if length > most:
                            raise HTTPException(413, f"the body has more than {most} bytes")
                        if self._held_bytes > limits.max_bodies:
                            raise QueueFull("too many large bodies are arriving at once")
                        chunks.append(chunk)
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {limits.body_timeout:g} seconds") from None
            yield b"".join(chunks)
        finally:
            self._held_bytes -= length

    async def _in_pool(self, function: Callable[..., R], *args: Any) -> R:
        """Runs what reads a request or writes an answer; its ValueErrors tell the client what is wrong."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)
        except ValueError as error:
            too_large = isinstance(error, (protocol.TooLarge, TooManyPixels))
            raise HTTPException(413 if too_large else 400, str(error)) from error

    def _model(self, request: Request) -> Model:
        if self.state == "loading":
            raise HTTPException(503, "the models are being loaded", {"Retry-After": "1"})
        return self.repository.get(*_wanted_model(request))


def choose_output(query: Mapping[str, str], accept: str, info: ModelInfo) -> str:
    """What a picture is answered with: a key of `MEDIA_TYPES`, or a map of the model such as `confidence`.

    Args:
        query: `output` decides where it is given.
        accept: the header, where it is not.

    Raises:
        ValueError: no such output.
        HTTPException: 406, where nothing that is accepted can be had.
    """
    maps = [tensor.name for tensor in info.outputs if tensor.datatype.startswith("FP") and len(tensor.shape) == 3]
    output = query.get("output")
    if output is not None:
        if output not in (*MEDIA_TYPES, *maps):
            raise ValueError(f"output is {output}: expected {', '.join((*MEDIA_TYPES, *maps))}")
        return output
    ranges = []
    for entry in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        with contextlib.suppress(ValueError):
            ranges.append((float(quality), media_type))
    for weight, media_type in sorted(ranges, key=lambda item: -item[0]):
        for output, own in MEDIA_TYPES.items():
            if weight > 0 and fnmatch(own, media_type):
                return output
    raise HTTPException(406, f"Accept is {accept}: this can be had: {', '.join(MEDIA_TYPES.values())}")


def file_of_form(content_type: str, body: bytes) -> bytes:
    """The one file of a form (`curl -F picture=@a.jpg`).

    Raises:
        ValueError: it is no form, or has another number of files.
    """
    files: list[Any] = []
    limits = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # nothing is spooled to a disk
    parser = python_multipart.create_form_parser({"Content-Type": content_type.encode()}, None, files.append, limits)
    parser.write(body)
    parser.finalize()
    if len(files) != 1:
        raise ValueError(f"the form has {len(files)} files: send one picture a request, such as -F picture=@a.jpg")
    files[0].file_object.seek(0)
    return files[0].file_object.read()


def picture_response(
    info: ModelInfo,
    output: str,
    image_HWC: np.ndarray,
    outputs: Mapping[str, np.ndarray],
    opacity: float,
    request_id: str,
) -> Response:
    """One picture's answer.

    Args:
        output: see `choose_output`.
        outputs: the model's, (H,W) each.
    """
    model = {"id": request_id, "model_name": info.name, "model_version": str(info.version)}
    if output == "labels":
        return Response(index_png(outputs["labels"], info.palette), media_type=MEDIA_TYPES[output])
    if output == "overlay":
        tinted = jpeg(overlay(image_HWC, outputs["labels"], info.palette, opacity))
        return Response(tinted, media_type=MEDIA_TYPES[output])
    if output not in MEDIA_TYPES:
        grey_HW = np.rint(np.clip(outputs[output].astype(np.float32), 0, 1) * 255).astype(np.uint8)
        return Response(png(grey_HW), media_type="image/png")
    labels_HW = outputs["labels"]
    height, width = labels_HW.shape
    pixels = np.bincount(labels_HW.ravel(), minlength=len(info.classes))
    runs = coco_rle(labels_HW) if output == "rle" else {}
    classes = [
        {
            "label": label,
            "name": info.classes[label] if label < len(info.classes) else str(label),
            "pixels": int(count),
            "share": round(int(count) / labels_HW.size, 6),
        }
        | ({"rle": runs[label]} if runs else {})
        for label, count in enumerate(pixels)
        if count
    ]
    answer = model | {"height": height, "width": width, "classes": classes}
    if "confidence" in outputs:
        answer["mean_confidence"] = round(float(outputs["confidence"].mean()), 6)
    return Response(json.dumps(answer), media_type=MEDIA_TYPES[output])


class Frame:
    """Around every request: its id, the token, the line in the log, and JSON even for what nobody foresaw.

    Args:
        token: what `Authorization: Bearer` has to say; None for nothing.
    """

    def __init__(self, app: Any, service: Service, token: str | None):
        self._app = app
        self._expected = f"Bearer {token}".encode() if token else None
        self._counter = Counter(
            "kerasseg_http_requests", "Requests answered, by status", ["method", "status"], registry=service.registry
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, state, headers = time.perf_counter(), scope.setdefault("state", {}), Headers(scope=scope)
        state["id"] = _safe_id(headers.get("x-request-id", "")) or uuid.uuid4().hex
        status, sent = None, 0

        async def send_with_id(message: Any) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = state["id"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            app = self._app if self._allowed(scope, headers) else _unauthorized
            await app(scope, receive, send_with_id)
        except Exception:
            # Starlette has answered with 500 by now, and leaves the rest to whoever runs it.
            log.exception("request failed", extra={"id": state["id"], "path": scope["path"]})
        finally:
            code = status or 499  # the client was gone
            self._counter.labels(scope["method"], str(code)).inc()
            request_log.info(
                "request",
                extra={
                    "id": state["id"],
                    "client": (scope.get("client") or ("",))[0],
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": code,
                    "ms": round((time.perf_counter() - started) * 1000, 2),
                    "bytes": sent,
                    **({"model": state["model"]} if "model" in state else {}),
                },
            )

    def _allowed(self, scope: Any, headers: Headers) -> bool:
        if self._expected is None or scope["path"].startswith(OPEN_PATHS) or page.is_open(scope["path"]):
            return True
        return hmac.compare_digest(headers.get("authorization", "").encode(), self._expected)


def make_app(service: Service, token: str | None = None, lifespan: Any = None) -> Frame:
    """The ASGI application.

    Args:
        token: see `Frame`.
        lifespan: Starlette's: what happens before the first request and after the last.
    """
    failures = [kind for kind in FAILURES if issubclass(kind, Exception)]
    handlers: dict[Any, Any] = dict.fromkeys((HTTPException, *failures), _error_response)
    handlers[Exception] = _internal_error
    return Frame(Starlette(routes=service.routes(), exception_handlers=handlers, lifespan=lifespan), service, token)


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    status, _ = FAILURES[type(error)]
    message = str(error) or "the server is stopping"
    return JSONResponse({"error": message}, status, {"Retry-After": "1"} if status == 503 else None)


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"internal error; the server's log tells more of request {request.state.id}"}, 500)


_unauthorized = JSONResponse(
    {"error": "send the server's token as Authorization: Bearer TOKEN"}, 401, {"WWW-Authenticate": "Bearer"}
)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wanted_model(request: Request) -> tuple[str, str | None]:
    return request.path_params["model"], request.path_params.get("version")


def _number(query: Mapping[str, str], name: str, default: float, most: float) -> float:
    try:
        value = float(query.get(name, default))
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {query[name]}: expected a number from 0 to {most:g}")
    return value


def _safe_id(text: str) -> str:
    """What may stand in a header and in a line of a log."""
    return "".join(character for character in text if "!" <= character <= "~")[:128]
