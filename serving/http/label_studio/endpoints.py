"""Label Studio's ML backend: each served model as one, at `/label-studio/NAME`."""

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.common.images import load_image
from serving.common.label_studio import brush_results, label_config
from serving.http.bodies import content_encoding, decompress, received
from serving.http.label_studio.client import FETCHES, LabelStudio
from serving.http.label_studio.project import (
    Brush,
    Task,
    Wanted,
    contents_of_data_url,
    is_data_url,
    read_request,
)
from serving.model.model import Answer, Model
from serving.service.failures import FAILURES, BadRequest, ClientGone, client_message, value_errors_as_failures
from serving.service.limits import RequestLimits
from serving.service.requests import DecodedRequest, RequestRecord
from serving.service.service import Service
from serving.service.v2_protocol import PIECE

R = TypeVar("R")

log = logging.getLogger("serving")

PREFIX = "/label-studio"
"""Before the paths of all endpoints."""

MAX_TASKS = 16
"""Tasks of a request that are answered together. Label Studio sends all that are selected, and waits 100 seconds. To
more it is answered with one prediction; then it sends the tasks one by one."""

MAX_CHANGES = 2**20
"""The most changes of the label from one pixel to the next, down or across, in an image."""

MAX_ANSWER = 2**24
"""Bytes of predictions that are answered together. Beyond it one is, and Label Studio sends the tasks one by one."""

_NUMBERS = tuple(b"%d" % number for number in range(256))

NO_TRAINING = "this server does not train: export the annotations, then run kerasseg import and kerasseg train"


class LabelStudioCodec:
    """One image's way to a prediction, see `serving.service.requests.Codec`.

    Args:
        brush: the project's.
    """

    timeout = math.inf

    def __init__(self, brush: Brush, limits: RequestLimits):
        self._brush = brush
        self._limits = limits

    def decode(self, model: Model, body: bytes) -> DecodedRequest:
        self._brush.written_labels(model.info)
        image_HWC = load_image(body, max_pixels=self._limits.max_pixels)
        return DecodedRequest(images_NHWC=image_HWC[None], outputs=("labels", "confidence"))

    def encode(self, model: Model, request: DecodedRequest, answer: Answer) -> bytes:
        info, (labels_HW,) = model.info, answer.outputs["labels"]
        changes = (labels_HW[1:] != labels_HW[:-1]).sum() + (labels_HW[:, 1:] != labels_HW[:, :-1]).sum()
        if changes > MAX_CHANGES:
            raise ValueError(f"the labels change more than {MAX_CHANGES} times: the image is too large for a brush")
        written = self._brush.written_labels(info)
        results = brush_results(
            labels_HW,
            [written.get(label, "") for label in range(len(info.classes))],
            from_name=self._brush.from_name,
            to_name=self._brush.to_name,
            leave_out=set(range(len(info.classes))) - written.keys(),
        )
        confidence = float(answer.outputs["confidence"].mean())
        return _written(results, {"score": round(confidence, 6), "model_version": _version_of(model)})


class LabelStudioEndpoints:
    """What Label Studio asks of an ML backend; `serving.http.openapi` describes it.

    Args:
        label_studio: where images are; None where the operator named none.
    """

    def __init__(self, service: Service, label_studio: LabelStudio | None):
        self._service = service
        self._label_studio = label_studio

    def routes(self) -> list[BaseRoute]:
        base = f"{PREFIX}/{{model}}"
        return [
            Route(PREFIX, self.models),
            Route(base, self.model),
            Route(f"{base}/health", self.health),
            Route(f"{base}/versions", self.versions),
            Route(f"{base}/setup", self.setup, methods=["POST"]),
            Route(f"{base}/predict", self.predict, methods=["POST"]),
            Route(f"{base}/webhook", self.no_training, methods=["POST"]),
            Route(f"{base}/train", self.no_training, methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        self._require()
        newest = {model.info.name: _version_of(model) for model in self._service.repository.models()}
        base = f"{str(request.base_url).rstrip('/')}{PREFIX}"
        models = [{"address": f"{base}/{quote(name)}", "model_version": newest[name]} for name in sorted(newest)]
        return JSONResponse({"models": models})

    async def model(self, request: Request) -> Response:
        self._require()
        info = self._model(request).info
        return JSONResponse(
            {
                "status": "UP",
                "model_version": f"{info.name}/{info.version}",
                "classes": list(info.classes),
                "label_config": label_config(info),
            }
        )

    async def health(self, request: Request) -> Response:
        self._require()
        return JSONResponse({"status": "UP", "model_class": self._model(request).info.name})

    async def versions(self, request: Request) -> Response:
        self._require()
        name = self._model(request).info.name
        return JSONResponse({"versions": [f"{name}/{number}" for number in self._service.repository.versions(name)]})

    async def setup(self, request: Request) -> Response:
        """Says whether model, project and token fit. The address and the token in the request are not used."""
        label_studio, model = self._require(), self._model(request)

        def check(asked: dict[str, Any], is_cut: bool) -> None:
            Brush.from_config(asked.get("schema")).written_labels(model.info)

        await self._read(request, check)
        await label_studio.check()
        return JSONResponse({"model_version": _version_of(model)})

    async def predict(self, request: Request) -> Response:
        """A prediction for each task, or `{"error": ...}` where others have one; one where there are too many."""
        label_studio, model = self._require(), self._model(request)

        def read(asked: dict[str, Any], is_cut: bool) -> Wanted:
            return Wanted.from_request(asked, is_cut, model.info, MAX_TASKS)

        with self._service.receiving() as count:
            wanted = await self._read(request, read)
            count(wanted.kept_bytes)
            request.state.record.model = model
            content = await _unless_gone(request, self._predictions(request, label_studio, model, wanted))
        return Response(content, media_type="application/json")

    async def _predictions(self, request: Request, label_studio: LabelStudio, model: Model, wanted: Wanted) -> bytes:
        """The answer's JSON. Raises the first failure where there is nothing else to answer."""
        turns = asyncio.Semaphore(FETCHES)
        room = MAX_ANSWER

        async def predicted(number: int, task: Task) -> bytes | Exception | None:
            """None where the answer has no room for it."""
            nonlocal room
            async with turns:
                if number and room < 0:
                    return None
                of_request = request.state.record
                record = RequestRecord("POST", request.url.path, "", of_request.id)  # whose time begins now
                try:
                    body = self._image(label_studio, task)
                    codec = LabelStudioCodec(wanted.brush, self._service.limits)
                    answer, _ = await self._service.infer(record, model.info.name, None, body, codec)
                except tuple(kind for kind in FAILURES if issubclass(kind, Exception)) as error:
                    return type(error)(*error.args)  # without the traceback, which holds the image
                room -= len(answer)
                if number and room < 0:
                    return None
                held.enter_context(self._service.sending(len(answer)))
                return answer

        with contextlib.ExitStack() as held:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(predicted(*numbered)) for numbered in enumerate(wanted.tasks)]
            results = [task.result() for task in running]
            is_cut = wanted.is_cut or None in results
            if is_cut:
                results = results[:1]
            failures = [result for result in results if isinstance(result, Exception)]
            if failures and len(failures) == len(results) and not is_cut:
                raise failures[0]
            written = [_error(result) if isinstance(result, Exception) else result for result in results if result]
            return b'{"results": [%b]}' % b", ".join(written)

    async def no_training(self, request: Request) -> Response:
        self._require()
        model = self._model(request)
        async with received(request, self._service):
            pass
        log.info(
            "Label Studio reports a change or asks for training: this server does not train",
            extra={"model": model.info.name},
        )
        return JSONResponse({"status": "ok", "detail": NO_TRAINING})

    def _require(self) -> LabelStudio:
        if self._label_studio is None:
            raise HTTPException(404, "Label Studio is not answered here: start the server with --label-studio-url")
        return self._label_studio

    def _model(self, request: Request) -> Model:
        return self._service.model(request.path_params["model"])

    async def _read(self, request: Request, keep: Callable[[dict[str, Any], bool], R]) -> R:
        """What `keep` makes of a request's JSON, see `read_request`. Nothing else stays: only bodies are counted."""

        def read() -> R:
            contents = decompress(body, content_encoding(request.headers), self._service.limits.max_body)
            return keep(*read_request(contents))

        async with received(request, self._service) as body:
            return await self._service.pool.run(read)

    @contextlib.asynccontextmanager
    async def _image(self, label_studio: LabelStudio, task: Task) -> AsyncIterator[bytes]:
        """The contents of a task's image, which count as held until the block ends."""
        if task.problem:
            raise BadRequest(task.problem)
        with self._service.receiving() as count, value_errors_as_failures():
            if is_data_url(task.image):
                count(len(task.image))  # for what comes out
                contents = await self._service.pool.run(contents_of_data_url, task.image, self._service.limits.max_body)
            else:
                contents = await label_studio.image(task.image, task.id, count)
            yield contents


def bearer(authorization: str) -> str:
    """A header `Authorization` with a password, which is all that Label Studio can send, as one with a token."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        _, _, password = base64.b64decode(given.strip(), validate=True).decode("utf-8").partition(":")
    except (binascii.Error, ValueError):
        return ""
    return f"Bearer {password}"


def _version_of(model: Model) -> str:
    return f"{model.info.name}/{model.info.version}"


def _written(results: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
    """A prediction as JSON: what `brush_results` makes, and more.

    Run lengths are taken from a table, some at a time: `json.dumps` takes two or three times as long, for all in one
    piece a quarter of a second in which no other thread gets its turn, and `iterencode` makes a string of each.
    """
    pieces = []
    for result in results:
        value = result["value"]
        rle = value["rle"]
        head = {name: entry for name, entry in result.items() if name != "value"}
        rest = {name: entry for name, entry in value.items() if name != "rle"}
        numbers = [b",".join(map(_NUMBERS.__getitem__, rle[at : at + PIECE])) for at in range(0, len(rle), PIECE)]
        written = b'%b, "rle": [%b]}' % (json.dumps(rest).encode()[:-1], b",".join(numbers))
        pieces.append(b'%b, "value": %b}' % (json.dumps(head).encode()[:-1], written))
    return b'{"result": [%b], %b' % (b", ".join(pieces), json.dumps(more).encode()[1:])


def _error(error: Exception) -> bytes:
    return json.dumps({"error": client_message(error)}).encode()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """What the work brings. Once the client is gone it is cancelled, and ClientGone raised."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    running, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientGone
        return running.result()
    finally:
        watching.cancel()
        running.cancel()
        await asyncio.wait((running,))  # until what it counts is let go
        del running, watching  # an error holds this frame, and they the error
