"""The messages of the V2 protocol over gRPC, and of gRPC's health service, as far as they are used here.

They are read at import, into a pool of their own: a process that also has Triton's client keeps both apart.
"""

import re
from typing import Any

from google.protobuf.descriptor_pb2 import EnumValueDescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"

# In the notation of proto3. Which message holds which makes no difference on the wire, so none is nested in another.
DEFINITIONS = """
message ServerLiveRequest {}
message ServerLiveResponse { bool live = 1; }
message ServerReadyRequest {}
message ServerReadyResponse { bool ready = 1; }
message ModelReadyRequest { string name = 1; string version = 2; }
message ModelReadyResponse { bool ready = 1; }
message ServerMetadataRequest {}
message ServerMetadataResponse { string name = 1; string version = 2; repeated string extensions = 3; }

message ModelMetadataRequest { string name = 1; string version = 2; }
message ModelMetadataResponse {
    string name = 1;
    repeated string versions = 2;
    string platform = 3;
    repeated TensorMetadata inputs = 4;
    repeated TensorMetadata outputs = 5;
}
message TensorMetadata { string name = 1; string datatype = 2; repeated int64 shape = 3; }

message ModelInferRequest {
    string model_name = 1;
    string model_version = 2;
    string id = 3;
    map<string, InferParameter> parameters = 4;
    repeated InferInputTensor inputs = 5;
    repeated InferRequestedOutputTensor outputs = 6;
    repeated bytes raw_input_contents = 7;
}
message InferInputTensor {
    string name = 1;
    string datatype = 2;
    repeated int64 shape = 3;
    map<string, InferParameter> parameters = 4;
    InferTensorContents contents = 5;
}
message InferRequestedOutputTensor { string name = 1; map<string, InferParameter> parameters = 2; }
message InferParameter {
    optional bool bool_param = 1;
    optional int64 int64_param = 2;
    optional string string_param = 3;
    optional double double_param = 4;
    optional uint64 uint64_param = 5;
}
message InferTensorContents {
    repeated bool bool_contents = 1;
    repeated int32 int_contents = 2;
    repeated int64 int64_contents = 3;
    repeated uint32 uint_contents = 4;
    repeated uint64 uint64_contents = 5;
    repeated float fp32_contents = 6;
    repeated double fp64_contents = 7;
    repeated bytes bytes_contents = 8;
}
message ModelInferResponse {
    string model_name = 1;
    string model_version = 2;
    string id = 3;
    repeated InferOutputTensor outputs = 5;
    repeated bytes raw_output_contents = 6;
}
message InferOutputTensor { string name = 1; string datatype = 2; repeated int64 shape = 3; }

message ModelConfigRequest { string name = 1; string version = 2; }
message ModelConfigResponse { ModelConfig config = 1; }
message ModelConfig {
    string name = 1;
    string platform = 2;
    ModelVersionPolicy version_policy = 3;
    int32 max_batch_size = 4;
    repeated ModelInput input = 5;
    repeated ModelOutput output = 6;
    ModelDynamicBatching dynamic_batching = 11;
    map<string, ModelParameter> parameters = 14;
    string backend = 17;
}
message ModelVersionPolicy { Latest latest = 1; }
message Latest { uint32 num_versions = 1; }
message ModelInput { string name = 1; DataType data_type = 2; repeated int64 dims = 4; }
message ModelOutput { string name = 1; DataType data_type = 2; repeated int64 dims = 3; }
message ModelDynamicBatching { uint64 max_queue_delay_microseconds = 2; }
message ModelParameter { string string_value = 1; }
enum DataType {
    TYPE_INVALID = 0;
    TYPE_BOOL = 1;
    TYPE_UINT8 = 2;
    TYPE_UINT16 = 3;
    TYPE_UINT32 = 4;
    TYPE_UINT64 = 5;
    TYPE_INT8 = 6;
    TYPE_INT16 = 7;
    TYPE_INT32 = 8;
    TYPE_INT64 = 9;
    TYPE_FP16 = 10;
    TYPE_FP32 = 11;
    TYPE_FP64 = 12;
}

message ModelStatisticsRequest { string name = 1; string version = 2; }
message ModelStatisticsResponse { repeated ModelStatistics model_stats = 1; }
message ModelStatistics {
    string name = 1;
    string version = 2;
    uint64 last_inference = 3;
    uint64 inference_count = 4;
    uint64 execution_count = 5;
    InferStatistics inference_stats = 6;
    repeated InferBatchStatistics batch_stats = 7;
}
message InferStatistics {
    StatisticDuration success = 1;
    StatisticDuration fail = 2;
    StatisticDuration queue = 3;
    StatisticDuration compute_input = 4;
    StatisticDuration compute_infer = 5;
    StatisticDuration compute_output = 6;
    StatisticDuration cache_hit = 7;
    StatisticDuration cache_miss = 8;
}
message InferBatchStatistics {
    uint64 batch_size = 1;
    StatisticDuration compute_input = 2;
    StatisticDuration compute_infer = 3;
    StatisticDuration compute_output = 4;
}
message StatisticDuration { uint64 count = 1; uint64 ns = 2; }

message RepositoryIndexRequest { string repository_name = 1; bool ready = 2; }
message RepositoryIndexResponse { repeated ModelIndex models = 1; }
message ModelIndex { string name = 1; string version = 2; string state = 3; string reason = 4; }
message RepositoryModelLoadRequest {
    string repository_name = 1; string model_name = 2;
    map<string, ModelRepositoryParameter> parameters = 3;
}
message ModelRepositoryParameter {
    optional bool bool_param = 1;
    optional int64 int64_param = 2;
    optional string string_param = 3;
    optional bytes bytes_param = 4;
}
message RepositoryModelLoadResponse {}
message RepositoryModelUnloadRequest { string repository_name = 1; string model_name = 2; }
message RepositoryModelUnloadResponse {}

message HealthCheckRequest { string service = 1; }
message HealthCheckResponse { ServingStatus status = 1; }
enum ServingStatus { UNKNOWN = 0; SERVING = 1; NOT_SERVING = 2; }
"""


def _descriptors(definitions: str) -> FileDescriptorProto:
    file = FileDescriptorProto(name=f"{PACKAGE}.proto", package=PACKAGE, syntax="proto3")
    for kind, name, body in re.findall(r"(message|enum) (\w+) \{(.*?)\}", definitions, re.S):
        if kind == "enum":
            values = re.findall(r"(\w+) = (\d+);", body)
            file.enum_type.add(name=name).value.extend(
                EnumValueDescriptorProto(name=value, number=int(number)) for value, number in values
            )
            continue
        message = file.message_type.add(name=name)
        for label, of, own, number in re.findall(r"(repeated |optional |map<string, )?(\w+)>? (\w+) = (\d+);", body):
            field = _field(own, int(number), of)
            if label == "optional ":  # proto3 needs a oneof of its own to know whether it is set
                field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{own}")
            if label.startswith("map"):
                entry = message.nested_type.add(name=f"{own.title().replace('_', '')}Entry")
                entry.options.map_entry = True
                entry.field.extend([_field("key", 1, "string"), _field("value", 2, of)])
                field = _field(own, int(number), f"{name}.{entry.name}")
            if label and not field.proto3_optional:
                field.label = FieldDescriptorProto.LABEL_REPEATED
            message.field.append(field)
    return file


def _field(name: str, number: int, of: str) -> FieldDescriptorProto:
    field = FieldDescriptorProto(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    scalars = dict(FieldDescriptorProto.Type.items())
    if kind := scalars.get(f"TYPE_{of.upper()}"):
        field.type = kind
    else:
        field.type_name = f".{PACKAGE}.{of}"
    return field


def _classes(file: FileDescriptorProto) -> dict[str, Any]:
    pool = DescriptorPool()
    pool.Add(file)
    return {
        message.name: GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}"))
        for message in file.message_type
    }


MESSAGES = _classes(_descriptors(DEFINITIONS))
"""Classes by name."""
