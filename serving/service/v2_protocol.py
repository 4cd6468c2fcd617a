"""The V2 inference protocol ("Open Inference Protocol"): bytes to arrays and back. Pure functions.

As JSON over HTTP, with its extension for binary tensors, and the forms of model configuration and statistics that
Triton's clients and perf_analyzer read. gRPC says the same in other bytes (`serving.grpc.server`), so requests are
checked and answers put together here for both. What is refused is a ValueError that says why.
"""

import itertools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.common.artifact import ModelInfo, Tensor

DATATYPES = {
    "BOOL": np.dtype("?"),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""The protocol's name of a datatype to NumPy's, little-endian as it travels. BYTES and BF16 are not among them."""

HEADER_LENGTH = "Inference-Header-Content-Length"
"""HTTP header: how many bytes of a body are JSON, ahead of the binary tensors."""

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")

MAX_JSON_ELEMENTS = 2**22
"""Larger outputs travel as binary tensors only: as JSON they take some fifty times their size in memory."""

MAX_JSON_BYTES = 2**24
"""The same for requests."""

MAX_JSON_TOKENS = 2**16
"""Lists, objects, strings and words in the JSON of a request: enough for a picture of 250x250 with a list for each
pixel. Python makes them in one piece, and looks for cycles among them, while all other threads wait: with five times as
many, health took up to 0.5 s (benchmarks/results/health.md). Numbers it reads one by one (`_read_json`)."""

MAX_DIGITS = 100
"""Characters of a number in JSON; Python reads a longer one in one piece, too."""

PIECE = 2**14
"""Numbers that are converted at a time: other threads get their turn between two pieces."""


class TooLarge(ValueError):
    """A request beyond a limit."""


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """What an inference request says."""

    id: str | None
    inputs: dict[str, np.ndarray]
    outputs: dict[str, bool]
    """Those wanted, and whether as a binary tensor."""
    timeout: float | None
    """Seconds that the client wants to wait at most."""


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undoes the Content-Encoding `gzip`, `deflate` (which means zlib's frame) or `identity`.

    Raises:
        TooLarge: more than `max_bytes` come out; found without letting them out.
        ValueError: another encoding, or damaged.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise ValueError(f"Content-Encoding is {encoding}: send gzip, deflate, or the body as it is")
    inflate = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    try:
        inflated = inflate.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"the body is not {encoding}: {error}") from error
    if len(inflated) > max_bytes:
        raise TooLarge(f"the body holds more than {max_bytes} bytes")
    if not inflate.eof:
        raise ValueError(f"the body ends within its {encoding} data")
    return inflated


def parse_request(body: bytes, header_length: str | None, info: ModelInfo, max_elements: int) -> InferRequest:
    """Reads the body of an inference request.

    Args:
        header_length: the header `HEADER_LENGTH` of the request.
        info: the model that it is for.
        max_elements: of a tensor.

    Raises:
        TooLarge: a tensor of more elements, or more JSON than `MAX_JSON_BYTES`.
        ValueError: anything else that the protocol or the model does not allow.
    """
    json_length = len(body)
    if header_length is not None:
        is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
        if not (is_number and int(header_length) <= len(body)):
            raise ValueError(
                f"{HEADER_LENGTH} is {_short(header_length)}: expected 0 to the body's length, {len(body)}"
            )
        json_length = int(header_length)
        if json_length == 0:
            raise ValueError(
                f"{HEADER_LENGTH} is 0, a tensor without JSON: that needs a model of which one dimension at most is "
                f"variable, and {info.name} takes {list(info.inputs[0].shape)}"
            )
    if json_length > MAX_JSON_BYTES:
        raise TooLarge(f"{json_length} bytes of JSON, at most {MAX_JSON_BYTES} are read: send binary tensors")
    request = _read_json(body[:json_length])
    return read_request(_typed(request, dict, "the request"), memoryview(body)[json_length:], info, max_elements)


def read_request(request: dict[str, Any], blob: memoryview, info: ModelInfo, max_elements: int) -> InferRequest:
    """Checks a request, given as its JSON and the binary tensors that follow; the rest is as in `parse_request`."""
    parameters = _parameters(request, "the request")
    timeout = parameters.get("timeout")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int) or not 0 <= timeout < 2**63):
        raise ValueError(f"the parameter timeout is {_short(timeout)}: expected microseconds, a whole number")
    identifier = request.get("id")
    return InferRequest(
        id=None if identifier is None else _typed(identifier, str, "id"),
        inputs=_read_inputs(request, blob, info, max_elements),
        outputs=_read_outputs(request, parameters, info),
        timeout=timeout / 1e6 if timeout else None,  # 0 is the protocol's "none"
    )


def write_response(
    info: ModelInfo, request: InferRequest, outputs: Mapping[str, np.ndarray]
) -> tuple[bytes, int | None]:
    """The body of the answer, and the value of its header `HEADER_LENGTH`, None where it has no binary tensors.

    Raises:
        ValueError: an output that does not travel as JSON was wanted as JSON.
    """
    datatypes = {tensor.name: tensor.datatype for tensor in info.outputs}
    described, blobs = [], []
    for name, binary in request.outputs.items():
        array, datatype = outputs[name], datatypes[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        numbers = None
        if binary:
            blobs.append(to_bytes(array, datatype))
            tensor["parameters"] = {"binary_data_size": len(blobs[-1])}
        elif datatype == "FP16":
            raise ValueError(f'{name} is FP16, which JSON cannot carry: ask for it with "binary_data": true')
        elif array.size > MAX_JSON_ELEMENTS:
            raise ValueError(
                f"{name} has {array.size} elements, at most {MAX_JSON_ELEMENTS} travel as JSON: "
                'ask for it with "binary_data": true'
            )
        else:
            numbers = json_numbers(array)
        described.append(_extended(tensor, "data", numbers) if numbers else json.dumps(tensor))
    answer = {"model_name": info.name, "model_version": str(info.version)}
    if request.id is not None:
        answer["id"] = request.id
    header = _extended(answer, "outputs", f"[{', '.join(described)}]").encode()
    return b"".join([header, *blobs]), len(header) if blobs else None


def json_numbers(array: np.ndarray) -> str:
    """The array's numbers as a list in JSON, row by row; piece by piece, so that other threads get their turn."""
    flat = array.ravel()
    pieces = (json.dumps(flat[start : start + PIECE].tolist())[1:-1] for start in range(0, flat.size, PIECE))
    return f"[{', '.join(pieces)}]"


def _extended(fields: dict[str, Any], name: str, value: str) -> str:
    """An object as JSON, with one field more, which is JSON already."""
    return f"{json.dumps(fields)[:-1]}, {json.dumps(name)}: {value}}}"


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
    for described in _typed(request.get("inputs"), list, "inputs"):
        name = _typed(_typed(described, dict, "an input").get("name"), str, "the name of an input")
        if name not in expected or name in arrays:
            raise ValueError(f"{_short(name)} is no input, or given twice: {info.name} takes {', '.join(expected)}")
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
                f"{_short(size)} and {len(blob)} bytes follow"
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
        raise ValueError(f"{tensor.name} is of datatype {tensor.datatype}, got {_short(described.get('datatype'))}")
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
        raise ValueError(f"{tensor.name} is of shape {list(tensor.shape)} (-1: any, from 1 up), got {_short(shape)}")
    assert isinstance(shape, list)
    if math.prod(shape) > max_elements:
        raise TooLarge(f"{tensor.name}: {_short(shape)} has more than {max_elements} elements: send less at once")
    return tuple(shape)


def _from_json(data: Any, dtype: np.dtype, shape: tuple[int, ...], tensor: Tensor) -> np.ndarray:
    """Nested or flat, row by row."""
    if dtype == DATATYPES["FP16"]:
        raise ValueError(f"{tensor.name} is FP16, which JSON cannot carry: send it as a binary tensor")
    try:
        array = _as_array(_typed(data, list, f"data of {tensor.name}"))
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
        return np.stack([_as_array(_typed(part, list, "a list of lists")) for part in data])
    step = max(1, PIECE // len(inner)) if isinstance(inner, list) and inner else PIECE
    pieces = [np.asarray(data[start : start + step]) for start in range(0, len(data), step)]
    return np.concatenate(pieces) if pieces else np.asarray(data)


def _read_json(text: bytes) -> Any:
    """Other threads get their turn meanwhile, between two numbers: these are read by functions of Python's.

    Raises:
        TooLarge: more than `MAX_JSON_TOKENS`.
        ValueError: it is not JSON, or a number in it is longer than `MAX_DIGITS`.
    """
    marks, step = (b"[", b"{", b'"', b"\\", b"t", b"f", b"n"), 2**20
    if sum(text.count(mark, at, at + step) for at in range(0, len(text), step) for mark in marks) > MAX_JSON_TOKENS:
        raise TooLarge(
            f"more than {MAX_JSON_TOKENS} lists, objects and strings of JSON: send one list, or binary tensors"
        )
    try:
        return json.loads(
            text,
            parse_int=lambda number: int(_short_number(number)),
            parse_float=lambda number: float(_short_number(number)),
            parse_constant=_short_number,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is not JSON: {error}") from error


def _short_number(text: str) -> str:
    """ValueError where it is too long, or one of the words that are numbers to Python's JSON only."""
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters, at most {MAX_DIGITS} are read")
    if text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"{text} is no number there")
    return text


def _read_outputs(request: dict[str, Any], parameters: dict[str, Any], info: ModelInfo) -> dict[str, bool]:
    names = [tensor.name for tensor in info.outputs]
    default = parameters.get("binary_data_output") is True
    wanted = {}
    for described in _typed(request.get("outputs", []), list, "outputs"):
        name = _typed(described, dict, "an output").get("name")
        if name not in names:
            raise ValueError(f"{_short(name)} is no output: {info.name} gives {', '.join(names)}")
        own = _parameters(described, name)
        if own.get("classification"):
            raise ValueError(f"{name} is not a score by class: the parameter classification cannot be used")
        wanted[name] = own.get("binary_data", default) is True
    return wanted or dict.fromkeys(names, default)


def _parameters(described: dict[str, Any], whose: str) -> dict[str, Any]:
    parameters = _typed(described.get("parameters", {}), dict, f"parameters of {whose}")
    if any(key.startswith("shared_memory") for key in parameters):
        raise ValueError("tensors in shared memory are not supported: send them in the body")
    return parameters


def _typed(value: Any, kind: Any, what: str) -> Any:
    if not isinstance(value, kind):
        name = {"dict": "an object", "list": "a list", "str": "a string"}[kind.__name__]
        raise ValueError(f"{what}: expected {name}, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    value = value[:61] if isinstance(value, str) else value
    text = "".join(itertools.islice(json.JSONEncoder().iterencode(value), 61))  # written as far as it is needed
    return text if len(text) <= 60 else text[:57] + "..."


def _tensor_metadata(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
