"""The server's HTTP side as an ASGI application."""

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.http import openapi
from serving.http.connections import EXPLAIN
from serving.http.endpoints import Endpoints
from serving.http.label_studio.client import LabelStudio
from serving.http.label_studio.endpoints import PREFIX
from serving.http.middleware import CrossOriginMiddleware, RequestMiddleware, TokenMiddleware
from serving.http.tensor_codec import HEADER_LENGTH
from serving.service.failures import FAILURES, client_message
from serving.service.service import Service


def make_app(
    service: Service,
    lifespan: Any = None,
    allow_origins: Sequence[str] = (),
    label_studio: LabelStudio | None = None,
) -> RequestMiddleware:
    """The ASGI application.

    Args:
        lifespan: Starlette's: what happens before the first request and after the last.
        allow_origins: pages of these origins may send requests from a browser (CORS); "*" for all.
        label_studio: where the images of its tasks are; None where it is not answered.
    """
    failures = [kind for kind in FAILURES if issubclass(kind, Exception)]
    handlers: dict[Any, Any] = dict.fromkeys((HTTPException, *failures), _error_response)
    handlers[Exception] = _internal_error
    routes = Endpoints(service, openapi.document(token=service.needs_token), label_studio).routes()
    app: Any = TokenMiddleware(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), service)
    if allow_origins:
        app = CrossOriginMiddleware(
            app,
            allow_origins=allow_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("X-Request-Id", "Server-Timing", "Retry-After", HEADER_LENGTH),
        )
    return RequestMiddleware(app, service)


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        message, status, headers = error.detail, error.status_code, error.headers
    else:
        message, status = client_message(error), FAILURES[type(error)].status
        headers = {"Retry-After": "1"} if status == 503 else None
    if EXPLAIN in request.scope["state"] and request.url.path.startswith(f"{PREFIX}/"):
        request.scope["state"][EXPLAIN](message)  # all that Label Studio shows of an answer
    return JSONResponse({"error": message}, status, headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": request.state.record.internal_error()}, 500)
