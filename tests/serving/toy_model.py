"""A model small enough to know its answers by heart, made without TensorFlow."""

import onnx
from onnx import TensorProto, helper

from serving.common.artifact import GRAPH_FILE, INFO_FILE, ModelInfo, Tensor, sha256_of

CLASSES = ("dark", "dim", "light", "bright")
PALETTE = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 128))


def write_toy_model(folder, version, maps=("confidence",), features=False, **changes):
    """Writes a version of the toy model, with fields of its `model.json` changed; returns `folder`.

    Any of its maps, confidence or another, is green / 255; its features are the means of red, green and blue.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["pixels", "zero"], ["red"], axis=3),
        helper.make_node("Gather", ["pixels", "one"], ["green"], axis=3),
        helper.make_node("Div", ["red", "step"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["labels"], to=TensorProto.UINT8),
        *(helper.make_node("Div", ["green", "most"], [name]) for name in maps),
    ]
    if features:
        nodes.append(helper.make_node("ReduceMean", ["pixels"], ["features"], axes=[1, 2], keepdims=0))
        changes = {"features": 3} | changes
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
            *([helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3])] if features else []),
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


def model_info(datatype="UINT8", shape=(-1, -1, -1, 3), **outputs):
    """What a model says of itself that takes another input, or gives other outputs, by name their datatypes."""
    outputs = outputs or {"labels": "UINT8", "confidence": "FP32"}
    return ModelInfo(
        name="toy",
        version=3,
        classes=("a", "b"),
        palette=((0, 0, 0), (1, 2, 3)),
        inputs=(Tensor(name="image", datatype=datatype, shape=shape, description=""),),
        outputs=tuple(
            Tensor(name=name, datatype=datatype, shape=(-1, -1, -1), description="")
            for name, datatype in outputs.items()
        ),
        precision="fp32",
        evaluation={},
        provenance={},
        sha256="0",
        parity={"passed": True},
    )
