"""The HTTP interface as an OpenAPI 3.1 document. The routes are in `Endpoints`, and a test compares both."""

from collections.abc import Callable
from importlib.metadata import version as installed_version
from typing import Any

from serving.http.openapi_components import COMPONENTS, JSON, object_of, ref
from serving.http.tensor_codec import HEADER_LENGTH

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
        ok = {"description": "OK", "headers": {"X-Request-Id": ref("headers", "X-Request-Id")} | (headers or {})}
        return {"200": ok | ({"content": content} if content else {})} | {
            str(status): ref("responses", str(status)) for status in sorted({*statuses, *failures})
        }

    def json_answers(name: str, *statuses: int) -> dict[str, Any]:
        return answers({JSON: {"schema": ref("schemas", name)}}, *statuses)

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
            path: item | {"parameters": [ref("parameters", "model")]},
            f"{before}{{model}}/versions/{{version}}{after}": {
                method: versioned,
                "parameters": [ref("parameters", "model"), ref("parameters", "version")],
            },
        }

    def unready(schema: dict[str, Any] | None) -> dict[str, Any]:
        """The answer 503 of what asks for readiness."""
        return {"503": {"description": "Not ready"} | ({"content": {JSON: {"schema": schema}}} if schema else {})}

    binary = {HEADER_LENGTH: ref("headers", HEADER_LENGTH)}
    timing = {"Server-Timing": ref("headers", "Server-Timing")}
    by_password: dict[str, Any] = {"security": [{"token": []}, {"password": []}]} if token else {}
    open_to_all: dict[str, Any] = {"security": []} if token else {}
    paths = {
        "/v2": get("server_metadata", "Name, version and extensions of the server", json_answers("ServerMetadata")),
        "/v2/health/live": get(
            "live",
            "The server runs",
            {"200": {"description": "It does"}, "503": ref("responses", "503")},
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
                | unready({"anyOf": [ref("schemas", "ModelReady"), ref("schemas", "Error")]}),
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
                    {JSON: {"schema": ref("schemas", "InferResponse")}, "application/octet-stream": {}},
                    *BODY_FAILURES,
                    *MODEL_FAILURES,
                    headers=binary | timing,
                ),
                parameters=[ref("parameters", HEADER_LENGTH), ref("parameters", "Content-Encoding")],
                requestBody={
                    "required": True,
                    "description": "JSON; or JSON, as long as the header says, and the binary tensors behind it.",
                    "content": {
                        JSON: {"schema": ref("schemas", "InferRequest")},
                        "application/octet-stream": {},
                    },
                },
            ),
        ),
        "/v2/repository/index": post(
            "index",
            "Every version of every model, with its state",
            json_answers("Index", *BODY_FAILURES),
            requestBody={"content": {JSON: {"schema": ref("schemas", "IndexRequest")}}},
        ),
        "/v2/repository/models/{model}/load": post(
            "load",
            "Serve a model",
            answers(None, *BODY_FAILURES, 403, 404),
            requestBody={"content": {JSON: {"schema": ref("schemas", "LoadRequest")}}},
        )
        | {"parameters": [ref("parameters", "model")]},
        "/v2/repository/models/{model}/unload": post("unload", "End a model", answers(None, 403, 404))
        | {"parameters": [ref("parameters", "model")]},
        **for_model(
            "/v1/segment/{model}",
            post(
                "segment",
                "An image in; its segmentation, overlay, areas or run lengths out",
                answers(
                    {
                        "image/png": {},
                        "image/jpeg": {},
                        JSON: {"schema": ref("schemas", "Areas")},
                        "application/x-coco-rle+json": {"schema": ref("schemas", "Areas")},
                    },
                    *BODY_FAILURES,
                    *MODEL_FAILURES,
                    406,
                    headers=timing,
                ),
                parameters=[ref("parameters", name) for name in ("output", "opacity", "timeout", "Content-Encoding")],
                requestBody={
                    "required": True,
                    "description": "An image, whatever Content-Type says; or a form with one file.",
                    "content": {
                        **{media_type: {} for media_type in ("image/jpeg", "image/png", "image/webp")},
                        "application/octet-stream": {},
                        "multipart/form-data": {
                            "schema": object_of(["image"], image={"type": "string", "format": "binary"})
                        },
                    },
                },
            ),
        ),
        **_label_studio(get, post, json_answers, by_password),
        "/metrics": get("metrics", "For Prometheus", answers({"text/plain": {"schema": {"type": "string"}}})),
        "/openapi.json": get("openapi", "This document", answers({JSON: {"schema": {"type": "object"}}})),
    }
    security = {
        "security": [{"token": []}],
        "components": COMPONENTS
        | {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic"},
            }
        },
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


def _label_studio(
    get: Callable[..., dict[str, Any]],
    post: Callable[..., dict[str, Any]],
    json_answers: Callable[..., dict[str, Any]],
    security: dict[str, Any],
) -> dict[str, Any]:
    """What Label Studio asks of an ML backend."""

    def body(name: str) -> dict[str, Any]:
        return {"required": True, "content": {JSON: {"schema": ref("schemas", name)}}}

    def asked(name: str, summary: str) -> dict[str, Any]:
        return get(
            f"label_studio_{name.lower()}", summary, json_answers(f"LabelStudio{name}", *MODEL_FAILURES), **security
        )

    def sent(name: str, what: str, answer: str, summary: str) -> dict[str, Any]:
        answers = json_answers(f"LabelStudio{answer}", *BODY_FAILURES, *MODEL_FAILURES)
        return post(f"label_studio_{name}", summary, answers, requestBody=body(what), **security)

    base = "/label-studio/{model}"
    of_model = {
        base: asked("Model", "A model as an ML backend of Label Studio: classes, and a label configuration to paste"),
        f"{base}/health": asked("Health", "The model answers"),
        f"{base}/versions": asked("Versions", "The versions that are served"),
        f"{base}/setup": sent("setup", "LabelStudioProject", "Setup", "Whether model and project fit"),
        f"{base}/predict": sent("predict", "LabelStudioTasks", "Predictions", "A prediction for each task"),
        f"{base}/webhook": sent("webhook", "AnyObject", "Training", "Nothing: the server does not train"),
        f"{base}/train": sent("train", "AnyObject", "Training", "Nothing: the server does not train"),
    }
    models = get(
        "label_studio_models",
        "The models' addresses, for Label Studio",
        json_answers("LabelStudioModels", 404),
        **security,
    )
    parameters = {"parameters": [ref("parameters", "model")]}
    return {"/label-studio": models} | {path: item | parameters for path, item in of_model.items()}
