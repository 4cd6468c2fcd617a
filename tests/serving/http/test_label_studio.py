"""Label Studio's requests, as version 1.23.2 sent them to a backend that noted them (label_studio_requests.json)."""

import base64
import http.client
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving import run
from serving.http import label_studio as endpoints
from serving.http import label_studio_client
from tests.serving.http_calls import client_of, error_of, post_head
from tests.serving.images import encoded, encoded_image, expected_labels
from tests.serving.label_studio import LEGACY, PERSONAL, label_studio
from tests.serving.servers import connect, running, until
from tests.serving.toy_model import write_toy_model
from training.annotations.rle import decode_brush

RECORDED = json.loads(Path(__file__).with_name("label_studio_requests.json").read_text())
CLASSES = ("sky", "Building", "pole", "road")
BRUSH = '<BrushLabels name="tag" toName="image"><Label value="sky"/></BrushLabels>'
CONFIG = f'<View><Image name="image" value="$image"/>{BRUSH}</View>'


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "rec"
    return write_toy_model(folder, 1, name="rec", classes=CLASSES).parent


@pytest.fixture(scope="module")
def studio():
    with label_studio() as fake:
        for seed, name in enumerate(("e4dbfe81-0001TP_006690", "e8a1e3ac-0001TP_006720", "9d1c03a5-0001TP_006750")):
            fake.answers[f"/data/upload/1/{name}.jpg"] = (200, {}, encoded_image(6, 8, seed))
        yield fake


@pytest.fixture(scope="module")
def server_flags(studio, tmp_path_factory):
    token = tmp_path_factory.mktemp("tokens") / "label-studio"
    token.write_text(f"{PERSONAL}\n")
    return {"label_studio_url": studio.url, "label_studio_token_file": token, "timeout": 600.0}


@pytest.fixture
def asked(studio):
    """The images that were asked for during the test."""
    studio.asked.clear()
    return studio.images_asked


def send(client, name):
    recorded = RECORDED[name]
    return client.request(recorded["method"], recorded["path"], content=recorded["body"], headers=recorded["headers"])


def predict(client, *images, config=CONFIG):
    tasks = [{"id": number, "data": {"image": address}} for number, address in enumerate(images, 1)]
    return client.post("/label-studio/rec/predict", json={"tasks": tasks, "label_config": config})


def masks(prediction):
    return {
        result["value"]["brushlabels"][0]: decode_brush(
            result["value"]["rle"], result["original_height"], result["original_width"]
        )
        for result in prediction["result"]
    }


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


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://169.254.169.254/data/upload/1/a.jpg", "its image is at http://169.254.169.254/data/upload/1/a.jpg, and"
         " only images of {url} are fetched"),
        ("//169.254.169.254/data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("{url}@169.254.169.254/data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("http://user@{netloc}/data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("http://localhost:99999/data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("file:///data/upload/1/a.jpg", "only images of {url} are fetched"),
        ("{url}/api/users", "is no address of an image in Label Studio"),
        ("/data/upload/../../api/users", "is no address of an image in Label Studio"),
        ("/data/upload/%2e%2e/%2e%2e/api/users", "is no address of an image in Label Studio"),
        ("/data/upload/1/..\\..\\api", "is no address of an image in Label Studio"),
        ("/tasks/1/delete/", "is no address of an image in Label Studio"),
        ("photo.jpg", "is no address of an image in Label Studio"),
        (7, "expected the address of an image in image, got 7"),
        ("data:image/png,abc", "an image in its task is not in base64"),
        ("data:image/png;base64,a", "an image in its task is not in base64"),
    ],
)  # fmt: skip
def test_only_images_of_label_studio_are_fetched(client, studio, asked, address, said):
    netloc = studio.url.removeprefix("http://")
    if isinstance(address, str):
        address = address.format(url=studio.url, netloc=netloc)
    assert said.format(url=studio.url) in error_of(predict(client, address), 400)
    assert studio.asked == []


def test_setup_names_no_address(client, asked):
    """A stranger may call it, too."""
    with label_studio() as other:
        body = {"schema": CONFIG, "hostname": other.url, "access_token": LEGACY}
        assert client.post("/label-studio/rec/setup", json=body).status_code == 200
        other.answers["/data/upload/1/a.png"] = (200, {}, encoded_image())
        assert predict(client, "/data/upload/1/a.png").status_code == 400
        assert other.asked == []
    assert asked() == ["/data/upload/1/a.png"]


def test_redirects_stay_within_label_studio(client, studio, asked):
    with label_studio() as other:
        other.answers["/data/upload/1/a.png"] = (200, {}, encoded_image())
        cloud = "s3://bucket/dir/a b.png"
        target = f"/tasks/1/presign/?fileuri={base64.urlsafe_b64encode(cloud.encode()).decode()}"
        studio.answers[target] = (302, {"Location": f"{other.url}/data/upload/1/a.png"}, b"")
        assert "redirects /tasks/1/presign/" in (said := error_of(predict(client, cloud), 400))
        assert "switch off pre-signed URLs" in said
        assert other.asked == []
    studio.answers["/data/upload/1/a.png"] = (200, {}, encoded_image())
    studio.answers[target] = (307, {"Location": f"{studio.url}/data/upload/1/a.png"}, b"")
    assert "score" in predict(client, cloud).json()["results"][0]
    studio.answers[target] = (302, {"Location": "/api/users"}, b"")
    assert "/api/users is no address of an image" in error_of(predict(client, cloud), 400)
    studio.answers[target] = (302, {"Location": target}, b"")
    assert "more than 2 times" in error_of(predict(client, cloud), 400)
    assert "/api/users" not in asked()


@pytest.mark.parametrize(
    "address",
    [
        "/data/local-files/?d=shots/loc%20al%2B%C3%BC.jpg",
        "/data/upload/4/4567acd6-Stra%C3%9Fe_%C3%BC.jpg",
        "/storage-data/uploaded/?filepath=upload/1/a.jpg",
    ],
)
def test_addresses_go_out_as_they_came(client, studio, asked, address):
    studio.answers[address] = (200, {}, encoded_image())
    assert "score" in predict(client, f"{studio.url}{address}").json()["results"][0]
    assert "score" in predict(client, address).json()["results"][0]
    assert asked() == [address] * 2
    predict(client, "/data/upload/1/ü b\r\nX: y")
    assert asked()[-1] == "/data/upload/1/%C3%BC%20bX:%20y"


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
        monkeypatch.setattr("serving.http.label_studio_project.MAX_JSON_TOKENS", 100)
        answer = client.post("/label-studio/rec/setup", json={"schema": CONFIG, "extra": ["x"] * 100})
        assert "more than 100 lists, objects and strings of JSON: select fewer tasks" in error_of(answer, 413)
        monkeypatch.setattr(label_studio_client, "FETCH_SECONDS", 0.0)
        assert "does not answer within 0 seconds" in error_of(predict(client, "/data/upload/1/wide.png"), 400)
        assert server.service._held_bytes == 0


def test_tasks_are_counted_as_requests_for_images(models, server_flags):
    with running(models, **server_flags) as server, client_of(server) as client:
        good = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg"
        predict(client, good, good, "/data/upload/1/gone.jpg")
        lines = client.get("/metrics").text.splitlines()
        assert 'nv_inference_request_success{model="rec",version="1"} 2.0' in lines
        assert 'nv_inference_request_failure{model="rec",reason="OTHER",version="1"} 1.0' in lines


def test_tokens(models, studio, tmp_path):
    def flags(token):
        (tmp_path / "token").write_text(token)
        return {"label_studio_url": studio.url, "label_studio_token_file": tmp_path / "token"}

    good = "/data/upload/1/e8a1e3ac-0001TP_006720.jpg"
    with running(models, **flags(LEGACY)) as server, client_of(server) as client:
        studio.asked.clear()
        assert predict(client, good).status_code == 200
        assert studio.asked == [("GET", good, f"Token {LEGACY}")]
    with running(models, **flags(PERSONAL)) as server, client_of(server) as client:
        studio.asked.clear()
        assert [predict(client, good).status_code for _ in range(2)] == [200, 200]
        assert [path for _, path, _ in studio.asked] == ["/api/token/refresh/", good, good]
        studio.accepted.clear()  # it has forgotten what it gave
        assert predict(client, good).status_code == 200
        assert [path for _, path, _ in studio.asked[3:]] == [good, "/api/token/refresh/", good]
        studio.accepted.append(f"Token {LEGACY}")
    for wrong, said in (("eyJ.d3Jvbmc.x", "answers 401 to the token"), ("wrong", "refuses the token")):
        with running(models, **flags(wrong)) as server, client_of(server) as client:
            answer = client.post("/label-studio/rec/setup", json={"schema": CONFIG})
            assert f"{studio.url} {said} of --label-studio-token-file" in error_of(answer, 400)


def test_a_label_studio_below_a_path(models, studio, tmp_path):
    (tmp_path / "token").write_text(LEGACY)
    flags = {"label_studio_url": f"{studio.url}/ls/", "label_studio_token_file": tmp_path / "token"}
    image = "/data/upload/1/a.png"
    with running(models, **flags) as server, client_of(server) as client:
        studio.answers[f"/ls{image}"] = (200, {}, encoded_image())
        studio.asked.clear()
        for address in (image, f"/ls{image}", f"{studio.url}/ls{image}"):
            assert predict(client, address).status_code == 200
        assert studio.images_asked() == [f"/ls{image}"] * 3
        assert "is no address of an image" in error_of(predict(client, "/ls/api/users"), 400)


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({"Content-Length": "9", "Connection": "close"}, b"short", "it ends its answer too early"),
        ({"Content-Length": "x"}, b"", "its answer is not HTTP"),
    ],
)
def test_answers_that_are_not_whole(client, studio, headers, body, said):
    studio.answers["/data/upload/1/part.png"] = (200, headers, body)
    assert f"{studio.url} cannot be reached: {said}" in error_of(predict(client, "/data/upload/1/part.png"), 400)


def test_answers_in_chunks_and_until_the_connection_ends(client, studio):
    contents = encoded_image()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (contents[:50], contents[50:])) + b"0\r\n\r\n"
    studio.answers["/data/upload/1/chunks.png"] = (200, {"Content-Length": "", "Transfer-Encoding": "chunked"}, chunks)
    studio.answers["/data/upload/1/end.png"] = (200, {"Content-Length": "", "Connection": "close"}, contents)
    for name in ("chunks", "end"):
        [result] = predict(client, f"/data/upload/1/{name}.png").json()["results"]
        np.testing.assert_array_equal(masks(result)["sky"], expected_labels(contents) == 0)


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


def test_a_label_studio_that_is_not_there(models, server_flags):
    with label_studio() as gone:
        pass
    flags = server_flags | {"label_studio_url": gone.url}
    with running(models, **flags) as server, client_of(server) as client:
        answer = client.post("/label-studio/rec/setup", json={"schema": CONFIG})
        assert f"{gone.url} cannot be reached: " in error_of(answer, 400)
        assert client.get("/label-studio/rec/health").status_code == 200


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


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://a", "http://", "http://a:b", "http://u:p@a", "http://a/?x=1"])
def test_addresses_of_label_studio(url):
    with pytest.raises(ValueError, match="--label-studio-url .* expected an address"):
        label_studio_client.LabelStudio(url, "token", 1)
