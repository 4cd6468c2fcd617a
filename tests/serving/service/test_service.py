"""A request's way through the server, here over HTTP: batches, full queues, deadlines, clients that go, memory."""

import inspect
import json
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.common.images import load_image
from serving.http import image_codec
from serving.model.engine import Engine, usable_cpus
from serving.service import service
from tests.serving.http_calls import SEGMENT, client_of, error_of, index_of, post_head
from tests.serving.images import encoded, encoded_image, expected_labels
from tests.serving.servers import clients, connect, running, until


def batches_while_held(server, gate, model, contents, **options):
    """Sends an image that keeps the session busy, and then others; returns their responses."""
    with clients(server) as post:
        first = post(SEGMENT, encoded_image(2, 2))
        until(lambda: gate.batches)
        others = [post(SEGMENT, body, **options) for body in contents]
        good = sum(b"broken" not in body for body in contents)
        until(lambda: len(model._batcher._queue) == good)
        gate.open()
        assert index_of(first.result()).shape == (2, 2)
        return [other.result() for other in others]


def test_images_of_a_size_share_a_batch_and_answers_are_as_alone(server, client, model, gate):
    sizes = [(6, 8), (6, 8), (6, 8), (10, 4), (10, 4)]
    contents = [encoded_image(*size, seed=n) for n, size in enumerate(sizes)] + [b"broken"]
    *responses, broken = batches_while_held(server, gate, model, contents)
    assert "cannot be read" in error_of(broken, 400)
    assert gate.batches[0] == (1, 2, 2)
    assert sorted(gate.batches[1:]) == [(2, 10, 4), (3, 6, 8)]
    for body, response in zip(contents, responses, strict=False):
        np.testing.assert_array_equal(index_of(response), expected_labels(body))
        assert client.post(SEGMENT, content=body).content == response.content


def test_one_image_that_fails_in_the_model_fails_alone(server, model, gate, monkeypatch):
    predict = Engine.predict

    def out_of_memory(self, images_NHWC, outputs=None):
        result = predict(self, images_NHWC, outputs)
        if (images_NHWC == 7).all(axis=(1, 2, 3)).any():
            raise RuntimeError("Failed to allocate memory")
        return result

    monkeypatch.setattr(Engine, "predict", out_of_memory)
    contents = [encoded_image(seed=1), encoded(Image.new("RGB", (8, 6), (7, 7, 7))), encoded_image(seed=2)]
    before, bad, after = batches_while_held(server, gate, model, contents)
    assert error_of(bad, 500) == "the model failed: Failed to allocate memory"
    for body, response in ((contents[0], before), (contents[2], after)):
        np.testing.assert_array_equal(index_of(response), expected_labels(body))


def test_a_full_queue_refuses_at_once(toy_model, gate):
    gate.open()
    with running(toy_model.parent, max_queue=2) as server, clients(server) as post:
        gate._open.clear()
        gate.batches.clear()
        admitted = [post(SEGMENT, encoded_image(seed=0))]
        until(lambda: gate.batches)
        model = server.repository.get("toy")
        admitted += [post(SEGMENT, encoded_image(seed=n)) for n in (1, 2)]
        until(lambda: model.pending == 2)
        refused = [post(SEGMENT, encoded_image(seed=n)).result() for n in range(5)]  # while the session is held
        for response in refused:
            assert error_of(response, 503) == "the queue is full"
            assert response.headers["retry-after"] == "1"
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'nv_inference_pending_request_count{model="toy",version="1"} 2.0' in metrics
        assert 'nv_inference_request_failure{model="toy",reason="REJECTED",version="1"} 5.0' in metrics
        gate.open()
        for seed, response in enumerate(admitted):
            np.testing.assert_array_equal(index_of(response.result()), expected_labels(encoded_image(seed=seed)))
        assert gate.batches == [(1, 6, 8), (2, 6, 8)]


def test_a_deadline_takes_a_request_out_of_the_queue(server, model, gate):
    with clients(server) as post:
        first = post(SEGMENT, encoded_image())
        until(lambda: gate.batches)
        late = post(f"{SEGMENT}?timeout=0.01", encoded_image(10, 4)).result()
        assert error_of(late, 503) == "the request's time was over before its turn came"
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}
        body = json.dumps({"inputs": [tensor], "parameters": {"timeout": 10_000}})
        assert error_of(post("/v2/models/toy/infer", body.encode()).result(), 503)
        assert model.pending == 0
        gate.open()
        assert first.result().status_code == 200
    assert gate.batches == [(1, 6, 8)]


def test_a_client_that_goes_leaves_the_batch(server, model, gate):
    body = encoded_image(10, 4)
    before = model.statistics.to_json("toy", 1)["inference_stats"]["fail"]["count"]
    with clients(server) as post:
        first = post(SEGMENT, encoded_image())
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
    """An image is decoded for as long as this event is not set."""
    go_on = threading.Event()
    monkeypatch.setattr(
        image_codec, "load_image", lambda *args, **options: go_on.wait(600) and load_image(*args, **options)
    )
    yield go_on
    go_on.set()


def test_decoding_ends_for_the_client_with_its_time(server, client, model, decoding):
    for query in ("timeout=0.05", "timeout=0"):
        late = client.post(f"{SEGMENT}?{query}", content=encoded_image())
        assert error_of(late, 503) == "the request's time was over before its turn came"
    assert (model.pending, server.service._held_bytes) == (0, 0)
    decoding.set()
    assert index_of(client.post(SEGMENT, content=encoded_image())).shape == (6, 8)
    until(lambda: model.pending == 0)


def test_a_body_whose_time_is_over_is_let_go(server, client, decoding):
    """It no longer counts, so that the pool must not keep it until a thread is free."""
    for _ in range(usable_cpus() + 3):
        assert client.post(f"{SEGMENT}?timeout=0.05", content=encoded_image()).status_code == 503
    queue = server.service.pool._executor._work_queue
    assert queue.qsize() == 3
    for _ in range(3):
        assert inspect.getclosurevars(queue.get().fn).nonlocals == {"work": []}


def test_a_client_that_goes_leaves_the_decoding(server, model, decoding):
    with connect(server) as raw:
        raw.sendall(post_head(SEGMENT, len(encoded_image())) + encoded_image())
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
            assert index_of(client.post(SEGMENT, content=encoded_image())).shape == (6, 8)
            until(lambda n=n: given_back.count(model) == n)
