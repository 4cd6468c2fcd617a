"""The notebook runs from top to bottom, and lies in the repository without outputs; what starts a training on several
machines is sound as far as one machine can tell."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import keras
import nbformat
import numpy as np
import pytest
import yaml
from PIL import Image

import tests.backbone  # noqa: F401 (the backbone tiny)
from tests.serving.images import encoded_image, expected_labels
from tests.serving.label_studio import PERSONAL, FakeLabelStudio, label_studio
from tests.serving.servers import running
from tests.serving.toy_model import CLASSES, write_toy_model
from training import run
from training.workers import require_tf_config

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


@pytest.fixture
def notebook():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_no_outputs(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERASSEG_QUICKSTART_STEPS", "4")
    names = {}
    sources = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "code"}
    assert sum('backbone="mobilenet_v2_c4"' in source for source in sources.values()) == 1
    for cell, source in sources.items():
        exec(compile(source.replace("mobilenet_v2_c4", "tiny"), cell, "exec"), names)

    # One batch in each of four epochs, for the segmenter and for the classifier; every term is a number.
    for fit, terms in (
        ("segmenting", {"L_S", "L_ce", "L_fm", "L_st", "L_D"}),
        ("classifying", {"L_MT", "L_cls", "L_cons"}),
    ):
        history = names[fit].history
        assert all(len(history[term]) == 4 and np.isfinite(history[term]).all() for term in terms)
    assert 0 < names["scores"]["mIoU"] < 1
    reopened = keras.saving.load_model(tmp_path / "quickstart.keras")
    again = reopened.predict(names["images"].astype("float32"), verbose=0)
    np.testing.assert_allclose(again, names["probabilities"], atol=1e-5)


def job_scripts() -> dict[str, tuple[str, dict[str, str]]]:
    """The scripts that train, by launcher, and what the launcher puts into the environment of the third of four."""
    service, job = yaml.safe_load_all((EXAMPLES / "multiworker.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"] and job["spec"]["completions"] == job["spec"]["parallelism"]
    return {
        "slurm": ((EXAMPLES / "multiworker.slurm").read_text(), {"SLURM_JOB_ID": "70007", "SLURM_JOB_NODELIST": "n"}),
        "kubernetes": (pod["containers"][0]["args"][0], {"JOB_COMPLETION_INDEX": "2"}),
    }


@pytest.mark.parametrize("launcher", ["slurm", "kubernetes"])
def test_the_jobs_for_several_machines_start_workers(launcher, tmp_path, capsys):
    """With stand-ins for the cluster's commands, and for Python, which writes down how it was called."""
    script, environment = job_scripts()[launcher]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    stand_ins = {
        ".venv/bin/python": 'printf "%s\\n" "$TF_CONFIG" "$@"',
        ".venv/bin/srun": 'shift; SLURM_PROCID=2 "$@"',
        ".venv/bin/scontrol": "printf 'n%s\\n' 0 1 2 3",
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    called = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | environment | {"PATH": f"{tmp_path}/.venv/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    tf_config, _, module, *flags = called.stdout.splitlines()
    require_tf_config(tf_config)
    assert yaml.safe_load(tf_config)["task"]["index"] == 2 and tf_config.count(":") == 4 + 5
    assert module == "training.run" and "--resume" not in flags and "" not in flags
    with pytest.raises(SystemExit) as stop:
        run.main([*flags, "--help-all"])
    assert stop.value.code == 0
    known = capsys.readouterr().out
    assert all(re.search(rf"(?<![\w-]){flag}\b", known) for flag in flags if flag.startswith("--"))
    run.configuration(flags)


class Projects(FakeLabelStudio):
    """One project, in the words of Label Studio 1.23.2, which asks the model for predictions as that does."""

    def __init__(self):
        super().__init__()
        self.tasks = []

    def authorized(self, method, path, body):
        if path in self.answers:
            return super().authorized(method, path, body)
        if path == "/api/projects/7/import":
            head, _, contents = body.partition(b"\r\n\r\n")
            name = re.search(rb'filename="(.*)"', head)[1].decode().replace(" ", "_")
            stored = f"0a1b2c{len(self.tasks):02}-{name}"
            self.answers[f"/data/upload/7/{stored}"] = 200, {}, contents.rpartition(b"\r\n--")[0]
            task = {"id": len(self.tasks), "data": {"image": f"/data/upload/7/{stored}"}, "file_upload": stored}
            self.tasks.append(task | {"annotations": [], "predictions": []})
            return self.said({})
        return self.said(self.called(path, json.loads(body) if body else None))

    def said(self, content):
        return 200, {}, json.dumps(content).encode()

    def called(self, path, sent):
        if path == "/api/projects":
            self.config = sent["label_config"]
            return {"id": 7}
        if path == "/api/ml":
            self.model = sent["url"]
            return self.ask("setup", {"schema": self.config})
        if path.startswith("/api/dm/actions?id=retrieve_tasks_predictions&project=7"):
            asked = {"tasks": self.tasks, "label_config": self.config}
            for task, found in zip(self.tasks, self.ask("predict", asked)["results"], strict=True):
                task["predictions"] = [found | {"id": 100 + task["id"]}]
            return {}
        if path.startswith("/api/tasks?project=7"):
            return {"tasks": self.tasks}
        if task := re.fullmatch(r"/api/tasks/(\d+)/annotations/", path):
            self.tasks[int(task[1])]["annotations"].append(sent | {"was_cancelled": False})
            return {}
        assert path.startswith("/api/projects/7/export?exportType=JSON")
        return self.tasks

    def ask(self, what, sent):
        with urlopen(f"{self.model}/{what}", json.dumps(sent).encode()) as response:
            return json.load(response)


@pytest.mark.slow
def test_label_studio_from_end_to_end(tmp_path, monkeypatch):
    """With a stand-in for Label Studio; only the training is left out."""
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "label_studio.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    calls, start = [], subprocess.run
    monkeypatch.setattr(example.subprocess, "run", lambda call, **options: calls.append(call))
    (tmp_path / "photos").mkdir()
    contents = {f"street {seed}": encoded_image(32, 32, seed) for seed in range(4)}
    for name, image in contents.items():
        (tmp_path / f"photos/{name}.png").write_bytes(image)
    token = tmp_path / "token.txt"
    token.write_text(PERSONAL)
    models = write_toy_model(tmp_path / "models/toy", 1).parent
    with label_studio(Projects) as studio:
        flags = {"label_studio_url": studio.url, "label_studio_token_file": token}
        with running(models, **flags) as server:
            arguments = [tmp_path / "photos", tmp_path / "out", "--model", f"{server.url}/label-studio/toy"]
            arguments += ["--label-studio", studio.url, "--token-file", token, "--steps", "9"]
            monkeypatch.setattr(sys, "argv", ["label_studio.py", *map(str, arguments)])
            example.main()
    assert calls[1][2:4] == ["training.run", "--dataset"] and calls[1][-2:] == ["--steps", "9"]
    run.configuration(calls[1][3:])
    start(calls[0], check=True)
    names = json.loads((tmp_path / "out/dataset/classes.json").read_text())["classes"]
    for file in (tmp_path / "out/dataset/labels").rglob("*.png"):
        with Image.open(file) as stored:
            labels_HW = np.asarray(stored)
        drawn_HW = labels_HW != 255
        expected_HW = np.array([names.index(name) for name in CLASSES])[expected_labels(contents[file.stem])]
        np.testing.assert_array_equal(labels_HW[drawn_HW], expected_HW[drawn_HW])
        assert len(np.unique(expected_HW[~drawn_HW])) == 1  # the mask that was thrown away
    assert len(list((tmp_path / "out/dataset/labels").rglob("*.png"))) == 4
