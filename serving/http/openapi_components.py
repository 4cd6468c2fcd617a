"""What the OpenAPI document of `serving.http.openapi` refers to: schemas, parameters, headers, responses."""

from typing import Any

from serving.http.tensor_codec import HEADER_LENGTH
from serving.service.v2_protocol import DATATYPES

JSON = "application/json"

STATUS_MEANINGS = {
    400: "What was sent cannot be read, or is not what the model takes",
    401: "The server's token is missing",
    403: "The server was started without this",
    404: "No such model, or no such version of it",
    406: "None of the media types of Accept can be had",
    408: "The body did not arrive in time",
    413: "The body, the image or the tensor is too large",
    500: "The model failed, or what nobody foresaw",
    503: "The models are being loaded, the queue is full, the time is over, or there are too many connections",
}
"""What each status means, with the body {"error": "..."}."""


def ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def object_of(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def array_of(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


STRING, INTEGER, NUMBER, BOOLEAN = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
COUNT = {"type": "integer", "minimum": 0}
DATATYPE = {"type": "string", "enum": list(DATATYPES)}
_DURATION = object_of(["count", "ns"], count=COUNT, ns=COUNT)
_PHASES = ("compute_input", "compute_infer", "compute_output")
_WHOLE = ("success", "fail", "queue", *_PHASES, "cache_hit", "cache_miss")
_CONFIG_TENSOR = object_of(["name", "data_type", "dims"], name=STRING, data_type=STRING, dims=array_of(INTEGER))

COMPONENTS: dict[str, Any] = {
    "schemas": {
        "Error": object_of(["error"], error=STRING),
        "ServerMetadata": object_of(
            ["name", "version", "extensions"], name=STRING, version=STRING, extensions=array_of(STRING)
        ),
        "ModelReady": object_of(["name", "ready"], name=STRING, ready=BOOLEAN),
        "ModelMetadata": object_of(
            ["name", "versions", "platform", "inputs", "outputs", "properties"],
            name=STRING,
            versions=array_of(STRING),
            platform=STRING,
            inputs=array_of(ref("schemas", "TensorMetadata")),
            outputs=array_of(ref("schemas", "TensorMetadata")),
            properties=object_of(
                ["provider", "precision", "sha256", "classes", "palette"],
                provider=STRING,
                precision=STRING,
                sha256=STRING,
                classes=array_of(STRING),
                palette=array_of(array_of(INTEGER)),
            ),
        ),
        "TensorMetadata": object_of(
            ["name", "datatype", "shape"],
            name=STRING,
            datatype=DATATYPE,
            shape=array_of(INTEGER) | {"description": "-1 where any length will do"},
        ),
        "ModelConfig": object_of(
            ["name", "platform", "backend", "max_batch_size", "input", "output", "dynamic_batching", "parameters"],
            name=STRING,
            platform=STRING,
            backend=STRING,
            version_policy={"type": "object"},
            max_batch_size=COUNT,
            input=array_of(_CONFIG_TENSOR),
            output=array_of(_CONFIG_TENSOR),
            dynamic_batching=object_of(["max_queue_delay_microseconds"], max_queue_delay_microseconds=COUNT),
            parameters={"type": "object", "additionalProperties": object_of(["string_value"], string_value=STRING)},
        ),
        "Statistics": object_of(
            ["model_stats"],
            model_stats=array_of(
                object_of(
                    ["name", "version", "last_inference", "inference_count", "execution_count", "inference_stats"],
                    name=STRING,
                    version=STRING,
                    last_inference=COUNT | {"description": "Milliseconds since 1970"},
                    inference_count=COUNT | {"description": "Images"},
                    execution_count=COUNT | {"description": "Batches"},
                    inference_stats=object_of(list(_WHOLE), **dict.fromkeys(_WHOLE, _DURATION)),
                    batch_stats=array_of(
                        object_of(["batch_size", *_PHASES], batch_size=COUNT, **dict.fromkeys(_PHASES, _DURATION))
                    ),
                )
            ),
        ),
        "IndexRequest": object_of([], ready=BOOLEAN | {"description": "Only those that are served"}),
        "LoadRequest": object_of(
            [],
            parameters={
                "type": "object",
                "description": "Triton's config and files: none is taken",
                "maxProperties": 0,
            },
        ),
        "Index": array_of(
            object_of(
                ["name", "version", "state", "reason"],
                name=STRING,
                version=STRING,
                state={"type": "string", "enum": ["READY", "UNAVAILABLE"]},
                reason=STRING,
            )
        ),
        "InferRequest": object_of(
            ["inputs"],
            id=STRING,
            parameters=object_of(
                [],
                timeout=COUNT | {"description": "Microseconds that the request may wait for its turn; 0: no limit"},
                binary_data_output=BOOLEAN | {"description": "All outputs as binary tensors"},
            ),
            inputs=array_of(
                object_of(
                    ["name", "shape", "datatype"],
                    name=STRING,
                    shape=array_of({"type": "integer", "minimum": 1}),
                    datatype=DATATYPE,
                    parameters=object_of([], binary_data_size=COUNT),
                    data={"type": "array", "description": "Nested or flat, row by row; not of a binary tensor"},
                )
            ),
            outputs=array_of(
                object_of(["name"], name=STRING, parameters=object_of([], binary_data=BOOLEAN))
                | {"description": "Those wanted; all where there are none"}
            ),
        ),
        "InferResponse": object_of(
            ["model_name", "model_version", "outputs"],
            model_name=STRING,
            model_version=STRING,
            id=STRING,
            outputs=array_of(
                object_of(
                    ["name", "datatype", "shape"],
                    name=STRING,
                    datatype=DATATYPE,
                    shape=array_of(COUNT),
                    data=array_of({"type": ["number", "boolean"]}),
                    parameters=object_of([], binary_data_size=COUNT),
                )
            ),
        ),
        "LabelStudioModels": object_of(
            ["models"],
            models=array_of(object_of(["address", "model_version"], address=STRING, model_version=STRING)),
        ),
        "LabelStudioModel": object_of(
            ["status", "model_version", "classes", "label_config"],
            status=STRING,
            model_version=STRING,
            classes=array_of(STRING),
            label_config=STRING | {"description": "XML, for the labeling interface of a project"},
        ),
        "LabelStudioHealth": object_of(["status", "model_class"], status=STRING, model_class=STRING),
        "LabelStudioVersions": object_of(["versions"], versions=array_of(STRING)),
        "LabelStudioProject": object_of(
            ["schema"], schema=STRING | {"description": "The project's label configuration, XML"}
        ),
        "LabelStudioSetup": object_of(["model_version"], model_version=STRING),
        "LabelStudioTasks": object_of(
            ["tasks", "label_config"],
            tasks=array_of(object_of(["id", "data"], id=INTEGER, data={"type": "object"})),
            label_config=STRING | {"description": "The project's label configuration, XML"},
        ),
        "LabelStudioPredictions": object_of(
            ["results"],
            results=array_of(
                {
                    "anyOf": [
                        object_of(
                            ["result", "score", "model_version"],
                            result=array_of({"type": "object", "description": "A brush mask of one class"}),
                            score={"type": "number", "minimum": 0, "maximum": 1},
                            model_version=STRING,
                        ),
                        ref("schemas", "Error"),
                    ]
                }
            ),
        ),
        "AnyObject": {"type": "object"},
        "LabelStudioTraining": object_of(["status", "detail"], status=STRING, detail=STRING),
        "Areas": object_of(
            ["id", "model_name", "model_version", "height", "width", "classes"],
            id=STRING,
            model_name=STRING,
            model_version=STRING,
            height=COUNT,
            width=COUNT,
            mean_confidence=NUMBER,
            classes=array_of(
                object_of(
                    ["label", "name", "pixels", "share"],
                    label=COUNT,
                    name=STRING,
                    pixels=COUNT,
                    share={"type": "number", "minimum": 0, "maximum": 1},
                    rle=object_of(["size", "counts"], size=array_of(COUNT), counts=array_of(COUNT)),
                )
            ),
        ),
    },
    "parameters": {
        "model": {"name": "model", "in": "path", "required": True, "schema": STRING},
        "version": {"name": "version", "in": "path", "required": True, "schema": STRING},
        "output": {
            "name": "output",
            "in": "query",
            "description": "labels, overlay, areas, rle, or a map of the model such as confidence; else Accept decides",
            "schema": STRING,
        },
        "opacity": {
            "name": "opacity",
            "in": "query",
            "description": "How strongly the overlay tints the image",
            "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
        },
        "timeout": {
            "name": "timeout",
            "in": "query",
            "description": "Seconds that the request may wait for its turn",
            "schema": {"type": "number", "minimum": 0},
        },
        HEADER_LENGTH: {
            "name": HEADER_LENGTH,
            "in": "header",
            "description": "Bytes of JSON ahead of the binary tensors; the whole body where it is left out",
            "schema": COUNT,
        },
        "Content-Encoding": {
            "name": "Content-Encoding",
            "in": "header",
            "schema": {"type": "string", "enum": ["gzip", "deflate", "identity"]},
        },
    },
    "headers": {
        "X-Request-Id": {"description": "The client's, from its header X-Request-Id, or a new one", "schema": STRING},
        "Server-Timing": {"description": "Milliseconds of each phase", "schema": STRING},
        HEADER_LENGTH: {"description": "Bytes of JSON ahead of the binary tensors, if there are any", "schema": COUNT},
    },
    "responses": {
        str(status): {"description": description, "content": {JSON: {"schema": ref("schemas", "Error")}}}
        | ({"headers": {"Retry-After": {"description": "Seconds", "schema": INTEGER}}} if status == 503 else {})
        | ({"headers": {"WWW-Authenticate": {"schema": STRING}}} if status == 401 else {})
        for status, description in STATUS_MEANINGS.items()
    },
}
