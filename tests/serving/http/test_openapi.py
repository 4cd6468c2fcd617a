"""The OpenAPI document: of every route, and true."""

import httpx
import jsonschema_rs
import pytest
from starlette.routing import Route

from serving.http.endpoints import Endpoints
from serving.http.openapi import document
from tests.serving.servers import running


def described(token=False):
    paths = document(token=token)["paths"]
    return {(path, method.upper()) for path, item in paths.items() for method in item if method != "parameters"}


def test_every_route_is_described_and_every_description_a_route():
    routes = [route for route in Endpoints(None, {}).routes() if isinstance(route, Route) and route.include_in_schema]
    assert {(route.path, method) for route in routes for method in route.methods - {"HEAD"}} == described()


def references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from references(entry)


@pytest.mark.parametrize("token", [False, True])
def test_it_holds_together(token):
    whole = document(token=token)
    used = set(references(whole))
    there = {
        f"#/components/{kind}/{name}"
        for kind, entries in whole["components"].items()
        for name in entries
        if kind != "securitySchemes"
    }
    assert used == there - (set() if token else {"#/components/responses/401"})
    names = [
        operation["operationId"]
        for item in whole["paths"].values()
        for method, operation in item.items()
        if method != "parameters"
    ]
    assert len(names) == len(set(names))
    for schema in whole["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)


def test_what_a_token_changes(toy_model, tmp_path):
    (tmp_path / "token").write_text("open-sesame\n")
    with running(toy_model.parent, token_file=tmp_path / "token") as server:
        assert httpx.get(f"{server.url}/openapi.json").status_code == 401
        told = httpx.get(f"{server.url}/openapi.json", headers={"Authorization": "Bearer open-sesame"}).json()
    assert told == document(token=True)
    assert told["security"] == [{"token": []}]
    for path, item in told["paths"].items():
        for method in item.keys() - {"parameters"}:
            is_open = path.startswith("/v2/health/")
            assert (item[method].get("security") == []) == is_open
            assert ("401" in item[method]["responses"]) != is_open
    assert "security" not in document(token=False)
