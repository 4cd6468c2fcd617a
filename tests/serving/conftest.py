"""What tests of all rooms use: a model to serve, a gate before it, and a GPU that is none."""

import pytest

from serving.model import sessions
from serving.model.engine import Engine
from serving.model.sessions import new_session
from tests.serving.servers import Gate
from tests.serving.toy_model import write_toy_model


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
