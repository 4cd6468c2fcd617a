"""A method outside of the package, as CONTRIBUTING.md has it: trained, resumed, evaluated, exported, and asked."""

import html
import re
import sys

import keras
import numpy as np
import pytest

from export import run as export_run
from kerasseg.methods import METHODS, find_method, register_method
from kerasseg.methods.supervised import Supervised
from serving.common import cli
from serving.common.artifact import open_artifact
from serving.model.engine import Engine
from tests.kerasseg.data.folders import make_folder
from tests.test_project import ROOT
from tests.training.commands import call, error_line, train
from training import evaluate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]

OWN = "my_methods.pseudo_labels:PseudoLabels"


@pytest.fixture
def dataset(tmp_path):
    return make_folder(tmp_path / "pets", train=6, val=3)


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    """The tutorial's file, where the command's Python finds it; its name."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "my_methods").mkdir()
    (tmp_path / "my_methods/pseudo_labels.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield OWN
    forget()


def forget():
    """As a new process would have it."""
    METHODS.pop("pseudo_labels", None)
    sys.modules.pop("my_methods.pseudo_labels", None)
    keras.saving.get_custom_objects().pop("kerasseg>PseudoLabels", None)


def test_the_tutorial(own_method, eager, dataset, tmp_path, capsys):
    out, model = tmp_path / "run", tmp_path / "models/mine"
    flags = ["--pseudo-labels.threshold", "0.1", "--evaluate-every", "1"]
    status, result, err = train(dataset, out, capsys, *flags, method=own_method, steps=2)
    assert status == 0 and result["finished"], err
    report = (out / "report.html").read_text()
    assert "and from its teacher's sure predictions for the others" in html.unescape(report)
    assert "cross-entropy against the teacher's sure labels" in html.unescape(report)

    forget()
    status, scores, err = call(evaluate.COMMAND.run, [out], capsys)
    assert status == 0 and scores["mIoU"] == result["mIoU"], err

    forget()
    status, _, err = call(
        lambda args: cli.run(export_run.main, export_run.ExportConfig, "", args), [out, "--out", model], capsys
    )
    assert status == 0, err
    images = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), np.uint8)
    answer = Engine(open_artifact(model), provider="cpu").predict(images)
    expected = evaluate.open_method(evaluate.Run.read(out))[0].predict(images, verbose=0)
    np.testing.assert_array_equal(answer["labels"], expected.argmax(-1))


def test_mlmt_on_a_run_of_it_is_read_by_a_process_that_knows_neither(
    own_method, eager, only_scores, dataset, tmp_path, capsys
):
    branch = tmp_path / "branch"
    status, _, err = train(dataset, branch, capsys, method=own_method, steps=1)
    assert status == 0, err
    for number, flags in enumerate((["--branch-run", branch], ["--mlmt.branch", own_method])):
        forget()
        out = tmp_path / f"run{number}"
        status, result, err = train(dataset, out, capsys, *flags, method="mlmt", steps=1)
        assert status == 0, err
        forget()
        status, scores, err = call(evaluate.COMMAND.run, [out], capsys)
        assert status == 0 and scores["mIoU"] == result["mIoU"], err


def test_methods_that_cannot_be_found(own_method, dataset, tmp_path, capsys):
    for name, said in (
        (
            "my_methods.other:PseudoLabels",
            "cannot be imported (No module named 'my_methods.other'): start the command in",
        ),
        ("my_methods.pseudo_labels:Pseudo", "cannot be imported (module 'my_methods.pseudo_labels' has no attribute"),
        ("my_methods.pseudo_labels:PseudoLabelsConfig", "is no registered method: write @register_method above"),
        ("my_methods.pseudo_labels", "or package.module:Class for one of your own; got 'my_methods.pseudo_labels'"),
    ):
        status, _, err = train(dataset, tmp_path / "run", capsys, method=name)
        assert status == 2 and said in error_line(err)


def test_names_that_methods_cannot_have():
    with pytest.raises(ValueError, match="Mine needs a registry_name, one word that flags can begin with; got None"):
        register_method(type("Mine", (Supervised,), {}))
    with pytest.raises(ValueError, match="Mine is called 'supervised', as Supervised is: choose another name"):
        register_method(type("Mine", (Supervised,), {"registry_name": "supervised", "__module__": "mine"}))
    assert find_method("supervised") is Supervised
