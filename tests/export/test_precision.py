"""Half precision and 8-bit integers: what stays, what changes, and by how much."""

import collections

import keras
import numpy as np
import onnx
import onnxruntime
import pytest

import tests.backbone  # noqa: F401 (the backbone tiny)
from export.graph import outputs_of, serving_function, to_onnx
from export.precision import to_fp16, to_int8
from kerasseg.methods import Supervised
from kerasseg.segmenters import build_segmenter
from tests.export.conftest import tiny_method


def images(count=4, size=(40, 56)):
    """Smooth ones, of which neighbouring pixels are alike."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 5, 7, 3), np.uint8)
    return small.repeat(size[0] // 5, axis=1).repeat(size[1] // 7, axis=2)


def run(model, images_NHW3):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    return dict(zip(names, session.run(names, {"image": images_NHW3}), strict=True))


@pytest.fixture(scope="module", params=["supervised", "mlmt"])
def plain(request):
    method = tiny_method(request.param)
    return method, to_onnx(serving_function(method, logits=True))


def test_half_precision_keeps_inputs_outputs_and_what_follows_the_last_layer(plain):
    method, model = plain
    half = to_fp16(model, [getattr(method, network).name for network in method.gating])
    onnx.checker.check_model(half, full_check=True)
    for ours, theirs in zip(half.graph.input, model.graph.input, strict=True):
        assert ours == theirs
    types = [output.type.tensor_type.elem_type for output in half.graph.output]
    assert types == [output.type.tensor_type.elem_type for output in model.graph.output]
    kernels = [weight for weight in half.graph.initializer if len(weight.dims) == 4]
    assert kernels and {weight.data_type for weight in kernels} == {onnx.TensorProto.FLOAT16}
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True).graph
    type_of = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    for node in half.graph.node:
        if node.op_type in ("Softmax", "ReduceMax", "ArgMax"):
            assert type_of[node.input[0]] == onnx.TensorProto.FLOAT, node.name

    expected, got = (run(each, images()) for each in (model, half))
    assert 0 < np.abs(got["confidence"] - expected["confidence"]).max() < 0.05
    assert (got["labels"] == expected["labels"]).mean() > 0.99


def test_int8_quantizes_the_segmenter_but_for_first_and_last_layer(plain):
    method, model = plain
    quantized = to_int8(model, images(), method.segmenter.name)
    onnx.checker.check_model(quantized, full_check=True)
    made_by = {name: node for node in quantized.graph.node for name in node.output}
    kernels = {weight.name: onnx.numpy_helper.to_array(weight) for weight in quantized.graph.initializer}
    kinds = collections.Counter()
    for node in quantized.graph.node:
        if node.op_type == "Conv":
            source = made_by.get(node.input[1])
            is_quantized = source is not None and source.op_type == "DequantizeLinear"
            kinds[is_quantized] += 1
            if is_quantized:
                assert kernels[source.input[0]].dtype == np.int8
                assert len(kernels[source.input[1]]) == len(kernels[source.input[0]])  # a scale for each channel
    # Of the tiny segmenter's four convolutions one is depthwise; the gate has none.
    assert kinds == {True: 1, False: 3}

    expected, got = (run(each, images()) for each in (model, quantized))
    assert got["labels"].dtype == np.uint8 and got["confidence"].dtype == np.float32
    assert 0 < np.abs(got["confidence"] - expected["confidence"]).max() < 0.2
    assert (got["labels"] == expected["labels"]).mean() > 0.95


def test_of_a_whole_segmenter_all_convolutions_but_three_kinds_become_int8():
    """Sizes are taken of tensors all over the graph: what is near an end is not to be found through those."""
    segmenter = build_segmenter("deeplab_v3plus", backbone="tiny", num_classes=3, head_channels=8)
    rng = np.random.default_rng(0)  # batch norm as after a training, or the converter would find nothing to join
    segmenter.set_weights([weight + rng.uniform(0.1, 0.2, weight.shape) for weight in segmenter.get_weights()])
    model = to_onnx(serving_function(Supervised(segmenter)))
    quantized = to_int8(model, images(), segmenter.name)
    made_by = {name: node for node in quantized.graph.node for name in node.output}
    full = [
        node
        for node in quantized.graph.node
        if node.op_type == "Conv" and made_by.get(node.input[1], node).op_type != "DequantizeLinear"
    ]
    depthwise = [node for node in full if any(entry.name == "group" and entry.i > 1 for entry in node.attribute)]
    ends = [node.name for node in full if node not in depthwise]
    assert len(ends) == 2 and sum("logits" in name for name in ends) == 1, ends
    assert len(to_fp16(model).SerializeToString()) < 0.8 * len(model.SerializeToString())


@pytest.fixture(scope="module")
def transformer():
    """The name and the graph of a segmenter on a plain transformer."""
    keras.utils.set_random_seed(0)
    segmenter = build_segmenter("dpt", backbone="tiny_transformer", num_classes=3, head_channels=8)
    return segmenter.name, to_onnx(serving_function(Supervised(segmenter, steps=1)))


@pytest.mark.slow
def test_of_a_transformer_layers_with_weights_become_int8(transformer):
    """Dense layers, whatever the converter called them, and convolutions; neither attention nor positions."""
    network, model = transformer
    quantized = to_int8(model, images(), network)
    made_by = {name: node for node in quantized.graph.node for name in node.output}
    learned = {True: [], False: []}
    for node in quantized.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            source = made_by.get(node.input[1], node)
            learned[source.op_type == "DequantizeLinear"].append(node)
        elif node.op_type == "Softmax":
            assert made_by[node.input[0]].op_type != "DequantizeLinear"
    dense = [node for node in learned[True] if node.op_type != "Conv"]
    assert len(dense) == 4 * 6  # of each block: query, key, value, projection, and two of the perceptron
    full = [node for node in learned[False] if node.op_type != "Conv"]
    assert len(full) == 4 * 2 + 2  # two products of attention, and the positions
    assert len([node for node in learned[False] if node.op_type == "Conv"]) == 2  # the first and the last

    expected, got = (run(each, images()) for each in (model, quantized))
    assert 0 < np.abs(got["confidence"] - expected["confidence"]).max() < 0.2


def test_int8_of_a_network_that_is_not_there(plain):
    with pytest.raises(ValueError, match="the graph has no inner layer of another"):
        to_int8(plain[1], images(), "another")


def test_outputs_are_those_of_the_artifact_in_its_order(plain):
    method, model = plain
    assert [tensor.name for tensor in outputs_of(serving_function(method))] == ["labels", "confidence"]
    tensors = outputs_of(serving_function(method, logits=True))
    assert [tensor.name for tensor in tensors] == ["labels", "confidence", "logits"]
    assert tensors[-1].shape == (-1, -1, -1, 3)
    assert [output.name for output in model.graph.output] == ["labels", "confidence", "logits"]


@pytest.mark.slow
def test_places_of_patches_are_computed_in_full_precision(transformer):
    """Also in half precision, or a transformer's position embeddings are those of a place nearby."""
    _, model = transformer
    image = np.random.default_rng(0).integers(0, 256, (1, 800, 640, 3), np.uint8)
    expected, got = (run(each, image) for each in (model, to_fp16(model)))
    assert 0 < np.abs(got["confidence"] - expected["confidence"]).max() < 0.006
