"""The page at `/`: segments images in a browser, through the same requests that any client sends.

It is a handful of files without a secret, so it opens without the token; its requests need it.
"""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "png.js": "text/javascript; charset=utf-8",
    "tensors.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "sample.jpg": "image/jpeg",
}
"""The files there are. `sample.jpg` shows nine scenes of the dataset `shapes`, val_0000 to val_0008."""

HEADERS = {
    # Nothing from elsewhere, nothing inline, in nobody's frame: an image's name or a class's cannot become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept by browsers and asked for again: after an update the files fit each other, and until then it costs a 304.
    "Cache-Control": "no-cache",
}


def is_open(path: str) -> bool:
    """Whether a path is the page's, and so answered without a token."""
    return path == "/" or path.startswith("/page/")


def routes() -> list[BaseRoute]:
    def path(name: str) -> str:
        return "/" if name == "index.html" else f"/page/{name}"

    return [Route(path(name), _file(name), include_in_schema=False) for name in FILES]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = files(__name__).joinpath(name).read_bytes()
    headers = HEADERS | {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def answer(request: Request) -> Response:
        # A proxy that compresses weakens the tag (W/"..."): still the same file.
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in known:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=FILES[name], headers=headers)

    return answer
