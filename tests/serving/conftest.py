"""What tests of all rooms use: a server, its model, a gate before that, and a GPU that is none."""

import pytest

from serving.model import sessions
from serving.model.engine import Engine
from serving.model.sessions import new_session
from tests.serving.http_calls import client_of
from tests.serving.servers import Gate, running, until
from tests.serving.toy_model import write_toy_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What `server` serves; a file that needs other models overrides it."""
    return write_toy_model(tmp_path_factory.mktemp("models") / "toy", 1).parent


@pytest.fixture(scope="module")
def server_flags():
    """Flags of `server`; a file that needs some overrides it."""
    return {}


@pytest.fixture(scope="module")
def server(models, server_flags):
    """A server for all tests of a file, over HTTP and gRPC; in the end nothing of any request is left in it."""
    with running(models, grpc_port=0, **server_flags) as server:
        yield server
        until(lambda: not any(model.pending for model in server.repository.models()) and not server.service._held_bytes)


@pytest.fixture(scope="module")
def client(server):
    """Sends to `server`; its answers are as documented."""
    with client_of(server) as client:
        yield client


@pytest.fixture
def model(server):
    return server.repository.get("toy")


@pytest.fixture
def gate(monkeypatch):
    """Closed from now on; use it after a server is ready."""
    gate, predict = Gate(), Engine.predict

    def gated(self, images_NHWC, outputs=None):
        gate.wait(images_NHWC)
        return predict(self, images_NHWC, outputs)

    monkeypatch.setattr(Engine, "predict", gated)
    yield gate
    gate.open()


class OnGpu:
    """A session that says it is on a GPU and runs on the CPU; notes which shapes it was given."""

    provider = "CUDAExecutionProvider"

    def __init__(self, graph, providers, threads):
        self.session = new_session(graph, ["CPUExecutionProvider"], threads)
        self.shapes, self.fallback, self.get_outputs = [], True, self.session.get_outputs

    def get_providers(self):
        return [self.provider]

    def disable_fallback(self):
        self.fallback = False

    def run(self, wanted, inputs, options):
        [images_NHWC] = inputs.values()
        self.shapes.append(images_NHWC.shape[:3])
        return self.session.run(wanted, inputs, options)


@pytest.fixture
def gpu(monkeypatch):
    """This machine has a GPU, so to speak: the sessions that were opened on it."""
    opened = []

    def open_session(*args, **settings):
        opened.append(OnGpu(*args, **settings))
        return opened[-1]

    monkeypatch.setattr(sessions, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(sessions, "preload_dlls", lambda: None)
    monkeypatch.setattr(sessions, "new_session", open_session)
    return opened


@pytest.fixture
def toy_model(tmp_path):
    """`MODELS/toy` with version 1: `labels` is red // 64, `confidence` is green / 255."""
    return write_toy_model(tmp_path / "models" / "toy", 1)
