"""The V2 protocol, proven by Triton's own client, unmodified, over a real socket."""

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.serving.conftest import CLASSES, write_toy_model
from tests.serving.servers import running

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        write_toy_model(models / "toy", version)
    write_toy_model(models / "other", 7)
    with running(models, versions=2) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def image_input(images_NHWC=IMAGES, binary=True):
    tensor = triton.InferInput("image", list(images_NHWC.shape), "UINT8")
    tensor.set_data_from_numpy(images_NHWC, binary_data=binary)
    return [tensor]


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "1")
    assert not client.is_model_ready("toy", "3")
    assert not client.is_model_ready("nothing")
    server = client.get_server_metadata()
    assert server["name"] == "kerasseg"
    assert "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("toy")
    assert (model["name"], model["versions"]) == ("toy", ["1", "2"])
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert [output["name"] for output in model["outputs"]] == ["labels", "confidence"]
    assert model["properties"]["classes"] == list(CLASSES)
    assert model["properties"]["provider"] == "cpu"
    config = client.get_model_config("toy", "2")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [-1, -1, 3])


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(client, binary_in, binary_out):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("confidence", "labels")]
    result = client.infer("toy", image_input(binary=binary_in), outputs=outputs, request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("labels"), IMAGES[..., 0] // 64)
    np.testing.assert_allclose(result.as_numpy("confidence"), IMAGES[..., 1] / 255, rtol=1e-6)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("seven", "toy", "2")


def test_infer_all_outputs_of_a_version(client):
    result = client.infer("toy", image_input(), model_version="1")
    assert result.get_response()["model_version"] == "1"
    np.testing.assert_array_equal(result.as_numpy("labels"), IMAGES[..., 0] // 64)
    np.testing.assert_allclose(result.as_numpy("confidence"), IMAGES[..., 1] / 255, rtol=1e-6)


def test_only_the_output_that_is_wanted(client):
    result = client.infer("toy", image_input(), outputs=[triton.InferRequestedOutput("labels")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["labels"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client, algorithm):
    result = client.infer(
        "toy", image_input(), request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    np.testing.assert_array_equal(result.as_numpy("labels"), IMAGES[..., 0] // 64)


def test_infer_concurrently(server):
    client = triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=4)
    images = [np.full((1, 4, 4, 3), 9 * n, np.uint8) for n in range(20)]
    requests = [client.async_infer("toy", image_input(image)) for image in images]
    for image, request in zip(images, requests, strict=True):
        np.testing.assert_array_equal(request.get_result().as_numpy("labels"), image[..., 0] // 64)
    client.close()


def test_errors(client):
    def error(*args, **options):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(*args, **options)
        return caught.value.status(), caught.value.message()

    assert error("nothing", image_input()) == ("404", "there is no model 'nothing': served are other, toy")
    assert error("toy", image_input(), model_version="9")[0] == "404"
    wrong = triton.InferInput("image", [1, 2, 2], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 2, 2), np.uint8))
    status, message = error("toy", [wrong])
    assert (status, message.split(",")[0]) == ("400", "image is of shape [-1")
    status, message = error("toy", image_input(), outputs=[triton.InferRequestedOutput("masks")])
    assert (status, message) == ("400", '"masks" is no output: toy gives labels, confidence')
    assert error("toy", image_input(np.zeros((9, 2, 2, 3), np.uint8)))[1].startswith("9 pictures in a tensor")


def test_statistics(client):
    def stats():
        [entry] = client.get_inference_statistics("other")["model_stats"]
        return entry

    before = stats()
    assert (before["name"], before["version"]) == ("other", "7")
    client.infer("other", image_input())
    client.infer("other", image_input(IMAGES[:1]))
    with pytest.raises(InferenceServerException):
        client.infer("other", image_input(), outputs=[triton.InferRequestedOutput("masks")])
    after = stats()
    assert (after["inference_count"], after["execution_count"]) == (3, 2)
    assert after["last_inference"] > before["last_inference"]
    # perf_analyzer reads every one of these unguarded.
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][name]["count"] == 2
        assert after["inference_stats"][name]["ns"] > 0
    for name in ("cache_hit", "cache_miss"):
        assert after["inference_stats"][name] == {"count": 0, "ns": 0}
    assert after["inference_stats"]["fail"]["count"] == 1
    assert [(entry["batch_size"], entry["compute_infer"]["count"]) for entry in after["batch_stats"]] == [
        (1, 1),
        (2, 1),
    ]
    every = client.get_inference_statistics()["model_stats"]
    assert sorted((entry["name"], entry["version"]) for entry in every) == [("other", "7"), ("toy", "1"), ("toy", "2")]


def test_repository_is_not_the_clients_unless_switched_on(client):
    assert {(entry["name"], entry["version"], entry["state"]) for entry in client.get_model_repository_index()} == {
        ("other", "7", "READY"),
        ("toy", "1", "READY"),
        ("toy", "2", "READY"),
    }
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="--allow-load") as caught:
            change("toy")
        assert caught.value.status() == "403"
    assert client.is_model_ready("toy")


def test_load_and_unload(toy_model):
    with running(toy_model.parent, allow_load=True) as server:
        client = triton.InferenceServerClient(server.url.removeprefix("http://"))
        client.unload_model("toy")
        assert not client.is_model_ready("toy")
        server.repository.scan()  # what the disk holds does not bring it back
        assert not client.is_model_ready("toy")
        assert client.get_model_repository_index() == [
            {"name": "toy", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
        ]
        with pytest.raises(InferenceServerException, match="there is no model"):
            client.unload_model("toy")
        client.load_model("toy")
        assert client.infer("toy", image_input()).as_numpy("labels").shape == (2, 6, 8)
        write_toy_model(toy_model, 2)
        client.load_model("toy")
        assert client.infer("toy", image_input()).get_response()["model_version"] == "2"
        for name in ("..", "nothing", "../models/toy"):
            with pytest.raises(InferenceServerException):
                client.load_model(name)
        client.close()
