"""Around every request: its id, its line in the log, the token, other origins."""

import json
import logging

import httpx

from serving.service.logs import JsonFormatter
from tests.serving.http_calls import SEGMENT, client_of, error_of, index_of
from tests.serving.images import encoded_image
from tests.serving.servers import running, until


def test_request_ids(client):
    assert client.get("/v2", headers={"X-Request-Id": "seven"}).headers["x-request-id"] == "seven"
    assert client.get("/nowhere", headers={"X-Request-Id": "eight"}).headers["x-request-id"] == "eight"
    tidied = client.get("/v2", headers={"X-Request-Id": b'a"b \xff' + b"c" * 200}).headers["x-request-id"]
    assert tidied == ('a"b' + "c" * 200)[:128]
    made = {client.get("/v2").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 0, 0]}
    body = {"id": "nine", "inputs": [tensor]}
    response = client.post("/v2/models/toy/infer", json=body)
    assert (response.json()["id"], response.headers["x-request-id"]) == ("nine", "nine")
    response = client.post("/v2/models/toy/infer", json=body, headers={"X-Request-Id": "ten"})
    assert (response.json()["id"], response.headers["x-request-id"]) == ("nine", "ten")


def test_each_request_is_a_line_of_json(client, caplog):
    caplog.set_level(logging.INFO, "serving.requests")
    response = client.post(SEGMENT, content=encoded_image(), headers={"X-Request-Id": "line"})
    until(lambda: caplog.records)
    line = json.loads(JsonFormatter().format(caplog.records[0]))
    assert (
        line.items()
        >= {
            "event": "request",
            "level": "info",
            "id": "line",
            "client": "127.0.0.1",
            "method": "POST",
            "path": SEGMENT,
            "status": 200,
            "bytes": len(response.content),
            "model": "toy/1",
        }.items()
    )
    assert line["ms"] > 0
    assert line["time"].endswith("+00:00")


def test_what_nobody_foresaw_is_json_too(client, server, monkeypatch, caplog):
    monkeypatch.setattr(server.repository, "versions", lambda name: 1 / 0)
    response = client.get("/v2/models/toy", headers={"X-Request-Id": "odd"})
    assert error_of(response, 500) == "internal error; the server's log says more about request odd"
    until(lambda: any(record.levelname == "ERROR" for record in caplog.records))
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "ZeroDivisionError" in json.loads(JsonFormatter().format(record))["traceback"]


def test_token(toy_model, tmp_path):
    (tmp_path / "token").write_text("open-sesame\n")
    with (
        running(toy_model.parent, token_file=tmp_path / "token") as server,
        client_of(server) as client,
    ):
        for header in (None, "open-sesame", "Bearer open-sesam", "Bearer open-sesame2", "Bearer ä"):
            headers = {} if header is None else {"Authorization": header.encode()}
            for path in ("/v2", "/metrics", "/v2/models/stats", "/nowhere"):
                response = client.get(path, headers=headers)
                assert "Authorization: Bearer TOKEN" in error_of(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for scheme in ("Bearer", "bearer", "BEARER", "Bearer "):
            right = {"Authorization": f"{scheme} open-sesame"}
            assert index_of(client.post(SEGMENT, content=encoded_image(), headers=right)).shape == (6, 8)


def test_pages_of_other_origins(toy_model, tmp_path):
    """A browser asks first, without the token, and reads what it may."""
    (tmp_path / "token").write_text("open-sesame")
    origin, asked = "https://a.example", {"Access-Control-Request-Method": "POST"}
    with (
        running(toy_model.parent, allow_origin=(origin,), token_file=tmp_path / "token") as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        asked["Access-Control-Request-Headers"] = "authorization, content-type"
        response = client.options(SEGMENT, headers={"Origin": origin, **asked})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
        assert "POST" in response.headers["access-control-allow-methods"]
        assert "authorization" in response.headers["access-control-allow-headers"].lower()
        other = client.options(SEGMENT, headers={"Origin": "https://b.example", **asked})
        assert error_of(other, 400) == "Disallowed CORS origin"
        assert "access-control-allow-origin" not in other.headers
        response = client.post(SEGMENT, content=encoded_image(), headers={"Origin": origin})
        assert "send the server's token" in error_of(response, 401)
        assert response.headers["access-control-allow-origin"] == origin
        token = {"Authorization": "Bearer open-sesame"}
        response = client.post(SEGMENT, content=encoded_image(), headers={"Origin": origin} | token)
        assert index_of(response).shape == (6, 8)
        assert response.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()
        response = client.post(SEGMENT, content=encoded_image(), headers={"Origin": "https://b.example"} | token)
        assert "access-control-allow-origin" not in response.headers


def test_no_other_origins_unless_they_are_named(client):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert error_of(client.options(SEGMENT, headers=asked), 405) == "Method Not Allowed"
    assert not any(name.startswith("access-control") for name in client.get("/v2", headers=asked).headers)
