"""A dataset folder that trains in seconds."""

import pytest

from tests.kerasseg.data.folders import make_folder


@pytest.fixture
def dataset(tmp_path):
    return make_folder(tmp_path / "pets", train=6, val=3)
