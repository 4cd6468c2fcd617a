"""The HTTP interface as an OpenAPI 3.1 document. The routes are in `Endpoints`, and a test compares both."""

from importlib.metadata import version as installed_version
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

BODY_FAILURES = (400, 408, 413, 503)
MODEL_FAILURES = (404, 503)


def document(*, token: bool) -> dict[str, Any]:
    """The document, as JSON.

    Args:
        token: whether requests must carry one.
    """
    failures = (401, 500, 503) if token else (500, 503)  # of every endpoint

    def answers(content: Any, *statuses: int, headers: dict[str, Any] | None = None) -> dict[str, Any]:
        """An operation's answers: 200 with this content by media type, and failures."""
        ok = {"description": "OK", "headers": {"X-Request-Id": _ref("headers", "X-Request-Id")} | (headers or {})}
        return {"200": ok | ({"content": content} if content else {})} | {
            str(status): _ref("responses", str(status)) for status in sorted({*statuses, *failures})
        }

    def json_answers(name: str, *statuses: int) -> dict[str, Any]:
        return answers({JSON: {"schema": _ref("schemas", name)}}, *statuses)

    def get(name: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"get": {"operationId": name, "summary": summary, "responses": responses, **more}}

    def post(name: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"post": {"operationId": name, "summary": summary, "responses": responses, **more}}

    def for_model(path: str, item: dict[str, Any]) -> dict[str, Any]:
        """For its newest version, and for one by number."""
        before, after = path.split("{model}")
        [(method, operation)] = item.items()
        versioned = operation | {"operationId": f"{operation['operationId']}_of_version"}
        return {
            path: item | {"parameters": [_ref("parameters", "model")]},
            f"{before}{{model}}/versions/{{version}}{after}": {
                method: versioned,
                "parameters": [_ref("parameters", "model"), _ref("parameters", "version")],
            },
        }

    def unready(schema: dict[str, Any] | None) -> dict[str, Any]:
        """The answer 503 of what asks for readiness."""
        return {"503": {"description": "Not ready"} | ({"content": {JSON: {"schema": schema}}} if schema else {})}

    binary = {HEADER_LENGTH: _ref("headers", HEADER_LENGTH)}
    timing = {"Server-Timing": _ref("headers", "Server-Timing")}
    open_to_all: dict[str, Any] = {"security": []} if token else {}
    paths = {
        "/v2": get("server_metadata", "Name, version and extensions of the server", json_answers("ServerMetadata")),
        "/v2/health/live": get(
            "live",
            "The server runs",
            {"200": {"description": "It does"}, "503": _ref("responses", "503")},
            **open_to_all,
        ),
        "/v2/health/ready": get(
            "ready", "All models are loaded", {"200": {"description": "Ready"}} | unready(None), **open_to_all
        ),
        "/v2/models/stats": get("all_statistics", "Statistics of all models", json_answers("Statistics")),
        **for_model(
            "/v2/models/{model}", get("metadata", "A model's tensors and classes", json_answers("ModelMetadata", 404))
        ),
        **for_model(
            "/v2/models/{model}/ready",
            get(
                "model_ready",
                "The model answers",
                json_answers("ModelReady", 404)
                | unready({"anyOf": [_ref("schemas", "ModelReady"), _ref("schemas", "Error")]}),
            ),
        ),
        **for_model("/v2/models/{model}/config", get("config", "How a model is run", json_answers("ModelConfig", 404))),
        **for_model(
            "/v2/models/{model}/stats", get("statistics", "A model's statistics", json_answers("Statistics", 404))
        ),
        **for_model(
            "/v2/models/{model}/infer",
            post(
                "infer",
                "The V2 protocol: tensors in, tensors out",
                answers(
                    {JSON: {"schema": _ref("schemas", "InferResponse")}, "application/octet-stream": {}},
                    *BODY_FAILURES,
                    *MODEL_FAILURES,
                    headers=binary | timing,
                ),
                parameters=[_ref("parameters", HEADER_LENGTH), _ref("parameters", "Content-Encoding")],
                requestBody={
                    "required": True,
                    "description": "JSON; or JSON, as long as the header says, and the binary tensors behind it.",
                    "content": {
                        JSON: {"schema": _ref("schemas", "InferRequest")},
                        "application/octet-stream": {},
                    },
                },
            ),
        ),
        "/v2/repository/index": post(
            "index",
            "Every version of every model, with its state",
            json_answers("Index", *BODY_FAILURES),
            requestBody={"content": {JSON: {"schema": _ref("schemas", "IndexRequest")}}},
        ),
        "/v2/repository/models/{model}/load": post(
            "load",
            "Serve a model",
            answers(None, *BODY_FAILURES, 403, 404),
            requestBody={"content": {JSON: {"schema": _ref("schemas", "LoadRequest")}}},
        )
        | {"parameters": [_ref("parameters", "model")]},
        "/v2/repository/models/{model}/unload": post("unload", "End a model", answers(None, 403, 404))
        | {"parameters": [_ref("parameters", "model")]},
        **for_model(
            "/v1/segment/{model}",
            post(
                "segment",
                "An image in; its segmentation, overlay, areas or run lengths out",
                answers(
                    {
                        "image/png": {},
                        "image/jpeg": {},
                        JSON: {"schema": _ref("schemas", "Areas")},
                        "application/x-coco-rle+json": {"schema": _ref("schemas", "Areas")},
                    },
                    *BODY_FAILURES,
                    *MODEL_FAILURES,
                    406,
                    headers=timing,
                ),
                parameters=[_ref("parameters", name) for name in ("output", "opacity", "timeout", "Content-Encoding")],
                requestBody={
                    "required": True,
                    "description": "An image, whatever Content-Type says; or a form with one file.",
                    "content": {
                        **{media_type: {} for media_type in ("image/jpeg", "image/png", "image/webp")},
                        "application/octet-stream": {},
                        "multipart/form-data": {
                            "schema": _object(["image"], image={"type": "string", "format": "binary"})
                        },
                    },
                },
            ),
        ),
        "/metrics": get("metrics", "For Prometheus", answers({"text/plain": {"schema": {"type": "string"}}})),
        "/openapi.json": get("openapi", "This document", answers({JSON: {"schema": {"type": "object"}}})),
    }
    security = {
        "security": [{"token": []}],
        "components": COMPONENTS | {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kerasseg",
            "version": installed_version("kerasseg"),
            "description": "Segmentation models over HTTP: images in, segmentations out; the V2 inference protocol.",
        },
        "paths": paths,
        "components": COMPONENTS,
    } | (security if token else {})


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


STRING, INTEGER, NUMBER, BOOLEAN = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
COUNT = {"type": "integer", "minimum": 0}
DATATYPE = {"type": "string", "enum": list(DATATYPES)}
_DURATION = _object(["count", "ns"], count=COUNT, ns=COUNT)
_PHASES = ("compute_input", "compute_infer", "compute_output")
_WHOLE = ("success", "fail", "queue", *_PHASES, "cache_hit", "cache_miss")
_CONFIG_TENSOR = _object(["name", "data_type", "dims"], name=STRING, data_type=STRING, dims=_array(INTEGER))

COMPONENTS: dict[str, Any] = {
    "schemas": {
        "Error": _object(["error"], error=STRING),
        "ServerMetadata": _object(
            ["name", "version", "extensions"], name=STRING, version=STRING, extensions=_array(STRING)
        ),
        "ModelReady": _object(["name", "ready"], name=STRING, ready=BOOLEAN),
        "ModelMetadata": _object(
            ["name", "versions", "platform", "inputs", "outputs", "properties"],
            name=STRING,
            versions=_array(STRING),
            platform=STRING,
            inputs=_array(_ref("schemas", "TensorMetadata")),
            outputs=_array(_ref("schemas", "TensorMetadata")),
            properties=_object(
                ["provider", "precision", "sha256", "classes", "palette"],
                provider=STRING,
                precision=STRING,
                sha256=STRING,
                classes=_array(STRING),
                palette=_array(_array(INTEGER)),
            ),
        ),
        "TensorMetadata": _object(
            ["name", "datatype", "shape"],
            name=STRING,
            datatype=DATATYPE,
            shape=_array(INTEGER) | {"description": "-1 where any length will do"},
        ),
        "ModelConfig": _object(
            ["name", "platform", "backend", "max_batch_size", "input", "output", "dynamic_batching", "parameters"],
            name=STRING,
            platform=STRING,
            backend=STRING,
            version_policy={"type": "object"},
            max_batch_size=COUNT,
            input=_array(_CONFIG_TENSOR),
            output=_array(_CONFIG_TENSOR),
            dynamic_batching=_object(["max_queue_delay_microseconds"], max_queue_delay_microseconds=COUNT),
            parameters={"type": "object", "additionalProperties": _object(["string_value"], string_value=STRING)},
        ),
        "Statistics": _object(
            ["model_stats"],
            model_stats=_array(
                _object(
                    ["name", "version", "last_inference", "inference_count", "execution_count", "inference_stats"],
                    name=STRING,
                    version=STRING,
                    last_inference=COUNT | {"description": "Milliseconds since 1970"},
                    inference_count=COUNT | {"description": "Images"},
                    execution_count=COUNT | {"description": "Batches"},
                    inference_stats=_object(list(_WHOLE), **dict.fromkeys(_WHOLE, _DURATION)),
                    batch_stats=_array(
                        _object(["batch_size", *_PHASES], batch_size=COUNT, **dict.fromkeys(_PHASES, _DURATION))
                    ),
                )
            ),
        ),
        "IndexRequest": _object([], ready=BOOLEAN | {"description": "Only those that are served"}),
        "LoadRequest": _object(
            [],
            parameters={
                "type": "object",
                "description": "Triton's config and files: none is taken",
                "maxProperties": 0,
            },
        ),
        "Index": _array(
            _object(
                ["name", "version", "state", "reason"],
                name=STRING,
                version=STRING,
                state={"type": "string", "enum": ["READY", "UNAVAILABLE"]},
                reason=STRING,
            )
        ),
        "InferRequest": _object(
            ["inputs"],
            id=STRING,
            parameters=_object(
                [],
                timeout=COUNT | {"description": "Microseconds that the request may wait for its turn; 0: no limit"},
                binary_data_output=BOOLEAN | {"description": "All outputs as binary tensors"},
            ),
            inputs=_array(
                _object(
                    ["name", "shape", "datatype"],
                    name=STRING,
                    shape=_array({"type": "integer", "minimum": 1}),
                    datatype=DATATYPE,
                    parameters=_object([], binary_data_size=COUNT),
                    data={"type": "array", "description": "Nested or flat, row by row; not of a binary tensor"},
                )
            ),
            outputs=_array(
                _object(["name"], name=STRING, parameters=_object([], binary_data=BOOLEAN))
                | {"description": "Those wanted; all where there are none"}
            ),
        ),
        "InferResponse": _object(
            ["model_name", "model_version", "outputs"],
            model_name=STRING,
            model_version=STRING,
            id=STRING,
            outputs=_array(
                _object(
                    ["name", "datatype", "shape"],
                    name=STRING,
                    datatype=DATATYPE,
                    shape=_array(COUNT),
                    data=_array({"type": ["number", "boolean"]}),
                    parameters=_object([], binary_data_size=COUNT),
                )
            ),
        ),
        "Areas": _object(
            ["id", "model_name", "model_version", "height", "width", "classes"],
            id=STRING,
            model_name=STRING,
            model_version=STRING,
            height=COUNT,
            width=COUNT,
            mean_confidence=NUMBER,
            classes=_array(
                _object(
                    ["label", "name", "pixels", "share"],
                    label=COUNT,
                    name=STRING,
                    pixels=COUNT,
                    share={"type": "number", "minimum": 0, "maximum": 1},
                    rle=_object(["size", "counts"], size=_array(COUNT), counts=_array(COUNT)),
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
        str(status): {"description": description, "content": {JSON: {"schema": _ref("schemas", "Error")}}}
        | ({"headers": {"Retry-After": {"description": "Seconds", "schema": INTEGER}}} if status == 503 else {})
        | ({"headers": {"WWW-Authenticate": {"schema": STRING}}} if status == 401 else {})
        for status, description in STATUS_MEANINGS.items()
    },
}
