"""The notebook runs from top to bottom, and lies in the repository without outputs."""

from pathlib import Path

import keras
import nbformat
import numpy as np
import pytest

import tests.backbone  # noqa: F401 (the backbone tiny)

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"


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

    # One batch in each of six epochs, four for the segmenter and two for the classifier; every term is a number.
    history = names["history"].history
    for terms, epochs in (({"L_S", "L_ce", "L_fm", "L_st", "L_D"}, 4), ({"L_MT", "L_cls", "L_cons"}, 2)):
        assert all(len(history[term]) == epochs and np.isfinite(history[term]).all() for term in terms)
    assert 0 < names["scores"]["mIoU"] < 1
    reopened = keras.saving.load_model(tmp_path / "quickstart.keras")
    again = reopened.predict(names["images"].astype("float32"), verbose=0)
    np.testing.assert_allclose(again, names["probabilities"], atol=1e-5)
