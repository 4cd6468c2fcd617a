"""A trained method as one serving graph: from uint8 images of any number and size to labels and confidence, and where
the method has a critic that judges pixels, how far it trusts them.

Shapes: N images of one size, H and W their height and width; K classes.
"""

import collections
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import tensorflow as tf
import tf2onnx

from kerasseg.methods import Method
from kerasseg.working_size import likeliest, shrink_by_products
from serving.common.artifact import FEATURES, Tensor

OPSET = 18
"""The first in which Resize can smooth what it shrinks."""

CONVERTED_OPSET = 17
"""In that of the artifact, tf2onnx 1.17 mixes up the axes of a mean: batch and channels."""

INPUTS = (Tensor(name="image", datatype="UINT8", shape=(-1, -1, -1, 3), description="RGB images (N,H,W,3), 0..255"),)
OUTPUTS = {
    tensor.name: tensor
    for tensor in (
        Tensor(name="labels", datatype="UINT8", shape=(-1, -1, -1), description="class of each pixel (N,H,W)"),
        Tensor(name="confidence", datatype="FP32", shape=(-1, -1, -1), description="its probability (N,H,W), 0..1"),
        Tensor(
            name="reliability",
            datatype="FP32",
            shape=(-1, -1, -1),
            description="how far the run's critic trusts that the label is right (N,H,W), 0..1",
        ),
        Tensor(
            name="logits",
            datatype="FP32",
            shape=(-1, -1, -1, -1),
            description="the segmenter's own logit of each class (N,H,W,K), before any gate",
        ),
    )
}
"""The possible maps of a graph, in the order of the artifact; it always has the first two."""

SIGNATURE = [tf.TensorSpec((None, None, None, 3), tf.uint8, name="image")]

WORKING_SIZE = "working_size"
"""The scope of the operations that shrink images and bring answers back to their own size."""

UNWANTED_OPS = {
    "While": "a loop",
    "StatelessWhile": "a loop",
    "If": "a branch",
    "StatelessIf": "a branch",
    "PyFunc": "Python code",
    "EagerPyFunc": "Python code",
    "PyFuncStateless": "Python code",
}
"""TensorFlow ops that a served graph must not have outside of `WORKING_SIZE`, because they are slow or cannot be
converted."""

UNWANTED_NODES = {
    "Loop": "a loop",
    "Scan": "a loop",
    "If": "a branch",
    "SpaceToBatchND": "a dilated convolution in three ops: use Atrous(Depthwise)Conv2D of kerasseg.layers",
}
"""Nodes that an ONNX graph must not have outside of `WORKING_SIZE`: they prevent its optimisation, and parts of it
would not run on a GPU."""


def serving_function(
    method: Method, logits: bool = False, for_openvino: bool = False
) -> tf.types.experimental.PolymorphicFunction:
    """The graph that is exported.

    Args:
        method: trained.
        logits: whether they are among the outputs.
        for_openvino: shrink and enlarge images with operations that OpenVINO has. Memory then grows with the number of
            pixels times that of classes.

    Returns:
        a `tf.function` from `image` uint8 (N,H,W,3) to the `OUTPUTS` that the method has, and `FEATURES`.

    Raises:
        ValueError: the method's graph has an op of `UNWANTED_OPS`.
    """

    @tf.function(input_signature=SIGNATURE)
    def serve(image):
        images_NHW3 = tf.cast(image, tf.float32)
        if for_openvino and method.config.working_size is not None:
            answer = method.infer(shrink_by_products(images_NHW3, method.config.working_size), features=True)
            answer = answer._replace(size=tf.shape(image)[1:3])
            labels_NHW, confidence_NHW = likeliest(answer.probabilities_BHWK)
        else:
            answer = method.infer(images_NHW3, features=True)
            labels_NHW, confidence_NHW = answer.label_map()
        outputs = {"labels": labels_NHW, "confidence": confidence_NHW}
        if answer.reliability_BHW is not None:
            outputs["reliability"] = answer.reliability_BHW
        if answer.features_BD is not None:
            outputs[FEATURES] = answer.features_BD
        return outputs | ({"logits": answer.logits_BHWK} if logits else {})

    graph = serve.get_concrete_function().graph.as_graph_def()
    for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
        if node.op in UNWANTED_OPS and not node.name.startswith(WORKING_SIZE):
            raise ValueError(f"{node.name} cannot be exported: op {node.op}, {UNWANTED_OPS[node.op]}")
    return serve


def outputs_of(serve: tf.types.experimental.PolymorphicFunction) -> tuple[Tensor, ...]:
    """The maps among the outputs of `serve`, in the order of the artifact."""
    given = serve.get_concrete_function().structured_outputs
    classes = {"logits": given["logits"].shape[-1]} if "logits" in given else {}
    return tuple(
        dataclasses.replace(tensor, shape=(*tensor.shape[:-1], classes.get(name, -1)))
        for name, tensor in OUTPUTS.items()
        if name in given
    )


def features_of(serve: tf.types.experimental.PolymorphicFunction) -> int | None:
    """The length of the vector `FEATURES`; None where `serve` has none."""
    given = serve.get_concrete_function().structured_outputs
    return given[FEATURES].shape[-1] if FEATURES in given else None


def write_saved_model(serve: tf.types.experimental.PolymorphicFunction, folder: Path) -> None:
    """Writes a SavedModel whose `serving_default` signature is `serve`."""
    # keras.export.ExportArchive takes the same two things, but traces the graph twice more and writes the
    # file twice as large.
    module = tf.Module()
    module.serve = serve
    module.weights = list(serve.get_concrete_function().variables)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})


def load_saved_model(folder: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A SavedModel as a function from uint8 (N,H,W,3) to its outputs as arrays."""
    # `loaded` is kept: a signature does not keep its own variables alive.
    loaded = tf.saved_model.load(str(folder))

    def predict(images_NHWC: np.ndarray) -> dict[str, np.ndarray]:
        outputs = loaded.signatures["serving_default"](image=tf.constant(images_NHWC))
        return {name: output.numpy() for name, output in outputs.items()}

    return predict


def write_openvino(graph: Path, folder: Path) -> None:
    """Writes an ONNX file as `folder/model.xml` and `model.bin`, for OpenVINO.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import openvino

    # `openvino.convert_model` does the same, and sends usage statistics to its makers.
    openvino.save_model(openvino.Core().read_model(graph), folder / "model.xml", compress_to_fp16=False)


def load_openvino(folder: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """An OpenVINO model as a function from uint8 (N,H,W,3) to its outputs as arrays."""
    import openvino

    # In its own choice of precision, bfloat16 where the CPU has it, confidence differed by 0.01.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(folder / "model.xml", "CPU", exact)

    def predict(images_NHWC: np.ndarray) -> dict[str, np.ndarray]:
        # Copies: the next prediction overwrites the arrays of this one.
        return {output.any_name: np.array(array) for output, array in model(images_NHWC).items()}

    return predict


def to_onnx(
    serve: tf.types.experimental.PolymorphicFunction, refused: Iterable[str] = ("SpaceToBatchND",)
) -> onnx.ModelProto:
    """`serve` as an ONNX graph with the same outputs, in the artifact's order.

    Args:
        serve: from `serving_function`.
        refused: TensorFlow ops that are not converted, so that the error names them.

    Raises:
        ValueError: the ONNX graph has a node of `UNWANTED_NODES`.
    """
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    # Otherwise the converter copies the whole graph before each of its 40 passes, and frees none: 15 GB for ResNet-50.
    os.environ.setdefault(tf2onnx.constants.ENV_TF2ONNX_CATCH_ERRORS, "FALSE")
    handlers: dict[str, tuple] = {op: (_leave, []) for op in refused}
    handlers |= {"Erfc": (_erfc, []), "FloorMod": (_floor_mod, []), "ScaleAndTranslate": (_shrink, [])}
    model, _ = tf2onnx.convert.from_function(
        serve, input_signature=SIGNATURE, opset=CONVERTED_OPSET, custom_op_handlers=handlers
    )
    for node in model.graph.node:
        if node.op_type in UNWANTED_NODES and not node.name.startswith(WORKING_SIZE):
            raise ValueError(f"the ONNX graph has {node.op_type} nodes: {UNWANTED_NODES[node.op_type]}")
    model = onnx.version_converter.convert_version(model, OPSET)
    _smooth(model.graph)
    _write_out_pads(model.graph)
    for tensor in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(tensor.type.tensor_type.shape.dim, "NHW", strict=False):
            if not dimension.dim_value:
                dimension.dim_param = name  # the converter's names are numbers, and differ from export to export
    outputs = {output.name: output for output in model.graph.output}  # the converter's order is alphabetical
    del model.graph.output[:]
    names = [*(tensor.name for tensor in outputs_of(serve)), *([FEATURES] if FEATURES in outputs else [])]
    model.graph.output.extend(outputs[name] for name in names)
    return model


def write_onnx(model: onnx.ModelProto, file: Path, metadata: dict[str, object]) -> dict[str, int]:
    """Writes a graph with `metadata` (values as JSON) in the file itself.

    Returns:
        how many nodes of each type the graph has.

    Raises:
        ValueError: it is not valid ONNX.
    """
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    census = collections.Counter(node.op_type for node in model.graph.node)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"the converter wrote a graph that is not valid ONNX: {error}") from error
    onnx.save(model, file)
    return dict(census.most_common())


def _floor_mod(context, node, _name, _args) -> None:
    """Converts % of whole numbers to ONNX' `Mod`, which follows Python.

    tf2onnx 1.17 divides towards zero: -33 % 16 becomes -1, and an image is cropped where it should be
    padded.
    """
    if not tf2onnx.utils.map_onnx_to_numpy_type(context.get_dtype(node.input[0]))(0.5) == 0:
        raise ValueError(f"{node.name} cannot be exported: % of floating-point numbers")
    node.type = "Mod"


def _erfc(context, node, _name, _args) -> None:
    """Converts erfc(x), of GELU, to 1 - erf(x): ONNX and tf2onnx 1.17 have no other form."""
    [x], dtypes, shapes = node.input, node.output_dtypes, node.output_shapes
    dtype = tf2onnx.utils.map_onnx_to_numpy_type(context.get_dtype(x))
    context.remove_node(node.name)
    erf = context.make_node("Erf", [x]).output[0]
    one = context.make_const(tf2onnx.utils.make_name("one"), np.array(1, dtype)).output[0]
    context.make_node("Sub", [one, erf], name=node.name, outputs=node.output, dtypes=dtypes, shapes=shapes)


def _shrink(context, node, _name, _args) -> None:
    """Converts an antialiased `tf.image.resize`, for which tf2onnx 1.17 has nothing, to ONNX' `Resize`."""
    image, size, *_ = node.input
    if node.get_attr_str("kernel_type") != "triangle" or not node.get_attr_value("antialias"):
        raise ValueError(f"{node.name} cannot be exported: images are resized by another filter than a triangle")
    dtypes, shapes = node.output_dtypes, node.output_shapes
    context.remove_node(node.name)

    def part(of: str, start: int, end: int) -> str:
        bounds = [context.make_const(tf2onnx.utils.make_name("at"), np.array([at])).output[0] for at in (start, end)]
        return context.make_node("Slice", [of, *bounds]).output[0]

    shape = context.make_node("Shape", [image]).output[0]
    size = context.make_node("Cast", [size], attr={"to": onnx.TensorProto.INT64}).output[0]
    sizes = context.make_node("Concat", [part(shape, 0, 1), size, part(shape, 3, 4)], attr={"axis": 0}).output[0]
    context.make_node(
        "Resize",
        [image, "", "", sizes],
        attr={"mode": "linear"},  # `_smooth` adds what `CONVERTED_OPSET` does not know
        name=node.name,
        outputs=node.output,
        dtypes=dtypes,
        shapes=shapes,
    )


def _smooth(graph: onnx.GraphProto) -> None:
    """Completes the nodes that `_shrink` made."""
    for node in graph.node:
        if node.op_type == "Resize" and node.name.endswith("/ScaleAndTranslate"):
            # Next to an edge, TensorFlow and Pillow weight only pixels of the image; ONNX repeats those at the edge.
            settings = {"antialias": 1, "exclude_outside": 1}
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in settings.items())


def _leave(_context, _node, _name, _args) -> None:
    """Keeps an op as it is, so that the error names it and not the nodes that it would become."""


def _write_out_pads(graph: onnx.GraphProto) -> None:
    """Replaces "same" padding by its numbers, where these do not depend on the image's size.

    onnxruntime refuses it on dilated convolutions. With stride 1 the pads are (kernel - 1) * dilation in all,
    the larger half below and to the right.
    """
    kernels = {weights.name: weights.dims[2:] for weights in graph.initializer}
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        same = attributes.get("auto_pad")
        if node.op_type != "Conv" or same is None or same.s != b"SAME_UPPER":
            continue
        if any(stride != 1 for stride in getattr(attributes.get("strides"), "ints", ())):
            continue
        kernel = kernels[node.input[1]]
        dilations = getattr(attributes.get("dilations"), "ints", [1] * len(kernel))
        total = [(size - 1) * rate for size, rate in zip(kernel, dilations, strict=True)]
        before = [pad // 2 for pad in total]
        after = [pad - half for pad, half in zip(total, before, strict=True)]
        node.attribute.remove(same)
        node.attribute.append(onnx.helper.make_attribute("pads", before + after))
