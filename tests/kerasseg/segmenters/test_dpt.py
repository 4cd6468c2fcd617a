"""The head dpt: its values from a second computation, its resolution, and its channels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401 (the backbone tiny_transformer)
from kerasseg.layers import DepthToSpace, PixelNormalization, ResizeLike, Upsample
from kerasseg.segmenters import build_segmenter
from kerasseg.segmenters.dpt import DPT, widths
from kerasseg.settings import NetworkSettings


def build(**arguments):
    return build_segmenter("dpt", backbone="tiny_transformer", **{"num_classes": 3, "head_channels": 5} | arguments)


def randomize(network):
    rng = np.random.default_rng(0)
    network.set_weights([rng.normal(scale=0.3, size=weight.shape) for weight in network.get_weights()])
    return network


def convolve(x, layer, stride=1, padding="SAME"):
    kernel, *bias = layer.get_weights()
    return tf.nn.conv2d(x, kernel, stride, padding) + (bias[0] if bias else 0.0)


def transposed(x, layer, factor):
    """The transposed convolution that `layer` stands for."""
    kernel, bias = layer.get_weights()
    inputs, channels = kernel.shape[2], kernel.shape[3] // factor**2
    kernel = kernel.reshape(inputs, factor, factor, channels).transpose(1, 2, 3, 0)
    size = (x.shape[0], x.shape[1] * factor, x.shape[2] * factor, channels)
    y = tf.nn.conv2d_transpose(x, kernel, size, factor, "VALID")
    return y + np.tile(bias.reshape(factor, factor, channels), (x.shape[1], x.shape[2], 1))


def by_hand(head, maps):
    """Equations of the paper's section 3 in TensorFlow's own ops."""
    layer = head.get_layer
    maps = [convolve(x, layer(f"project_{number}")) for number, x in enumerate(maps, start=1)]
    maps[0], maps[1] = transposed(maps[0], layer("enlarge_1"), 4), transposed(maps[1], layer("enlarge_2"), 2)
    maps[3] = convolve(tf.pad(maps[3], [(0, 0), (1, 1), (1, 1), (0, 0)]), layer("shrink_4"), 2, "VALID")
    maps = [convolve(x, layer(f"layer_{number}")) for number, x in enumerate(maps, start=1)]

    def residual(x, name):
        y = convolve(tf.nn.relu(x), layer(f"{name}_conv1"))
        return x + convolve(tf.nn.relu(y), layer(f"{name}_conv2"))

    x = 0.0
    for number in (4, 3, 2, 1):
        x += maps[3] if number == 4 else residual(maps[number - 1], f"fuse_{number}_layer")
        x = residual(x, f"fuse_{number}")
        size = maps[number - 2].shape[1:3] if number > 1 else [2 * side for side in x.shape[1:3]]
        x = convolve(tf.image.resize(x, size), layer(f"fused_{number}"))
    return convolve(tf.nn.relu(convolve(x, layer("output"))), layer("logits"))


@pytest.mark.parametrize("height, width", [(5, 4), (1, 1)])
def test_logits_from_four_maps(height, width):
    head = randomize(build().head)
    rng = np.random.default_rng(1)
    maps = [rng.normal(size=(2, height, width, 16)).astype(np.float32) for _ in range(4)]
    logits = head(maps)
    assert logits.shape == (2, 8 * height, 8 * width, 3)
    expected = by_hand(head, maps)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_an_image_off_the_patch_is_the_padded_one_cropped():
    segmenter = build()
    image = np.random.default_rng(0).uniform(0, 255, (1, 21, 34, 3)).astype(np.float32)
    mean = -np.asarray(PixelNormalization("torch")(np.zeros((1, 1, 1, 3), np.float32)))
    scale = np.array([0.229, 0.224, 0.225]) * 255
    padded = np.tile((mean * scale).astype(np.float32), (1, 24, 40, 1))
    padded[:, :21, :34] = image
    np.testing.assert_allclose(segmenter(image), segmenter(padded)[:, :21, :34], atol=1e-5)


@pytest.mark.parametrize("patch, factor", [(14, 14 / 8), (16, 2.0), (12, 1.5)])
def test_fractions_enlarge_to_whole_sizes_by_half_pixel_centres(patch, factor):
    x = np.random.default_rng(0).normal(size=(1, 24, 40, 2)).astype(np.float32)
    y = Upsample(factor)(x)
    assert y.shape == (1, 3 * patch, 5 * patch, 2)
    np.testing.assert_array_equal(y, tf.image.resize(x, (3 * patch, 5 * patch)))
    # A ramp stays one, with the same middle.
    ramp = np.arange(8.0, dtype=np.float32).reshape(1, 1, 8, 1)
    row = np.asarray(Upsample(factor)(ramp))[0, 0, :, 0]
    np.testing.assert_allclose(row, np.clip((np.arange(patch) + 0.5) / factor - 0.5, 0, 7), atol=1e-5)
    assert Upsample(factor).compute_output_shape((None, 24, None, 2)) == (None, 3 * patch, None, 2)


def test_resize_like_and_depth_to_space():
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 8)).astype(np.float32)
    np.testing.assert_array_equal(ResizeLike()([x, np.zeros((1, 5, 9, 1), np.float32)]), tf.image.resize(x, (5, 9)))
    y = np.asarray(DepthToSpace(2)(x))
    assert y.shape == (1, 6, 8, 2)
    np.testing.assert_array_equal(y[0, 2:4, 4:6].reshape(8), x[0, 1, 2])


def test_channels_are_unimatch_v2s_or_in_proportion():
    assert widths(384) == (64, (48, 96, 192, 384))
    assert widths(768) == (128, (96, 192, 384, 768))
    assert widths(1024) == (256, (256, 512, 1024, 1024))
    assert widths(1536) == (384, (1536,) * 4)
    assert widths(192) == (32, (24, 48, 96, 192))
    assert widths(1280) == (320, (320, 640, 1280, 1280))
    segmenter = NetworkSettings(segmenter="dpt", backbone="tiny_transformer", weights="none", head_channels=7)
    head = segmenter.build_segmenter(3, (32, 32)).head
    assert head.get_layer("fused_1").filters == 7 and head.get_layer("project_4").filters == 16


def test_saved_and_loaded_it_gives_the_same_logits(tmp_path):
    segmenter = build(drop_path=0.2)
    segmenter.save(tmp_path / "segmenter.keras")
    loaded = keras.saving.load_model(tmp_path / "segmenter.keras")
    image = np.random.default_rng(0).uniform(0, 255, (2, 33, 47, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded(image), segmenter(image))
    assert isinstance(loaded, DPT) and loaded.get_config() == segmenter.get_config()


@pytest.mark.parametrize("file", ["segmenter.keras", "segmenter.weights.h5", "backbone.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_layers_inside_of_blocks_are_read_from_files(file, tmp_path):
    """They have the same names in every block."""
    source = randomize(build())
    if file == "backbone.h5":
        source.backbone.save(tmp_path / file)
    else:
        (source.save if file.endswith(".keras") else source.save_weights)(tmp_path / file)
    segmenter = build(num_classes=4, weights=str(tmp_path / file))
    for ours, theirs in zip(segmenter.backbone.get_weights(), source.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    loaded = segmenter.loaded_weights
    assert "tiny_transformer/block_3/attention/attention/query 16x2x8 2x8" in loaded.loaded
    assert loaded.by == "name" and not [name for name in loaded.skipped if "logits" not in name]
