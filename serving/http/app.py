"""The server's HTTP side: pictures in and masks out, the V2 protocol, health, metrics, and the page."""

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import numpy as np
import python_multipart
from prometheus_client import Counter
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.common.artifact import ModelInfo
from serving.common.pictures import WEB_FORMATS, areas, index_png, jpeg, load_picture, map_png, overlay
from serving.http import openapi, page
from serving.http.connections import BROKEN, DRAINED, REFUSED
from serving.model.model import Answer, Model
from serving.service import v2_protocol
from serving.service.metrics import prometheus_text
from serving.service.service import (
    FAILURES,
    MAX_SHORT_BODY,
    Asked,
    BadRequest,
    Call,
    ClientGone,
    Decode,
    Service,
    bears,
    message_of,
    tensor_asked,
)

log = logging.getLogger("serving")

MEDIA_TYPES = {
    "labels": "image/png",
    "overlay": "image/jpeg",
    "areas": "application/json",
    "rle": "application/x-coco-rle+json",
}
"""What a picture can be answered with, in the order in which `Accept: */*` chooses."""

MAX_RUNS = 2**20
"""Of an answer in run lengths."""

MAX_PARTS = 64
"""Of a form, with its end."""

SENT_BYTES = 2**16
"""Of an answer at a time: how much of it was sent is known, and logged, when its client goes."""

_LOST_BY_CURL = re.compile(rb"[\r\n\0]")
"""What `curl -d @FILE` takes out of a file. No picture is without."""

OPEN_PATHS = ("/v2/health/",)
"""Answered without a token: what asks for them, such as Kubernetes, has none."""


class Endpoints:
    """What is answered at which path; `serving.http.openapi` describes it.

    Args:
        document: that description.
    """

    def __init__(self, service: Service, document: dict[str, Any]):
        self._service = service
        self._document = document

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
            Route("/openapi.json", self.openapi),
            *page.routes(),
        ]

    # Health and what there is

    async def live(self, request: Request) -> Response:
        return Response()

    async def server_ready(self, request: Request) -> Response:
        return Response(status_code=200 if self._service.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        model, ready = self._service.model(*_wanted_model(request)), self._service.ready
        return JSONResponse({"name": model.info.name, "ready": ready}, 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        return JSONResponse(self._service.server_metadata())

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self._service.model_metadata(*_wanted_model(request)))

    async def config(self, request: Request) -> Response:
        return JSONResponse(self._service.model_config(*_wanted_model(request)))

    async def statistics(self, request: Request) -> Response:
        return JSONResponse(self._service.statistics(*_wanted_model(request)))

    async def metrics(self, request: Request) -> Response:
        return Response(prometheus_text(self._service.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def index(self, request: Request) -> Response:
        only_ready = await self._field(request, "ready", False)
        if not isinstance(only_ready, bool):
            raise HTTPException(400, 'expected {"ready": true}, false, or nothing')
        return JSONResponse(self._service.index(only_ready))

    async def load(self, request: Request) -> Response:
        given = await self._field(request, "parameters", {})
        if not isinstance(given, dict):
            raise HTTPException(400, 'expected {"parameters": {}}, or nothing')
        await self._service.load(request.path_params["model"], given)
        return Response()

    async def unload(self, request: Request) -> Response:
        await self._service.unload(request.path_params["model"])
        return Response()

    # Inference

    async def infer(self, request: Request) -> Response:
        """The V2 protocol: tensors in, tensors out."""
        header_length = request.headers.get(v2_protocol.HEADER_LENGTH)

        def decode(model: Model, body: bytes) -> Asked:
            asked = v2_protocol.parse_request(body, header_length, model.info, 3 * self._service.limits.max_pixels)

            def encode(model: Model, answer: Answer) -> Response:
                content, length = v2_protocol.write_response(model.info, asked, answer.outputs)
                if length is None:
                    return Response(content, media_type="application/json")
                headers = {v2_protocol.HEADER_LENGTH: str(length)}
                return Response(content, media_type="application/octet-stream", headers=headers)

            return tensor_asked(model, asked, self._service.limits, encode)

        return await self._answer(request, decode)

    async def segment(self, request: Request) -> Response:
        """A picture in; its mask, overlay, areas or run lengths out."""
        kind = request.headers.get("content-type", "")
        query, accept = request.query_params, request.headers.get("accept", "*/*")
        timeout = math.inf
        with contextlib.suppress(ValueError):  # which `decode` tells
            timeout = _number(query, "timeout", math.inf, math.inf)

        def decode(model: Model, body: bytes) -> Asked:
            output = choose_output(query, accept, model.info)
            opacity, timeout = _number(query, "opacity", 0.5, 1.0), _number(query, "timeout", math.inf, math.inf)
            contents = file_of_form(kind, body) if kind.lower().startswith("multipart/form-data") else body
            try:
                image_HWC = load_picture(contents, max_pixels=self._service.limits.max_pixels, formats=WEB_FORMATS)
            except ValueError as error:
                by_curl = kind.lower().startswith("application/x-www-form-urlencoded")  # as it says by itself
                if by_curl and contents and not _LOST_BY_CURL.search(contents, 0, 2**16):
                    raise ValueError(
                        f"{error}; it has no line end and no zero byte, which curl -d takes out of a file: "
                        "send it with curl --data-binary @FILE"
                    ) from error
                raise

            def encode(model: Model, answer: Answer) -> Response:
                outputs = {name: array[0] for name, array in answer.outputs.items()}
                return picture_response(model.info, output, image_HWC, outputs, opacity, request.state.call.id)

            wanted = {"areas": ("labels", "confidence"), "overlay": ("labels",), "rle": ("labels",)}
            return Asked(image_HWC[None], wanted.get(output, (output,)), timeout, encode)

        return await self._answer(request, decode, timeout)

    async def _answer(self, request: Request, decode: Decode, timeout: float = math.inf) -> Response:
        encoding = _encoding(request)

        def decompress_and_decode(model: Model, body: bytes) -> Asked:
            return decode(model, v2_protocol.decompress(body, encoding, self._service.limits.max_body))

        response, durations = await self._service.infer(
            request.state.call,
            *_wanted_model(request),
            self._body(request),
            decompress_and_decode,
            functools.partial(_disconnected, request),
            timeout,
        )
        response.headers["Server-Timing"] = ", ".join(f"{name};dur={ns / 1e6:.2f}" for name, ns in durations.items())
        return response

    async def _field(self, request: Request, name: str, default: Any) -> Any:
        """A field of a short JSON body, `default` where there is none; None where the body is no JSON object."""
        async with self._body(request, MAX_SHORT_BODY) as body:
            try:
                body = v2_protocol.decompress(body, _encoding(request), MAX_SHORT_BODY)
                return json.loads(body).get(name, default) if body else default
            except (ValueError, AttributeError, RecursionError):
                return None

    @contextlib.asynccontextmanager
    async def _body(self, request: Request, most: int | None = None) -> AsyncIterator[bytes]:
        """The body, within the limits (`most` bytes of it); its bytes count as held until the block ends."""
        limits, chunks, length = self._service.limits, [], 0
        most = most or limits.max_body
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > 20 or int(announced) > most):
            raise HTTPException(413, f"the body has {announced[:20]} bytes, at most {most} are taken")
        with self._service.holding() as hold:
            try:
                async with asyncio.timeout(limits.body_timeout):
                    async for chunk in request.stream():
                        length += len(chunk)
                        if length > most:
                            raise HTTPException(413, f"the body has more than {most} bytes")
                        hold(len(chunk))
                        chunks.append(chunk)
            except TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {limits.body_timeout:g} seconds") from None
            except ClientDisconnect:
                raise ClientGone from None
            if why := getattr(request.state, BROKEN, None):
                raise BadRequest(why)
            yield b"".join(chunks)


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
    _, options = parse_options_header(content_type)
    boundary = re.escape(b"--" + options.get(b"boundary", b""))
    if next(itertools.islice(re.finditer(boundary, body), MAX_PARTS, None), None):
        raise ValueError(f"the form has more than {MAX_PARTS - 1} parts: send one picture a request")
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
        return Response(map_png(outputs[output]), media_type="image/png")
    labels_HW = outputs["labels"]
    height, width = labels_HW.shape
    if output == "rle" and np.count_nonzero(labels_HW[1:] != labels_HW[:-1]) > MAX_RUNS:
        raise ValueError(f"the labels change more than {MAX_RUNS} times: ask for output=labels")
    classes = areas(labels_HW, info.classes, runs=output == "rle")
    answer = model | {"height": height, "width": width, "classes": classes}
    if "confidence" in outputs:
        answer["mean_confidence"] = round(float(outputs["confidence"].mean()), 6)
    # Written in one piece, long lists of runs would hold up all other threads.
    return Response("".join(json.JSONEncoder().iterencode(answer)), media_type=MEDIA_TYPES[output])


class Frame:
    """Around every request: its id, the line in the log, and JSON even for what nobody foresaw or could read."""

    def __init__(self, app: Any, service: Service):
        self._app = app
        self._service = service
        self._counter = Counter(
            "kerasseg_http_requests", "Requests answered, by status", ["method", "status"], registry=service.registry
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, client = Headers(scope=scope), (scope.get("client") or ("",))[0]
        call = Call(scope["method"], scope["path"], client, headers.get("x-request-id", ""))
        state = scope.setdefault("state", {})
        state["call"] = call
        status, sent = None, 0

        async def send_in_pieces(message: Any) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = call.id
                await send(message)
                return
            body, more = memoryview(message.get("body", b"")), message.get("more_body", False)
            with self._service.answering(len(body)):
                for start in range(0, len(body) or 1, SENT_BYTES):
                    piece = body[start : start + SENT_BYTES]
                    await send(message | {"body": piece, "more_body": more or start + SENT_BYTES < len(body)})
                    if DRAINED in state and not await state[DRAINED]():
                        status = None
                        return
                    sent += len(piece) if scope["method"] != "HEAD" else 0

        try:
            await (_refused if REFUSED in state else self._app)(scope, receive, send_in_pieces)
        except Exception:
            # Starlette has answered with 500 by now, and leaves the rest to whoever runs it.
            log.exception("request failed", extra={"id": call.id, "path": scope["path"]})
        finally:
            code = status or 499  # the client was gone
            self._counter.labels(scope["method"], str(code)).inc()
            call.ended(code, sent)


class Guard:
    """Lets nobody in without the token.

    Args:
        token: what `Authorization: Bearer` has to say; None for nothing.
    """

    def __init__(self, app: Any, token: str | None):
        self._app = app
        self._token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_open = scope["type"] != "http" or scope["path"].startswith(OPEN_PATHS) or page.is_open(scope["path"])
        allowed = is_open or bears(self._token, Headers(scope=scope).get("authorization", ""))
        await (self._app if allowed else _unauthorized)(scope, receive, send)


class CrossOrigin(CORSMiddleware):
    """Starlette's, whose refusals are no JSON."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        return JSONResponse({"error": bytes(response.body).decode()}, response.status_code, {"Vary": "Origin"})


def make_app(
    service: Service, token: str | None = None, lifespan: Any = None, allow_origins: Sequence[str] = ()
) -> Frame:
    """The ASGI application.

    Args:
        token: see `Guard`.
        lifespan: Starlette's: what happens before the first request and after the last.
        allow_origins: pages of these origins may send requests from a browser (CORS); "*" for all.
    """
    failures = [kind for kind in FAILURES if issubclass(kind, Exception)]
    handlers: dict[Any, Any] = dict.fromkeys((HTTPException, *failures), _error_response)
    handlers[Exception] = _internal_error
    routes = Endpoints(service, openapi.document(token=token is not None)).routes()
    app: Any = Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), token)
    if allow_origins:
        app = CrossOrigin(
            app,
            allow_origins=allow_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("X-Request-Id", "Server-Timing", "Retry-After", v2_protocol.HEADER_LENGTH),
        )
    return Frame(app, service)


async def _refused(scope: Any, receive: Any, send: Any) -> None:
    status, message = scope["state"][REFUSED]
    headers = {"Connection": "close"} | ({"Retry-After": "1"} if status == 503 else {})
    await JSONResponse({"error": message}, status, headers)(scope, receive, send)


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    status = FAILURES[type(error)].status
    return JSONResponse({"error": message_of(error)}, status, {"Retry-After": "1"} if status == 503 else None)


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": request.state.call.unforeseen()}, 500)


_unauthorized = JSONResponse(
    {"error": "send the server's token as Authorization: Bearer TOKEN"}, 401, {"WWW-Authenticate": "Bearer"}
)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _encoding(request: Request) -> str:
    return request.headers.get("content-encoding", "").strip().lower()


def _wanted_model(request: Request) -> tuple[Any, str | None]:
    return request.path_params.get("model"), request.path_params.get("version")


def _number(query: Mapping[str, str], name: str, default: float, most: float) -> float:
    try:
        value = float(query.get(name, default))
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {query[name]}: expected a number from 0 to {most:g}")
    return value
