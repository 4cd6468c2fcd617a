"""Tensors over HTTP: the V2 protocol as JSON, with its extension for binary tensors."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.datastructures import Headers
from starlette.responses import Response

from serving.common.artifact import ModelInfo
from serving.http.bodies import content_encoding, decompress
from serving.model.model import Answer, Model
from serving.service.failures import TooLarge
from serving.service.limits import RequestLimits
from serving.service.v2_protocol import PIECE, TensorRequest, read_request, require_type, shortened, to_bytes

HEADER_LENGTH = "Inference-Header-Content-Length"
"""HTTP header: how many bytes of a body are JSON, ahead of the binary tensors."""

MAX_JSON_ELEMENTS = 2**22
"""Larger outputs travel as binary tensors only: as JSON they take some fifty times their size in memory."""

MAX_JSON_BYTES = 2**24
"""The same for requests."""

MAX_JSON_TOKENS = 2**16
"""Lists, objects, strings and words in the JSON of a request: enough for an image of 250x250 with a list for each
pixel. Python makes them in one piece, and looks for cycles among them, while all other threads wait: with five times as
many, health took up to 0.5 s (benchmarks/results/health.md). Numbers it reads one by one (`read_json`)."""

MARKS = (b"[", b"{", b'"', b"\\", b"t", b"f", b"n")
"""What is counted for that."""

MAX_DIGITS = 100
"""Characters of a number in JSON; Python reads a longer one in one piece, too."""


class HttpTensorCodec:
    """Reads one request and writes its answer, see `serving.service.requests.Codec`.

    Args:
        headers: of the request.
    """

    timeout = math.inf

    def __init__(self, headers: Headers, limits: RequestLimits):
        self._encoding = content_encoding(headers)
        self._header_length = headers.get(HEADER_LENGTH)
        self._limits = limits

    def decode(self, model: Model, body: bytes) -> TensorRequest:
        body = decompress(body, self._encoding, self._limits.max_body)
        request = parse_request(body, self._header_length, model.info, self._limits.max_elements)
        self._limits.check_images(request.images_NHWC, model.max_batch_size)
        return request

    def encode(self, model: Model, request: TensorRequest, answer: Answer) -> Response:
        content, length = write_response(model.info, request, answer.outputs)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(length)})


def parse_request(body: bytes, header_length: str | None, info: ModelInfo, max_elements: int) -> TensorRequest:
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
                f"{HEADER_LENGTH} is {shortened(header_length)}: expected 0 to the body's length, {len(body)}"
            )
        json_length = int(header_length)
        if json_length == 0:
            raise ValueError(
                f"{HEADER_LENGTH} is 0, a tensor without JSON: that needs a model of which one dimension at most is "
                f"variable, and {info.name} takes {list(info.inputs[0].shape)}"
            )
    if json_length > MAX_JSON_BYTES:
        raise TooLarge(f"{json_length} bytes of JSON, at most {MAX_JSON_BYTES} are read: send binary tensors")
    request = read_json(body[:json_length], MAX_JSON_TOKENS, "send one list, or binary tensors")
    return read_request(require_type(request, dict, "the request"), memoryview(body)[json_length:], info, max_elements)


def write_response(
    info: ModelInfo, request: TensorRequest, outputs: Mapping[str, np.ndarray]
) -> tuple[bytes, int | None]:
    """The body of the answer, and the value of its header `HEADER_LENGTH`, None where it has no binary tensors.

    Raises:
        ValueError: an output that does not travel as JSON was wanted as JSON.
    """
    datatypes = {tensor.name: tensor.datatype for tensor in info.outputs}
    described, blobs = [], []
    for name in request.outputs:
        array, datatype = outputs[name], datatypes[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        numbers = None
        if name in request.binary_outputs:
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


def read_json(text: bytes, max_tokens: int, instead: str) -> Any:
    """Other threads get their turn meanwhile, between two numbers: these are read by functions of Python's.

    Args:
        max_tokens: the most lists, objects and strings.
        instead: what to do if there are more.

    Raises:
        TooLarge: there are more.
        ValueError: it is not JSON, or a number in it is longer than `MAX_DIGITS`.
    """
    step = 2**20
    if sum(text.count(mark, at, at + step) for at in range(0, len(text), step) for mark in MARKS) > max_tokens:
        raise TooLarge(f"more than {max_tokens} lists, objects and strings of JSON: {instead}")
    try:
        return json.loads(text, **NUMBERS)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is not JSON: {error}") from error


def _short_number(text: str) -> str:
    """ValueError where it is too long, or one of the words that are numbers to Python's JSON only."""
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters, at most {MAX_DIGITS} are read")
    if text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError(f"{text} is no number there")
    return text


NUMBERS: dict[str, Any] = {
    "parse_int": lambda number: int(_short_number(number)),
    "parse_float": lambda number: float(_short_number(number)),
    "parse_constant": _short_number,
}
"""How a decoder of JSON reads numbers: by functions of Python's, so that other threads get their turn between two."""
