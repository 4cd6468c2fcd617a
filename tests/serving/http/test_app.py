"""The server over real sockets, with a model whose answers are known: labels are red // 64, confidence green / 255."""

import gzip
import inspect
import io
import json
import logging
import re
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.common.artifact import Tensor, open_artifact
from serving.common.pictures import coco_rle, load_picture, overlay
from serving.http import picture_codec
from serving.http.picture_codec import choose_output
from serving.model.engine import Engine, usable_cpus
from serving.service import service
from serving.service.logs import JsonFormatter
from tests.serving.pictures import encoded, expected_labels, picture
from tests.serving.servers import answer_to, as_documented, clients, connect, running, until
from tests.serving.toy_model import CLASSES, PALETTE, write_toy_model

SEGMENT = "/v1/segment/toy"


def post_head(path, length, *headers):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers, "", ""]).encode()


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as client:
        yield client


def client_of(server):
    return httpx.Client(base_url=server.url, timeout=600, event_hooks={"response": [as_documented]})


@pytest.fixture
def model(server):
    return server.repository.get("toy")


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


# Pictures


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_picture_as_body_and_as_form(client, format):
    contents = picture(10, 14, format=format)
    np.testing.assert_array_equal(index_of(client.post(SEGMENT, content=contents)), expected_labels(contents))
    as_curl = {"Content-Type": "application/x-www-form-urlencoded"}  # what --data-binary says by itself
    np.testing.assert_array_equal(
        index_of(client.post(SEGMENT, content=contents, headers=as_curl)), expected_labels(contents)
    )
    form = {"files": {"picture": ("a.jpg", contents)}, "data": {"note": "ignored"}}
    np.testing.assert_array_equal(index_of(client.post(SEGMENT, **form)), expected_labels(contents))
    np.testing.assert_array_equal(index_of(client.post(f"{SEGMENT}/versions/1", **form)), expected_labels(contents))


def test_a_picture_taken_sideways_is_answered_upright(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = picture(6, 12, format="JPEG", quality=95, exif=exif)
    labels_HW = index_of(client.post(SEGMENT, content=contents))
    assert labels_HW.shape == (12, 6)
    np.testing.assert_array_equal(labels_HW, expected_labels(contents))


@pytest.mark.parametrize("asked", [{"params": {"output": "overlay"}}, {"headers": {"Accept": "image/jpeg"}}])
def test_overlay(client, asked):
    contents = encoded(Image.new("RGB", (32, 16), (200, 100, 40)))
    response = client.post(SEGMENT, content=contents, **asked)
    assert response.headers["content-type"] == "image/jpeg"
    tinted = load_picture(response.content)
    expected = overlay(load_picture(contents), expected_labels(contents), PALETTE)
    np.testing.assert_allclose(tinted.astype(int), expected.astype(int), atol=3)


def test_overlay_of_another_opacity(client):
    contents = encoded(Image.new("RGB", (32, 16), (200, 100, 40)))
    tinted = load_picture(client.post(SEGMENT, params={"output": "overlay", "opacity": 1}, content=contents).content)
    np.testing.assert_allclose(tinted.astype(int), np.broadcast_to(PALETTE[3], tinted.shape), atol=3)


@pytest.mark.parametrize("asked", [{"params": {"output": "areas"}}, {"headers": {"Accept": "application/json"}}])
def test_class_areas(client, asked):
    image_HWC = np.zeros((4, 5, 3), np.uint8)
    image_HWC[0] = (200, 51, 0)
    response = client.post(SEGMENT, content=encoded(Image.fromarray(image_HWC)), **asked)
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "id": response.headers["x-request-id"],
        "model_name": "toy",
        "model_version": "1",
        "height": 4,
        "width": 5,
        "classes": [
            {"label": 0, "name": CLASSES[0], "pixels": 15, "share": 0.75},
            {"label": 3, "name": CLASSES[3], "pixels": 5, "share": 0.25},
        ],
        "mean_confidence": pytest.approx(0.2 / 4),
    }


@pytest.mark.parametrize(
    "asked", [{"params": {"output": "rle"}}, {"headers": {"Accept": "application/x-coco-rle+json"}}]
)
def test_run_lengths(client, asked):
    contents = picture(6, 8)
    answer = client.post(SEGMENT, content=contents, **asked).json()
    found = {entry["label"]: entry["rle"] for entry in answer["classes"]}
    assert found == coco_rle(expected_labels(contents))


def test_a_map_of_the_model(client):
    contents = picture(6, 8)
    response = client.post(SEGMENT, params={"output": "confidence"}, content=contents)
    with Image.open(io.BytesIO(response.content)) as grey:
        assert grey.mode == "L"
        np.testing.assert_array_equal(np.asarray(grey), load_picture(contents)[..., 1])


@pytest.mark.parametrize(
    ("accept", "output"),
    [
        ("*/*", "labels"),
        ("text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8", "labels"),
        ("image/*", "labels"),
        ("image/jpeg, image/png;q=0.5", "overlay"),
        ("image/png;q=0.5, application/json", "areas"),
        ("image/png;q=x, image/jpeg;q=0.1", "overlay"),
    ],
)
def test_accept_decides(toy_model, accept, output):
    assert choose_output({}, accept, open_artifact(toy_model).info) == output


def test_maps_are_what_has_a_value_in_each_pixel(tmp_path):
    kinds = {"labels": ("UINT8", 3), "confidence": ("FP32", 3), "reliability": ("FP32", 3), "logits": ("FP32", 4)}
    outputs = tuple(
        Tensor(name=name, datatype=datatype, shape=(-1,) * rank, description="")
        for name, (datatype, rank) in kinds.items()
    )
    info = open_artifact(write_toy_model(tmp_path / "toy", 1, outputs=outputs)).info
    assert choose_output({"output": "reliability"}, "*/*", info) == "reliability"
    with pytest.raises(ValueError, match="expected labels, overlay, areas, rle, confidence, reliability$"):
        choose_output({"output": "logits"}, "*/*", info)


def test_errors_of_pictures(client):
    def error(status, content=None, **options):
        content = picture() if content is None else content
        return error_of(client.post(SEGMENT, content=content, **options), status)

    assert "picture cannot be read: GIF data, not a picture in one of the formats JPEG, PNG, WEBP" in error(
        400, b"GIF89a"
    )
    assert "picture cannot be read" in error(400, b"")
    assert "picture cannot be read" in error(400, picture(40, 40)[:-30])
    assert error(400, params={"output": "x"}) == "output is x: expected labels, overlay, areas, rle, confidence"
    assert error(400, params={"opacity": "nan"}) == "opacity is nan: expected a number from 0 to 1"
    assert error(400, params={"timeout": "soon"}) == "timeout is soon: expected a number from 0 to inf"
    assert "this can be had: image/png, image/jpeg" in error(406, headers={"Accept": "text/html, image/png;q=0"})
    assert "boundary" in error(400, headers={"Content-Type": "multipart/form-data"}).lower()
    two = {"a": ("a.png", picture()), "b": ("b.png", picture())}
    assert "the form has 2 files" in error_of(client.post(SEGMENT, files=two), 400)
    assert error_of(client.get(SEGMENT), 405) == "Method Not Allowed"
    assert error_of(client.get("/nowhere"), 404) == "Not Found"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/segment/other",
        "/v1/segment/..%2Ftoy",
        "/v1/segment/..",
        "/v1/segment/%2Fetc",
        "/v1/segment/toy%2F1",
        "/v1/segment/toy%00",
        "/v1/segment/toy/versions/2",
        "/v1/segment/toy/versions/01",
        "/v1/segment/toy/versions/..",
        "/v2/models/..%2Ftoy/infer",
    ],
)
def test_names_lead_to_models_and_nowhere_else(server, path):
    """Written by hand: a client library would tidy the path first."""
    answer = answer_to(server, post_head(path, len(picture()), "Connection: close") + picture())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'{"error":' in answer


# Limits


def test_limits(toy_model, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)  # Pillow's own; a library that was imported may lift it
    with (
        running(toy_model.parent, max_body_mb=1, max_pixels=200, batch_size=2) as server,
        client_of(server) as client,
    ):
        assert index_of(client.post(SEGMENT, content=picture(10, 20))).shape == (10, 20)
        assert "larger than 200 pixels (22x10): cut it into" in error_of(
            client.post(SEGMENT, content=picture(10, 22)), 413
        )
        bomb = encoded(Image.new("1", (16000, 12000)))
        assert "larger than 200 pixels: cut it into tiles" in error_of(client.post(SEGMENT, content=bomb), 413)
        large = bytes(2**20 + 1)
        assert "1048577 bytes, at most 1048576" in error_of(client.post(SEGMENT, content=large), 413)
        assert "more than 1048576 bytes" in error_of(client.post(SEGMENT, content=iter([large])), 413)  # no length
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 10, 21, 3], "data": [0] * 630}
        answer = client.post("/v2/models/toy/infer", json={"inputs": [tensor]})
        assert "more than 600 elements" in error_of(answer, 413)
        tensor |= {"shape": [3, 2, 2, 3], "data": [0] * 36}
        answer = client.post("/v2/models/toy/infer", json={"inputs": [tensor]})
        assert error_of(answer, 400) == "3 pictures in a tensor, at most 2 are taken"
        assert client.get("/v2/health/live").status_code == 200


def test_token(toy_model, tmp_path):
    (tmp_path / "token").write_text("open-sesame\n")
    with (
        running(toy_model.parent, token_file=tmp_path / "token") as server,
        client_of(server) as client,
    ):
        for header in (None, "open-sesame", "Bearer open-sesam", "Bearer open-sesame2", "Bearer ä"):
            headers = {} if header is None else {"Authorization": header.encode()}
            for path in ("/v2", "/metrics", "/v2/models/stats", "/nowhere"):
                response = client.get(path, headers=headers)
                assert "Authorization: Bearer TOKEN" in error_of(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for scheme in ("Bearer", "bearer", "BEARER", "Bearer "):
            right = {"Authorization": f"{scheme} open-sesame"}
            assert index_of(client.post(SEGMENT, content=picture(), headers=right)).shape == (6, 8)


@pytest.mark.parametrize("shape", [(1, 600_000), (600_000, 1)])
def test_thin_pictures_are_refused_in_every_form(client, shape):
    """The network would pad them to many times their pixels."""
    thin = encoded(Image.new("1", shape[::-1]))
    said = "are too thin: the network pads them to 19200000"
    assert said in error_of(client.post(SEGMENT, content=thin), 413)
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, *shape, 3],
        "parameters": {"binary_data_size": 1_800_000},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    response = client.post(
        "/v2/models/toy/infer",
        content=header + bytes(1_800_000),
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    assert said in error_of(response, 413)


def test_pictures_made_to_take_long(client):
    jpeg = picture(16, 16, format="JPEG")
    assert "too many pieces" in error_of(client.post(SEGMENT, content=jpeg[:2] + b"\xff" * 200_000 + jpeg[2:]), 400)
    form = b'--edge\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n\r\n'
    response = client.post(
        SEGMENT, content=form * 100 + b"--edge--\r\n", headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )
    assert error_of(response, 400) == "the form has more than 63 parts: send one picture a request"
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    response = client.post(SEGMENT, params={"output": "rle"}, content=encoded(Image.fromarray(noise), compress_level=0))
    assert error_of(response, 400) == "the labels change more than 1048576 times: ask for output=labels"


@pytest.mark.parametrize("path", [SEGMENT, "/v2/models/toy/infer"])
def test_bodies_are_decompressed(client, path):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}
    body = picture() if path == SEGMENT else json.dumps({"inputs": [tensor]}).encode()
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


def test_what_curl_makes_of_a_file_is_told(client):
    """-d in place of --data-binary: without line ends and zero bytes; or without the @, so that the name comes."""

    def told(content, kind="application/x-www-form-urlencoded"):
        return "curl --data-binary @FILE" in error_of(
            client.post(SEGMENT, content=content, headers={"Content-Type": kind}), 400
        )

    for format in ("JPEG", "PNG", "WEBP"):
        lost = re.sub(rb"[\r\n\0]", b"", picture(40, 40, format=format))
        assert told(lost) and not told(lost, "image/png")
        assert not told(picture(40, 40, format=format)[:-50])
    assert told(b"photo.jpg") and not told(b'{"picture": 1}', "application/json")


# Other origins


def test_pages_of_other_origins(toy_model, tmp_path):
    """A browser asks first, without the token, and reads what it may."""
    (tmp_path / "token").write_text("open-sesame")
    origin, asked = "https://a.example", {"Access-Control-Request-Method": "POST"}
    with (
        running(toy_model.parent, allow_origin=(origin,), token_file=tmp_path / "token") as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        asked["Access-Control-Request-Headers"] = "authorization, content-type"
        response = client.options(SEGMENT, headers={"Origin": origin, **asked})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
        assert "POST" in response.headers["access-control-allow-methods"]
        assert "authorization" in response.headers["access-control-allow-headers"].lower()
        other = client.options(SEGMENT, headers={"Origin": "https://b.example", **asked})
        assert error_of(other, 400) == "Disallowed CORS origin"
        assert "access-control-allow-origin" not in other.headers
        response = client.post(SEGMENT, content=picture(), headers={"Origin": origin})
        assert "send the server's token" in error_of(response, 401)
        assert response.headers["access-control-allow-origin"] == origin
        token = {"Authorization": "Bearer open-sesame"}
        response = client.post(SEGMENT, content=picture(), headers={"Origin": origin} | token)
        assert index_of(response).shape == (6, 8)
        assert response.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()
        response = client.post(SEGMENT, content=picture(), headers={"Origin": "https://b.example"} | token)
        assert "access-control-allow-origin" not in response.headers


def test_no_other_origins_unless_they_are_named(client):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert error_of(client.options(SEGMENT, headers=asked), 405) == "Method Not Allowed"
    assert not any(name.startswith("access-control") for name in client.get("/v2", headers=asked).headers)


# Batches


def batches_while_held(server, gate, model, contents, **options):
    """Sends a picture that keeps the session busy, and then others; returns their responses."""
    with clients(server) as post:
        first = post(SEGMENT, picture(2, 2))
        until(lambda: gate.batches)
        others = [post(SEGMENT, body, **options) for body in contents]
        good = sum(b"broken" not in body for body in contents)
        until(lambda: len(model._batcher._queue) == good)
        gate.open()
        assert index_of(first.result()).shape == (2, 2)
        return [other.result() for other in others]


def test_pictures_of_a_size_share_a_batch_and_answers_are_as_alone(server, client, model, gate):
    contents = [picture(seed=n) for n in range(3)] + [picture(10, 4, seed=n) for n in range(2)] + [b"broken"]
    *responses, broken = batches_while_held(server, gate, model, contents)
    assert "cannot be read" in error_of(broken, 400)
    assert gate.batches[0] == (1, 2, 2)
    assert sorted(gate.batches[1:]) == [(2, 10, 4), (3, 6, 8)]
    for body, response in zip(contents, responses, strict=False):
        np.testing.assert_array_equal(index_of(response), expected_labels(body))
        assert client.post(SEGMENT, content=body).content == response.content


def test_one_picture_that_fails_in_the_model_fails_alone(server, model, gate, monkeypatch):
    predict = Engine.predict

    def out_of_memory(self, images_NHWC, outputs=None):
        result = predict(self, images_NHWC, outputs)
        if (images_NHWC == 7).all(axis=(1, 2, 3)).any():
            raise RuntimeError("Failed to allocate memory")
        return result

    monkeypatch.setattr(Engine, "predict", out_of_memory)
    contents = [picture(seed=1), encoded(Image.new("RGB", (8, 6), (7, 7, 7))), picture(seed=2)]
    before, bad, after = batches_while_held(server, gate, model, contents)
    assert error_of(bad, 500) == "the model failed: Failed to allocate memory"
    for body, response in ((contents[0], before), (contents[2], after)):
        np.testing.assert_array_equal(index_of(response), expected_labels(body))


def test_a_full_queue_refuses_at_once(toy_model, gate):
    gate.open()
    with running(toy_model.parent, max_queue=2) as server, clients(server) as post:
        gate._open.clear()
        gate.batches.clear()
        admitted = [post(SEGMENT, picture(seed=0))]
        until(lambda: gate.batches)
        model = server.repository.get("toy")
        admitted += [post(SEGMENT, picture(seed=n)) for n in (1, 2)]
        until(lambda: model.pending == 2)
        refused = [post(SEGMENT, picture(seed=n)).result() for n in range(5)]  # while the session is held
        for response in refused:
            assert error_of(response, 503) == "the queue is full"
            assert response.headers["retry-after"] == "1"
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'nv_inference_pending_request_count{model="toy",version="1"} 2.0' in metrics
        assert 'nv_inference_request_failure{model="toy",reason="REJECTED",version="1"} 5.0' in metrics
        gate.open()
        for seed, response in enumerate(admitted):
            np.testing.assert_array_equal(index_of(response.result()), expected_labels(picture(seed=seed)))
        assert gate.batches == [(1, 6, 8), (2, 6, 8)]


def test_a_deadline_takes_a_request_out_of_the_queue(server, model, gate):
    with clients(server) as post:
        first = post(SEGMENT, picture())
        until(lambda: gate.batches)
        late = post(f"{SEGMENT}?timeout=0.01", picture(10, 4)).result()
        assert error_of(late, 503) == "the request's time was over before its turn came"
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}
        body = json.dumps({"inputs": [tensor], "parameters": {"timeout": 10_000}})
        assert error_of(post("/v2/models/toy/infer", body.encode()).result(), 503)
        assert model.pending == 0
        gate.open()
        assert first.result().status_code == 200
    assert gate.batches == [(1, 6, 8)]


def test_a_client_that_goes_leaves_the_batch(server, model, gate):
    body = picture(10, 4)
    before = model.statistics.to_json("toy", 1)["inference_stats"]["fail"]["count"]
    with clients(server) as post:
        first = post(SEGMENT, picture())
        until(lambda: gate.batches)
        with connect(server) as raw:
            raw.sendall(post_head(SEGMENT, len(body)) + body)
            until(lambda: model.pending == 1)
        until(lambda: model.pending == 0)
        with connect(server) as raw:  # and one that goes within its body
            raw.sendall(post_head(SEGMENT, len(body)) + body[:9])
        until(lambda: model.statistics.to_json("toy", 1)["inference_stats"]["fail"]["count"] == before + 2)
        gate.open()
        assert first.result().status_code == 200
    assert gate.batches == [(1, 6, 8)]
    assert ("request_failure", {"reason": "CANCELED"}, 2) in list(model.statistics.samples())


@pytest.fixture
def decoding(monkeypatch):
    """A picture is decoded for as long as this event is not set."""
    go_on = threading.Event()
    monkeypatch.setattr(
        picture_codec, "load_picture", lambda *args, **options: go_on.wait(600) and load_picture(*args, **options)
    )
    yield go_on
    go_on.set()


def test_decoding_ends_for_the_client_with_its_time(server, client, model, decoding):
    for query in ("timeout=0.05", "timeout=0"):
        late = client.post(f"{SEGMENT}?{query}", content=picture())
        assert error_of(late, 503) == "the request's time was over before its turn came"
    assert (model.pending, server.service._held_bytes) == (0, 0)
    decoding.set()
    assert index_of(client.post(SEGMENT, content=picture())).shape == (6, 8)
    until(lambda: model.pending == 0)


def test_a_body_whose_time_is_over_is_let_go(server, client, decoding):
    """It no longer counts, so that the pool must not keep it until a thread is free."""
    for _ in range(usable_cpus() + 3):
        assert client.post(f"{SEGMENT}?timeout=0.05", content=picture()).status_code == 503
    queue = server.service.pool._executor._work_queue
    assert queue.qsize() == 3
    for _ in range(3):
        assert inspect.getclosurevars(queue.get().fn).nonlocals == {"work": []}


def test_a_client_that_goes_leaves_the_decoding(server, model, decoding):
    with connect(server) as raw:
        raw.sendall(post_head(SEGMENT, len(picture())) + picture())
        until(lambda: model.pending == 1)
    until(lambda: model.pending == 0)
    assert server.service._held_bytes == 0


def test_memory_is_given_back_by_an_idle_server(toy_model, monkeypatch):
    given_back, trim = [], service._trim
    monkeypatch.setattr(service, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(service, "_trim", lambda models: trim(models) or given_back.extend(models))
    with running(toy_model.parent) as server, client_of(server) as client:
        [model] = server.repository.models()  # another server of these tests may be idle meanwhile
        assert client.get("/v2").status_code == 200
        assert model not in given_back  # nothing was used
        for n in (1, 2):
            assert index_of(client.post(SEGMENT, content=picture())).shape == (6, 8)
            until(lambda n=n: given_back.count(model) == n)


def test_only_so_many_bytes_of_bodies_are_held(server, client, monkeypatch):
    monkeypatch.setattr(server.service, "limits", type(server.service.limits)(max_bodies=10))
    response = client.post(SEGMENT, content=picture())
    assert error_of(response, 503) == "too many large bodies are arriving at once"
    assert server.service._held_bytes == 0


def test_a_body_that_does_not_arrive(server, monkeypatch):
    monkeypatch.setattr(server.service, "limits", type(server.service.limits)(body_timeout=0.01))
    answer = answer_to(server, post_head(SEGMENT, 100, "Connection: close") + b"half")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.01 seconds" in answer


# Operations


def test_health_while_loading_and_draining(server, client, monkeypatch):
    def statuses():
        paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready")
        return [client.get(path).status_code for path in paths] + [client.post(SEGMENT, content=picture()).status_code]

    assert statuses() == [200, 200, 200, 200]
    monkeypatch.setattr(server.service, "state", "draining")
    assert statuses() == [200, 503, 503, 200]
    monkeypatch.setattr(server.service, "state", "loading")
    assert statuses() == [200, 503, 503, 503]
    assert error_of(client.post(SEGMENT, content=picture()), 503) == "the models are being loaded"


def test_request_ids(client):
    assert client.get("/v2", headers={"X-Request-Id": "seven"}).headers["x-request-id"] == "seven"
    assert client.get("/nowhere", headers={"X-Request-Id": "eight"}).headers["x-request-id"] == "eight"
    tidied = client.get("/v2", headers={"X-Request-Id": b'a"b \xff' + b"c" * 200}).headers["x-request-id"]
    assert tidied == ('a"b' + "c" * 200)[:128]
    made = {client.get("/v2").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}
    body = {"id": "nine", "inputs": [tensor]}
    response = client.post("/v2/models/toy/infer", json=body)
    assert (response.json()["id"], response.headers["x-request-id"]) == ("nine", "nine")
    response = client.post("/v2/models/toy/infer", json=body, headers={"X-Request-Id": "ten"})
    assert (response.json()["id"], response.headers["x-request-id"]) == ("nine", "ten")


def test_each_request_is_a_line_of_json(client, caplog):
    caplog.set_level(logging.INFO, "serving.requests")
    response = client.post(SEGMENT, content=picture(), headers={"X-Request-Id": "line"})
    until(lambda: caplog.records)
    line = json.loads(JsonFormatter().format(caplog.records[0]))
    assert (
        line.items()
        >= {
            "event": "request",
            "level": "info",
            "id": "line",
            "client": "127.0.0.1",
            "method": "POST",
            "path": SEGMENT,
            "status": 200,
            "bytes": len(response.content),
            "model": "toy/1",
        }.items()
    )
    assert line["ms"] > 0
    assert line["time"].endswith("+00:00")


def test_the_index_reads_no_large_body(client):
    assert client.post("/v2/repository/index", json={"ready": True}).json()[0]["state"] == "READY"
    packed = gzip.compress(b'{"ready": true}')
    index = client.post("/v2/repository/index", content=packed, headers={"Content-Encoding": "gzip"}).json()
    assert index[0]["state"] == "READY"
    for body in (b"[1", b"[]", b'{"ready": "false"}', b'{"ready": 0}'):
        assert error_of(client.post("/v2/repository/index", content=body), 400).startswith("expected")
    assert "at most 65536" in error_of(client.post("/v2/repository/index", content=bytes(65537)), 413)


def test_what_nobody_foresaw_is_json_too(client, server, monkeypatch, caplog):
    monkeypatch.setattr(server.repository, "versions", lambda name: 1 / 0)
    response = client.get("/v2/models/toy", headers={"X-Request-Id": "odd"})
    assert error_of(response, 500) == "internal error; the server's log tells more of request odd"
    until(lambda: any(record.levelname == "ERROR" for record in caplog.records))
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "ZeroDivisionError" in json.loads(JsonFormatter().format(record))["traceback"]


def test_metrics(toy_model):
    with running(toy_model.parent) as server, client_of(server) as client:
        for content in (picture(), picture(), b"broken"):
            client.post(SEGMENT, content=content)
        response = client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = response.text.splitlines()
        sha256 = open_artifact(toy_model).info.sha256
        for line in (
            "# TYPE nv_inference_request_success counter",
            'nv_inference_request_success{model="toy",version="1"} 2.0',
            'nv_inference_request_failure{model="toy",reason="OTHER",version="1"} 1.0',
            'nv_inference_request_failure{model="toy",reason="BACKEND",version="1"} 0.0',
            'nv_inference_count{model="toy",version="1"} 2.0',
            'nv_inference_exec_count{model="toy",version="1"} 2.0',
            'nv_inference_pending_request_count{model="toy",version="1"} 0.0',
            'kerasseg_batch_size_bucket{le="1",model="toy",version="1"} 2.0',
            'kerasseg_batch_size_sum{model="toy",version="1"} 2.0',
            f'kerasseg_model_info{{model="toy",precision="fp32",provider="cpu",sha256="{sha256}",version="1"}} 1.0',
            'kerasseg_http_requests_total{method="POST",status="200"} 2.0',
            'kerasseg_http_requests_total{method="POST",status="400"} 1.0',
        ):
            assert line in lines
        values = {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("nv_inference_")}
        whole = values["nv_inference_request_duration_us"]
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        assert 0 < sum(values[f"nv_inference_{part}_duration_us"] for part in parts) <= whole
        timing = client.post(SEGMENT, content=picture()).headers["server-timing"]
        assert [entry.split(";")[0] for entry in timing.split(", ")] == list(parts)


def test_many_clients_at_once(server, client):
    """Every answer belongs to its own question."""
    contents = [picture(2 + 2 * (n % 3), 4, seed=n) for n in range(60)]
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda body: client.post(SEGMENT, content=body), contents))
    for body, response in zip(contents, responses, strict=True):
        np.testing.assert_array_equal(index_of(response), expected_labels(body))
