"""The graph in other arithmetic: half precision, or 8-bit integers calibrated on pictures."""

import copy
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

LEARNED = ("Conv", "Gemm", "MatMul")
"""Nodes that hold what was learned."""

TAKE_SIZES = ("Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Tile")
"""Nodes whose inputs after the first say how large something is, or where it is."""

HALVED = {"Add", "Clip", "Concat", "Conv", "Gemm", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Sub"}
"""Nodes that are computed in half precision; means over whole pictures and resizing are not among them."""

QUANTIZED = ("Conv", "Add", "Concat")
"""Nodes that work on 8-bit integers: between two of them nothing then has to be turned into numbers of 32 bits."""


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in half precision, inputs and outputs as they were.

    What comes after the last learned layers stays in float32: upsampling, softmax, argmax, gate.
    """
    half = convert_float_to_float16(
        copy.deepcopy(model),  # which it changes
        keep_io_types=True,
        op_block_list=sorted({node.op_type for node in model.graph.node} - HALVED),
        node_block_list=sorted({node.name for node in (*_after_last_learned(model.graph), *_of_sizes(model.graph))}),
    )
    # Casts were appended at the end, and those of a tensor that several nodes read once for each, under one name.
    nodes = {tuple(node.output): node for node in half.graph.node}
    del half.graph.node[:]
    half.graph.node.extend(nodes.values())
    OnnxModel(half).topological_sort()
    return half


def to_int8(model: onnx.ModelProto, images: Iterable[np.ndarray], network: str) -> onnx.ModelProto:
    """One network's inner convolutions in 8-bit integers (QDQ form, weights per channel); the graph's first and last
    learned layers keep float32.

    Args:
        images: uint8 (H,W,3) of the kind that the graph is for, from which the range of every activation is taken.
        network: name of the segmenter; critics and gate stay in float32.

    Raises:
        ValueError: no convolution that can be quantized.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantized = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "quantized"))
        onnx.save(model, plain)
        # Folds batch norm into the convolutions. (Symbolic shapes would need another library, and gain nothing here.)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        kept = {node.name for node in (*_first_learned(graph), *_last_learned(graph))}
        inside = re.compile(rf"(^|/){re.escape(network)}(_\d+)?/")
        chosen = [
            node.name
            for node in graph.node
            if node.op_type in QUANTIZED and inside.search(node.name) and node.name not in kept
        ]
        if not chosen:
            raise ValueError(f"no convolution of {network} could be found in the graph: export it as fp32")
        quantize_static(
            prepared,
            quantized,
            Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
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


def _after_last_learned(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """From the outputs back to the last learned nodes, these left out."""
    return (node for node in _from_outputs(graph) if node.op_type not in LEARNED)


def _of_sizes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """What is computed with sizes of tensors, in part in floating point: numbers beyond what 16 bits hold."""
    wanted = [name for node in graph.node if node.op_type in TAKE_SIZES for name in node.input[1:]]
    return _walk_back(graph, wanted, until=("Shape",))


def _last_learned(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The learned nodes from which an output can be reached without passing another."""
    return [node for node in _from_outputs(graph) if node.op_type in LEARNED]


def _from_outputs(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return _walk_back(graph, [output.name for output in graph.output], until=LEARNED)


def _walk_back(graph: onnx.GraphProto, tensors: Iterable[str], until: tuple[str, ...]) -> list[onnx.NodeProto]:
    """The nodes that the tensors come from, as far back as to nodes of these types, which are included."""
    made_by = {name: node for node in graph.node for name in node.output}
    waiting, seen = list(tensors), {}
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in seen:
            seen[node.name] = node
            if node.op_type not in until:
                waiting += node.input
    return list(seen.values())


def _first_learned(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The learned nodes that can be reached from the input without passing another."""
    reached, found = {tensor.name for tensor in graph.input}, []
    for node in graph.node:  # which are in the order in which they are computed
        if reached & set(node.input):
            if node.op_type in LEARNED:
                found.append(node)
            else:
                reached |= set(node.output)
    return found
