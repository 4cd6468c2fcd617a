"""Requests that no client should send, drawn by hypothesis: bytes over HTTP and gRPC."""

import gzip
import json
import zlib
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from PIL import Image, features

from tests.serving.images import encoded

MODEL = "toy"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
PATHS = (
    f"/v1/segment/{MODEL}",
    f"/v2/models/{MODEL}/infer",
    f"/v2/models/{MODEL}",
    f"/v2/models/{MODEL}/versions/1/stats",
    f"/v2/repository/models/{MODEL}/unload",
    "/v2/repository/index",
    "/metrics",
)


class Sent(NamedTuple):
    """A request as bytes, and whether it is complete; if not, the client hangs up in the middle of it."""

    contents: bytes
    whole: bool
    slow: bool = False
    """Whether the client reads the answer bit by bit."""


# Requests as bytes

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
# Characters that a header may hold without ending.
WORDS = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=20)
SEGMENTS = st.sampled_from(
    ["v1", "v2", "models", "segment", MODEL, "versions", "1", "infer", "..", "%2e%2e", "%00", ""]
)
SEGMENTS |= st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), max_size=8)


THIN = st.tuples(st.just(1), st.sampled_from([100, 5_000, 16_000]))
THIN |= THIN.map(lambda sides: sides[::-1])


def mostly(usual: Any, strategy: st.SearchStrategy) -> st.SearchStrategy:
    """The usual value seven times out of eight, since otherwise hardly any request would be right."""
    usual = usual if isinstance(usual, st.SearchStrategy) else st.just(usual)
    return st.integers(0, 7).flatmap(lambda n: usual if n else strategy)


@st.composite
def damaged(draw: st.DrawFn, contents: bytes) -> bytes:
    """The contents with a few bytes changed, and perhaps cut off."""
    changed = bytearray(contents)
    for _ in range(draw(st.integers(0, 4)) if contents else 0):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed[: draw(mostly(len(changed), st.integers(0, len(changed))))])


@st.composite
def tensors(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    """Headers and body of an inference request."""
    sides = draw(mostly(st.tuples(st.integers(1, 9), st.integers(1, 9)), THIN))
    shape = draw(mostly([draw(st.integers(1, 3)), *sides, 3], VALUES))
    right = isinstance(shape, list) and all(type(n) is int and 0 < n < 10_000 for n in shape)
    size = min(int(np.prod(shape)) if right else 9, 100_000)
    blob = bytes(draw(mostly(size, st.integers(0, 2 * size))))
    binary = draw(st.booleans())
    tensor = {
        "name": draw(mostly("image", VALUES)),
        "datatype": draw(mostly("UINT8", VALUES)),
        "shape": shape,
        **({"parameters": draw(mostly({"binary_data_size": len(blob)}, VALUES))} if binary else {"data": list(blob)}),
        **draw(mostly({}, st.dictionaries(st.sampled_from(["data", "parameters", "shape"]), VALUES))),
    }
    outputs = st.lists(st.fixed_dictionaries({"name": st.sampled_from(["labels", "confidence"]) | VALUES}), max_size=2)
    request = {
        "inputs": draw(mostly([tensor], st.lists(st.just(tensor), max_size=2) | VALUES)),
        **draw(
            mostly({}, st.fixed_dictionaries({}, optional={"id": VALUES, "parameters": VALUES, "outputs": outputs}))
        ),
    }
    header = json.dumps(request).encode()
    said = draw(mostly(str(len(header)), st.integers(-1, 2 * len(header)).map(str) | WORDS))
    body = draw(mostly(header + blob if binary else header, damaged(header + blob)))
    headers = {"Inference-Header-Content-Length": said} if binary else {}
    coding = draw(mostly("", st.sampled_from(["gzip", "deflate", "br", "identity"])))
    if coding:
        headers["Content-Encoding"] = coding
        packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(coding, bytes)(body)
        body = draw(mostly(packed, damaged(packed)))
    return headers, body


@st.composite
def wide_or_deep(draw: st.DrawFn) -> bytes:
    """JSON of one element many times, one after the other or nested."""
    times = draw(mostly(st.integers(0, 500), st.sampled_from([5_000, 500_000])))
    before, thing, after = draw(
        st.sampled_from(
            [
                (b'{"inputs": [', b"[],", b"[]]}"),
                (b'{"inputs": [', b"[1],", b"1]}"),
                (b'{"inputs": [{"shape": [', b"1,", b"1]}]}"),
                (
                    b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [',
                    b"1,",
                    b"1]}]}",
                ),
                (b'{"inputs": ', b"[", b"]" * times + b"}"),
                (b'{"inputs": ', b'{"a":', b"1" + b"}" * times + b"}"),
                (b"{", b'"a":1,', b'"inputs": []}'),
                (b'{"id": "', b"\\n", b'", "inputs": []}'),
                (b'{"parameters": {"timeout": 1', b"0", b'}, "inputs": []}'),
            ]
        )
    )
    return before + thing * times + after


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """A body in chunks, with extensions and trailers, which may be of any length."""
    long = mostly(st.integers(0, 9), st.sampled_from([1_000, 100_000]))
    step = draw(st.integers(1, 1 + len(body)))
    extension = b";" + b"x" * draw(long) if draw(st.booleans()) else b""
    pieces = [body[at : at + step] for at in range(0, len(body), step)][:2000]
    chunks = [b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces]
    trailers = b"X-Trailer: x\r\n" * draw(long) + draw(mostly(b"", st.binary(max_size=9)))
    return b"".join([*chunks, b"0\r\n", trailers, b"\r\n"])


@st.composite
def repeated(draw: st.DrawFn, message: bytes) -> bytes:
    """A protobuf message with one more field, many times, which may be inside others."""
    times = draw(mostly(st.integers(0, 100), st.sampled_from([5_000, 1_000_000])))
    more = (
        draw(st.sampled_from([b"\x2a\0", b"\x32\0", b"\x3a\0", b"\x22\0", b"\x78\1", b"\x18\1", b"\x08\1"]))
    ) * times
    for number in draw(st.lists(st.integers(1, 15), max_size=3)):
        size, length = b"", len(more)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        more = bytes([number << 3 | 2]) + size + bytes([length]) + more
    return message + more


@st.composite
def images(draw: st.DrawFn) -> bytes:
    height, width = draw(mostly(st.tuples(st.integers(1, 24), st.integers(1, 24)), THIN))
    mode = draw(mostly("RGB", st.sampled_from(["L", "1", "P", "CMYK"])))
    format = draw(st.sampled_from([name for name in FORMATS if name != "WEBP" or features.check("webp")]))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if format in ("PNG", "WEBP", "GIF", "BMP") and mode == "CMYK":
        image = image.convert("RGB")
    options: dict[str, Any] = {}
    if format in ("JPEG", "PNG", "WEBP") and draw(st.booleans()):
        options["exif"] = b"Exif\0\0" + draw(mostly(b"", st.binary(max_size=30)))
    if format == "JPEG" and mode == "P":
        image = image.convert("L")
    contents = encoded(image, format, **options)
    return draw(mostly(contents, damaged(contents)))


@st.composite
def forms(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    boundary = draw(mostly("edge", WORDS))
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{draw(WORDS)}"'.encode("latin-1")
        + (f'; filename="{draw(WORDS)}"'.encode("latin-1") if draw(mostly(True, st.just(False))) else b"")
        + draw(mostly(b"\r\n\r\n", st.just(b"\r\n") | st.binary(max_size=9)))
        + draw(images() | st.binary(max_size=20))
        + b"\r\n"
        for _ in range(draw(mostly(1, st.integers(0, 3))))
    ]
    body = b"".join([*parts, b"--edge--\r\n"])
    return {"Content-Type": f"multipart/form-data; boundary={boundary}"}, draw(mostly(body, damaged(body)))


@st.composite
def http_requests(draw: st.DrawFn) -> Sent:
    what = draw(st.sampled_from(["tensor", "image", "form", "json", "anything"]))
    headers: dict[str, str] = {}
    if what == "tensor":
        (headers, body), path = draw(tensors()), PATHS[1]
    elif what == "json":
        body, path = draw(wide_or_deep()), PATHS[1]
    elif what == "form":
        (headers, body), path = draw(forms()), PATHS[0]
    else:
        body, path = draw(images() if what == "image" else st.binary(max_size=50)), PATHS[0]
    anywhere = st.lists(SEGMENTS, max_size=7).map(lambda segments: "/" + "/".join(segments))
    path = draw(mostly(path, st.sampled_from(PATHS) | anywhere))
    names = st.sampled_from(["output", "opacity", "timeout"])
    values = st.sampled_from(
        ["labels", "overlay", "areas", "rle", "confidence", "0.5", "0", "nan", "-1", "1e999", "%ff"]
    )
    query = draw(mostly([], st.lists(st.tuples(names | SEGMENTS, values | SEGMENTS), max_size=3)))
    target = path + ("?" + "&".join(f"{name}={value}" for name, value in query) if query else "")
    optional = {name: WORDS for name in ("Accept", "X-Request-Id", "Content-Type", "Content-Encoding", "Authorization")}
    headers |= draw(mostly({}, st.fixed_dictionaries({}, optional=optional)))
    whole = draw(mostly(True, st.booleans())) or not body
    length = f"Content-Length: {len(body)}"
    if draw(mostly(False, st.booleans())):
        length, body = "Transfer-Encoding: chunked", draw(chunked(body))
    lines = [
        f"{draw(mostly('POST', st.sampled_from(['GET', 'PUT', 'HEAD', 'DELETE'])))} {target} HTTP/1.1",
        "Host: x",
        "Connection: close",
        length,
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    slow = draw(mostly(False, st.booleans()))
    return Sent(head + (body if whole else body[: draw(st.integers(0, len(body) - 1))]), whole, slow)
