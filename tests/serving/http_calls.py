"""HTTP calls to the server, and what it answers."""

import io

import httpx
import numpy as np
from PIL import Image

from tests.serving.servers import as_documented
from tests.serving.toy_model import PALETTE

SEGMENT = "/v1/segment/toy"


def post_head(path, length, *headers):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers, "", ""]).encode()


def client_of(server):
    return httpx.Client(base_url=server.url, timeout=600, event_hooks={"response": [as_documented]})


def index_of(response):
    """The label map that a response holds."""
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text
    with Image.open(io.BytesIO(response.content)) as png:
        assert png.mode == "P"
        assert png.getpalette()[: 3 * len(PALETTE)] == [value for color in PALETTE for value in color]
        return np.asarray(png)


def error_of(response, status):
    assert response.headers["content-type"] == "application/json", response.text
    assert response.status_code == status, response.text
    [(key, message)] = response.json().items()
    assert key == "error"
    return message
