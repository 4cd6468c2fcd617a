"""Clients that are slow, large or many, over raw sockets. Every wait is for the server to hang up."""

import contextlib
import gzip
import json

import httpx
import numpy as np
import pytest

from serving import connections
from tests.serving.conftest import write_toy_model
from tests.serving.servers import answer_to, connect, running, until

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    write_toy_model(models / "toy", 1)
    with running(models, max_connections=3) as server:
        yield server


@pytest.fixture(autouse=True)
def afterwards(server):
    """Whatever a client does, the next one is served."""
    yield
    until(lambda: not server.server_state.connections)
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


@pytest.mark.parametrize("said", [b"", b"GET", GET[:-2], GET[:-2] + b"X-Slow: "])
def test_headers_that_do_not_come(server, monkeypatch, said):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.02)
    assert answer_to(server, said) == b""


def test_headers_of_a_second_request_that_do_not_come(server, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.05)
    assert answer_to(server, GET, and_then=GET[:-2]).count(b"HTTP/1.1 200 OK") == 1


def test_endless_headers(server, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 600)
    lines = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(70))
    assert answer_to(server, GET[:-2] + lines).startswith(b"HTTP/1.1 431 ")
    lines = lines[:60_000].rsplit(b"\r\n", 1)[0]
    assert answer_to(server, GET[:-2] + lines + b"\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 OK")


def test_a_body_may_come_in_one_piece_with_its_header(server):
    body = bytes(3 * connections.MAX_HEADER_BYTES)
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert answer_to(server, head + body).startswith(b"HTTP/1.1 404 ")


def test_the_rest_of_a_body_that_was_answered_before_its_end(server, monkeypatch):
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.02)
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    answer = answer_to(server, head + b"half", and_then=b"a bit more")
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_client_that_does_not_read(server, monkeypatch):
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.02)
    shape = [1, 2048, 2048, 3]
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": shape,
        "parameters": {"binary_data_size": np.prod(shape).item()},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    body = gzip.compress(header + bytes(np.prod(shape)), compresslevel=1)
    head = "\r\n".join(
        [
            "POST /v2/models/toy/infer HTTP/1.1",
            "Host: x",
            "Content-Encoding: gzip",
            f"Inference-Header-Content-Length: {len(header)}",
            f"Content-Length: {len(body)}",
            "\r\n",
        ]
    )
    with connect(server) as raw:
        raw.sendall(head.encode() + body)  # 20 MB of an answer are more than sockets hold
        until(lambda: server.server_state.connections)
        until(lambda: not server.server_state.connections)
        received = 0
        with contextlib.suppress(ConnectionError):
            while piece := raw.recv(2**20):
                received += len(piece)
    assert received < 20 * 2**20


def test_too_many_connections(server):
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server))
        until(lambda: len(server.server_state.connections) == 3)
        response = httpx.get(f"{server.url}/v2/health/live")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json() == {"error": "too many connections: try again later"}
