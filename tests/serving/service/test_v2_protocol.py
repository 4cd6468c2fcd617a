"""What HTTP and gRPC share of the V2 protocol; requests are tested with the codecs, which read them."""

from serving.service import v2_protocol
from tests.serving.toy_model import model_info


def test_metadata_and_configuration():
    metadata = v2_protocol.model_metadata(model_info(), [2, 3], "cuda")
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert (metadata["versions"], metadata["platform"]) == (["2", "3"], "onnx_onnxv1")
    assert metadata["properties"]["provider"] == "cuda"
    config = v2_protocol.model_config(model_info(), "cuda", 8, 0.0015, [(32, 64)])
    assert config["max_batch_size"] == 8
    # perf_analyzer takes these for the metadata's shapes without their first dimension.
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}]
    assert config["output"][1] == {"name": "confidence", "data_type": "TYPE_FP32", "dims": [-1, -1]}
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 1500}
    assert config["parameters"]["buckets"] == {"string_value": "32x64"}


def test_what_is_told_of_a_long_value_is_short_and_quick(monkeypatch):
    monkeypatch.setattr(v2_protocol.json, "dumps", None)  # would write all of it
    for value in ("x" * 10**6, [1] * 10**6, {"a": [[]] * 10**6}):
        assert len(v2_protocol.shortened(value)) == 60
