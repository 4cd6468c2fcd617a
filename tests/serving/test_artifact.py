import json

import pytest

from serving.artifact import INFO_FILE, ModelInfo, open_artifact, versions
from tests.serving.conftest import CLASSES, PALETTE, write_toy_model


def refused(path):
    with pytest.raises(ValueError) as caught:
        open_artifact(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_info(folder, change):
    fields = json.loads((folder / INFO_FILE).read_text())
    change(fields)
    (folder / INFO_FILE).write_text(json.dumps(fields))


def test_model_json_gives_back_what_was_written(toy_model):
    info = open_artifact(toy_model).info
    assert (info.name, info.version, info.classes, info.palette) == ("toy", 1, CLASSES, PALETTE)
    assert [tensor.name for tensor in info.outputs] == ["labels", "confidence"]
    assert info.inputs[0].shape == (-1, -1, -1, 3)
    assert ModelInfo.from_json(info.to_json()) == info


def test_newest_version_unless_one_is_named(toy_model):
    write_toy_model(toy_model, 2)
    write_toy_model(toy_model, 10)
    (toy_model / ".11-123.tmp").mkdir()
    (toy_model / "012").mkdir()
    assert versions(toy_model) == [1, 2, 10]
    assert open_artifact(toy_model).folder == toy_model / "10"
    assert open_artifact(toy_model / "2").folder == toy_model / "2"


def test_tampered_graph_is_refused(toy_model):
    with (toy_model / "1" / "model.onnx").open("ab") as file:
        file.write(b" ")
    assert "sha256" in refused(toy_model)


def test_what_is_there_in_place_of_a_graph_is_named(toy_model):
    graph = toy_model / "1" / "model.onnx"
    graph.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert refused(toy_model) == (
        f"{graph} is a Git LFS pointer, and no graph: fetch the file that it stands for: git lfs pull"
    )


def test_model_json_may_come_from_another_editor(toy_model):
    file = toy_model / "1" / INFO_FILE
    file.write_text(file.read_text(), "utf-16")
    assert open_artifact(toy_model).info.classes == CLASSES


@pytest.mark.parametrize("parity", [{"passed": False}, {"passed": "yes"}, {"formats": {}}])
def test_failed_parity_is_refused(tmp_path, parity):
    assert "differs from the trained model" in refused(write_toy_model(tmp_path / "toy", 1, parity=parity))


def test_missing_parity_is_refused(tmp_path):
    assert "no parity report" in refused(write_toy_model(tmp_path / "toy", 1, parity={}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields.update(schema=2), "schema 2"),
        (lambda fields: fields.pop("parity"), "parity"),
        (lambda fields: fields.update(colour=1), "colour"),
        (lambda fields: fields.update(palette=3), "cannot be used"),
    ],
)
def test_other_schema_is_refused(toy_model, change, said):
    edit_info(toy_model / "1", change)
    assert said in refused(toy_model)


def test_model_json_that_is_none_is_refused(toy_model):
    (toy_model / "1" / INFO_FILE).write_text("[1")
    assert "cannot be used" in refused(toy_model)
    (toy_model / "1" / INFO_FILE).write_text("[]")
    assert "schema None" in refused(toy_model)


def test_missing_files_are_named(toy_model):
    (toy_model / "1" / "model.onnx").unlink()
    assert "no model.onnx" in refused(toy_model)
    (toy_model / "1" / INFO_FILE).unlink()
    assert "no model.json" in refused(toy_model)


def test_path_that_holds_no_model(toy_model, tmp_path):
    assert "there is no model at" in refused(tmp_path / "nothing")
    assert f"did you mean {toy_model}?" in refused(toy_model.parent)
    (tmp_path / "empty").mkdir()
    assert "export one" in refused(tmp_path / "empty")
