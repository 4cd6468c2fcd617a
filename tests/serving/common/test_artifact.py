import json

import pytest

from serving.common.artifact import INFO_FILE, ModelInfo, open_artifact, versions
from tests.serving.toy_model import CLASSES, PALETTE, write_toy_model


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


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("precision", None, "its precision is None, no text"),
        ("sha256", 7, "its sha256 is 7, no text"),
        ("parity", "yes", "its parity is 'yes', no JSON object"),
        ("evaluation", [], "its evaluation is [], no JSON object"),
        ("version", "1", "its version is '1'"),
        ("version", True, "its version is True"),
        ("classes", [], "its 0 classes are not 1 to 255 names"),
        ("classes", [str(number) for number in range(300)], "its 300 classes are not 1 to 255 names"),
        ("classes", ["a", "b", "c", None], "are not 1 to 255 names"),
        ("palette", [[0, 0, 0]] * 300, "its palette has 300 colours for 4 classes"),
        ("palette", [[0, 0, 300]] * 4, "the colour [0, 0, 300]: expected red, green, blue in 0..255"),
        ("palette", [[0, 0]] * 4, "the colour [0, 0]"),
        ("palette", [[0, 0, 1e400]] * 4, "the colour [0, 0, inf]"),
        ("features", 0, "its features is 0: expected a whole number from 1 on, or null"),
        ("working_size", "480", "its working_size is '480': expected a whole number"),
        ("outputs", [], "its outputs have no labels, UINT8 (N,H,W)"),
        ("outputs", "labels", "cannot be used"),
        ("inputs", None, "cannot be used"),
        ("name", "\ud800", "surrogates not allowed"),
    ],
)
def test_a_field_that_others_could_not_rely_on_is_refused(toy_model, field, value, said):
    edit_info(toy_model / "1", lambda fields: fields.update({field: value}))
    assert said in refused(toy_model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"datatype": "BYTES"}, "its tensor labels is 'BYTES' [-1, -1, -1]: expected UINT8, FP16, FP32"),
        ({"datatype": "FP32"}, "have no labels, UINT8"),
        ({"shape": [-1, -1]}, "have no labels, UINT8 (N,H,W)"),
        ({"shape": [-1, "H", -1]}, "and whole numbers"),
        ({"name": "classes"}, "have no labels"),
        ({"name": ["labels"]}, "has no text as name"),
        ({"name": "confidence"}, "no labels"),
        ({"colour": 1}, "cannot be used"),
    ],
)
def test_an_output_that_could_not_be_answered_is_refused(toy_model, change, said):
    edit_info(toy_model / "1", lambda fields: fields["outputs"][0].update(change))
    assert said in refused(toy_model)


def test_a_model_json_too_deep_to_be_read_is_refused(toy_model):
    (toy_model / "1" / INFO_FILE).write_text("[" * 100_000)
    assert "cannot be used" in refused(toy_model)


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
