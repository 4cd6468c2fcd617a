"""The V2 protocol, proven by Triton's own clients, unmodified, over real sockets: the same tests for HTTP and gRPC."""

import queue

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf.message import Message
from tritonclient.utils import InferenceServerException

from tests.serving.servers import running
from tests.serving.toy_model import CLASSES, write_toy_model

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)


class Http:
    """What differs between the two clients."""

    triton = tritonclient.http
    status = {400: "400", 403: "403", 404: "404"}

    @staticmethod
    def connect(server, **options):
        return tritonclient.http.InferenceServerClient(server.url.removeprefix("http://"), **options)

    @staticmethod
    def infer_compressed(client, inputs, algorithm):
        return client.infer(
            "toy", inputs, request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
        )

    @staticmethod
    def infer_all(server, inputs):
        client = Http.connect(server, concurrency=4)
        requests = [client.async_infer("toy", tensor) for tensor in inputs]
        results = [request.get_result() for request in requests]
        client.close()
        return results


class Grpc:
    triton = tritonclient.grpc
    status = {400: "StatusCode.INVALID_ARGUMENT", 403: "StatusCode.PERMISSION_DENIED", 404: "StatusCode.NOT_FOUND"}

    @staticmethod
    def connect(server):
        return tritonclient.grpc.InferenceServerClient(server.grpc_address)

    @staticmethod
    def infer_compressed(client, inputs, algorithm):
        return client.infer("toy", inputs, compression_algorithm=algorithm)

    @staticmethod
    def infer_all(server, inputs):
        client, answers = Grpc.connect(server), queue.Queue()
        for index, tensor in enumerate(inputs):
            client.async_infer("toy", tensor, lambda result, error, index=index: answers.put((index, result, error)))
        told = sorted((answers.get(timeout=60) for _ in inputs), key=lambda answer: answer[0])
        client.close()
        assert [error for _, _, error in told] == [None] * len(inputs)
        return [result for _, result, _ in told]


def plain(told):
    """What a client returns, as the JSON that HTTP has."""
    if isinstance(told, Message):
        return {field.name: plain(getattr(told, field.name)) for field in told.DESCRIPTOR.fields}
    if isinstance(told, (str, bytes, int, float, dict)):
        return told
    return {key: plain(told[key]) for key in told} if hasattr(told, "keys") else [plain(entry) for entry in told]


@pytest.fixture(scope="module")
def models(models):
    write_toy_model(models / "toy", 2)
    write_toy_model(models / "other", 7)
    return models


@pytest.fixture(scope="module")
def server_flags():
    return {"versions": 2}


@pytest.fixture(scope="module", params=[Http, Grpc])
def speaks(request):
    return request.param


@pytest.fixture(scope="module")
def client(server, speaks):
    client = speaks.connect(server)
    yield client
    client.close()


@pytest.fixture
def image_input(speaks):
    def make(images_NHWC=IMAGES, **options):
        tensor = speaks.triton.InferInput("image", list(images_NHWC.shape), "UINT8")
        tensor.set_data_from_numpy(images_NHWC, **options)
        return [tensor]

    return make


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "1")
    assert not client.is_model_ready("toy", "3")
    assert not client.is_model_ready("nothing")
    server = plain(client.get_server_metadata())
    assert server["name"] == "kerasseg"
    assert "binary_tensor_data" in server["extensions"]
    model = plain(client.get_model_metadata("toy"))
    assert (model["name"], model["versions"]) == ("toy", ["1", "2"])
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert [output["name"] for output in model["outputs"]] == ["labels", "confidence"]
    config = plain(client.get_model_config("toy", "2"))
    config = config.get("config", config)
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [-1, -1, 3])
    assert config["parameters"]["provider"] == {"string_value": "cpu"}


def test_properties(server):
    """The messages of gRPC have no place for them."""
    properties = Http.connect(server).get_model_metadata("toy")["properties"]
    assert (properties["classes"], properties["provider"]) == (list(CLASSES), "cpu")


@pytest.mark.parametrize(
    ("speaks", "sent", "received"),
    [(Http, {"binary_data": sent}, {"binary_data": received}) for sent in (True, False) for received in (True, False)]
    + [(Grpc, {}, {})],
    indirect=["speaks"],
    scope="module",
)
def test_infer(speaks, client, image_input, sent, received):
    outputs = [speaks.triton.InferRequestedOutput(name, **received) for name in ("confidence", "labels")]
    result = client.infer("toy", image_input(**sent), outputs=outputs, request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("labels"), IMAGES[..., 0] // 64)
    np.testing.assert_allclose(result.as_numpy("confidence"), IMAGES[..., 1] / 255, rtol=1e-6)
    response = plain(result.get_response())
    assert (response["id"], response["model_name"], response["model_version"]) == ("seven", "toy", "2")


def test_infer_all_outputs_of_a_version(client, image_input):
    result = client.infer("toy", image_input(), model_version="1")
    assert plain(result.get_response())["model_version"] == "1"
    np.testing.assert_array_equal(result.as_numpy("labels"), IMAGES[..., 0] // 64)
    np.testing.assert_allclose(result.as_numpy("confidence"), IMAGES[..., 1] / 255, rtol=1e-6)


def test_only_the_output_that_is_wanted(client, speaks, image_input):
    result = client.infer("toy", image_input(), outputs=[speaks.triton.InferRequestedOutput("labels")])
    assert [output["name"] for output in plain(result.get_response())["outputs"]] == ["labels"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client, speaks, image_input, algorithm):
    result = speaks.infer_compressed(client, image_input(), algorithm)
    np.testing.assert_array_equal(result.as_numpy("labels"), IMAGES[..., 0] // 64)


def test_infer_concurrently(server, speaks, image_input):
    images = [np.full((1, 4, 4, 3), 9 * n, np.uint8) for n in range(20)]
    results = speaks.infer_all(server, [image_input(image) for image in images])
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result.as_numpy("labels"), image[..., 0] // 64)


def test_errors(client, speaks, image_input):
    def error(*args, **options):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(*args, **options)
        return caught.value.status(), caught.value.message()

    assert error("nothing", image_input()) == (
        speaks.status[404],
        "Request for unknown model: 'nothing' is not found, served are other, toy",
    )
    assert error("toy", image_input(), model_version="9")[0] == speaks.status[404]
    wrong = speaks.triton.InferInput("image", [1, 2, 2], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 2, 2), np.uint8))
    status, message = error("toy", [wrong])
    assert (status, message.split(",")[0]) == (speaks.status[400], "image is of shape [-1")
    status, message = error("toy", image_input(), outputs=[speaks.triton.InferRequestedOutput("masks")])
    assert (status, message) == (speaks.status[400], '"masks" is no output: toy gives labels, confidence')
    assert error("toy", image_input(np.zeros((9, 2, 2, 3), np.uint8)))[1].startswith("9 images in a tensor")


def test_statistics(client, speaks, image_input):
    def stats():
        [entry] = plain(client.get_inference_statistics("other"))["model_stats"]
        return entry

    def new(what):
        return after["inference_stats"][what]["count"] - before["inference_stats"][what]["count"]

    def batches(entry):
        return {batch["batch_size"]: batch["compute_infer"]["count"] for batch in entry["batch_stats"]}

    before = stats()
    assert (before["name"], before["version"]) == ("other", "7")
    client.infer("other", image_input())
    client.infer("other", image_input(IMAGES[:1]))
    with pytest.raises(InferenceServerException):
        client.infer("other", image_input(), outputs=[speaks.triton.InferRequestedOutput("masks")])
    after = stats()
    assert (after["inference_count"] - before["inference_count"]) == 3
    assert (after["execution_count"] - before["execution_count"]) == 2
    assert after["last_inference"] > before["last_inference"]
    # perf_analyzer reads every one of these unguarded.
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert new(name) == 2
        assert after["inference_stats"][name]["ns"] > 0
    for name in ("cache_hit", "cache_miss"):
        assert after["inference_stats"][name] == {"count": 0, "ns": 0}
    assert new("fail") == 1
    assert {size: count - batches(before).get(size, 0) for size, count in batches(after).items()} == {1: 1, 2: 1}
    every = plain(client.get_inference_statistics())["model_stats"]
    assert sorted((entry["name"], entry["version"]) for entry in every) == [("other", "7"), ("toy", "1"), ("toy", "2")]


def index_of(client):
    told = plain(client.get_model_repository_index())
    return told["models"] if isinstance(told, dict) else told


def test_repository_is_not_the_clients_unless_switched_on(client, speaks):
    assert {(entry["name"], entry["version"], entry["state"]) for entry in index_of(client)} == {
        ("other", "7", "READY"),
        ("toy", "1", "READY"),
        ("toy", "2", "READY"),
    }
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="--allow-load") as caught:
            change("toy")
        assert caught.value.status() == speaks.status[403]
    assert client.is_model_ready("toy")


def test_load_and_unload(toy_model, speaks, image_input):
    with running(toy_model.parent, allow_load=True, grpc_port=0) as server:
        client = speaks.connect(server)
        client.unload_model("toy")
        assert not client.is_model_ready("toy")
        server.repository.scan()  # what the disk holds does not bring it back
        assert not client.is_model_ready("toy")
        assert index_of(client) == [{"name": "toy", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}]
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            client.unload_model("toy")
        client.load_model("toy")
        assert client.infer("toy", image_input()).as_numpy("labels").shape == (2, 6, 8)
        write_toy_model(toy_model, 2)
        client.load_model("toy")
        assert plain(client.infer("toy", image_input()).get_response())["model_version"] == "2"
        for name in ("..", "nothing", "../models/toy"):
            with pytest.raises(InferenceServerException, match="failed to load|Not Found"):
                client.load_model(name)
        with pytest.raises(InferenceServerException, match="failed to load 'toy': .*, without config"):
            client.load_model("toy", config='{"max_batch_size": "16"}')
        client.close()
