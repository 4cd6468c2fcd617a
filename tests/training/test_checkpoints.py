import pytest

from kerasseg.methods import Supervised
from tests.methods import tiny
from training.checkpoints import Checkpoints


def compiled():
    method = Supervised(tiny.segmenter(), steps=10)
    method.compile()
    return method


def test_a_checkpoint_knows_the_images_it_was_trained_on(tmp_path):
    Checkpoints(tmp_path, compiled(), "one split").save(7)
    assert Checkpoints(tmp_path, compiled(), "one split").restore() == 7
    with pytest.raises(ValueError, match="was trained on another split"):
        Checkpoints(tmp_path, compiled(), "another").restore()
