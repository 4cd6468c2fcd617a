"""Swin: keras-hub's features at the sizes that it takes, NumPy's at those that it does not."""

import keras
import numpy as np
import onnxruntime
import pytest

from export.graph import serving_function, to_onnx
from kerasseg.methods import Supervised
from kerasseg.segmenters import build_segmenter
from kerasseg.segmenters.backbones import BACKBONES, build_backbone
from kerasseg.segmenters.backbones.hub import SWIN, Network, copy_in_order, hub_spec
from kerasseg.segmenters.backbones.swin import SwinBlock, build_swin, published_weights

keras_hub = pytest.importorskip("keras_hub", reason="needs the extra hub")
# keras-hub calls an argument of its attention "mask", which is what Keras calls another thing.
pytestmark = pytest.mark.filterwarnings("ignore:.*was passed an input with a mask:UserWarning")

TINY = {"width": 8, "depths": (1, 2, 2, 2), "heads": (1, 2, 2, 4), "window": 4}


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny_swin", hub_spec("tiny_swin", Network(SWIN, TINY, "a_preset")))


def randomize(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


def keras_hubs(size):
    return randomize(
        keras_hub.models.SwinTransformerBackbone(
            image_shape=(size, size, 3),
            embed_dim=TINY["width"],
            depths=TINY["depths"],
            num_heads=TINY["heads"],
            window_size=TINY["window"],
            drop_path=0.0,
        )
    )


@pytest.mark.parametrize("size", [128, 256])
def test_features_are_those_of_keras_hub(size):
    """At 128 pixels the last stages have one window, which does not shift; at 256 the last has four."""
    theirs, ours = keras_hubs(size), build_swin(**TINY)
    copy_in_order(theirs, published_weights(ours))
    image = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    maps = ours(image)
    assert [features.shape[1:] for features in maps] == [
        (size // stride, size // stride, 8 * width) for stride, width in ((4, 1), (8, 2), (16, 4), (32, 8))
    ]
    expected = np.reshape(theirs(image), maps[-1].shape)
    np.testing.assert_allclose(maps[-1], expected, atol=1e-5 * np.abs(expected).max())


def attended(block, x_HWC):
    """What a block's attention adds, position by position."""
    height, width, channels = x_HWC.shape
    side, heads = block.window, block.heads
    sizes = [-(-size // side) * side for size in (height, width)]
    padded = np.zeros((*sizes, channels))
    padded[:height, :width] = np.asarray(block.norm1(x_HWC[np.newaxis]))[0]
    shifts = [side // 2 if block.shifted and size > side else 0 for size in sizes]
    kernel, bias = map(np.asarray, block.attention.query_key_value.weights)
    q, k, v = np.split(padded @ kernel + bias, 3, axis=-1)
    table, depth = np.asarray(block.attention.bias_OG), channels // heads
    result = np.zeros((height, width, channels))
    for at in np.ndindex(height, width):
        window = [(place - shift) // side for place, shift in zip(at, shifts, strict=True)]
        # The positions of the shifted window that lie in the map: those at its border are smaller.
        spans = [
            [p for p in range(i * side + shift, (i + 1) * side + shift) if 0 <= p < size]
            for i, shift, size in zip(window, shifts, sizes, strict=True)
        ]
        others = [(row, column) for row in spans[0] for column in spans[1]]
        for head in range(heads):
            part = slice(head * depth, (head + 1) * depth)
            logits = np.array(
                [
                    q[at][part] @ k[other][part] / depth**0.5
                    + table[(at[0] - other[0] + side - 1) * (2 * side - 1) + at[1] - other[1] + side - 1, head]
                    for other in others
                ]
            )
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            result[at][part] = sum(share * v[other][part] for share, other in zip(shares, others, strict=True))
    kernel, bias = map(np.asarray, block.attention.project.weights)
    return result @ kernel + bias


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("height, width", [(7, 10), (3, 8), (6, 6)])
def test_a_block_attends_within_windows_of_maps_of_any_size(height, width, shifted):
    block = SwinBlock(6, 2, 3, shifted)
    block.build((None, None, None, 6))
    randomize(block)
    x = np.random.default_rng(2).normal(size=(2, height, width, 6)).astype(np.float32)
    ours = np.asarray(block.attend(block.norm1(x)))
    theirs = np.stack([attended(block, each) for each in x])
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_published_weights_come_from_the_preset(monkeypatch):
    theirs = keras_hubs(128)
    loaded = []
    monkeypatch.setattr(
        keras_hub.models.SwinTransformerBackbone, "from_preset", lambda preset: loaded.append(preset) or theirs
    )
    backbone = build_backbone("tiny_swin", weights="imagenet", maps="pyramid")
    assert loaded == ["a_preset"]
    image = np.random.default_rng(1).normal(size=(1, 128, 128, 3)).astype(np.float32)
    expected = np.reshape(theirs(image), (1, 4, 4, 64))
    np.testing.assert_allclose(backbone(image)[-1], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_a_segmenter_is_saved_and_exported_at_any_size(tmp_path):
    segmenter = build_segmenter("fpn", backbone="tiny_swin", num_classes=3, head_channels=8, drop_path=0.2)
    rates = [layer.rate for layer in segmenter.backbone.layers if hasattr(layer, "rate")]
    assert rates == pytest.approx([0.2 * done / 6 for done in range(1, 7)])
    segmenter.save(tmp_path / "segmenter.keras")
    loaded = keras.saving.load_model(tmp_path / "segmenter.keras")
    graph = to_onnx(serving_function(Supervised(segmenter), logits=True))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in ((65, 97), (128, 128), (9, 300)):
        images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
        expected = np.asarray(segmenter(images.astype(np.float32)))
        np.testing.assert_allclose(loaded(images.astype(np.float32)), expected, atol=1e-6)
        [logits] = session.run(["logits"], {"image": images})
        np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))
