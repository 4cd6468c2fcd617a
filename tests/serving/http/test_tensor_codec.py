"""The V2 protocol over HTTP, as pure functions: bytes in, arrays out, and back."""

import gzip
import json
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http import tensor_codec
from serving.http.bodies import decompress
from serving.http.tensor_codec import parse_request, write_response
from serving.service import v2_protocol
from serving.service.failures import TooLarge
from serving.service.v2_protocol import TensorRequest
from tests.serving.toy_model import model_info

IMAGE = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)


def request(changes=None, **fields):
    """A request for the whole of IMAGE as JSON, with fields of its input and of itself changed."""
    tensor = {"name": "image", "shape": [1, 2, 4, 3], "datatype": "UINT8", "data": IMAGE.tolist()} | (changes or {})
    tensor = {key: value for key, value in tensor.items() if value is not ...}
    return {"inputs": [tensor], **fields}


def parse(body, header_length=None, info=None, max_elements=1000):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(body, header_length, info or model_info(), max_elements)


def parse_binary(blob, changes=None, **fields):
    size = {"data": ..., "parameters": {"binary_data_size": len(blob)}}
    header = json.dumps(request(size | (changes or {}), **fields)).encode()
    return parse(header + blob, str(len(header)))


def refused(*args, **options):
    with pytest.raises(ValueError) as caught:
        parse(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("data", [IMAGE.tolist(), IMAGE.ravel().tolist(), IMAGE.reshape(2, 12).tolist()])
def test_json_data_is_nested_or_flat(data):
    parsed = parse(request({"data": data}))
    assert parsed.images_NHWC.dtype == np.uint8
    np.testing.assert_array_equal(parsed.images_NHWC, IMAGE)
    assert (parsed.id, parsed.timeout) == (None, None)
    assert (parsed.outputs, parsed.binary_outputs) == (("labels", "confidence"), set())


def test_binary_data():
    parsed = parse_binary(IMAGE.tobytes(), id="seven", parameters={"timeout": 2500, "binary_data_output": True})
    np.testing.assert_array_equal(parsed.images_NHWC, IMAGE)
    assert (parsed.id, parsed.timeout) == ("seven", 0.0025)
    assert (parsed.outputs, parsed.binary_outputs) == (("labels", "confidence"), {"labels", "confidence"})


def test_an_output_says_for_itself_how_it_travels():
    outputs = [{"name": "confidence", "parameters": {"binary_data": False}}, {"name": "labels"}]
    parsed = parse(request(outputs=outputs))
    assert (parsed.outputs, parsed.binary_outputs) == (("confidence", "labels"), set())
    parsed = parse(request(outputs=outputs, parameters={"binary_data_output": True}))
    assert (parsed.outputs, parsed.binary_outputs) == (("confidence", "labels"), {"labels"})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the request is not JSON"),
        (b"\xff\xfe\x00", "the request is not JSON"),
        (b"[" * 50_000, "the request is not JSON"),
        (b"[]", "the request: expected an object, got []"),
        ({}, "inputs: expected a list, got null"),
        ({"inputs": []}, "the input image is missing"),
        ({"inputs": [3]}, "an input: expected an object, got 3"),
        ({"inputs": request()["inputs"] * 2}, '"image" is no input, or given twice'),
        (request({"name": "photo"}), '"photo" is no input, or given twice: toy takes image'),
        (request({"name": ["image"]}), "the name of an input: expected a string"),
        (request({"datatype": "FP32"}), 'image is of datatype UINT8, got "FP32"'),
        (request({"shape": [1, 2, 4]}), "image is of shape [-1, -1, -1, 3] (-1: any, from 1 up), got [1, 2, 4]"),
        (request({"shape": [1, 2, 3, 4]}), "image is of shape"),
        (request({"shape": [1, 2, 0, 3]}), "image is of shape"),
        (request({"shape": [1, 2, -4, 3]}), "image is of shape"),
        (request({"shape": [1, 2, 4.0, 3]}), "image is of shape"),
        (request({"shape": [True, 2, 4, 3]}), "image is of shape"),
        (request({"shape": "1243"}), "image is of shape"),
        (request({"shape": [1, 2, 2, 3]}), "expected 12 numbers of UINT8, got 24"),
        (request({"data": [[1, 2], [3]]}), "data of image is no array"),
        (request({"data": ["1"] * 24}), "expected 24 numbers of UINT8, got 24 of <U1"),
        (request({"data": [1.5] * 24}), "got 24 of float64"),
        (request({"data": [None] * 24}), "got 24 of object"),
        (request({"data": [True] * 24}), "got 24 of bool"),
        (request({"data": [256] * 24}), "256 to 256 does not fit UINT8"),
        (request({"data": [-1] * 24}), "-1 to -1 does not fit UINT8"),
        (request({"data": [10**30] * 24}), "got 24 of object"),
        (request({"data": 7}), "data of image: expected a list, got 7"),
        (request({"data": ...}), "data of image: expected a list, got null"),
        (request({"parameters": {"shared_memory_region": "x"}}), "shared memory are not supported"),
        (request({"parameters": 4}), "parameters of image: expected an object"),
        (request({"parameters": {"binary_data_size": 24}}), "binary_data_size is 24 and 0 bytes follow"),
        (request(outputs=[{"name": "masks"}]), '"masks" is no output: toy gives labels, confidence'),
        (request(outputs=[{"name": {}}]), "{} is no output"),
        (request(outputs={"name": "labels"}), "outputs: expected a list"),
        (request(outputs=[{"name": "labels", "parameters": {"classification": 2}}]), "classification"),
        (request(id=7), "id: expected a string, got 7"),
        (request(parameters={"timeout": -1}), "timeout is -1: expected microseconds"),
        (request(parameters={"timeout": "1"}), "timeout"),
    ],
)
def test_what_is_wrong_is_told(body, said):
    assert said in refused(body)


@pytest.mark.parametrize("length", ["-1", "1.0", "", "x", "99999", "٣", "9" * 5000])
def test_header_length_that_cannot_be(length):
    with pytest.raises(ValueError):
        parse(request(), length)


def test_binary_data_of_another_length():
    blob = IMAGE.tobytes()
    for size in (23, 25, True, "24"):
        with pytest.raises(ValueError, match="24 bytes; binary_data_size is"):
            parse_binary(blob, {"parameters": {"binary_data_size": size}})
    with pytest.raises(ValueError, match="24 bytes; binary_data_size is 24 and 23 bytes follow"):
        parse_binary(blob[:-1], {"parameters": {"binary_data_size": 24}})
    with pytest.raises(ValueError, match="1 bytes follow the last tensor"):
        parse_binary(blob + b"x", {"parameters": {"binary_data_size": 24}})


def test_a_tensor_without_json_needs_another_model():
    with pytest.raises(ValueError, match="of which one dimension at most is variable"):
        parse(IMAGE.tobytes(), "0")


def test_limits_hold_before_anything_is_computed(monkeypatch):
    with pytest.raises(TooLarge, match="more than 23 elements"):
        parse(request(), max_elements=23)
    assert parse(request(), max_elements=24).images_NHWC.size == 24
    with pytest.raises(TooLarge):
        parse(request({"shape": [10**90, 10**90, 10**90, 3]}))
    monkeypatch.setattr(tensor_codec, "MAX_JSON_BYTES", 100)
    with pytest.raises(TooLarge, match="at most 100 are read: send binary tensors"):
        parse(request())


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP32", [1, 2.5], [1, 2.5]),
        ("INT8", [-128, 127], [-128, 127]),
        ("UINT64", [2**63, 2**64 - 1], [2**63, 2**64 - 1]),
        ("BOOL", [True, False], [True, False]),
    ],
)
def test_other_datatypes(datatype, data, expected):
    parsed = parse(request({"shape": [2], "datatype": datatype, "data": data}), info=model_info(datatype, (-1,)))
    assert parsed.images_NHWC.dtype == v2_protocol.DATATYPES[datatype]
    assert parsed.images_NHWC.tolist() == expected


def test_half_precision_travels_as_bytes_only():
    half = model_info("FP16", (-1,), scores="FP16")
    assert "FP16, which JSON cannot carry" in refused(
        request({"shape": [2], "datatype": "FP16", "data": [1, 2]}), info=half
    )
    scores = np.array([[[0.5, 1.5]]], np.float16)
    asked = TensorRequest(images_NHWC=IMAGE, outputs=("scores",), binary_outputs=frozenset({"scores"}))
    body, length = write_response(half, asked, {"scores": scores})
    assert body[length:] == scores.tobytes()
    with pytest.raises(ValueError, match="FP16, which JSON cannot carry"):
        write_response(half, TensorRequest(images_NHWC=IMAGE, outputs=("scores",)), {"scores": scores})


OUTPUTS = {
    "labels": np.array([[[0, 1], [1, 0]]], np.uint8),
    "confidence": np.array([[[0.5, 0.25], [1, 0]]], np.float32),
}


def test_a_response_as_json():
    body, length = write_response(model_info(), parse(request(id="seven")), OUTPUTS)
    assert length is None
    assert json.loads(body) == {
        "model_name": "toy",
        "model_version": "3",
        "id": "seven",
        "outputs": [
            {"name": "labels", "datatype": "UINT8", "shape": [1, 2, 2], "data": [0, 1, 1, 0]},
            {"name": "confidence", "datatype": "FP32", "shape": [1, 2, 2], "data": [0.5, 0.25, 1.0, 0.0]},
        ],
    }


def test_a_response_of_both_kinds():
    asked = parse(request(outputs=[{"name": "confidence", "parameters": {"binary_data": True}}, {"name": "labels"}]))
    # A view, as of a padded batch: bytes have to be those of the view.
    wide = np.zeros((2, 4, 4), np.float32)
    wide[:1, :2, :2] = OUTPUTS["confidence"]
    body, length = write_response(model_info(), asked, OUTPUTS | {"confidence": wide[:1, :2, :2]})
    header = json.loads(body[:length])
    assert "id" not in header
    assert header["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert "data" not in header["outputs"][0]
    assert header["outputs"][1]["data"] == [0, 1, 1, 0]
    assert np.frombuffer(body[length:], "<f4").tolist() == [0.5, 0.25, 1, 0]


def test_a_large_output_is_not_written_as_json(monkeypatch):
    monkeypatch.setattr(tensor_codec, "MAX_JSON_ELEMENTS", 3)
    with pytest.raises(ValueError, match='labels has 4 elements, at most 3 .* ask for it with "binary_data": true'):
        write_response(model_info(), parse(request()), OUTPUTS)


def test_compressed_bodies():
    text = b"segment" * 100
    for encoding, compressed in (("gzip", gzip.compress(text)), ("deflate", zlib.compress(text)), ("identity", text)):
        assert decompress(compressed, encoding, 700) == text
    with pytest.raises(TooLarge, match="more than 699 bytes"):
        decompress(gzip.compress(text), "gzip", 699)
    with pytest.raises(ValueError, match="ends within"):
        decompress(gzip.compress(text)[:-4], "gzip", 700)
    with pytest.raises(ValueError, match="the body is not gzip"):
        decompress(text, "gzip", 700)
    with pytest.raises(ValueError, match="Content-Encoding is br"):
        decompress(text, "br", 700)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), json_values, json_values)
def test_any_json_is_read_or_refused(field, value, other):
    for body in (value, request({field: value}), request(outputs=value, id=other), request(parameters=value)):
        try:
            parsed = parse(body)
        except ValueError:
            continue
        np.testing.assert_array_equal(parsed.images_NHWC.shape, (1, 2, 4, 3))


# What would hold up other requests


def test_lists_objects_and_strings_are_counted_before_they_are_made(monkeypatch):
    monkeypatch.setattr(tensor_codec, "MAX_JSON_TOKENS", 100)
    for many in ("[]", "{}", '""', "null", "true", '"\\n\\n"', '{"a": 1}', "[1]"):
        body = f'{{"inputs": [{", ".join([many] * 100)}]}}'.encode()
        monkeypatch.setattr(tensor_codec.json, "loads", None)
        with pytest.raises(TooLarge, match="more than 100 lists, objects and strings of JSON"):
            parse(body)
        monkeypatch.undo()
        monkeypatch.setattr(tensor_codec, "MAX_JSON_TOKENS", 100)
    flat = json.dumps({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 10, 10, 3], "data": [7] * 300}]})
    array = parse(flat.encode()).images_NHWC
    np.testing.assert_array_equal(array, np.full((1, 10, 10, 3), 7))


@pytest.mark.parametrize("number", ["9" * 101, "-" + "9" * 100, "0." + "1" * 99, "1e" + "0" * 99, "NaN", "-Infinity"])
def test_numbers_of_any_length_are_refused(number):
    said = (
        f"{number} is no number there" if number[-1].isalpha() else "a number of 101 characters, at most 100 are read"
    )
    with pytest.raises(ValueError, match=f"the request is not JSON: {said}"):
        parse(f'{{"inputs": [{number}, {number}]}}'.encode())


def test_other_threads_get_their_turn_while_json_is_read_and_written():
    """A thread that wants to do next to nothing, again and again, as the event loop does."""
    turns, ended = [], threading.Event()

    def take_turns():
        while not ended.wait(0.0001):
            turns.append(len(steps))

    steps = []
    thread = threading.Thread(target=take_turns)
    thread.start()
    numbers = json.dumps(list(range(500_000))).encode()
    try:
        for step in (
            lambda: tensor_codec.read_json(numbers, 100, ""),
            lambda: v2_protocol._as_array([7] * 2_000_000),
            lambda: tensor_codec.json_numbers(np.zeros(500_000, np.float32)),
        ):
            step()
            steps.append(step)
    finally:
        ended.set()
        thread.join()
    assert all(turns.count(number) >= 3 for number in range(len(steps))), turns


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (2, 12), (8, 3), (1, 2, 4, 3), (2, 2, 2, 3)])
def test_pieces_make_the_same_array(monkeypatch, piece, shape):
    monkeypatch.setattr(v2_protocol, "PIECE", piece)
    monkeypatch.setattr(tensor_codec, "PIECE", piece)
    array = np.arange(24).reshape(shape)
    np.testing.assert_array_equal(v2_protocol._as_array(array.tolist()), array)
    np.testing.assert_array_equal(parse(request({"data": array.tolist()})).images_NHWC, IMAGE)
    assert json.loads(tensor_codec.json_numbers(array / 3)) == (array / 3).ravel().tolist()


@pytest.mark.parametrize(
    "data", [[[1, 2], [3]], [[[1]], [2]], [[[1]], [[2, 3]]], [1, [2]], [[1], 2], [[[1], [2]], [[3]]]]
)
def test_ragged_lists_are_refused(data):
    with pytest.raises(ValueError, match="data of image"):
        parse(request({"data": data}))


@pytest.mark.parametrize("timeout", [2**63, 10**90], ids=["64 bits", "90 digits"])
def test_times_beyond_any_clock(timeout):
    with pytest.raises(ValueError, match=r"the parameter timeout is 9223|the parameter timeout is 1000"):
        parse(request(parameters={"timeout": timeout}))
    with pytest.raises(ValueError, match="the request is not JSON"):
        parse(request(parameters={"timeout": 10**400}))
    with pytest.raises(ValueError, match="expected 0 to the body's length"):
        parse(request(), "1" + "0" * 5000)


def test_a_small_tensor_holds_no_long_request():
    header = (
        json.dumps(
            {
                "inputs": [
                    {
                        "name": "image",
                        "datatype": "UINT8",
                        "shape": [1, 2, 4, 3],
                        "parameters": {"binary_data_size": 24},
                    }
                ]
            }
        ).encode()
        + b" " * 1000
    )
    array = parse(header + IMAGE.tobytes(), str(len(header))).images_NHWC
    np.testing.assert_array_equal(array, IMAGE)
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert base.base is None  # its own memory
