"""gRPC beyond what Triton's client shows (test_tritonclient.py): limits, cancelled calls, typed tensors, the log."""

import gc
import json
import logging
import math
import signal
import socket
import sys
import threading

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from serving import run
from serving.grpc import server as grpc_server
from serving.grpc.messages import DEFINITIONS, MESSAGES
from serving.service.logs import JsonFormatter
from tests.serving.grpc_calls import IMAGES, SERVICE, calling, infer_request
from tests.serving.servers import running, until


@pytest.fixture
def call(server):
    with calling(server) as call:
        yield call


def labels_of(answer):
    response = service_pb2.ModelInferResponse.FromString(answer)
    names = [output.name for output in response.outputs]
    index = names.index("labels")
    assert len(response.raw_output_contents) == len(names)
    return np.frombuffer(response.raw_output_contents[index], np.uint8).reshape(response.outputs[index].shape)


def refused(call):
    """Status and details of a call that failed."""
    error = call.exception()
    assert isinstance(error, grpc.RpcError), call.result()
    return error.code().name, error.details()


@pytest.mark.parametrize("name", [name for name in MESSAGES if not name.startswith("HealthCheck")])
def test_messages_are_those_of_triton(name):
    """Ours are the part of them that is used: names, numbers and types of their fields. (HealthCheck is gRPC's own.)"""

    def described(field):
        of = field.message_type or field.enum_type
        entry = field.message_type and field.message_type.GetOptions().map_entry
        return (
            field.number,
            field.type,
            field.is_repeated,
            [described(part) for part in of.fields] if entry else of and of.name,
        )

    def all_messages(messages):
        for message in messages:
            yield message
            yield from all_messages(message.nested_types)

    theirs = {
        message.name: message
        for file in (service_pb2, model_config_pb2)
        for message in all_messages(file.DESCRIPTOR.message_types_by_name.values())
    }[name]
    for field in MESSAGES[name].DESCRIPTOR.fields:
        assert described(field) == described(theirs.fields_by_name[field.name]), field.name


def test_every_definition_is_read():
    fields = sum(len(message.DESCRIPTOR.fields) for message in MESSAGES.values())
    values = 13 + 3  # of the two enums
    assert DEFINITIONS.count(" = ") == fields + values
    kinds = MESSAGES["ModelInput"].DESCRIPTOR.fields_by_name["data_type"].enum_type
    theirs = model_config_pb2.DataType.items()
    assert {(value.name, value.number) for value in kinds.values} <= set(theirs)


def test_typed_and_raw_tensors(call):
    for raw in (True, False):
        np.testing.assert_array_equal(
            labels_of(call("ModelInfer", infer_request(raw=raw)).result()), IMAGES[..., 0] // 64
        )


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (b"\xff\xff", "the message is no ModelInferRequest"),
        (infer_request(raw=False, shape=[1, 2, 2, 3]), "expected 12 numbers of UINT8, got 288"),
        (infer_request(raw=False, datatype="INT8"), 'image is of datatype UINT8, got "INT8"'),
        (infer_request(raw=False, datatype="FP16"), 'image is of datatype UINT8, got "FP16"'),
        (infer_request(raw=False, datatype="nonsense"), 'image is of datatype UINT8, got "nonsense"'),
        (infer_request(shape=[2, 6, 8]), "image is of shape [-1, -1, -1, 3]"),
        (infer_request(shape=[2, -6, -8, 3]), "image is of shape [-1, -1, -1, 3]"),
        (infer_request(shape=[2, 6, 9, 3]), "324 bytes; binary_data_size is 288 and 288 bytes follow"),
        (infer_request(shape=[2**40, 2**40, 2**40, 3]), "more than 50331648 elements"),
        (infer_request(name="photo"), '"photo" is no input'),
        (infer_request(contents={"uint_contents": [1]}), "image has contents in addition to raw_input_contents"),
        (infer_request(np.zeros((9, 2, 2, 3), np.uint8)), "9 images in a tensor, at most 8 are taken"),
        (
            service_pb2.ModelInferRequest(model_name="toy", raw_input_contents=[b"x"]),
            "0 inputs and 1 raw_input_contents",
        ),
        (service_pb2.ModelInferRequest(model_name="toy"), "the input image is missing"),
        (infer_request(parameters={"shared_memory_region": {"string_param": "x"}}), "shared memory are not supported"),
    ],
)
def test_what_is_wrong_is_told(call, request_, said):
    code, details = refused(call("ModelInfer", request_))
    assert code == "INVALID_ARGUMENT"
    assert said in details


def test_long_typed_tensors_are_refused_unread(call, monkeypatch):
    monkeypatch.setattr("serving.grpc.tensor_codec.MAX_ELEMENTS", 287)
    assert refused(call("ModelInfer", infer_request(raw=False))) == (
        "INVALID_ARGUMENT",
        "image: 288 numbers in contents, at most 287 are read: send them raw",
    )
    assert call("ModelInfer", infer_request()).result()


def test_what_is_not_there(call):
    assert refused(call("ModelInfer", infer_request(model_name="..")))[0] == "NOT_FOUND"
    assert refused(call("ModelMetadata", service_pb2.ModelMetadataRequest(name="")))[0] == "NOT_FOUND"
    assert refused(call("ModelStreamInfer"))[0] == "UNIMPLEMENTED"


def test_the_health_service(server, monkeypatch):
    def status(service=""):
        request = MESSAGES["HealthCheckRequest"](service=service)
        return MESSAGES["HealthCheckResponse"].FromString(call("Check", request).result()).status

    with calling(server, "grpc.health.v1.Health") as call:
        assert (status(), status(SERVICE)) == (1, 1)
        monkeypatch.setattr(server.service, "state", "draining")
        assert status() == 2


def test_states(server, call, monkeypatch):
    def ready():
        told = [
            service_pb2.ServerReadyResponse.FromString(call("ServerReady").result()).ready,
            service_pb2.ModelReadyResponse.FromString(
                call("ModelReady", service_pb2.ModelReadyRequest(name="toy")).result()
            ).ready,
        ]
        return told + [call("ModelInfer", infer_request()).code().name]

    assert ready() == [True, True, "OK"]
    monkeypatch.setattr(server.service, "state", "draining")
    assert ready() == [False, False, "OK"]
    monkeypatch.setattr(server.service, "state", "loading")
    assert ready() == [False, False, "UNAVAILABLE"]
    assert service_pb2.ServerLiveResponse.FromString(call("ServerLive").result()).live


def test_token(toy_model, tmp_path):
    (tmp_path / "token").write_text("open-sesame\n")
    with running(toy_model.parent, token_file=tmp_path / "token", grpc_port=0) as server, calling(server) as call:
        for bearer in (None, "open-sesame", "Bearer open-sesam"):
            metadata = [("authorization", bearer)] if bearer else []
            for method in ("ModelInfer", "ServerMetadata", "RepositoryIndex"):
                told = refused(call(method, infer_request(), metadata=metadata))
                assert told == ("UNAUTHENTICATED", "send the server's token as metadata, authorization: Bearer TOKEN")
        assert call("ServerLive").result()
        assert call("ServerReady").result()
        right = call("ModelInfer", infer_request(), metadata=[("authorization", "bearer open-sesame")])
        assert right.result()
        right = call("ModelInfer", infer_request(), metadata=[("authorization", "Bearer open-sesame")])
        np.testing.assert_array_equal(labels_of(right.result()), IMAGES[..., 0] // 64)
        with calling(server, "grpc.health.v1.Health") as check:
            assert check("Check").result()


# Queues


def test_a_full_queue_refuses_at_once(toy_model, gate):
    gate.open()
    with running(toy_model.parent, max_queue=1, grpc_port=0) as server, calling(server) as call:
        gate._open.clear()
        gate.batches.clear()
        admitted = [call("ModelInfer", infer_request())]
        until(lambda: gate.batches)
        admitted.append(call("ModelInfer", infer_request()))
        until(lambda: server.repository.get("toy").pending == 1 and server.service._held_bytes == 0)
        late = call("ModelInfer", infer_request())
        assert refused(late) == ("UNAVAILABLE", "the queue is full")
        assert ("grpc-retry-pushback-ms", "1000") in late.trailing_metadata()
        gate.open()
        for answer in admitted:
            np.testing.assert_array_equal(labels_of(answer.result()), IMAGES[..., 0] // 64)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'nv_inference_request_failure{model="toy",reason="REJECTED",version="1"} 1.0' in metrics
        assert 'nv_inference_request_success{model="toy",version="1"} 2.0' in metrics
        assert 'kerasseg_grpc_requests_total{method="ModelInfer",status="UNAVAILABLE"} 1.0' in metrics
        assert 'kerasseg_grpc_requests_total{method="ModelInfer",status="OK"} 2.0' in metrics


def test_cancelled_and_late_calls_leave_the_queue(model, call, gate):
    first = call("ModelInfer", infer_request())
    until(lambda: gate.batches)
    cancelled = call("ModelInfer", infer_request(IMAGES[:1]))
    until(lambda: model.pending == 1)
    cancelled.cancel()
    until(lambda: model.pending == 0)
    late = call("ModelInfer", infer_request(IMAGES[:1]), timeout=0.05)  # the client's own clock
    assert refused(late)[0] == "DEADLINE_EXCEEDED"
    until(lambda: model.pending == 0)
    late = infer_request(IMAGES[:1])
    late.parameters["timeout"].int64_param = 10_000  # the protocol's, microseconds
    told = refused(call("ModelInfer", late))
    assert told == ("DEADLINE_EXCEEDED", "the request's time was over before its turn came")
    gate.open()
    assert first.result()
    assert gate.batches == [(2, 6, 8)]


def test_ten_calls_that_nobody_waits_for_at_full_load(toy_model, gate, caplog):
    """Cancelled, late, or of a client that is gone: their places come back, and no error is logged."""
    gate.open()
    with running(toy_model.parent, max_queue=10, grpc_port=0) as server, calling(server) as call:
        gate._open.clear()
        gate.batches.clear()
        model = server.repository.get("toy")
        first = call("ModelInfer", infer_request())
        until(lambda: gate.batches)
        for end in ("cancel", "deadline", "gone"):
            with grpc.insecure_channel(server.grpc_address) as channel:
                stub = channel.unary_unary(f"/{SERVICE}/ModelInfer")
                message = infer_request().SerializeToString()
                calls = [stub.future(message, timeout=600) for _ in range(10)]
                until(lambda: model.pending == 10)
                assert refused(call("ModelInfer", infer_request())) == ("UNAVAILABLE", "the queue is full")
                if end == "cancel":
                    for one in calls:
                        one.cancel()
                elif end == "deadline":
                    for one in calls:
                        one.cancel()
                    until(lambda: model.pending == 0)
                    calls = [stub.future(message, timeout=0.2) for _ in range(10)]
                    assert {one.code().name for one in calls} <= {"DEADLINE_EXCEEDED"}
            until(lambda: model.pending == 0)
        gate.open()
        assert first.result()
        assert call("ModelInfer", infer_request()).result()
        until(lambda: server.service._held_bytes == 0)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_an_answer_that_can_no_longer_be_sent_is_no_error(server, caplog):
    logger = logging.getLogger("grpc._cython.cygrpc")
    for kind, told in ((grpc._cython.cygrpc.ExecuteBatchError, 0), (ValueError, 1)):
        try:
            raise kind
        except kind:
            logger.exception("raised in core")
        assert len(caplog.records) == told


def test_a_model_that_fails(call, monkeypatch):
    def out_of_memory(*args):
        raise RuntimeError("Failed to allocate memory")

    monkeypatch.setattr("serving.model.engine.Engine.predict", out_of_memory)
    assert refused(call("ModelInfer", infer_request())) == ("INTERNAL", "the model failed: Failed to allocate memory")


# Limits


def test_messages_that_are_too_large(toy_model):
    with running(toy_model.parent, max_body_mb=1, grpc_port=0) as server, calling(server) as call:
        large = infer_request(np.zeros((1, 600, 600, 3), np.uint8))
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            assert refused(call("ModelInfer", large, compression=compression))[0] == "RESOURCE_EXHAUSTED"
        until(lambda: server.service._held_bytes == 0)
        assert call("ModelInfer", infer_request()).result()


def field(number, contents):
    """Length-delimited, in the notation of protobuf."""
    length, size = len(contents), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + contents


@pytest.mark.parametrize(
    "more",
    [
        field(5, b"") * 5000,  # inputs
        field(6, b"") * 5000,  # outputs
        field(7, b"") * 5000,  # raw tensors
        field(15, b"") * 5000,  # unknown
        b"\x78\x01" * 5000,
        field(5, field(4, b"") * 5000),  # parameters of an input
        field(5, field(5, b"\x30\x01" * 5000)),  # numbers of its contents, one by one
        field(4, field(2, field(3, b"") * 5000)),
    ],
)
def test_fields_are_counted_before_they_are_made(call, monkeypatch, more):
    monkeypatch.setitem(MESSAGES, "ModelInferRequest", Unmade(MESSAGES["ModelInferRequest"].DESCRIPTOR))
    message = infer_request().SerializeToString() + more
    assert refused(call("ModelInfer", message)) == ("INVALID_ARGUMENT", "more than 4096 fields in a message")


class Unmade:
    """A class of messages of which there may be none."""

    def __init__(self, descriptor):
        self.DESCRIPTOR = descriptor


def test_long_fields_are_refused_before_they_are_made(call, monkeypatch):
    monkeypatch.setattr("serving.grpc.tensor_codec.MAX_FIELD_BYTES", 200)
    assert call("ModelInfer", infer_request()).result()  # 288 bytes of a raw tensor
    for more in (field(3, bytes(201)), field(5, field(3, bytes(201))), field(15, bytes(201))):
        code, said = refused(call("ModelInfer", infer_request().SerializeToString() + more))
        assert (code, said[-30:]) == (
            "INVALID_ARGUMENT",
            "bytes, at most 200 are read"[-30:].rjust(27),
        ) or "200" in said


def test_other_messages_are_short(call):
    told = refused(call("ModelMetadata", service_pb2.ModelMetadataRequest(name="x" * 2**16)))
    assert told == ("INVALID_ARGUMENT", "65540 bytes of a ModelMetadataRequest, at most 65536 are read")


def test_what_needs_no_token_reads_no_message(server, call, monkeypatch):
    """It may be large, or none at all."""
    monkeypatch.setattr("grpc.aio.ServicerContext.read", None)
    monkeypatch.setattr(server.service, "limits", type(server.service.limits)(max_bodies=10, body_timeout=0.01))
    assert service_pb2.ServerReadyResponse.FromString(call("ServerReady", bytes(2**22)).result()).ready
    with calling(server, "grpc.health.v1.Health") as check:
        assert MESSAGES["HealthCheckResponse"].FromString(check("Check", bytes(2**22)).result()).status == 1


def test_messages_arrive_in_turns(toy_model, monkeypatch):
    """Of those that may be 100 MiB each, two at a time; one that does not come makes room for others."""
    monkeypatch.setattr("serving.grpc.server.RECEIVE_SECONDS", 0.05)
    with running(toy_model.parent, max_body_mb=100, grpc_port=0) as server, calling(server) as call:
        assert server._grpc._slots.free._value == 2
        with grpc.insecure_channel(server.grpc_address) as channel:
            ended = threading.Event()

            def nothing():
                ended.wait(60)
                yield from ()

            stalled = [channel.stream_unary(f"/{SERVICE}/ModelInfer").future(nothing(), timeout=600) for _ in range(2)]
            until(lambda: server._grpc._slots.free.locked())
            assert call("ModelInfer", infer_request()).result()
            codes = {answer.code().name for answer in stalled if answer.done()}
            assert codes == {"DEADLINE_EXCEEDED"}
            ended.set()
        until(lambda: server._grpc._slots.free._value == 2)


def test_images_that_do_not_come_hold_up_nothing_else(server, call):
    with grpc.insecure_channel(server.grpc_address) as channel:
        ended = threading.Event()

        def nothing():
            ended.wait(60)
            yield from ()

        stalled = [
            channel.stream_unary(f"/{SERVICE}/ModelInfer").future(nothing(), timeout=600)
            for _ in range(server._grpc._slots.free._value + 1)
        ]
        until(lambda: server._grpc._slots.waiting)
        assert service_pb2.ServerMetadataResponse.FromString(call("ServerMetadata", b"").result()).name
        assert not any(answer.done() for answer in stalled)
        ended.set()


def test_a_message_is_let_go_when_it_is_answered(server, call, monkeypatch):
    """Not only when Python next looks for cycles."""
    held, read_infer = [], grpc_server.read_infer
    monkeypatch.setattr(grpc_server, "read_infer", lambda message: held.append(message) or read_infer(message))
    gc.disable()
    try:
        assert call("ModelInfer", infer_request()).result()
        assert refused(call("ModelInfer", b"nonsense"))[0] == "INVALID_ARGUMENT"
        for number in range(len(held)):
            message = held[number]
            until(lambda message=message: len(gc.get_referrers(message)) <= 2)  # this list, and these variables
    finally:
        gc.enable()


def test_only_so_many_bytes_of_messages_are_held(server, call, monkeypatch):
    monkeypatch.setattr(server.service, "limits", type(server.service.limits)(max_bodies=10))
    assert refused(call("ModelInfer", infer_request())) == ("UNAVAILABLE", "too many large bodies are arriving at once")
    assert server.service._held_bytes == 0


def test_a_message_that_does_not_arrive(server, monkeypatch):
    monkeypatch.setattr(server.service, "limits", type(server.service.limits)(body_timeout=0.05))
    with grpc.insecure_channel(server.grpc_address) as channel:
        ended = []

        def nothing():
            until(lambda: ended)
            yield from ()

        stalled = channel.stream_unary(f"/{SERVICE}/ModelInfer").future(nothing(), timeout=600)
        stalled.add_done_callback(ended.append)
        assert refused(stalled) == ("DEADLINE_EXCEEDED", "the message did not arrive within 0.05 seconds")


@pytest.mark.parametrize("timeout", [math.inf, 1e8])
def test_any_timeout(toy_model, timeout):
    with running(toy_model.parent, grpc_port=0, timeout=timeout) as server, calling(server) as call:
        assert call("ModelInfer", infer_request()).result()


def frame(kind, flags, stream, contents=b""):
    return len(contents).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + contents


def test_a_client_that_reads_nothing(toy_model, monkeypatch):
    """In HTTP/2's own frames, since gRPC's clients read whatever comes."""
    monkeypatch.setattr(grpc_server, "CONNECTION_SECONDS", 1)
    monkeypatch.setattr(grpc_server, "ENDING_SECONDS", 0.5)
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE}/ModelInfer",
        ":authority": "toy",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    texts = [text.encode() for pair in headers.items() for text in pair]
    literals = [bytes([len(text)]) + text for text in texts]
    packed = b"".join(b"\0" + name + value for name, value in zip(literals[::2], literals[1::2], strict=True))
    message = infer_request(np.zeros((1, 140, 140, 3), np.uint8)).SerializeToString()  # less than the first window
    message = b"\0" + len(message).to_bytes(4) + message
    with running(toy_model.parent, grpc_port=0, timeout=0.5) as server:
        host, port = server.grpc_address.split(":")
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(4, 1, 0) + frame(1, 4, 1, packed))
            for start in range(0, len(message), 2**14):
                piece = message[start : start + 2**14]
                raw.sendall(frame(0, int(start + 2**14 >= len(message)), 1, piece))
            until(lambda: server.service._held_bytes > 2**16)  # the answer, of which the window lets so much through
            until(lambda: not server.service._held_bytes)
        with calling(server) as call:
            assert call("ModelInfer", infer_request()).result()


def test_too_many_calls(toy_model, gate):
    gate.open()
    with running(toy_model.parent, max_connections=1, grpc_port=0) as server, calling(server) as call:
        gate._open.clear()
        gate.batches.clear()
        first = call("ModelInfer", infer_request())
        until(lambda: gate.batches)
        assert refused(call("ServerLive"))[0] == "RESOURCE_EXHAUSTED"
        gate.open()
        assert first.result()


# Operations


def test_each_call_is_a_line_of_json(server, call, caplog):
    caplog.set_level(logging.INFO, "serving.requests")
    request = infer_request()
    request.id = "seven"
    named = call("ModelInfer", request)
    assert service_pb2.ModelInferResponse.FromString(named.result()).id == "seven"
    assert dict(named.trailing_metadata())["x-request-id"] == "seven"
    eight = call("ModelInfer", request, metadata=[("x-request-id", "eight")])
    assert service_pb2.ModelInferResponse.FromString(eight.result()).id == "seven"
    refused(call("ModelInfer", infer_request(model_name="nothing"), metadata=[("x-request-id", "nine")]))
    until(lambda: len(caplog.records) == 3)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [(line["id"], line["status"]) for line in lines] == [("seven", "OK"), ("eight", "OK"), ("nine", "NOT_FOUND")]
    assert (
        lines[0].items()
        >= {
            "client": "127.0.0.1",
            "method": "gRPC",
            "path": f"/{SERVICE}/ModelInfer",
            "bytes": len(named.result()),
            "model": "toy/1",
        }.items()
    )


def test_what_nobody_foresaw(server, call, monkeypatch, caplog):
    monkeypatch.setattr(server.repository, "versions", lambda name: 1 / 0)
    told = refused(
        call("ModelMetadata", service_pb2.ModelMetadataRequest(name="toy"), metadata=[("x-request-id", "odd")])
    )
    assert told == ("INTERNAL", "internal error; the server's log says more about request odd")
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info[0] is ZeroDivisionError


def test_a_signal_drains(toy_model, gate, monkeypatch):
    """What was admitted is answered before the models end."""
    gate.open()
    with running(toy_model.parent, grpc_port=0) as server, calling(server) as call:
        close, drained = server.repository.close, []
        monkeypatch.setattr(server.repository, "close", lambda: drained.append(server._grpc_stopped.done()) or close())
        gate._open.clear()
        gate.batches.clear()
        admitted = [call("ModelInfer", infer_request())]
        until(lambda: gate.batches)
        admitted += [call("ModelInfer", infer_request()) for _ in range(3)]
        until(lambda: server.repository.get("toy").pending == 3)
        server.handle_exit(signal.SIGTERM, None)
        until(lambda: server._stopped.is_set())  # the models could end now
        assert refused(call("ServerLive"))[0] in ("UNAVAILABLE", "CANCELLED")  # the latter while the port is closing
        gate.open()
        for answer in admitted:
            np.testing.assert_array_equal(labels_of(answer.result()), IMAGES[..., 0] // 64)
    assert drained == [True]


def test_the_extra_is_missing(toy_model, monkeypatch):
    monkeypatch.delitem(sys.modules, "serving.grpc.server", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ValueError, match=r'--grpc-port needs the extra grpc: pip install "kerasseg\[grpc\]"'):
        run.Server(run.ServerConfig(models=toy_model.parent, provider="cpu", port=0, grpc_port=0))


def test_a_port_that_is_taken(toy_model, server):
    port = int(server.grpc_address.split(":")[1])
    with (
        pytest.raises(ValueError, match=f"cannot listen at 127.0.0.1, port {port}, for gRPC"),
        running(toy_model.parent, grpc_port=port),
    ):
        pass
