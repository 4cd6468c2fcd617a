"""Bodies of requests: compressed, too large, too many, or never whole."""

import gzip
import json
import zlib

import pytest

from tests.serving.http_calls import SEGMENT, error_of, post_head
from tests.serving.images import encoded_image
from tests.serving.servers import answer_to


@pytest.mark.parametrize("path", [SEGMENT, "/v2/models/toy/infer"])
def test_bodies_are_decompressed(client, path):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}
    body = encoded_image() if path == SEGMENT else json.dumps({"inputs": [tensor]}).encode()
    expected = client.post(path, content=body).content
    for coding, packed in (("gzip", gzip.compress(body)), ("DEFLATE", zlib.compress(body)), ("identity", body)):
        response = client.post(path, content=packed, headers={"Content-Encoding": coding})
        assert (response.status_code, response.content) == (200, expected)
    assert "the body is not gzip" in error_of(
        client.post(path, content=body, headers={"Content-Encoding": "gzip"}), 400
    )
    bomb = gzip.compress(bytes(2**26 + 1), compresslevel=1)
    assert "more than 67108864 bytes" in error_of(
        client.post(path, content=bomb, headers={"Content-Encoding": "gzip"}), 413
    )


def test_the_index_reads_no_large_body(client):
    assert client.post("/v2/repository/index", json={"ready": True}).json()[0]["state"] == "READY"
    packed = gzip.compress(b'{"ready": true}')
    index = client.post("/v2/repository/index", content=packed, headers={"Content-Encoding": "gzip"}).json()
    assert index[0]["state"] == "READY"
    for body in (b"[1", b"[]", b'{"ready": "false"}', b'{"ready": 0}'):
        assert error_of(client.post("/v2/repository/index", content=body), 400).startswith("expected")
    assert "at most 65536" in error_of(client.post("/v2/repository/index", content=bytes(65537)), 413)


def test_only_so_many_bytes_of_bodies_are_held(server, client, monkeypatch):
    monkeypatch.setattr(server.service, "limits", type(server.service.limits)(max_bodies=10))
    response = client.post(SEGMENT, content=encoded_image())
    assert error_of(response, 503) == "too many large bodies are arriving at once"
    assert server.service._held_bytes == 0


def test_a_body_that_does_not_arrive(server, monkeypatch):
    monkeypatch.setattr(server.service, "limits", type(server.service.limits)(body_timeout=0.01))
    answer = answer_to(server, post_head(SEGMENT, 100, "Connection: close") + b"half")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.01 seconds" in answer
