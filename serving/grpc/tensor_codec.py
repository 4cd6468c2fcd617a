"""Tensors over gRPC: the V2 protocol's messages for inference, raw or with typed contents."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from serving.common.artifact import ModelInfo
from serving.grpc.messages import MESSAGES
from serving.model.model import Answer, Model
from serving.service.failures import TooLarge
from serving.service.limits import RequestLimits
from serving.service.v2_protocol import PIECE, TensorRequest, read_request, to_bytes

MAX_ELEMENTS = 2**22
"""The most numbers in typed contents, which take many times their size in memory; larger tensors travel raw only."""

MAX_FIELDS = 2**12
"""The most fields in an inference request, counting those within others. Each becomes an object, however small."""

MAX_FIELD_BYTES = 2**23
"""The longest field that is no raw tensor, bytes."""

MAX_RANK = 32
"""Dimensions of a tensor that are looked at."""

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where a tensor's numbers are, by datatype, if they are not raw. FP16 has no such place."""


class GrpcTensorCodec:
    """Reads one request and writes its answer, see `serving.service.requests.Codec`. `read_infer` makes its bodies."""

    timeout = math.inf

    def __init__(self, limits: RequestLimits):
        self._limits = limits

    def decode(self, model: Model, body: tuple[dict[str, Any], memoryview]) -> TensorRequest:
        request = read_request(*body, model.info, self._limits.max_elements)
        self._limits.check_images(request.images_NHWC, model.max_batch_size)
        return request

    def encode(self, model: Model, request: TensorRequest, answer: Answer) -> bytes:
        return write_response(model.info, request, answer.outputs)


def parse_message(name: str, message: bytes) -> Any:
    """ValueError where it is no such message."""
    try:
        return MESSAGES[name].FromString(message)
    except DecodeError as error:
        raise ValueError(f"the message is no {name}: {error}") from error


def read_infer(contents: bytes) -> tuple[str, str | None, dict[str, Any], memoryview]:
    """A ModelInferRequest as model, version, and what `protocol.read_request` takes.

    Raises:
        TooLarge: it has more fields, or longer ones, than are read.
        ValueError: it is none, or has tensors both raw and not.
    """
    _count_fields(MESSAGES["ModelInferRequest"].DESCRIPTOR, memoryview(contents))
    message = parse_message("ModelInferRequest", contents)
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise ValueError(
            f"{len(message.inputs)} inputs and {len(raw)} raw_input_contents: expected one for each, or none"
        )
    inputs = []
    for index, tensor in enumerate(message.inputs):
        described = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape[:MAX_RANK],
            "parameters": _parameters(tensor),
        }
        if not raw:
            described["data"] = _numbers(tensor)
        elif tensor.HasField("contents"):
            raise ValueError(f"{tensor.name} has contents in addition to raw_input_contents: send one of them")
        else:
            described["parameters"]["binary_data_size"] = len(raw[index])
        inputs.append(described)
    request = {
        "inputs": inputs,
        "outputs": [{"name": output.name, "parameters": _parameters(output)} for output in message.outputs],
        "parameters": _parameters(message),
        "id": message.id or None,
    }
    blob = memoryview(raw[0] if len(raw) == 1 else b"".join(raw))
    return message.model_name, message.model_version or None, request, blob


def write_response(info: ModelInfo, request: TensorRequest, outputs: Mapping[str, np.ndarray]) -> bytes:
    """A ModelInferResponse, with raw tensors: they have a form for every datatype, and cost the least."""
    message = MESSAGES["ModelInferResponse"](model_name=info.name, model_version=str(info.version), id=request.id or "")
    datatypes = {tensor.name: tensor.datatype for tensor in info.outputs}
    for name in request.outputs:
        message.outputs.add(name=name, datatype=datatypes[name], shape=outputs[name].shape)
        message.raw_output_contents.append(to_bytes(outputs[name], datatypes[name]))
    return message.SerializeToString()


def _numbers(tensor: Any) -> list[Any] | None:
    numbers = getattr(tensor.contents, CONTENTS.get(tensor.datatype, ""), None)
    if numbers is not None and len(numbers) > MAX_ELEMENTS:
        raise TooLarge(
            f"{tensor.name}: {len(numbers)} numbers in contents, at most {MAX_ELEMENTS} are read: send them raw"
        )
    if numbers is None:
        return None
    pieces = (numbers[start : start + PIECE] for start in range(0, len(numbers), PIECE))
    return list(itertools.chain.from_iterable(pieces))


def _parameters(message: Any) -> dict[str, Any]:
    return {key: next((value for _, value in choice.ListFields()), None) for key, choice in message.parameters.items()}


def _count_fields(of: Any, message: memoryview, most: int = MAX_FIELDS) -> int:
    """How many fields a message has, with those of messages in it, before anything is made of them.

    Args:
        of: its descriptor.

    Raises:
        TooLarge: more than `most`, or one of more than `MAX_FIELD_BYTES` that is no raw tensor.
        ValueError: it is cut off, or not a message.
    """
    count, at = 0, 0
    try:
        while at < len(message):
            count += 1
            key, at = _varint(message, at)
            field, kind = of.fields_by_number.get(key >> 3), key & 7
            if kind == 2:
                length, at = _varint(message, at)
                if length > MAX_FIELD_BYTES and not (field and field.name == "raw_input_contents"):
                    raise TooLarge(f"a field of {length} bytes, at most {MAX_FIELD_BYTES} are read")
                if field and field.message_type:
                    count += _count_fields(field.message_type, message[at : at + length], most - count)
                at += length
            elif kind == 0:
                _, at = _varint(message, at)
            else:
                at += {1: 8, 5: 4}[kind]
            if count > most:
                raise TooLarge(f"more than {MAX_FIELDS} fields in a message")
    except (IndexError, KeyError) as error:
        raise ValueError(f"the message is no {of.name}") from error
    return count


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            break
    return number, at
