"""The V2 inference protocol ("Open Inference Protocol"), as far as HTTP and gRPC say the same. Pure functions.

With the forms of model configuration and statistics that Triton's clients and perf_analyzer read. How requests and
answers travel is in the rooms' codecs; what a request may say is checked here, as if it were JSON. What is refused is a
ValueError that says why.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.common.artifact import ModelInfo, Tensor
from serving.service.failures import TooLarge
from serving.service.requests import DecodedRequest

DATATYPES = {
    "BOOL": np.dtype("?"),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""The protocol's name of a datatype to NumPy's, little-endian as it travels. BYTES and BF16 are not among them."""

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")

PIECE = 2**14
"""Numbers that are converted at a time: other threads get their turn between two pieces."""


@dataclass(frozen=True, kw_only=True)
class TensorRequest(DecodedRequest):
    """An inference request of the V2 protocol."""

    binary_outputs: frozenset[str] = frozenset()
    """Those of the wanted outputs that travel as binary tensors."""


def read_request(request: dict[str, Any], blob: memoryview, info: ModelInfo, max_elements: int) -> TensorRequest:
    """Checks a request.

    Args:
        request: its JSON.
        blob: the binary tensors that follow it.
        info: the model that it is for.
        max_elements: of a tensor.

    Raises:
        TooLarge: a tensor of more elements.
        ValueError: anything else that the protocol or the model does not allow.
    """
    parameters = _parameters(request, "the request")
    timeout = parameters.get("timeout")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout < 2**63):
        raise ValueError(f"the parameter timeout is {shortened(timeout)}: expected microseconds, a whole number")
    identifier = request.get("id")
    if identifier is not None:
        require_type(identifier, str, "id")
    [images_NHWC] = _read_inputs(request, blob, info, max_elements).values()
    is_binary = _read_outputs(request, parameters, info)
    return TensorRequest(
        id=identifier,
        images_NHWC=images_NHWC,
        outputs=tuple(is_binary),
        binary_outputs=frozenset(name for name in is_binary if is_binary[name]),
        timeout=timeout / 1e6 if timeout else None,  # 0 is the protocol's "none"
    )


def to_bytes(array: np.ndarray, datatype: str) -> bytes:
    """A tensor as it travels in binary."""
    return np.ascontiguousarray(array, DATATYPES[datatype]).tobytes()


def model_metadata(info: ModelInfo, versions: Sequence[int], provider: str) -> dict[str, Any]:
    """`GET /v2/models/NAME`."""
    return {
        "name": info.name,
        "versions": [str(version) for version in versions],
        "platform": "onnx_onnxv1",
        "inputs": [_tensor_metadata(tensor) for tensor in info.inputs],
        "outputs": [_tensor_metadata(tensor) for tensor in info.outputs],
        "properties": {
            "provider": provider,
            "precision": info.precision,
            "sha256": info.sha256,
            "classes": list(info.classes),
            "palette": [list(color) for color in info.palette],
        },
    }


def model_config(
    info: ModelInfo, provider: str, max_batch_size: int, max_delay: float, buckets: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """`GET /v2/models/NAME/config`, in the form of Triton's: dimensions without that of the batch."""

    def described(tensor: Tensor) -> dict[str, Any]:
        return {
            "name": tensor.name,
            "data_type": f"TYPE_{tensor.datatype}",
            "dims": list(tensor.shape[1:]),
        }

    return {
        "name": info.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": max_batch_size,
        "input": [described(tensor) for tensor in info.inputs],
        "output": [described(tensor) for tensor in info.outputs],
        "dynamic_batching": {"max_queue_delay_microseconds": round(max_delay * 1e6)},
        "parameters": {
            "provider": {"string_value": provider},
            "precision": {"string_value": info.precision},
            "buckets": {"string_value": " ".join(f"{height}x{width}" for height, width in buckets)},
        },
    }


def _read_inputs(
    request: dict[str, Any], blob: memoryview, info: ModelInfo, max_elements: int
) -> dict[str, np.ndarray]:
    expected = {tensor.name: tensor for tensor in info.inputs}
    arrays: dict[str, np.ndarray] = {}
    for described in require_type(request.get("inputs"), list, "inputs"):
        name = require_type(require_type(described, dict, "an input").get("name"), str, "the name of an input")
        if name not in expected or name in arrays:
            raise ValueError(f"{shortened(name)} is no input, or given twice: {info.name} takes {', '.join(expected)}")
        shape = _read_shape(described, expected[name], max_elements)
        dtype = DATATYPES[expected[name].datatype]
        parameters = _parameters(described, name)
        size = parameters.get("binary_data_size")
        if size is None:
            arrays[name] = _from_json(described.get("data"), dtype, shape, expected[name])
            continue
        needed = math.prod(shape) * dtype.itemsize
        if size != needed or isinstance(size, bool) or len(blob) < needed:
            raise ValueError(
                f"{name}: {list(shape)} of {expected[name].datatype} are {needed} bytes; binary_data_size is "
                f"{shortened(size)} and {len(blob)} bytes follow"
            )
        arrays[name] = np.frombuffer(blob[:needed], dtype).reshape(shape)
        if needed < memoryview(blob.obj).nbytes // 2:  # or a long request would stay in memory for the sake of it
            arrays[name] = arrays[name].copy()
        blob = blob[needed:]
    if missing := expected.keys() - arrays.keys():
        raise ValueError(f"the input {missing.pop()} is missing")
    if len(blob):
        raise ValueError(f"{len(blob)} bytes follow the last tensor")
    return arrays


def _read_shape(described: dict[str, Any], tensor: Tensor, max_elements: int) -> tuple[int, ...]:
    if described.get("datatype") != tensor.datatype:
        raise ValueError(f"{tensor.name} is of datatype {tensor.datatype}, got {shortened(described.get('datatype'))}")
    shape = described.get("shape")
    fits = (
        isinstance(shape, list)
        and len(shape) == len(tensor.shape)
        and all(
            type(length) is int and length >= 1 and expected in (-1, length)
            for length, expected in zip(shape, tensor.shape, strict=True)
        )
    )
    if not fits:
        raise ValueError(f"{tensor.name} is of shape {list(tensor.shape)} (-1: any, from 1 up), got {shortened(shape)}")
    assert isinstance(shape, list)
    if math.prod(shape) > max_elements:
        raise TooLarge(f"{tensor.name}: {shortened(shape)} has more than {max_elements} elements: send less at once")
    return tuple(shape)


def _from_json(data: Any, dtype: np.dtype, shape: tuple[int, ...], tensor: Tensor) -> np.ndarray:
    """Nested or flat, row by row."""
    if dtype == DATATYPES["FP16"]:
        raise ValueError(f"{tensor.name} is FP16, which JSON cannot carry: send it as a binary tensor")
    try:
        array = _as_array(require_type(data, list, f"data of {tensor.name}"))
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"data of {tensor.name} is no array: {error}") from error
    kinds = {"b": "b", "f": "iuf"}.get(dtype.kind, "iu")
    if array.dtype.kind not in kinds or array.size != math.prod(shape):
        raise ValueError(
            f"data of {tensor.name}: expected {math.prod(shape)} numbers of {tensor.datatype}, got {array.size} of "
            f"{array.dtype}"
        )
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"data of {tensor.name}: {array.min()} to {array.max()} does not fit {tensor.datatype}")
    return array.astype(dtype).reshape(shape)


def _as_array(data: list[Any]) -> np.ndarray:
    """As `numpy.asarray`, which lets no other thread run, but in pieces."""
    inner = data[0] if data else None
    if isinstance(inner, list) and inner and isinstance(inner[0], list):
        return np.stack([_as_array(require_type(part, list, "a list of lists")) for part in data])
    step = max(1, PIECE // len(inner)) if isinstance(inner, list) and inner else PIECE
    pieces = [np.asarray(data[start : start + step]) for start in range(0, len(data), step)]
    return np.concatenate(pieces) if pieces else np.asarray(data)


def _read_outputs(request: dict[str, Any], parameters: dict[str, Any], info: ModelInfo) -> dict[str, bool]:
    """Those that are wanted, and whether as a binary tensor."""
    names = [tensor.name for tensor in info.outputs]
    default = parameters.get("binary_data_output") is True
    wanted = {}
    for described in require_type(request.get("outputs", []), list, "outputs"):
        name = require_type(described, dict, "an output").get("name")
        if name not in names:
            raise ValueError(f"{shortened(name)} is no output: {info.name} gives {', '.join(names)}")
        own = _parameters(described, name)
        if own.get("classification"):
            raise ValueError(f"{name} is not a score by class: the parameter classification cannot be used")
        wanted[name] = own.get("binary_data", default) is True
    return wanted or dict.fromkeys(names, default)


def _parameters(described: dict[str, Any], whose: str) -> dict[str, Any]:
    parameters = require_type(described.get("parameters", {}), dict, f"parameters of {whose}")
    if any(key.startswith("shared_memory") for key in parameters):
        raise ValueError("tensors in shared memory are not supported: send them in the body")
    return parameters


def require_type(value: Any, kind: Any, what: str) -> Any:
    """`value`; ValueError where it is not of this kind of JSON: dict, list or str."""
    if not isinstance(value, kind):
        name = {"dict": "an object", "list": "a list", "str": "a string"}[kind.__name__]
        raise ValueError(f"{what}: expected {name}, got {shortened(value)}")
    return value


def shortened(value: Any) -> str:
    """A value as JSON, for messages: no more than 60 characters of it."""
    value = value[:61] if isinstance(value, str) else value
    text = "".join(itertools.islice(json.JSONEncoder().iterencode(value), 61))  # written as far as it is needed
    return text if len(text) <= 60 else text[:57] + "..."


def _tensor_metadata(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
