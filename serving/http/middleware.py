"""Around the endpoints: every request's record, the token, and requests of other origins."""

import logging
from typing import Any

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from serving.http import page
from serving.http.connections import DRAINED, REFUSED
from serving.http.label_studio.endpoints import PREFIX, bearer
from serving.service.requests import RequestRecord
from serving.service.service import Service

log = logging.getLogger("serving")

SENT_BYTES = 2**16
"""The largest piece of an answer that is sent at a time: when a client goes, the log says how much was sent."""

OPEN_PATHS = ("/v2/health/",)
"""Answered without a token: what asks for them, such as Kubernetes, has none."""


class RequestMiddleware:
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
        record = RequestRecord(scope["method"], scope["path"], client, headers.get("x-request-id", ""))
        state = scope.setdefault("state", {})
        state["record"] = record
        status, sent = None, 0

        async def send_in_pieces(message: Any) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.id
                await send(message)
                return
            body, more = memoryview(message.get("body", b"")), message.get("more_body", False)
            with self._service.sending(len(body)):
                for start in range(0, len(body) or 1, SENT_BYTES):
                    piece = body[start : start + SENT_BYTES]
                    await send(message | {"body": piece, "more_body": more or start + SENT_BYTES < len(body)})
                    if DRAINED in state and not await state[DRAINED]():
                        status = None
                        return
                    sent += len(piece) if scope["method"] != "HEAD" else 0

        try:
            await (_refuse if REFUSED in state else self._app)(scope, receive, send_in_pieces)
        except Exception:
            # Starlette has answered with 500 by now, and leaves the rest to whoever runs it.
            log.exception("request failed", extra={"id": record.id, "path": scope["path"]})
        finally:
            code = status or 499  # the client was gone
            self._counter.labels(scope["method"], str(code)).inc()
            record.write(code, sent)


class TokenMiddleware:
    """Lets nobody in without the server's token, where it has one."""

    def __init__(self, app: Any, service: Service):
        self._app = app
        self._service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_open = scope["type"] != "http" or scope["path"].startswith(OPEN_PATHS) or page.is_open(scope["path"])
        authorization = "" if is_open else Headers(scope=scope).get("authorization", "")
        of_label_studio = scope["type"] == "http" and scope["path"].startswith(PREFIX)
        if of_label_studio:
            authorization = bearer(authorization)
        allowed = is_open or self._service.is_authorized(authorization)
        refusal = _no_password if of_label_studio else _unauthorized
        await (self._app if allowed else refusal)(scope, receive, send)


class CrossOriginMiddleware(CORSMiddleware):
    """Starlette's, whose refusals are no JSON."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        return JSONResponse({"error": bytes(response.body).decode()}, response.status_code, {"Vary": "Origin"})


async def _refuse(scope: Any, receive: Any, send: Any) -> None:
    status, message = scope["state"][REFUSED]
    headers = {"Connection": "close"} | ({"Retry-After": "1"} if status == 503 else {})
    await JSONResponse({"error": message}, status, headers)(scope, receive, send)


_unauthorized = JSONResponse(
    {"error": "send the server's token as Authorization: Bearer TOKEN"}, 401, {"WWW-Authenticate": "Bearer"}
)

_no_password = JSONResponse(
    {"error": "give Label Studio the server's token as the password of this model (basic auth, with any user name)"},
    401,
    {"WWW-Authenticate": "Basic"},
)
