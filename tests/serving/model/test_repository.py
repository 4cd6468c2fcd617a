"""Models on disk and models that are served: versions, buckets, replacement without a failed request."""

import errno
import json
import logging
import os
import shutil
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest

from serving.common.artifact import INFO_FILE
from serving.model import model as model_module
from serving.model.batcher import Closed
from serving.model.engine import Engine
from serving.model.model import ModelSettings
from serving.model.repository import Repository, UnknownModel
from tests.serving.grpc_calls import calling, infer_request
from tests.serving.images import encoded_image
from tests.serving.model.repositories import refusal, segment
from tests.serving.servers import running, until
from tests.serving.toy_model import write_toy_model


def served(repository):
    return sorted((model.info.name, model.info.version) for model in repository.models())


def test_newest_versions_are_served(toy_model, opened):
    for version in (2, 3):
        write_toy_model(toy_model, version)
    write_toy_model(toy_model.parent / "other", 5)
    assert served(opened(toy_model.parent)) == [("other", 5), ("toy", 3)]
    repository = opened(toy_model.parent, versions=2)
    assert served(repository) == [("other", 5), ("toy", 2), ("toy", 3)]
    assert repository.get("toy").info.version == 3
    assert repository.get("toy", "2").info.version == 2
    for name, version in (("toy", "1"), ("toy", "02"), ("toy", "-2"), ("nothing", None), ("..", None), ("", None)):
        with pytest.raises(UnknownModel, match="Request for unknown model"):
            repository.get(name, version)


def test_a_model_is_called_as_its_folder(toy_model, opened):
    toy_model.rename(toy_model.parent / "renamed")
    assert served(opened(toy_model.parent)) == [("renamed", 1)]


def test_a_name_that_clients_could_not_reach_is_refused(toy_model, opened):
    write_toy_model(toy_model.parent / "other" / "stats", 1)
    assert refusal(toy_model.parent / "other").startswith("no model may be called stats: /v2/models/stats is about all")
    repository = opened(toy_model.parent)
    shutil.move(toy_model.parent / "other" / "stats", toy_model.parent)
    repository.scan()
    assert served(repository) == [("toy", 1)]
    [entry] = [entry for entry in repository.index() if entry["state"] == "UNAVAILABLE"]
    assert (entry["name"], "no model may be called stats" in entry["reason"]) == ("stats", True)


def test_what_cannot_be_served_at_start_is_an_error(toy_model, tmp_path):
    assert "there is no folder" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no models: export one" in refusal(tmp_path / "empty")
    assert f"is a model: give the folder that holds it, {toy_model.parent}" in refusal(toy_model)
    with (toy_model / "1" / "model.onnx").open("ab") as graph:
        graph.write(b" ")
    assert "sha256 differs" in refusal(toy_model.parent)


def test_an_older_version_stands_in_for_a_broken_one(toy_model, opened, caplog):
    write_toy_model(toy_model, 2, parity={"passed": False})
    repository = opened(toy_model.parent)
    assert served(repository) == [("toy", 1)]
    [ready, broken] = repository.index()
    assert (ready["version"], ready["state"], ready["reason"]) == ("1", "READY", "")
    assert (broken["version"], broken["state"]) == ("2", "UNAVAILABLE")
    assert "differs from the trained model" in broken["reason"]
    [record] = [record for record in caplog.records if record.message == "model refused"]
    assert (record.model, record.version, record.levelno) == ("toy", 2, logging.WARNING)


def test_a_model_that_fails_when_it_is_tried_is_refused(toy_model, opened, monkeypatch):
    repository, predict = opened(toy_model.parent, warm_up=((4, 4),)), Engine.predict

    def out_of_memory(self, images_NHWC, outputs=None):
        if self.artifact.info.version == 2:
            raise RuntimeError("Failed to allocate memory")
        return predict(self, images_NHWC, outputs)

    monkeypatch.setattr(Engine, "predict", out_of_memory)
    write_toy_model(toy_model, 2)
    repository.scan()
    assert served(repository) == [("toy", 1)]
    assert repository.index()[1]["reason"] == "Failed to allocate memory"
    shutil.rmtree(toy_model / "1")
    assert refusal(toy_model.parent, warm_up=((4, 4),)) == "Failed to allocate memory"


def test_a_version_is_served_once_it_is_whole(toy_model, opened, monkeypatch):
    repository = opened(toy_model.parent)
    elsewhere = write_toy_model(toy_model.parent.parent / "elsewhere" / "toy", 2) / "2"
    looked_at = []
    open_artifact = model_module.open_artifact
    monkeypatch.setattr(model_module, "open_artifact", lambda path: looked_at.append(path) or open_artifact(path))

    def scan():
        looked_at.clear()
        repository.scan()
        return served(repository), len(looked_at)

    (toy_model / "2").mkdir()
    assert scan() == ([("toy", 1)], 1)
    assert scan() == ([("toy", 1)], 0)  # nothing has changed: not looked at again
    whole = (elsewhere / "model.onnx").read_bytes()
    (toy_model / "2" / "model.onnx").write_bytes(whole[:100])
    assert scan() == ([("toy", 1)], 1)
    shutil.copy(elsewhere / INFO_FILE, toy_model / "2")
    assert scan() == ([("toy", 1)], 1)
    assert "sha256 differs" in repository.index()[1]["reason"]
    (toy_model / "2" / "model.onnx").write_bytes(whole)
    assert scan() == ([("toy", 2)], 1)
    assert [entry["state"] for entry in repository.index()] == ["READY"]
    assert segment(repository, np.full((1, 1, 1, 3), 200)).result(60).outputs["labels"] == 3


def test_the_disk_is_followed(toy_model, opened, monkeypatch):
    repository = opened(toy_model.parent)
    write_toy_model(toy_model.parent / "other", 1)
    write_toy_model(toy_model, 2)
    repository.scan()
    assert served(repository) == [("other", 1), ("toy", 2)]
    shutil.rmtree(toy_model / "2")
    shutil.rmtree(toy_model.parent / "other")
    repository.scan()
    assert served(repository) == [("toy", 1)]
    # A network disk that is away for a moment ends no model.
    toy_model.parent.rename(toy_model.parent.with_name("away"))
    repository.scan()
    assert served(repository) == [("toy", 1)]


def test_what_is_gone_leaves_the_index(toy_model, opened):
    repository = opened(toy_model.parent)
    write_toy_model(toy_model.parent / "broken", 1, parity={"passed": False})
    write_toy_model(toy_model.parent / "other", 1)
    repository.scan()
    repository.unload("other")
    assert sorted((entry["name"], entry["state"]) for entry in repository.index()) == [
        ("broken", "UNAVAILABLE"),
        ("other", "UNAVAILABLE"),
        ("toy", "READY"),
    ]
    shutil.rmtree(toy_model.parent / "broken")
    shutil.rmtree(toy_model.parent / "other")
    repository.scan()
    assert [entry["name"] for entry in repository.index()] == ["toy"]


def test_a_folder_of_somebody_else_is_left_out_and_told_once(toy_model, opened, monkeypatch, caplog):
    """At the start and later; a model that is served already goes on."""
    private, models = write_toy_model(toy_model.parent / "private", 1), toy_model.parent
    (models / os.fsdecode(b"caf\xe9")).mkdir()
    write_toy_model(models / os.fsdecode(b"caf\xe9"), 1)  # no text, so nobody could be told of it
    iterdir, closed = Path.iterdir, {private}

    def refused(self):
        if self in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", refused)
    repository = opened(models)
    assert served(repository) == [("toy", 1)]
    closed.add(write_toy_model(models / "later", 1))
    write_toy_model(toy_model, 2)
    for _ in range(3):
        repository.scan()
    assert served(repository) == [("toy", 2)]
    told = [(Path(record.entry).name, record.reason) for record in caplog.records if record.message == "not served"]
    assert sorted(name for name, _ in told) == ["caf\\xe9", "later", "private"]
    assert dict(told)["private"] == f"[Errno 13] Permission denied: '{private}'"
    json.dumps(repository.index(), ensure_ascii=False).encode()

    closed.clear()
    repository.scan()
    assert served(repository) == [("later", 1), ("private", 1), ("toy", 2)]
    closed.add(private)
    shutil.rmtree(models / "later")
    repository.scan()
    assert served(repository) == [("private", 1), ("toy", 2)]


def test_a_model_json_by_hand_breaks_no_page_of_the_server(toy_model):
    """Each is refused with its reason when it is opened, and the others' pages stay."""
    write_toy_model(toy_model.parent / "silent", 1, precision=None)
    with pytest.raises(ValueError, match="precision"):
        Repository(toy_model.parent, ModelSettings()).load()
    shutil.rmtree(toy_model.parent / "silent")
    with running(toy_model.parent) as server, httpx.Client(base_url=server.url) as client:
        write_toy_model(toy_model.parent / "silent", 1, precision=None)
        write_toy_model(toy_model.parent / "many", 1, classes=("a",) * 300, palette=((0, 0, 0),) * 300)
        server.repository.scan()
        refused = {entry["name"]: entry["reason"] for entry in client.post("/v2/repository/index").json()}
        assert "its precision is None, no text" in refused["silent"] and "its 300 classes" in refused["many"]
        for page in ("/metrics", "/v2/models/toy", "/v2/models/toy/stats", "/v2"):
            assert client.get(page).status_code == 200


def test_requests_of_a_replaced_version_are_answered_by_it(toy_model, opened):
    repository = opened(toy_model.parent)
    old, ticket = repository.admit("toy")
    write_toy_model(toy_model, 2)
    repository.scan()
    with pytest.raises(Closed):
        old.admit()
    with ticket:  # admitted before, prepared after
        answer = old.submit(ticket, np.full((1, 2, 2, 3), 70, np.uint8), ["labels"])
    assert answer.result(60).outputs["labels"].tolist() == [[[1, 1], [1, 1]]]
    old.join()  # its thread has ended
    assert repository.get("toy").info.version == 2


def test_reload_under_load_fails_no_request(toy_model):
    """Clients of both protocols ask without a pause while versions come and go."""
    with running(toy_model.parent, grpc_port=0) as server:
        stop, statuses = threading.Event(), []

        def http_client():
            with httpx.Client(base_url=server.url, timeout=600) as http:
                while not stop.is_set():
                    statuses.append(http.post("/v1/segment/toy", content=encoded_image()).status_code)

        def grpc_client():
            with calling(server) as call:
                while not stop.is_set():
                    statuses.append(call("ModelInfer", infer_request()).code().name)

        threads = [threading.Thread(target=client) for client in 2 * (http_client, grpc_client)]
        for thread in threads:
            thread.start()
        try:
            for version in range(2, 8):
                before = len(statuses)
                write_toy_model(toy_model, version)
                server.repository.scan()
                assert server.repository.versions("toy") == [version]
                until(lambda before=before: len(statuses) > before + 20)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert set(statuses) == {200, "OK"}


def test_an_admission_that_meets_a_replacement_gets_the_successor(toy_model, opened, monkeypatch):
    repository = opened(toy_model.parent)
    get, replaced = repository.get, []

    def get_and_then_replace(name, version=None):
        model = get(name, version)
        if not replaced:
            replaced.append(model)
            write_toy_model(toy_model, 2)
            repository.scan()
        return model

    monkeypatch.setattr(repository, "get", get_and_then_replace)
    model, ticket = repository.admit("toy")
    with ticket:
        assert model.info.version == 2
