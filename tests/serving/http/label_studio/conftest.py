"""A server of the model `rec`, which answers a stand-in for Label Studio."""

import pytest

from tests.serving.http.label_studio.requests import CLASSES
from tests.serving.images import encoded_image
from tests.serving.label_studio import PERSONAL, label_studio
from tests.serving.toy_model import write_toy_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "rec"
    return write_toy_model(folder, 1, name="rec", classes=CLASSES).parent


@pytest.fixture(scope="module")
def studio():
    with label_studio() as fake:
        for seed, name in enumerate(("e4dbfe81-0001TP_006690", "e8a1e3ac-0001TP_006720", "9d1c03a5-0001TP_006750")):
            fake.answers[f"/data/upload/1/{name}.jpg"] = (200, {}, encoded_image(6, 8, seed))
        yield fake


@pytest.fixture(scope="module")
def server_flags(studio, tmp_path_factory):
    token = tmp_path_factory.mktemp("tokens") / "label-studio"
    token.write_text(f"{PERSONAL}\n")
    return {"label_studio_url": studio.url, "label_studio_token_file": token, "timeout": 600.0}


@pytest.fixture
def asked(studio):
    """The images that were asked for during the test."""
    studio.asked.clear()
    return studio.images_asked
