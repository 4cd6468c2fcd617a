"""What is answered at which path."""

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving.http import page
from serving.http.bodies import content_encoding, decompress, received
from serving.http.image_codec import ImageCodec
from serving.http.label_studio.client import LabelStudio
from serving.http.label_studio.endpoints import LabelStudioEndpoints
from serving.http.tensor_codec import HttpTensorCodec
from serving.service.limits import MAX_SHORT_BODY
from serving.service.metrics import prometheus_text
from serving.service.requests import Codec
from serving.service.service import Service


class Endpoints:
    """What is answered at which path; `serving.http.openapi` describes it.

    Args:
        document: that description.
        label_studio: where the images of its tasks are; None where it is not answered.
    """

    def __init__(self, service: Service, document: dict[str, Any], label_studio: LabelStudio | None = None):
        self._service = service
        self._label_studio = LabelStudioEndpoints(service, label_studio)
        self._document = document

    def routes(self) -> list[BaseRoute]:
        def for_model(path: str, endpoint: Any, method: str) -> list[BaseRoute]:
            """For its newest version, and for one by number."""
            before, after = path.split("{model}")
            paths = (path, f"{before}{{model}}/versions/{{version}}{after}")
            return [Route(path, endpoint, methods=[method]) for path in paths]

        return [
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.server_ready),
            Route("/v2/models/stats", self.statistics),
            *for_model("/v2/models/{model}", self.metadata, "GET"),
            *for_model("/v2/models/{model}/ready", self.model_ready, "GET"),
            *for_model("/v2/models/{model}/config", self.config, "GET"),
            *for_model("/v2/models/{model}/stats", self.statistics, "GET"),
            *for_model("/v2/models/{model}/infer", self.infer, "POST"),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{model}/load", self.load, methods=["POST"]),
            Route("/v2/repository/models/{model}/unload", self.unload, methods=["POST"]),
            *for_model("/v1/segment/{model}", self.segment, "POST"),
            *self._label_studio.routes(),
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
        return await self._infer(request, HttpTensorCodec(request.headers, self._service.limits))

    async def segment(self, request: Request) -> Response:
        """An image in; its segmentation, overlay, areas or run lengths out."""
        record, limits = request.state.record, self._service.limits
        return await self._infer(request, ImageCodec(request.query_params, request.headers, limits, record.id))

    async def _infer(self, request: Request, codec: Codec) -> Response:
        async def disconnected() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        name, version = _wanted_model(request)
        response, durations = await self._service.infer(
            request.state.record, name, version, received(request, self._service), codec, disconnected
        )
        response.headers["Server-Timing"] = ", ".join(f"{name};dur={ns / 1e6:.2f}" for name, ns in durations.items())
        return response

    async def _field(self, request: Request, name: str, default: Any) -> Any:
        """A field of a short JSON body, `default` where there is none; None where the body is no JSON object."""
        async with received(request, self._service, MAX_SHORT_BODY) as body:
            try:
                body = decompress(body, content_encoding(request.headers), MAX_SHORT_BODY)
                return json.loads(body).get(name, default) if body else default
            except (ValueError, AttributeError, RecursionError):
                return None


def _wanted_model(request: Request) -> tuple[Any, str | None]:
    return request.path_params.get("model"), request.path_params.get("version")
