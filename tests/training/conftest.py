"""A dataset folder that trains in seconds, and a training that leaves out what a test does not look at."""

import pytest

from tests.kerasseg.data.folders import make_folder
from training import run


@pytest.fixture
def dataset(tmp_path):
    return make_folder(tmp_path / "pets", train=6, val=3)


@pytest.fixture
def only_scores(monkeypatch):
    """`training.run` without its diagnostics and its report, which take half of the time of a run of a few steps."""
    monkeypatch.setattr(run, "write_report", lambda folder: folder)
    monkeypatch.setattr(run, "write_diagnostics", lambda session, examples: None)
