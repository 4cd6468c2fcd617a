"""The notebook runs from top to bottom, and lies in the repository without outputs; what starts a training on several
machines is sound as far as one machine can tell."""

import os
import re
import subprocess
from pathlib import Path

import keras
import nbformat
import numpy as np
import pytest
import yaml

import tests.backbone  # noqa: F401 (the backbone tiny)
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
        run.main([*flags, "--help"])
    assert stop.value.code == 0
    known = capsys.readouterr().out
    assert all(re.search(rf"(?<![\w-]){flag}\b", known) for flag in flags if flag.startswith("--"))
    run.configuration(flags)
