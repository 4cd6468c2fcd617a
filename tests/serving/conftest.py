"""A model small enough to know its answers by heart, made without TensorFlow."""

import onnx
import pytest
from onnx import TensorProto, helper

from serving import sessions
from serving.artifact import GRAPH_FILE, INFO_FILE, ModelInfo, Tensor, sha256_of
from serving.engine import Engine
from serving.sessions import new_session
from tests.serving.servers import Gate

CLASSES = ("dark", "dim", "light", "bright")
PALETTE = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 128))


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


def write_toy_model(folder, version, maps=("confidence",), **changes):
    """Writes a version of the toy model, with fields of its `model.json` changed; returns `folder`.

    Any of its maps, confidence or another, is green / 255.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["pixels", "zero"], ["red"], axis=3),
        helper.make_node("Gather", ["pixels", "one"], ["green"], axis=3),
        helper.make_node("Div", ["red", "step"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["labels"], to=TensorProto.UINT8),
        *(helper.make_node("Div", ["green", "most"], [name]) for name in maps),
    ]
    constants = [
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("one", TensorProto.INT64, [], [1]),
        helper.make_tensor("step", TensorProto.FLOAT, [], [64.0]),
        helper.make_tensor("most", TensorProto.FLOAT, [], [255.0]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "H", "W"]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "H", "W"]) for name in maps),
        ],
        constants,
    )
    place = folder / str(version)
    place.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        place / GRAPH_FILE,
    )
    fields = dict(
        name="toy",
        version=version,
        classes=CLASSES,
        palette=PALETTE,
        inputs=(Tensor(name="image", datatype="UINT8", shape=(-1, -1, -1, 3), description=""),),
        outputs=(
            Tensor(name="labels", datatype="UINT8", shape=(-1, -1, -1), description=""),
            *(Tensor(name=name, datatype="FP32", shape=(-1, -1, -1), description="") for name in maps),
        ),
        precision="fp32",
        evaluation={"mIoU": 0.5},
        provenance={"commit": "abc"},
        sha256=sha256_of(place / GRAPH_FILE),
        parity={"passed": True},
    )
    (place / INFO_FILE).write_text(ModelInfo(**fields | changes).to_json())
    return folder
