import keras
import numpy as np
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401
from kerasseg.critics import build_corrector
from kerasseg.segmenters import SEGMENTERS, build_segmenter, dead_taps, fitting_rates


def build(name, **arguments):
    return build_segmenter(name, **{"backbone": "mobilenet_v2", "num_classes": 4, "weights": "none"} | arguments)


PYRAMID = [name for name, segmenter in SEGMENTERS.items() if segmenter.FITS != "plain"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PYRAMID)
def test_a_size_off_the_stride_is_the_padded_image_cropped(name):
    """So training, evaluation, export and serving see the same at any size."""
    segmenter = build(name)
    image = np.random.default_rng(0).uniform(0, 255, (1, 53, 50, 3)).astype(np.float32)
    mean_grey = 127.5  # what MobileNetV2's normalisation turns into 0
    padded = np.full((1, 64, 64, 3), mean_grey, np.float32)
    padded[:, :53, :50] = image
    np.testing.assert_allclose(segmenter(image), segmenter(padded)[:, :53, :50], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PYRAMID)
def test_save_and_load_without_custom_objects_gives_the_same_logits(name, tmp_path):
    segmenter = build(name)
    segmenter.save(tmp_path / "segmenter.keras")
    loaded = keras.saving.load_model(tmp_path / "segmenter.keras")
    image = np.random.default_rng(0).uniform(0, 255, (2, 33, 47, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded(image), segmenter(image))
    assert loaded.get_config() == segmenter.get_config()


def test_uint8_and_float_pixels_are_the_same_image():
    segmenter = build("deeplab_v2")
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(segmenter(image), segmenter(image.astype(np.float32)), atol=1e-6)


def test_rates_follow_the_output_stride():
    for stride, v2, v3plus in ((16, [3, 6, 9, 12], [6, 12, 18]), (8, [6, 12, 18, 24], [12, 24, 36])):
        for name, expected in (("deeplab_v2", v2), ("deeplab_v3plus", v3plus)):
            segmenter = build(name, output_stride=stride)
            rates = [
                layer.dilation_rate[0]
                for layer in segmenter.head.layers
                if "aspp_rate" in layer.name and hasattr(layer, "dilation_rate")
            ]
            assert rates == expected


def test_the_image_pooling_branch_survives_a_batch_of_one():
    """With batch norm there, one sample is its own mean: trained to nothing, and far off in inference."""
    keras.utils.set_random_seed(0)
    segmenter = build("deeplab_v3plus", head_channels=8)
    layer = segmenter.head.get_layer("pool_norm")
    pooled = np.random.default_rng(0).normal(size=(1, 1, 1, 8)).astype(np.float32)
    training, inference = layer(pooled, training=True), layer(pooled, training=False)
    np.testing.assert_array_equal(training, inference)
    assert np.ptp(training) > 1


@pytest.mark.parametrize("fields, share", [({}, 0.1), ({"head_dropout": 0.4}, 0.4)])
def test_the_heads_dropout_is_as_asked_also_after_saving(fields, share, tmp_path):
    keras.utils.set_random_seed(0)
    build("deeplab_v3plus", head_channels=8, **fields).save(tmp_path / "segmenter.keras")
    dropout = keras.saving.load_model(tmp_path / "segmenter.keras").head.get_layer("dropout")
    dropped = np.asarray(dropout(np.ones((1, 100, 100, 8), np.float32), training=True)) == 0
    assert abs(dropped.mean() - share) < 0.01


def test_mistakes():
    with pytest.raises(ValueError, match="segmenter must be one of deeplab_v2, deeplab_v3plus, .*; got 'unet'"):
        build_segmenter("unet")
    with pytest.raises(ValueError, match="num_classes counts the background too"):
        build("deeplab_v2", num_classes=1)
    with pytest.raises(ValueError, match="output_stride must be one of 8, 16; got 32"):
        build("deeplab_v2", output_stride=32)


def weights_of(network, name):
    return [w.numpy().astype(np.float64) for w in network.get_layer(name).weights]


def head_of(name, features, strides):
    """A head of three classes and width 4 with random weights, and what it gives for these features."""
    head, stride = SEGMENTERS[name].build_head([keras.Input(x.shape[1:]) for x in features], strides, 3, 4)
    rng = np.random.default_rng(1)
    head.set_weights([rng.uniform(0.5, 1.5, w.shape) * rng.choice([-1, 1], w.shape) for w in head.get_weights()])
    return head, stride, head(features)


def resized(x, factor):
    return tf.image.resize(x, np.multiply(x.shape[1:3], factor)).numpy().astype(np.float64)


def test_segformer_joins_linear_layers_of_all_strides():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(2, 8 // step, 12 // step, 5 * step)).astype(np.float32) for step in (1, 2, 4)]
    head, stride, logits = head_of("segformer", features, (4, 8, 16))
    variance = head.get_layer("fuse_bn").moving_variance
    variance.assign(np.abs(variance.numpy()))
    levels = [
        resized(x @ weights_of(head, f"linear_{i}")[0][0, 0] + weights_of(head, f"linear_{i}")[1], 2 ** (i - 1))
        for i, x in enumerate(features, 1)
    ]
    x = np.concatenate(levels[::-1], axis=-1) @ weights_of(head, "fuse_conv")[0][0, 0]
    gamma, beta, mean, var = weights_of(head, "fuse_bn")
    x = np.maximum((x - mean) / np.sqrt(var + 1e-3) * gamma + beta, 0.0)
    kernel, bias = weights_of(head, "logits")
    np.testing.assert_allclose(head(features), x @ kernel[0, 0] + bias, rtol=1e-3, atol=1e-3)
    assert stride == 4


def test_fpn_adds_coarser_features_and_brings_all_to_the_finest_stride():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(2, 8 // step, 12 // step, 5)).astype(np.float32) for step in (1, 2)]
    head, stride, logits = head_of("fpn", features, (4, 8))
    fine, coarse = (x @ weights_of(head, f"lateral_{i}")[0][0, 0] + weights_of(head, f"lateral_{i}")[1]
                    for i, x in enumerate(features, 1))  # fmt: skip
    fine = fine + coarse.repeat(2, axis=1).repeat(2, axis=2)

    def branch(x, name):
        x = tf.nn.conv2d(x, weights_of(head, f"{name}_conv_1")[0], 1, "SAME").numpy()
        mean, variance = x.mean(axis=(1, 2, 3), keepdims=True), x.var(axis=(1, 2, 3), keepdims=True)  # of one group
        gamma, beta = weights_of(head, f"{name}_norm_1")
        return np.maximum((x - mean) / np.sqrt(variance + 1e-3) * gamma + beta, 0.0)

    kernel, bias = weights_of(head, "logits")
    expected = (branch(fine, "branch_1") + resized(branch(coarse, "branch_2"), 2)) @ kernel[0, 0] + bias
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert stride == 4


def tap_gradients(network, inputs):
    """By the dilated convolutions' names: the norm of each tap's gradient, (3,3), where every output pixel counts."""
    dilated = [layer for layer in network._flatten_layers() if max(getattr(layer, "dilation_rate", (1,))) > 1]
    with tf.GradientTape() as tape:
        outputs = network(inputs, training=True)
        loss = tf.reduce_mean(outputs * tf.random.stateless_normal(tf.shape(outputs), (1, 2)))
    gradients = tape.gradient(loss, [layer.kernel.value for layer in dilated])
    return {layer.name: np.linalg.norm(g, axis=(2, 3)) for layer, g in zip(dilated, gradients, strict=True)}


@pytest.mark.parametrize("crop", [(176, 240), (96, 128), (321, 321)], ids=str)
@pytest.mark.parametrize("name", ["deeplab_v2", "deeplab_v3plus"])
def test_every_tap_learns_from_a_training_crop(name, crop):
    rates = fitting_rates(SEGMENTERS[name], crop, 16)
    segmenter = build(name, backbone="tiny", rates=rates)
    images = np.random.default_rng(0).uniform(0, 255, (1, *crop, 3)).astype(np.float32)
    assert dead_taps(segmenter, crop) == {}
    for layer, norms in tap_gradients(segmenter, images).items():
        assert norms.min() > 0, layer


def test_taps_that_reach_beyond_the_crop_do_not_learn_and_are_named():
    """The published rates on crops of 176x240 pixels: maps of 11x15."""
    segmenter = build("deeplab_v3plus", backbone="tiny")
    images = np.random.default_rng(0).uniform(0, 255, (1, 176, 240, 3)).astype(np.float32)
    norms = tap_gradients(segmenter, images)
    assert (norms["aspp_rate18_conv"] == 0).sum() == 8 and (norms["aspp_rate12_conv"] == 0).sum() == 6
    assert dead_taps(segmenter, (176, 240)) == {"aspp_rate12_conv": 12, "aspp_rate18_conv": 18}


def test_every_tap_of_the_corrector_learns_from_a_training_crop():
    rates = fitting_rates(SEGMENTERS["deeplab_v3plus"], (176, 240), 16)
    corrector = build_corrector(3, "tiny", head_channels=8, rates=rates)
    rng = np.random.default_rng(0)
    inputs = [rng.random((1, 176, 240, 3)).astype(np.float32), rng.uniform(0, 255, (1, 176, 240, 3)).astype(np.float32)]
    assert all(norms.min() > 0 for norms in tap_gradients(corrector, inputs).values())
    assert dead_taps(corrector, (176, 240)) == {} != dead_taps(build_corrector(3, "tiny", head_channels=8), (176, 240))


def test_fitting_rates_are_the_published_ones_where_the_crop_has_room():
    v2, v3plus = SEGMENTERS["deeplab_v2"], SEGMENTERS["deeplab_v3plus"]
    assert fitting_rates(v3plus, (513, 513), 16) == fitting_rates(v3plus, (321, 321), 16) == (6, 12, 18)
    assert fitting_rates(v3plus, (513, 513), 8) == (12, 24, 36)
    assert fitting_rates(v2, (321, 321), 8) == (6, 12, 18, 24)
    assert fitting_rates(v3plus, (176, 240), 16) == (2, 4, 6)
    assert fitting_rates(v3plus, (96, 128), 16) == (1, 2, 3)


def test_rates_are_a_field_and_the_weights_find_their_layers():
    segmenter = build("deeplab_v3plus", backbone="tiny", rates=(2, 4, 6), head_channels=8)
    other = build("deeplab_v3plus", backbone="tiny", head_channels=8)
    other.set_weights(segmenter.get_weights())
    assert [layer.name for layer in segmenter.head.layers if "aspp" in layer.name] == [
        layer.name for layer in other.head.layers if "aspp" in layer.name
    ]
    again = type(segmenter).from_config(segmenter.get_config())
    assert again.head.get_layer("aspp_rate18_conv").dilation_rate == (6, 6)
    with pytest.raises(ValueError, match="DeepLabV3Plus takes 3 rates of 1 or more; got"):
        build("deeplab_v3plus", backbone="tiny", rates=(2, 4))
