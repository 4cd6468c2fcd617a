import pytest

from serving.model.model import ModelSettings
from serving.model.repository import Repository


@pytest.fixture
def opened():
    """Opens repositories, and ends their threads."""
    made = []

    def open(folder, **settings):
        made.append(Repository(folder, ModelSettings(**settings)))
        made[-1].load()
        return made[-1]

    yield open
    for repository in made:
        repository.close()
