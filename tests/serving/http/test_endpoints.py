"""What is answered at which path, over real sockets."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from serving.common.artifact import open_artifact
from tests.serving.http_calls import SEGMENT, client_of, error_of, index_of, post_head
from tests.serving.images import encoded, encoded_image, expected_labels
from tests.serving.servers import answer_to, running


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
    answer = answer_to(server, post_head(path, len(encoded_image()), "Connection: close") + encoded_image())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'{"error":' in answer


def test_limits(toy_model, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 89_478_485)  # Pillow's own; a library that was imported may lift it
    with (
        running(toy_model.parent, max_body_mb=1, max_pixels=200, batch_size=2) as server,
        client_of(server) as client,
    ):
        assert index_of(client.post(SEGMENT, content=encoded_image(10, 20))).shape == (10, 20)
        assert "larger than 200 pixels (22x10): cut it into" in error_of(
            client.post(SEGMENT, content=encoded_image(10, 22)), 413
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
        assert error_of(answer, 400) == "3 images in a tensor, at most 2 are taken"
        assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize("shape", [(1, 600_000), (600_000, 1)])
def test_thin_images_are_refused_in_every_form(client, shape):
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


def test_health_while_loading_and_draining(server, client, monkeypatch):
    def statuses():
        paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready")
        answer = client.post(SEGMENT, content=encoded_image())
        return [client.get(path).status_code for path in paths] + [answer.status_code]

    assert statuses() == [200, 200, 200, 200]
    monkeypatch.setattr(server.service, "state", "draining")
    assert statuses() == [200, 503, 503, 200]
    monkeypatch.setattr(server.service, "state", "loading")
    assert statuses() == [200, 503, 503, 503]
    assert error_of(client.post(SEGMENT, content=encoded_image()), 503) == "the models are being loaded"


def test_metrics(toy_model):
    with running(toy_model.parent) as server, client_of(server) as client:
        for content in (encoded_image(), encoded_image(), b"broken"):
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
        timing = client.post(SEGMENT, content=encoded_image()).headers["server-timing"]
        assert [entry.split(";")[0] for entry in timing.split(", ")] == list(parts)


def test_many_clients_at_once(server, client):
    """Every answer belongs to its own question."""
    contents = [encoded_image(2 + 2 * (n % 3), 4, seed=n) for n in range(60)]
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda body: client.post(SEGMENT, content=body), contents))
    for body, response in zip(contents, responses, strict=True):
        np.testing.assert_array_equal(index_of(response), expected_labels(body))
