"""Label Studio's ML backend: each served model as one, at `/label-studio/NAME`."""

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import math
from collections.abc import AsyncIterator
from typing import Any
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
    contents_of_data_url,
    read_request,
    read_tasks,
)
from serving.model.model import Answer, Model
from serving.service.failures import FAILURES, ClientGone, client_message, value_errors_as_failures
from serving.service.limits import RequestLimits
from serving.service.requests import DecodedRequest, RequestRecord
from serving.service.service import Service

log = logging.getLogger("serving")

PREFIX = "/label-studio"
"""Before the paths of all endpoints."""

MAX_TASKS = 16
"""Tasks of a request that are answered together. Label Studio sends all that are selected, and waits 100 seconds. To
more it is answered with one prediction; then it sends the tasks one by one."""

MAX_CHANGES = 2**20
"""The most changes of the label from one pixel to the next, down or across, in an answer."""

NO_TRAINING = "this server does not train: export the annotations, and run training.import_data and training.run"


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

    def encode(self, model: Model, request: DecodedRequest, answer: Answer) -> dict[str, Any]:
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
        return {"result": results, "score": round(confidence, 6), "model_version": _version_of(model)}


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
        asked = await self._read(request)
        with value_errors_as_failures():
            (await self._service.pool.run(Brush.from_config, asked.get("schema"))).written_labels(model.info)
        await label_studio.check()
        return JSONResponse({"model_version": _version_of(model)})

    async def predict(self, request: Request) -> Response:
        """A prediction for each task, or `{"error": ...}` where others have one."""
        label_studio, model = self._require(), self._model(request)
        asked = await self._read(request)
        with value_errors_as_failures():
            brush = await self._service.pool.run(Brush.from_config, asked.get("label_config"))
            brush.written_labels(model.info)
            tasks = read_tasks(asked)
        if len(tasks) > MAX_TASKS:
            tasks = tasks[:1]
        turns = asyncio.Semaphore(FETCHES)

        async def disconnected() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        async def predicted(task: Task) -> Any:
            async with turns:
                of_request = request.state.record
                record = RequestRecord("POST", request.url.path, "", of_request.id)  # whose time begins now
                try:
                    body = self._image(label_studio, brush, task)
                    codec = LabelStudioCodec(brush, self._service.limits)
                    answer, _ = await self._service.infer(record, model.info.name, None, body, codec, disconnected)
                    return answer
                except tuple(kind for kind in FAILURES if issubclass(kind, Exception)) as error:
                    return error

        request.state.record.model = model
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(predicted(task)) for task in tasks]
        results = [task.result() for task in running]
        failed = [result for result in results if isinstance(result, Exception)]
        for error in failed:
            if len(failed) == len(results) or isinstance(error, ClientGone):
                raise error
        answers = [{"error": client_message(r)} if isinstance(r, Exception) else r for r in results]
        return Response(await self._service.pool.run(_written, answers), media_type="application/json")

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

    async def _read(self, request: Request) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            return read_request(decompress(body, content_encoding(request.headers), self._service.limits.max_body))

        async with received(request, self._service) as body:
            return await self._service.pool.run(read)

    @contextlib.asynccontextmanager
    async def _image(self, label_studio: LabelStudio, brush: Brush, task: Task) -> AsyncIterator[bytes]:
        """The contents of a task's image, which count as held until the block ends."""
        with self._service.receiving() as count, value_errors_as_failures():
            address = brush.image_of(task)
            if address.startswith("data:"):
                contents = contents_of_data_url(address, self._service.limits.max_body)
                count(len(contents))
            else:
                contents = await label_studio.image(address, task.id, count)
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


def _written(answers: list[dict[str, Any]]) -> str:
    # In one piece, long lists of run lengths would hold up all other threads.
    return "".join(json.JSONEncoder().iterencode({"results": answers}))
