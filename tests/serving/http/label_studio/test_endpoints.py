"""What Label Studio asks, and what it is answered, over real sockets."""

import base64
import http.client
import io
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from serving import run
from serving.common.label_studio import brush_results
from serving.http.label_studio import client as label_studio_client
from serving.http.label_studio import endpoints, project
from serving.service.limits import RequestLimits
from tests.serving.http.label_studio.requests import BRUSH, CLASSES, CONFIG, RECORDED, masks, predict, send
from tests.serving.http_calls import client_of, error_of, post_head
from tests.serving.images import encoded, encoded_image, expected_labels
from tests.serving.label_studio import HangingLabelStudio, label_studio
from tests.serving.servers import connect, running, until


def test_connecting_a_model(client, studio, asked):
    assert send(client, "health").json() == {"status": "UP", "model_class": "rec"}
    assert send(client, "setup").json() == {"model_version": "rec/1"}
    assert send(client, "versions").json() == {"versions": ["rec/1"]}
    assert asked() == []
    assert studio.asked[-1][:2] == ("GET", "/api/current-user/whoami")


@pytest.mark.parametrize("name", ["predict_test", "predict_selected", "predict_interactive"])
def test_predictions(client, studio, asked, name):
    results = send(client, name).json()["results"]
    tasks = json.loads(RECORDED[name]["body"])["tasks"]
    assert len(results) == len(tasks) == (3 if name == "predict_selected" else 1)
    assert sorted(asked()) == sorted(task["data"]["image"] for task in tasks)
    for task, result in zip(tasks, results, strict=True):
        contents = studio.answers[task["data"]["image"]][2]
        labels_HW = expected_labels(contents)
        found = masks(result)
        # "pole" is no label of the project, and "unicorn" no class of the model; letter case is the project's.
        wanted = {"Sky": 0, "building": 1, "Road": 3}
        assert found.keys() == {name for name, label in wanted.items() if (labels_HW == label).any()}
        for label, mask_HW in found.items():
            np.testing.assert_array_equal(mask_HW, labels_HW == wanted[label])
        assert {(r["from_name"], r["to_name"], r["type"]) for r in result["result"]} == {
            ("tag", "image", "brushlabels")
        }
        with Image.open(io.BytesIO(contents)) as image:
            green = np.asarray(image)[..., 1] / 255
        assert result["score"] == pytest.approx(green.mean(), abs=1e-6)
        assert result["model_version"] == "rec/1"


def test_nothing_is_trained(client, caplog):
    with caplog.at_level("INFO", "serving"):
        for name in ("start_training", "annotation_created"):
            answer = send(client, name).json()
            assert answer["status"] == "ok"
            assert answer["detail"].startswith("this server does not train: export the annotations")
        assert client.post("/label-studio/rec/train", json={}).status_code == 200
    said = [record.getMessage() for record in caplog.records if "does not train" in record.getMessage()]
    assert len(said) == 3


def test_the_address_shows_what_to_paste(client, server):
    address = f"{server.url}/label-studio/rec"
    assert client.get("/label-studio").json() == {"models": [{"address": address, "model_version": "rec/1"}]}
    shown = client.get("/label-studio/rec").json()
    assert (shown["model_version"], shown["classes"]) == ("rec/1", list(CLASSES))
    assert '<Label value="Building" background="#800000"/>' in shown["label_config"]
    setup = client.post("/label-studio/rec/setup", json={"schema": shown["label_config"]})
    assert setup.json() == {"model_version": "rec/1"}


def reason_of(server, method, path, body=None):
    """What Label Studio shows of an answer: status and reason."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request(method, path, json.dumps(body) if body else None)
    response = connection.getresponse()
    assert json.loads(response.read())["error"].encode("ascii", "replace").decode() == response.reason
    connection.request("GET", "/v2/health/live")  # the connection lives on, and its next answer is as ever
    assert (after := connection.getresponse()).reason == "OK", after
    connection.close()
    return response.status, response.reason


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            CONFIG.replace("sky", "Katze ü"),
            "no label of the project (Katze ?) is a class of rec (sky, Building, pole, road): rename the labels",
        ),
        (CONFIG.replace("BrushLabels", "PolygonLabels"), "expected the tag BrushLabels with an Image in the project's "
         "labeling interface, got PolygonLabels: open this model's address"),
        ("<View></View>", "expected the tag BrushLabels with an Image in the project's labeling interface, got no lab"),
        (CONFIG.replace('toName="image"', 'toName="text"'), "expected the tag BrushLabels with an Image"),
        ("<View>", "the project's label configuration is not XML: no element found"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "the project's label configuration has a DOCTYPE"),
        (None, "the project's label configuration: expected a string, got null"),
    ],
)  # fmt: skip
def test_projects_that_do_not_fit(server, config, said):
    body = {"schema": config, "label_config": config, "tasks": [{"id": 1, "data": {"image": "/data/upload/1/a.jpg"}}]}
    for path in ("setup", "predict"):
        status, reason = reason_of(server, "POST", f"/label-studio/rec/{path}", body)
        assert status == 400
        assert reason.startswith(said)


def test_what_no_project_has(client):
    """Made by somebody who wants to do harm."""
    deep = f"{'<a>' * 15_000}{'</a>' * 15_000}"
    assert "got no labels" in error_of(client.post("/label-studio/rec/setup", json={"schema": deep}), 400)
    large = client.post("/label-studio/rec/setup", json={"schema": CONFIG + " " * 2**17})
    assert "characters, at most 131072 are read" in error_of(large, 413)
    labels = BRUSH.replace('<Label value="sky"/>', '<Label value="x"/>' * 1001)
    many = client.post("/label-studio/rec/setup", json={"schema": CONFIG.replace(BRUSH, labels)})
    assert error_of(many, 400) == "the project has 1001 labels, at most 1000 are read"
    for half in ("\\ud800", "/data/upload/\\ud800.png", "data:\\udfff;base64,", "s3:\\ud800"):
        task = f'{{"id": 1, "data": {{"image": "{half}"}}}}'
        body = f'{{"tasks": [{task}], "label_config": {json.dumps(CONFIG)}}}'
        assert client.post("/label-studio/rec/predict", content=body).status_code == 400
    for body in (b"", b"[]", b"{", b'"\\ud800"', b'{"schema": "\\ud800"}', b"[" * 2000, b"\xff"):
        assert client.post("/label-studio/rec/setup", content=body).status_code == 400


def test_aliases_and_letter_case(client, studio):
    studio.answers["/data/upload/1/dark.png"] = (200, {}, encoded(Image.new("RGB", (4, 4))))
    config = CONFIG.replace('<Label value="sky"/>', '<Label value="Himmel" alias=" SKY "/>')
    [result] = predict(client, "/data/upload/1/dark.png", config=config).json()["results"]
    assert list(masks(result)) == ["Himmel"]


def test_unknown_models(server):
    said = "Request for unknown model: 'health' is not found, served are rec"
    assert reason_of(server, "GET", "/label-studio/health") == (404, said)
    assert reason_of(server, "POST", "/label-studio/other/predict", {"tasks": []})[0] == 404


def test_nothing_without_the_flag(models):
    with running(models) as server, client_of(server) as client:
        said = "Label Studio is not answered here: start the server with --label-studio-url"
        for name in ("health", "setup", "versions", "predict_test", "annotation_created"):
            assert error_of(send(client, name), 404) == said
        assert reason_of(server, "GET", "/label-studio/rec/health") == (404, said)
        assert error_of(client.get("/label-studio"), 404) == said


def test_the_servers_token_is_a_password(models, studio, server_flags, tmp_path):
    (tmp_path / "token").write_text("open-sesame")  # the password in the recorded requests
    with running(models, token_file=tmp_path / "token", **server_flags) as server, client_of(server) as client:
        assert send(client, "health").status_code == 200
        assert send(client, "predict_test").json()["results"][0]["model_version"] == "rec/1"
        refused = client.get("/label-studio/rec/health", auth=("kerasseg", "open-simsim"))
        assert "as the password of this model" in error_of(refused, 401)
        assert refused.headers["WWW-Authenticate"] == "Basic"
        assert client.get("/label-studio/rec/health", headers={"Authorization": "Basic ?"}).status_code == 401
        bearer = {"Authorization": "Bearer open-sesame"}
        assert client.get("/label-studio/rec/health", headers=bearer).status_code == 200
        assert client.get("/v2", auth=("kerasseg", "open-sesame")).status_code == 401  # only where it is needed
        # Webhooks come without the password.
        assert send(client, "annotation_created").status_code == 401


def test_an_image_within_its_task(client, asked):
    contents = encoded_image()
    address = f"data:image/png;base64,{base64.b64encode(contents).decode()}"
    [result] = predict(client, address).json()["results"]
    np.testing.assert_array_equal(masks(result)["sky"], expected_labels(contents) == 0)
    assert asked() == []


def test_a_task_that_fails_leaves_the_others(client, studio):
    good, gone = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg", "/data/upload/1/gone.jpg"
    studio.answers["/data/upload/1/text.jpg"] = (200, {}, b"<html>")
    studio.answers["/data/upload/1/private.jpg"] = (403, {}, b"")
    first, second, third = predict(client, gone, good, "/data/upload/1/text.jpg").json()["results"]
    assert first == {"error": f"task 1: {studio.url} answers 404 to {gone}: the file is not there, or the token's user "
                     "is no member of the project"}  # fmt: skip
    assert second["model_version"] == "rec/1"
    assert third["error"].startswith("image cannot be read: ")
    private = error_of(predict(client, "/data/upload/1/private.jpg"), 400)
    assert private.endswith("/data/upload/1/private.jpg: the token's user is no member of the project")
    assert predict(client).json() == {"results": []}
    for tasks in (7, [7], [{"id": "1", "data": {}}], [{"id": 1}]):
        answer = client.post("/label-studio/rec/predict", json={"tasks": tasks, "label_config": CONFIG})
        assert "expected" in error_of(answer, 400)


def test_more_tasks_are_answered_one_by_one(client, studio, asked):
    """To a single prediction for several tasks Label Studio answers with one request for each task."""
    good = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg"
    assert len(predict(client, *[good] * endpoints.MAX_TASKS).json()["results"]) == endpoints.MAX_TASKS
    asked()
    studio.asked.clear()
    assert len(predict(client, *[good] * (endpoints.MAX_TASKS + 1)).json()["results"]) == 1
    assert asked() == [good]


def test_a_first_task_that_fails_leaves_the_project(client, studio):
    """Label Studio gives up after a 400, and goes on task by task after one prediction, whatever is in it."""
    good, gone = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg", "/data/upload/1/gone.jpg"
    [result] = predict(client, gone, *[good] * endpoints.MAX_TASKS).json()["results"]
    assert f"task 1: {studio.url} answers 404 to {gone}" in result["error"]
    first, *others = [{"id": number, "data": {"image": gone}, "meta": "x" * 2**23} for number in range(1, 4)]
    [result] = client.post(
        "/label-studio/rec/predict", content=json.dumps({"tasks": [first, *others], "label_config": CONFIG})
    ).json()["results"]
    assert f"task 1: {studio.url} answers 404 to {gone}" in result["error"]
    alone = {"tasks": [first], "params": "x" * 2**23, "label_config": CONFIG}
    assert "answers 404" in error_of(client.post("/label-studio/rec/predict", content=json.dumps(alone)), 400)


def test_large_answers_hold_one_prediction(client, asked, monkeypatch):
    good = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg"
    [alone] = predict(client, good).json()["results"]
    assert len(predict(client, good, good).json()["results"]) == 2
    monkeypatch.setattr(endpoints, "MAX_ANSWER", 100)
    assert predict(client, good, good).json()["results"] == [alone]
    asked()
    predict(client, *[good] * 16)
    assert len(asked()) < 3 + 16


def test_predictions_of_many_run_lengths(model_info):
    """They are written as bytes, and no list of strings is made of their numbers."""
    labels_HW = np.random.default_rng(0).integers(0, 4, (512, 512), np.uint8)
    config = CONFIG.replace(BRUSH, BRUSH.replace("<Label", '<Label value="Pole é"  alias="pole"/><Label'))
    codec = endpoints.LabelStudioCodec(project.Brush.from_config(config), RequestLimits())
    answer = SimpleNamespace(outputs={"labels": labels_HW[None], "confidence": np.float32([0.25])})
    written = codec.encode(SimpleNamespace(info=model_info), None, answer)
    wanted = brush_results(labels_HW, ["sky", "", "Pole é", ""], from_name="tag", to_name="image", leave_out={1, 3})
    assert isinstance(written, bytes)
    assert json.loads(written) == {"result": wanted, "score": 0.25, "model_version": "rec/1"}


@pytest.fixture
def model_info(server):
    return server.repository.get("rec").info


def test_requests_that_are_too_large_to_read(client, studio, asked):
    """A thousand tasks as Label Studio writes them, and with masks. The first is answered, so that it sends each."""

    def post(request):
        return client.post("/label-studio/rec/predict", content=json.dumps(request))

    whole = json.loads(RECORDED["predict_selected"]["body"])
    tasks = whole["tasks"]
    unlike = [task | {"data": {"image": "/data/upload/1/other.jpg"}} for task in tasks]
    many = whole | {"tasks": [tasks[1], *unlike * 400]}
    [result] = post(many).json()["results"]
    assert asked() == [tasks[1]["data"]["image"]]
    labels_HW = expected_labels(studio.answers[tasks[1]["data"]["image"]][2])
    np.testing.assert_array_equal(masks(result)["Sky"], labels_HW == 0)

    masked = tasks[0] | {"predictions": [{"result": [{"value": {"rle": [7] * 2_000_000}}]}] * 3}
    large = whole | {"tasks": [tasks[0], masked]}
    assert len(json.dumps(large)) > 2**24
    [result] = post(large).json()["results"]
    assert "score" in result
    studio.asked.clear()
    for refused in (
        {"label_config": whole["label_config"], "tasks": many["tasks"]},  # in another order
        whole | {"tasks": [tasks[0] | {"meta": [[]] * 2**17}]},  # the first is too large itself
        {"tasks": many["tasks"]},
    ):
        answer = post(refused)
        assert "select fewer tasks at a time" in error_of(answer, 413)
    assert asked() == []


def test_limits(models, studio, server_flags, monkeypatch):
    with running(models, max_body_mb=1, max_pixels=200, **server_flags) as server, client_of(server) as client:
        studio.answers["/data/upload/1/large.bin"] = (200, {}, bytes(2**20 + 1))
        assert "sends more than 1048576 bytes" in error_of(predict(client, "/data/upload/1/large.bin"), 413)
        studio.answers["/data/upload/1/wide.png"] = (200, {}, encoded_image(10, 22))
        assert "larger than 200 pixels (22x10)" in error_of(predict(client, "/data/upload/1/wide.png"), 413)
        embedded = f"data:image/png;base64,{'A' * (2**20 - 2**10)}"
        assert "image cannot be read" in error_of(predict(client, embedded), 400)
        monkeypatch.setattr(project, "MAX_JSON_TOKENS", 100)
        answer = client.post("/label-studio/rec/setup", json={"schema": CONFIG, "extra": ["x"] * 100})
        assert "more than 100 lists, objects and strings of JSON: select fewer tasks" in error_of(answer, 413)
        monkeypatch.setattr(label_studio_client, "FETCH_SECONDS", 0.0)
        assert "does not answer within 0 seconds" in error_of(predict(client, "/data/upload/1/wide.png"), 400)
        assert server.service._held_bytes == 0


@pytest.fixture
def hanging():
    with label_studio(HangingLabelStudio) as fake:
        yield fake
        fake.go_on.set()


def test_what_is_kept_while_images_are_fetched(models, server_flags, hanging):
    """Only bodies are counted, and images within tasks."""
    flags = server_flags | {"label_studio_url": hanging.url}
    tasks = [
        {"id": number, "data": {"image": f"/data/upload/1/{number}.jpg", "junk": "x" * 10**6}} for number in (1, 2)
    ]
    embedded = {"id": 3, "data": {"image": f"data:image/png;base64,{'A' * 10**6}"}}

    def while_fetching(tasks):
        body = json.dumps({"tasks": tasks, "label_config": CONFIG}).encode()
        before = tracemalloc.get_traced_memory()[0]
        raw = connect(server)
        raw.sendall(post_head("/label-studio/rec/predict", len(body)) + body)
        del body
        until(lambda: hanging.waiting)
        return raw, server.service._held_bytes, tracemalloc.get_traced_memory()[0] - before

    with running(models, **flags) as server, client_of(server) as client:
        tracemalloc.start()
        raw, counted, taken = while_fetching(tasks)
        assert 0 < counted < 2**13
        assert taken < 10**6
        raw.close()  # nobody waits for these images any more
        until(lambda: 'reason="CANCELED",version="1"} 2.0' in client.get("/metrics").text)
        assert server.service._held_bytes == 0
        hanging.waiting = 0
        raw, counted, taken = while_fetching([tasks[0], embedded])
        tracemalloc.stop()
        assert 10**6 < counted < 3 * 10**6
        raw.close()
        until(lambda: server.service._held_bytes == 0)
        hanging.go_on.set()


def test_long_names(client):
    long = "x" * (project.MAX_NAME + 1)
    for config in (CONFIG.replace("tag", long), CONFIG.replace('"sky"', f'"{long}" alias="sky"')):
        answer = predict(client, "/data/upload/1/a.png", config=config)
        assert "a name of 257 characters, at most 256 are taken" in error_of(answer, 400)
    long = "/data/upload/1/" + "x" * project.MAX_ADDRESS
    assert "the address of an image has 8207 characters" in error_of(predict(client, long), 400)


def test_tasks_are_counted_as_requests_for_images(models, server_flags):
    with running(models, **server_flags) as server, client_of(server) as client:
        good = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg"
        predict(client, good, good, "/data/upload/1/gone.jpg")
        lines = client.get("/metrics").text.splitlines()
        assert 'nv_inference_request_success{model="rec",version="1"} 2.0' in lines
        assert 'nv_inference_request_failure{model="rec",reason="OTHER",version="1"} 1.0' in lines


def test_whoever_gives_up_waits_in_no_queue(server, client, studio, gate):
    good = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg"
    body = json.dumps({"tasks": [{"id": 1, "data": {"image": good}}], "label_config": CONFIG}).encode()
    [model] = server.repository.models()
    with connect(server) as first, connect(server) as second:
        first.sendall(post_head("/label-studio/rec/predict", len(body)) + body)
        until(lambda: gate.batches)
        second.sendall(post_head("/label-studio/rec/predict", len(body)) + body)
        until(lambda: model.pending == 1)
        second.close()
        until(lambda: model.pending == 0)
        gate.open()
        assert first.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"label_studio_url": "http://a"}, "--label-studio-url and --label-studio-token-file go together"),
        ({"label_studio_token_file": Path("t")}, "--label-studio-url and --label-studio-token-file go together"),
    ],
)
def test_flags(flags, said):
    with pytest.raises(ValueError, match=said):
        run.check(run.ServerConfig(models=Path("m"), **flags))
