import json

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
import tf2onnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kerasseg.layers
import tests.backbone  # noqa: F401 (the backbone tiny)
from export.graph import (
    _floor_mod,
    load_saved_model,
    serving_function,
    to_onnx,
    write_onnx,
    write_saved_model,
)
from export.parity import MARGIN
from kerasseg.layers import AtrousConv2D
from kerasseg.methods import METHODS, Supervised
from kerasseg.segmenters import build_segmenter
from tests.export.conftest import tiny_method, tiny_segmenter


def images(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def onnx_predictor(serve, file):
    write_onnx(to_onnx(serve), file, {})
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images_NHWC: dict(zip(names, session.run(names, {"image": images_NHWC}), strict=True))


@pytest.fixture(scope="module", params=["supervised", "mlmt", "deeplab_v2", "deeplab_v3plus"])
def exported(request, tmp_path_factory):
    """A method or a whole segmenter, and its graphs as functions."""
    folder = tmp_path_factory.mktemp(request.param)
    method = tiny_method(request.param) if request.param in METHODS else supervised_of(request.param)
    serve = serving_function(method)
    write_saved_model(serve, folder / "saved_model")
    return method, (onnx_predictor(serve, folder / "model.onnx"), load_saved_model(folder / "saved_model"))


def supervised_of(segmenter):
    keras.utils.set_random_seed(1)
    head = {"head_channels": 8} if segmenter == "deeplab_v3plus" else {}
    return Supervised(build_segmenter(segmenter, backbone="tiny", num_classes=3, **head))


SIDES = st.integers(1, 100)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=st.tuples(st.integers(1, 4), SIDES, SIDES, st.just(3)), seed=st.integers(0, 9))
@example(shape=(1, 1, 1, 3), seed=0)
@example(shape=(3, 33, 47, 3), seed=0)
@example(shape=(1, 7, 200, 3), seed=0)
def test_exported_graphs_answer_as_the_method_does(exported, shape, seed):
    method, graphs = exported
    images_NHWC = images(shape, seed)
    probabilities_NHWK = np.asarray(method(images_NHWC.astype(np.float32), training=False))
    two_NHWK = np.sort(probabilities_NHWK, axis=-1)[..., -2:]
    clear_NHW = two_NHWK[..., 1] - two_NHWK[..., 0] > MARGIN
    for predict in graphs:
        outputs = predict(images_NHWC)
        np.testing.assert_array_equal(outputs["labels"][clear_NHW], probabilities_NHWK.argmax(-1)[clear_NHW])
        np.testing.assert_allclose(outputs["confidence"], probabilities_NHWK.max(-1), atol=1e-5)
        assert (outputs["labels"].dtype, outputs["confidence"].dtype) == (np.uint8, np.float32)
        if not hasattr(method.segmenter, "encode"):  # a network of one piece
            assert "features" not in outputs
            continue
        expected_ND = np.mean(method.segmenter.encode(images_NHWC.astype(np.float32))[-1], axis=(1, 2))
        np.testing.assert_allclose(outputs["features"], expected_ND, rtol=1e-4, atol=1e-5 * np.abs(expected_ND).max())


def test_the_converter_copies_no_graphs(monkeypatch):
    """It did before each of its passes, and a ResNet-50 took 15 GB."""
    copied = []
    monkeypatch.setattr(tf2onnx.graph.Graph, "__deepcopy__", lambda graph, _: copied.append(graph) or graph, False)
    to_onnx(serving_function(tiny_method("supervised")))
    assert not copied


def test_the_gate_is_inside_the_graph(tmp_path):
    method = tiny_method("mlmt")
    images_NHWC = images((2, 24, 24, 3))
    variants = method.predictions(images_NHWC.astype(np.float32))
    gated, ungated = (np.argmax(variants[name], axis=-1) for name in ("", "without_gate"))
    assert (gated != ungated).any()  # else this shows nothing
    predict = onnx_predictor(serving_function(method), tmp_path / "model.onnx")
    np.testing.assert_array_equal(predict(images_NHWC)["labels"], gated)


def test_the_file_speaks_for_itself(tmp_path):
    census = write_onnx(
        to_onnx(serving_function(tiny_method("supervised"))),
        tmp_path / "model.onnx",
        {"classes": ["a", "b"], "version": 3},
    )
    model = onnx.load(tmp_path / "model.onnx")
    stored = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert stored == {"classes": ["a", "b"], "version": 3}
    assert [tensor.name for tensor in model.graph.input] == ["image"]
    assert [tensor.name for tensor in model.graph.output] == ["labels", "confidence"]
    assert census["Conv"] == 4
    assert sum(census.values()) == len(model.graph.node) <= 64


@pytest.mark.parametrize("native", [True, False])
def test_dilated_convolutions_are_one_node_and_only_pads_of_strides_are_left_open(native, tmp_path, monkeypatch):
    monkeypatch.setattr(kerasseg.layers, "has_dilated_gradient", lambda dtype: native)
    census = write_onnx(to_onnx(serving_function(tiny_method("supervised"))), tmp_path / "model.onnx", {})
    nodes = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Conv"]
    attributes = [{entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute} for node in nodes]
    dilated = [entry for entry in attributes if max(entry.get("dilations", [1])) > 1]
    assert sorted(max(entry["dilations"]) for entry in dilated) == [2, 4]
    left_open = [entry for entry in attributes if entry.get("auto_pad", b"NOTSET") != b"NOTSET"]
    assert all(max(entry["strides"]) > 1 for entry in left_open)
    assert census["Conv"] == 4


@pytest.mark.parametrize("kernel", [2, 3, (5, 4)])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("native", [True, False])
def test_pads_are_those_of_tensorflow(kernel, dilation, native, tmp_path, monkeypatch):
    monkeypatch.setattr(kerasseg.layers, "has_dilated_gradient", lambda dtype: native)
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    logits = AtrousConv2D(3, kernel, dilation_rate=dilation, padding="same")(image)
    method = Supervised(keras.Model(image, logits))
    images_NHWC = images((1, 9, 14, 3))
    outputs = onnx_predictor(serving_function(method), tmp_path / "model.onnx")(images_NHWC)
    expected = np.asarray(method(images_NHWC.astype(np.float32)))
    np.testing.assert_allclose(outputs["confidence"], expected.max(-1), atol=1e-4)


def test_dilation_in_three_ops_is_refused_by_name(tmp_path):
    serve = serving_function(Supervised(tiny_segmenter(dilated=keras.layers.Conv2D)))
    with pytest.raises(ValueError, match="SpaceToBatchND nodes: a dilated.*kerasseg.layers"):
        write_onnx(to_onnx(serve), tmp_path / "model.onnx", {})


def test_graph_with_a_loop_is_refused():
    class Looped(keras.layers.Layer):
        def call(self, inputs):
            return tf.while_loop(lambda x: tf.reduce_max(x) < 300.0, lambda x: (x + 1.0,), [inputs])[0]

    image = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="a loop"):
        serving_function(Supervised(keras.Model(image, Looped()(image))))


def test_remainder_of_negative_numbers_follows_python(tmp_path):
    """tf2onnx on its own rounds towards zero, which crops images where they should be padded."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32, name="x")])
    def remainder(x):
        return {"y": -x % 16}

    import tf2onnx

    model, _ = tf2onnx.convert.from_function(
        remainder, remainder.input_signature, opset=17, custom_op_handlers={"FloorMod": (_floor_mod, [])}
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(-40, 40, dtype=np.int32)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], -x % 16)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_trained_in_mixed_precision_computes_in_float32(policy, tmp_path):
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        mixed = tiny_method("supervised")
    finally:
        keras.config.set_dtype_policy(before)
    exact = tiny_method("supervised")
    exact.set_weights(mixed.get_weights())
    mixed.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    images_NHWC = images((1, 20, 31, 3)).astype(np.float32)
    expected = np.asarray(exact(images_NHWC))
    assert np.abs(np.asarray(mixed(images_NHWC), np.float32) - expected).max() > 1e-4
    np.testing.assert_allclose(np.asarray(loaded(images_NHWC)), expected, atol=1e-5)
    served = serving_function(loaded)(tf.cast(images_NHWC, tf.uint8))
    np.testing.assert_allclose(served["confidence"], expected.max(-1), atol=1e-5)
