"""A server as `python -m serving.run` starts it, in a thread of this process, on a free port of 127.0.0.1."""

import contextlib
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import jsonschema_rs

from serving import run
from serving.http.openapi import document


@contextlib.contextmanager
def running(models, **flags):
    """Yields a `run.Server` that is ready; at the end it drains."""
    flags = {"provider": "cpu", "port": 0, "poll": 0, "warm_up": ((4, 4),), "max_delay": 0.0} | flags
    config = run.ServerConfig(models=models, **flags)
    run.check(config)
    server = run.Server(config)
    failures = []

    def serve():
        try:
            server.serve_requests()
        except (ValueError, OSError) as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        until(lambda: failures or server.started and server.service.state == "ready")
        if failures:
            raise failures[0]
        yield server
    finally:
        server.should_exit = True
        thread.join()


def connect(server):
    """A socket, for what a client library would not do."""
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def answer_to(server, contents, and_then=b"", half_close=False, read=65536):
    """All that the server says to these bytes until it closes the connection, politely or not.

    `and_then` is sent once it has begun to answer; with `half_close` the client says that it sends no more, and it
    reads `read` bytes at a time.
    """
    said = []
    with connect(server) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(contents)
        if half_close:
            raw.shutdown(socket.SHUT_WR)
        if and_then:
            said.append(raw.recv(65536))
            raw.sendall(and_then)
        while piece := raw.recv(read):
            said.append(piece)
    return b"".join(said)


def until(condition):
    """Waits as long as it takes, so that no slow machine fails a test; a minute says that it never will."""
    for _ in range(12_000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it does not happen")


class Gate:
    """Stands before the models' sessions: batches wait until they are let through.

    Attributes:
        batches: shapes of those that came.
    """

    def __init__(self):
        self.batches = []
        self._open = threading.Event()

    def open(self):
        self._open.set()

    def wait(self, images_NHWC):
        self.batches.append(images_NHWC.shape[:3])
        assert self._open.wait(60)


@contextlib.contextmanager
def clients(server, count=16):
    """Yields `post(path, content, ...)`, which sends at once and returns a future of the response."""
    with httpx.Client(base_url=server.url, timeout=600) as client, ThreadPoolExecutor(count) as pool:
        yield lambda path, content, **options: pool.submit(client.post, path, content=content, **options)


def as_documented(response):
    """For the `event_hooks` of an httpx.Client: whatever it is answered is as the OpenAPI document says."""
    whole = document(token=True)
    path, method, status = response.request.url.path, response.request.method.lower(), str(response.status_code)
    items = [
        item for template, item in whole["paths"].items() if re.fullmatch(re.sub("{.*?}", "[^/]+", template), path)
    ]
    operation = next((item[method] for item in items if method in item), None)
    if operation is None:
        assert status in ("401", "404", "405")
        return
    assert status in operation["responses"], f"{method} {path} answers {status}, which is not documented"
    told = operation["responses"][status]
    if "$ref" in told:
        told = whole["components"]["responses"][status]
    if response.read():
        media_type = response.headers["content-type"].split(";")[0]
        assert media_type in told["content"], f"{method} {path} answers with {media_type}, which is not documented"
        if schema := told["content"][media_type].get("schema"):
            is_json = media_type.endswith("json")
            with_definitions = schema | {"components": whole["components"]}
            jsonschema_rs.validate(with_definitions, response.json() if is_json else response.text)
    for name in told.get("headers", {}).keys() & {"X-Request-Id", "Server-Timing", "Retry-After", "WWW-Authenticate"}:
        assert name in response.headers, f"{method} {path} answers {status} without {name}"
