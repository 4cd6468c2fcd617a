"""The graph in other arithmetic: half precision, or 8-bit integers calibrated on images."""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from kerasseg.segmenters.backbones.tokens import POSITIONS
from serving.common.artifact import FEATURES

LEARNED = ("Conv", "Gemm", "MatMul")
"""Types of nodes with learned weights; a MatMul of attention has none."""

TAKE_SIZES = ("Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Tile")
"""Nodes whose inputs after the first are sizes or positions."""

HALVED = {"Add", "Clip", "Concat", "Conv", "Gemm", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Sub"}
"""Nodes that are computed in half precision; not among them are means over whole images and resizing."""


def to_fp16(model: onnx.ModelProto, kept: Iterable[str] = ()) -> onnx.ModelProto:
    """Weights and most arithmetic in half precision, inputs and outputs unchanged.

    All before the first and after the last learned layers stays in float32: normalisation, upsampling, softmax. So
    does what a transformer computes from the places of its patches.
    (onnxruntime's own converter stores all values in half precision, also between nodes that it does not convert: this
    rounds the result of a softmax or a gate, and sizes overflow.)

    Args:
        kept: names of networks that stay in float32, such as a gate, where a small change may switch a class off.
    """
    model = onnx.shape_inference.infer_shapes(model)  # a copy, which knows the type of every tensor
    graph = model.graph
    halves = {node.name for node in graph.node if node.op_type in HALVED}
    halves -= {node.name for node in (*_from_input(graph), *_from_maps(graph)) if node.op_type not in LEARNED}
    halves -= {node.name for node in _of_sizes(graph)}
    halves -= {name for scope in (*kept, POSITIONS) for name in _of_network(scope, graph)}

    typed = (*graph.value_info, *graph.input, *graph.output)
    floats = {value.name for value in typed if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    weights = {weight.name: weight for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
    made_in_half = {name for node in graph.node if node.name in halves for name in node.output if name in floats}
    read_in_full = {name for node in graph.node if node.name not in halves for name in node.input}
    read_in_full |= {output.name for output in graph.output}
    nodes: list[onnx.NodeProto] = []
    converted: set[str] = set()
    for node in graph.node:
        if node.name in halves:
            for index, name in enumerate(node.input):
                if name not in floats | weights.keys():
                    continue
                node.input[index] = f"{name}/half"
                if name in made_in_half | converted:
                    continue
                converted.add(name)
                if name in weights:
                    half = onnx.numpy_helper.to_array(weights[name]).astype(np.float16)
                    graph.initializer.append(onnx.numpy_helper.from_array(half, f"{name}/half"))
                else:
                    nodes.append(_cast(name, f"{name}/half", onnx.TensorProto.FLOAT16))
        nodes.append(node)
        if node.name in halves:
            for index, name in enumerate(node.output):
                if name in made_in_half:
                    node.output[index] = f"{name}/half"
                    if name in read_in_full:
                        nodes.append(_cast(f"{name}/half", name, onnx.TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    unread = [weight for weight in graph.initializer if weight.name not in read]
    for weight in unread:
        graph.initializer.remove(weight)
    return model


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=to)


def to_int8(model: onnx.ModelProto, images: Iterable[np.ndarray], network: str) -> onnx.ModelProto:
    """One network's inner convolutions and dense layers in 8-bit integers (QDQ form, weights per channel).

    The graph's first and last learned layers stay in float32, and so do depthwise convolutions, which would lose
    accuracy. Without learned weights nothing is quantized: products of attention gain no time, and GELU and sums of
    residual blocks, whose values have outliers, lose accuracy (docs/decisions/export.md). Positions stay, too.

    Args:
        images: uint8 (H,W,3) of the kind that the graph is for; they give the range of every activation.
        network: name of the segmenter; critics and gate stay in float32.

    Raises:
        ValueError: no layer that can be quantized.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantized = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "quantized"))
        onnx.save(model, plain)
        # Folds batch norm into the convolutions. (Symbolic shapes would need another library, and gain nothing here.)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        weights = {weight.name for weight in graph.initializer}
        inside = _of_network(network, graph) - _of_network(POSITIONS, graph)
        ends = {node.name for node in (*_from_input(graph), *_from_maps(graph))}
        chosen = [
            node.name
            for node in graph.node
            if node.op_type in LEARNED
            and node.input[1] in weights
            and node.name in inside - ends
            and not _is_depthwise(node)
        ]
        if not chosen:
            raise ValueError(f"the graph has no inner layer of {network}: export it as fp32")
        quantize_static(
            prepared,
            quantized,
            Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Weights in 7 bits: on CPUs without VNNI, sums of 8-bit products are cut off.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            nodes_to_quantize=chosen,
        )
        return onnx.load(quantized)


class Reader(CalibrationDataReader):
    """Feeds images to the calibration, one at a time, each at its own size."""

    def __init__(self, images: Iterable[np.ndarray]):
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image_HW3 = next(self.images, None)
        return None if image_HW3 is None else {"image": image_HW3[np.newaxis]}


def _of_network(network: str, graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that come from that network.

    Keras numbers a network's calls, and TensorFlow names ops and weights by them. The converter gives nodes that it
    joins other names (a convolution with batch norm, a matrix product with its bias). Some read a weight of that name.
    Others lie between nodes of the network. (A name of any other input says nothing: equal constants are merged.)
    """
    inside = re.compile(rf"(^|/){re.escape(network)}(_\d+)?/")
    weights = {weight.name for weight in graph.initializer}

    def names(node: onnx.NodeProto) -> list[str]:
        read = weights & set(node.input[1:2]) if node.op_type in LEARNED else ()
        return [node.name, *node.output, *read]

    named = [node for node in graph.node if any(inside.search(name) for name in names(node))]
    before = {node.name for node in _walk_back(graph, [name for node in named for name in node.input])}
    after = {node.name for node in _walk_on(graph, [name for node in named for name in node.output])}
    return {node.name for node in named} | before & after


def _is_depthwise(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)


def _of_sizes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that compute with sizes of tensors, some in floating point: 16 bits are too few for these numbers."""
    wanted = [name for node in graph.node if node.op_type in TAKE_SIZES for name in node.input[1:]]
    return _walk_back(graph, wanted, until=("Shape",))


def _from_maps(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes from the maps among the outputs back to the last learned nodes, these included."""
    maps = [output.name for output in graph.output if output.name != FEATURES]
    return _walk_back(graph, maps, until=(*LEARNED, "Shape"))


def _walk_back(graph: onnx.GraphProto, tensors: Iterable[str], until: tuple[str, ...] = ()) -> list[onnx.NodeProto]:
    """The nodes that the tensors come from, back to nodes of these types, these included."""
    made_by = {name: node for node in graph.node for name in node.output}
    waiting, seen = list(tensors), {}
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in seen:
            seen[node.name] = node
            if node.op_type not in until:
                waiting += node.input
    return list(seen.values())


def _from_input(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes from the input to the first learned nodes, these included."""
    return _walk_on(graph, [tensor.name for tensor in graph.input], until=(*LEARNED, "Shape"))


def _walk_on(graph: onnx.GraphProto, tensors: Iterable[str], until: tuple[str, ...] = ()) -> list[onnx.NodeProto]:
    """The nodes that the tensors go to, on to nodes of these types, these included."""
    reached, found = set(tensors), []
    for node in graph.node:  # which are in the order in which they are computed
        if reached & set(node.input):
            found.append(node)
            if node.op_type not in until:
                reached |= set(node.output)
    return found
