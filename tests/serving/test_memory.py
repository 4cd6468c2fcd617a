"""The server's memory stays within what README.md says, whatever clients do; in a process of its own."""

import contextlib
import json
import math
import threading
import time

import httpx
import pytest
from PIL import Image

from benchmarks.fuzz import served
from benchmarks.turns import resident_mib
from serving.model.engine import usable_cpus
from tests.serving.grpc_calls import calling, infer_request
from tests.serving.http_calls import post_head
from tests.serving.images import encoded
from tests.serving.label_studio import LEGACY, HangingLabelStudio, label_studio
from tests.serving.servers import connect, until
from tests.serving.toy_model import CLASSES

pytestmark = pytest.mark.slow

BODY, BODIES, QUEUE, PIXELS = 8, 16, 4, 2**20
MODEL = 64
"""What the toy model takes for so many pixels, MiB: 64 bytes each."""

BOUND = 3 * BODIES + QUEUE * PIXELS * 3 / 2**20 + usable_cpus() * (200 + PIXELS * 20 / 2**20) + MODEL


@pytest.fixture(scope="module")
def studio():
    with label_studio(HangingLabelStudio) as fake:
        yield fake
        fake.go_on.set()


@pytest.fixture(scope="module")
def server(studio, tmp_path_factory):
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(LEGACY)
    flags = {"max-body-mb": BODY, "max-bodies-mb": BODIES, "max-queue": QUEUE, "max-pixels": PIXELS}
    flags |= {"label-studio-url": studio.url, "label-studio-token-file": token}
    more = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
    with served(tmp_path_factory.mktemp("models"), more) as (server, pid, errors):
        server.pid, server.before = pid, resident_mib(pid)
        yield server
    assert errors == []


@pytest.fixture(autouse=True)
def bounded(server):
    yield
    assert resident_mib(server.pid, "VmHWM") - server.before < BOUND
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


def at_once(send, times=8):
    threads = [threading.Thread(target=send) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def post(server, path, content, **headers):
    response = httpx.post(server.url + path, content=content, headers=headers, timeout=600)
    assert response.status_code < 500 or response.status_code == 503
    return response


@pytest.mark.parametrize("size", [(1, 2**20), (2**20, 1), (1, 30_000), (1024, 1024)])
def test_images_of_any_shape(server, size):
    contents = encoded(Image.new("RGB", size[::-1]))
    at_once(lambda: post(server, "/v1/segment/toy", contents))
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *size, 3]}
    header = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 3 * math.prod(size)}}]}).encode()
    body = header + bytes(3 * math.prod(size))
    at_once(lambda: post(server, "/v2/models/toy/infer", body, **{"Inference-Header-Content-Length": str(len(header))}))


def test_trailers(server):
    with connect(server) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(b"POST /v1/segment/toy HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
        for _ in range(60):
            raw.sendall(b"X-Trailer: x\r\n" * 2**16)


@pytest.mark.parametrize("thing", ["[]", "[1]", '"a"', "1234", '{"a":1}'])
def test_json(server, thing):
    many = (BODY * 2**20 - 100) // (len(thing) + 1)
    body = f'{{"inputs": [{",".join([thing] * many)}]}}'
    at_once(lambda: post(server, "/v2/models/toy/infer", body), times=4)


@pytest.mark.parametrize("stays", [False, True])
def test_tasks_whose_images_do_not_come(server, studio, stays):
    """Whether or not their client waits, only the images' addresses do."""
    config = (
        '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"><Label value="a"/></BrushLabels></View>'
    )
    config = config.replace('"a"', f'"{CLASSES[0]}"')
    data = {"i": "/data/upload/1/a.png", "more": "x" * (BODY * 2**20 - 1000) + "\U0001f600"}  # 4 bytes each in Python
    request = {"tasks": [{"id": 1, "data": data}], "label_config": config}
    body = json.dumps(request, ensure_ascii=False).encode()
    with contextlib.ExitStack() as waiting:
        for _ in range(40):
            raw = waiting.enter_context(connect(server))
            raw.sendall(post_head("/label-studio/toy/predict", len(body)) + body)
            time.sleep(0.05)  # so that one is read before the next comes, and none is refused
            if not stays:
                raw.close()
        assert studio.waiting


def test_messages_over_grpc(server):
    with calling(server) as call, calling(server, "grpc.health.v1.Health") as check:
        large = infer_request().SerializeToString() + b"\x2a\0" * (BODY * 2**19 - 1000)
        answers = [call("ModelInfer", large) for _ in range(20)] + [
            check("Check", bytes(BODY * 2**20)) for _ in range(20)
        ]
        codes = {answer.code().name for answer in answers}
        assert codes <= {"OK", "INVALID_ARGUMENT", "UNAVAILABLE"}


def test_memory_is_given_back(server):
    # 310 to 400 MiB before; of what is given back the C library keeps pages in which anything is left: 70 to 100 MiB.
    until(lambda: resident_mib(server.pid) - server.before < 160)
