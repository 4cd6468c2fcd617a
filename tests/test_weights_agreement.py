"""What the comparison of weights with photographs says where the answer is known."""

import keras
import numpy as np
import pytest
from PIL import Image

from benchmarks import weights_agreement
from benchmarks.weights_agreement import Moments, agreement, exchange_layers, moments, photographs, row, stored, table


def network():
    """Three batch norms behind convolutions of one shape, with statistics that are not yet those of any image."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input((None, None, 16))
    for place in range(3):
        x = keras.layers.Conv2D(16, 1, bias_initializer="random_normal", name=f"conv{place}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{place}")(x)
        x = keras.layers.Activation("relu")(x)
    return keras.Model(image, x)


def settled(images):
    """The network after its batch norms have learned the statistics of the images, one layer after the other."""
    model = network()
    for place in range(3):
        norm = model.get_layer(f"norm{place}")
        entering = np.asarray(keras.Model(model.input, norm.input)(images))
        norm.moving_mean.assign(entering.mean((0, 1, 2)))
        norm.moving_variance.assign(entering.var((0, 1, 2)))
    return model


def weights_of(model):
    """All numbers of each layer."""
    return [np.concatenate([w.ravel() for w in layer.get_weights()]) for layer in model.layers if layer.weights]


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(1, 2, (3, 8, 8, 16)).astype(np.float32)


def test_images_that_a_network_learned_from_agree(images):
    model = settled(images)
    for found, expected in zip(moments(model, images), stored(model), strict=True):
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-3)
        assert agreement(found, expected) == pytest.approx((1, 1, 1), abs=1e-4)


def test_layers_in_another_order_do_not_agree(images):
    model = settled(images)
    before, moved = weights_of(model), exchange_layers(model, np.random.default_rng(1))
    assert moved == sum(not np.array_equal(*pair) for pair in zip(before, weights_of(model), strict=True)) > 1
    assert row("exchanged", moments(model, images), stored(model))["mean"] < 0.9


def test_agreement_of_known_moments():
    expected = Moments(np.array([1.0, 2.0, 4.0, 9.0]), np.array([1.0, 2.0, 8.0, 0.0]))  # the last channel was constant
    found = Moments(np.array([-1.0, -2.0, -4.0, 9.0]), np.array([2.0, 4.0, 16.0, 5.0]))
    assert agreement(found, expected) == pytest.approx((-1, 1, 2))


def test_the_middle_of_photographs_spread_over_a_folder(tmp_path):
    for place in range(5):
        pixels = np.full((32, 64, 3), 10 * place, np.uint8)
        pixels[:, :16] = pixels[:, 48:] = 255
        Image.fromarray(pixels).save(tmp_path / f"{place}.jpg", quality=100, subsampling=0)
    found = photographs(tmp_path, 2, 32)
    assert found.shape == (2, 32, 32, 3)
    np.testing.assert_allclose(found[:, :, 4:-4].mean((1, 2, 3)), [0, 20], atol=1)
    with pytest.raises(ValueError, match=r"has 5 photographs \(.jpg\); give a folder with 6"):
        photographs(tmp_path, 6, 32)


def test_the_table_has_a_row_of_each_case(tmp_path, monkeypatch, images):
    model = settled(images)
    monkeypatch.setattr(weights_agreement, "build_backbone", lambda *_, **__: model)
    monkeypatch.setattr(weights_agreement, "photographs", lambda *_: images)
    monkeypatch.setattr(weights_agreement, "PixelNormalization", lambda pixels: lambda x: x * (1 + (pixels != "lite")))
    config = weights_agreement.WeightsAgreement(weights=tmp_path / "a.pth", folder=tmp_path, results=tmp_path / "a.md")
    rows = weights_agreement.main(config)["rows"]
    assert [each["case"].partition(",")[0] for each in rows] == ["lite", "tf", "torch", "unit", "lite", "lite"]
    own, other = rows[0], rows[1]
    assert own["mean"] == pytest.approx(1) and own["ratio"] == pytest.approx(1, abs=1e-3)
    assert other["ratio"] > 1.5
    assert table(rows) in (tmp_path / "a.md").read_text()
