"""Images for a repository's models, and what they, or it, say."""

import numpy as np
import pytest

from serving.model.model import ModelSettings
from serving.model.repository import Repository


def random_images(height, width, count=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def segment(repository, images_NHWC, outputs=("labels",), name="toy", version=None):
    model, ticket = repository.admit(name, version)
    with ticket:
        return model.submit(ticket, np.asarray(images_NHWC, np.uint8), outputs)


def refusal(folder, **settings):
    with pytest.raises(ValueError) as caught:
        Repository(folder, ModelSettings(**settings)).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)
