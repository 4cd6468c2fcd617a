"""Images over HTTP: a file in; its label map, overlay, areas, run lengths or a map of the model out."""

import contextlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import numpy as np
import python_multipart
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serving.common.areas import areas
from serving.common.artifact import ModelInfo
from serving.common.images import index_png, jpeg, load_image, map_png, overlay
from serving.http.bodies import content_encoding, decompress
from serving.model.model import Answer, Model
from serving.service.limits import RequestLimits
from serving.service.requests import DecodedRequest

MEDIA_TYPES = {
    "labels": "image/png",
    "overlay": "image/jpeg",
    "areas": "application/json",
    "rle": "application/x-coco-rle+json",
}
"""What an image can be answered with, in the order in which `Accept: */*` chooses."""

NEEDED_OUTPUTS = {"areas": ("labels", "confidence"), "overlay": ("labels",), "rle": ("labels",)}
"""What of the model goes into an answer; for any other the output of the same name."""

MAX_RUNS = 2**20
"""The most run lengths in an answer."""

MAX_PARTS = 64
"""The most parts of a form, counting its end."""

_LOST_BY_CURL = re.compile(rb"[\r\n\0]")
"""What `curl -d @FILE` takes out of a file. No image is without."""


@dataclass(frozen=True, kw_only=True)
class ImageRequest(DecodedRequest):
    """One image."""

    output: str
    """See `choose_output`."""
    opacity: float
    """How strongly the overlay tints the image, 0..1."""


class ImageCodec:
    """Reads one request and writes its answer, see `serving.service.requests.Codec`.

    Args:
        query, headers: of the request.
        request_id: what the answer calls it.
    """

    def __init__(self, query: Mapping[str, str], headers: Headers, limits: RequestLimits, request_id: str):
        self._query = query
        self._accept = headers.get("accept", "*/*")
        self._content_type = headers.get("content-type", "")
        self._encoding = content_encoding(headers)
        self._limits = limits
        self._id = request_id

    @property
    def timeout(self) -> float:
        with contextlib.suppress(ValueError):  # which `decode` raises again
            return _number(self._query, "timeout", math.inf, math.inf)
        return math.inf

    def decode(self, model: Model, body: bytes) -> ImageRequest:
        body = decompress(body, self._encoding, self._limits.max_body)
        output = choose_output(self._query, self._accept, model.info)
        opacity = _number(self._query, "opacity", 0.5, 1.0)
        timeout = _number(self._query, "timeout", math.inf, math.inf)
        return ImageRequest(
            images_NHWC=self._read_image(body)[None],
            outputs=NEEDED_OUTPUTS.get(output, (output,)),
            timeout=timeout,
            output=output,
            opacity=opacity,
        )

    def encode(self, model: Model, request: ImageRequest, answer: Answer) -> Response:
        outputs = {name: array[0] for name, array in answer.outputs.items()}
        return image_response(model.info, request.output, request.images_NHWC[0], outputs, request.opacity, self._id)

    def _read_image(self, body: bytes) -> np.ndarray:
        kind = self._content_type.lower()
        contents = file_of_form(self._content_type, body) if kind.startswith("multipart/form-data") else body
        try:
            return load_image(contents, max_pixels=self._limits.max_pixels)
        except ValueError as error:
            by_curl = kind.startswith("application/x-www-form-urlencoded")  # as it says by itself
            if by_curl and contents and not _LOST_BY_CURL.search(contents, 0, 2**16):
                raise ValueError(
                    f"{error}; it has no line end and no zero byte, which curl -d takes out of a file: "
                    "send it with curl --data-binary @FILE"
                ) from error
            raise


def choose_output(query: Mapping[str, str], accept: str, info: ModelInfo) -> str:
    """What an image is answered with: a key of `MEDIA_TYPES`, or a map of the model such as `confidence`.

    Args:
        query: `output` decides where it is given.
        accept: the header, where it is not.

    Raises:
        ValueError: no such output.
        HTTPException: 406, where nothing that is accepted can be had.
    """
    maps = [tensor.name for tensor in info.outputs if tensor.datatype.startswith("FP") and len(tensor.shape) == 3]
    output = query.get("output")
    if output is not None:
        if output not in (*MEDIA_TYPES, *maps):
            raise ValueError(f"output is {output}: expected {', '.join((*MEDIA_TYPES, *maps))}")
        return output
    ranges = []
    for entry in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        with contextlib.suppress(ValueError):
            ranges.append((float(quality), media_type))
    for weight, media_type in sorted(ranges, key=lambda item: -item[0]):
        for output, own in MEDIA_TYPES.items():
            if weight > 0 and fnmatch(own, media_type):
                return output
    raise HTTPException(406, f"Accept is {accept}: this can be had: {', '.join(MEDIA_TYPES.values())}")


def file_of_form(content_type: str, body: bytes) -> bytes:
    """The one file of a form (`curl -F image=@a.jpg`).

    Raises:
        ValueError: it is no form, or has another number of files.
    """
    _, options = parse_options_header(content_type)
    boundary = re.escape(b"--" + options.get(b"boundary", b""))
    if next(itertools.islice(re.finditer(boundary, body), MAX_PARTS, None), None):
        raise ValueError(f"the form has more than {MAX_PARTS - 1} parts: send one image a request")
    files: list[Any] = []
    limits = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}  # nothing is spooled to a disk
    parser = python_multipart.create_form_parser({"Content-Type": content_type.encode()}, None, files.append, limits)
    parser.write(body)
    parser.finalize()
    if len(files) != 1:
        raise ValueError(f"the form has {len(files)} files: send one image a request, such as -F image=@a.jpg")
    files[0].file_object.seek(0)
    return files[0].file_object.read()


def image_response(
    info: ModelInfo,
    output: str,
    image_HWC: np.ndarray,
    outputs: Mapping[str, np.ndarray],
    opacity: float,
    request_id: str,
) -> Response:
    """One image's answer.

    Args:
        output: see `choose_output`.
        outputs: the model's, (H,W) each.
    """
    model = {"id": request_id, "model_name": info.name, "model_version": str(info.version)}
    if output == "labels":
        return Response(index_png(outputs["labels"], info.palette), media_type=MEDIA_TYPES[output])
    if output == "overlay":
        tinted = jpeg(overlay(image_HWC, outputs["labels"], info.palette, opacity))
        return Response(tinted, media_type=MEDIA_TYPES[output])
    if output not in MEDIA_TYPES:
        return Response(map_png(outputs[output]), media_type="image/png")
    labels_HW = outputs["labels"]
    height, width = labels_HW.shape
    if output == "rle" and np.count_nonzero(labels_HW[1:] != labels_HW[:-1]) > MAX_RUNS:
        raise ValueError(f"the labels change more than {MAX_RUNS} times: ask for output=labels")
    classes = areas(labels_HW, info.classes, runs=output == "rle")
    answer = model | {"height": height, "width": width, "classes": classes}
    if "confidence" in outputs:
        answer["mean_confidence"] = round(float(outputs["confidence"].mean()), 6)
    # Written in one piece, long lists of runs would hold up all other threads.
    return Response("".join(json.JSONEncoder().iterencode(answer)), media_type=MEDIA_TYPES[output])


def _number(query: Mapping[str, str], name: str, default: float, most: float) -> float:
    try:
        value = float(query.get(name, default))
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {query[name]}: expected a number from 0 to {most:g}")
    return value
