"""Clients that are slow, large or many, over raw sockets. Every wait is for the server to hang up."""

import contextlib
import gzip
import json
import logging
import socket
import time

import httpx
import numpy as np
import pytest

from serving.http import connections
from tests.serving.images import encoded_image
from tests.serving.servers import answer_to, connect, running, until

GET = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/segment/toy HTTP/1.1\r\nHost: x\r\n"


def post_image(version=b"1.1"):
    return POST.replace(b"1.1", version) + b"Content-Length: %d\r\n\r\n" % len(encoded_image()) + encoded_image()


@pytest.fixture(scope="module")
def server_flags():
    return {"max_connections": 3}


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


def large_answer():
    """A request, with 20 MB of an answer: more than sockets hold."""
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
    return head.encode() + body


def lines_of(caplog):
    return [(record.path, record.status, record.bytes) for record in caplog.records if record.msg == "request"]


@pytest.mark.parametrize("and_then", [b"", GET[:9], GET])
def test_a_client_that_does_not_read(server, monkeypatch, caplog, and_then):
    """Whatever it sends meanwhile. The log says how much was sent."""
    caplog.set_level(logging.INFO, "serving.requests")
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0.02)
    with connect(server) as raw:
        raw.sendall(large_answer() + and_then)
        until(lambda: server.server_state.connections)
        until(lambda: not server.server_state.connections)
        received = 0
        with contextlib.suppress(ConnectionError):
            while piece := raw.recv(2**20):
                received += len(piece)
    assert received < 20 * 2**20
    until(lambda: lines_of(caplog))
    [(path, status, sent)] = lines_of(caplog)
    assert (path, status) == ("/v2/models/toy/infer", 499)
    assert sent < 20 * 2**20
    assert server.service._held_bytes == 0


def test_a_client_that_reads_gets_all_however_slowly(server, monkeypatch, caplog):
    """The time is over again and again, but it has read something each time."""
    caplog.set_level(logging.INFO, "serving.requests")
    watched, received, looks = [], 0, 0
    monkeypatch.setattr(connections.Connection, "_watch_reader", lambda self, unread: watched.append((self, unread)))

    def check_what_it_has_read(times):
        nonlocal looks
        connection, before = watched[-1]
        if len(watched) == times and connection._unread() < before:
            connection._check_reader(before)
            looks += 1

    with connect(server) as raw:
        raw.sendall(large_answer())
        until(lambda: watched)
        while received < 20 * 2**20:
            received += len(raw.recv(2**16))
            if looks < 5:
                watched[-1][0].loop.call_soon_threadsafe(check_what_it_has_read, len(watched))
    assert looks >= 1
    until(lambda: lines_of(caplog))
    [(_, status, sent)] = lines_of(caplog)
    assert (status, sent > 20 * 2**20) == (200, True)


def test_answers_count_as_bodies_do(server, monkeypatch):
    """A slow reader is cut off only where there is no room for others, who are refused meanwhile."""
    with connect(server) as raw:
        raw.sendall(large_answer())
        until(lambda: server.service._held_bytes > 20 * 2**20)
        monkeypatch.setattr(server.service, "limits", type(server.service.limits)(max_bodies=2**20))
        assert server.service.is_crowded()
        response = httpx.post(f"{server.url}/v1/segment/toy", content=encoded_image())
        assert (response.status_code, response.json()) == (503, {"error": "too many large bodies are arriving at once"})
    until(lambda: not server.service._held_bytes)


def test_a_slow_reader_is_cut_off_where_no_connection_is_left(toy_model, monkeypatch):
    watched = []
    with running(toy_model.parent, max_connections=2) as server:
        monkeypatch.setattr(
            connections.Connection, "_watch_reader", lambda self, unread: watched.append((self, unread + 1))
        )
        with connect(server) as raw:
            raw.sendall(large_answer())
            until(lambda: watched)
            connection, before = watched[0]
            connection.loop.call_soon_threadsafe(connection._check_reader, before)
            until(lambda: len(watched) == 2)  # it goes on
            with connect(server), connect(server) as refused:
                refused.sendall(GET)
                assert refused.recv(2**16).startswith(b"HTTP/1.1 503 ")
                connection.loop.call_soon_threadsafe(connection._check_reader, before)
                until(lambda: connection._is_cut)


@pytest.mark.parametrize(
    "sent",
    [
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"X-Trailer: x\r\n" * 50_000,
        b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: " + b"x" * 700_000,
        b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 700_000,
    ],
    ids=["trailers", "a trailer", "a chunk's extension"],
)
def test_what_lies_between_pieces_of_a_body_is_bounded(server, sent):
    answer = answer_to(server, POST + sent)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"more than 65536 bytes of headers or trailers" in answer


def test_trailers_are_no_headers(server):
    request = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, encoded_image()[n : n + 1]) for n in range(len(encoded_image())))
    answer = answer_to(server, request + chunks + b"0\r\nX-Request-Id: seven\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"seven" not in answer


# What is not as most clients send it


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_sends_no_more_is_answered(server, version):
    requests = [GET.replace(b"1.1", version), post_image(version)]
    for request in requests if version == b"1.0" else [*requests, b"".join(requests)]:
        answer = answer_to(server, request, half_close=True)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.count(b"HTTP/1.1 200 OK") == max(1, sum(part in request for part in requests))


def test_a_client_that_waits_long_after_its_request(server, gate, monkeypatch):
    """It is asked whether it still reads; others that have sent all are found to be gone."""
    monkeypatch.setattr(connections, "HALF_CLOSED_SECONDS", 0.02)
    with connect(server) as raw:
        raw.sendall(post_image())
        raw.shutdown(socket.SHUT_WR)
        until(lambda: gate.batches)
        with connect(server) as other:
            other.sendall(post_image())
            until(lambda: server.repository.get("toy").pending == 1)
        until(lambda: server.repository.get("toy").pending == 0)
        gate.open()
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    interim, _, last = answer.rpartition(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert interim.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == b""
    assert last.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("upgrade", [b"h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", b"websocket", b"TLS/1.0"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_an_offered_upgrade_is_ignored(server, upgrade, pieces):
    offered = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + upgrade + b"\r\nHost: x\r\n"
    first = post_image().replace(b"Host: x\r\n", offered)
    sent = first + GET[:-2] + b"Connection: close\r\n\r\n"
    with connect(server) as raw:
        for n in range(pieces):
            raw.sendall(sent[len(sent) * n // pieces : len(sent) * (n + 1) // pieces])
            time.sleep(0.02 if n < pieces - 1 else 0)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"image/png" in answer


def test_thousands_of_offers_at_once_are_answered(server):
    offer = GET.replace(b"Host: x\r\n", b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n")
    with connect(server) as raw:
        raw.sendall(offer * 1500 + GET[:-2] + b"Connection: close\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 200 OK") == 1501


def test_a_good_request_before_garbage_is_answered(server, gate, caplog):
    caplog.set_level(logging.INFO, "serving.requests")
    with connect(server) as raw:
        raw.sendall(post_image() + b"GARBAGE\r\n\r\n" + GET)
        until(lambda: gate.batches)
        gate.open()
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.endswith(b'{"error":"the request cannot be read as HTTP/1.1: Invalid method encountered"}')
    assert [(path, status) for path, status, _ in lines_of(caplog)] == [("/v1/segment/toy", 200), ("-", 400)]


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"\0\1\2", 400, b"Invalid method"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 400, b"Invalid method"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, b"cannot be read as HTTP/1.1"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405, b"no proxy"),
        (POST + b"Content-Length: " + b"9" * 5001 + b"\r\n\r\n", 400, b"Content-Length overflow"),
        (POST + b"Content-Length: 9999999999999999999\r\n\r\n", 413, b"9999999999999999999 bytes"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, b"chunk size"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400, b"Content-Length"),
        (GET[:-2] + b"X-Long: " + b"x" * 70_000 + b"\r\n\r\n", 431, b"more than 65536 bytes"),
        (GET.replace(b"/v2", b"/" + b"v" * 70_000), 431, b"more than 65536 bytes"),
    ],
)
def test_what_cannot_be_read_is_answered_in_json_counted_and_logged(server, monkeypatch, caplog, sent, status, said):
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.02)
    caplog.set_level(logging.INFO, "serving.requests")
    head, _, body = answer_to(server, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/json" in head
    assert b"x-request-id: " in head
    assert said in json.loads(body)["error"].encode()
    [(_, logged, length)] = lines_of(caplog)
    assert (logged, length) == (status, len(body))
    assert f'status="{status}"' in httpx.get(f"{server.url}/metrics").text


def test_too_many_connections(server):
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server))
        until(lambda: len(server.server_state.connections) == 3)
        response = httpx.get(f"{server.url}/v2/health/live")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert response.json() == {"error": "too many connections: try again later"}
