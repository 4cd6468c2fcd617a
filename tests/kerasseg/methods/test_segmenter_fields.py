"""Fields of the segmenter's optimizer that every method has: warm-up, rates by layer, a frozen backbone, and which
weights decay."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tests.backbone  # noqa: F401 (the backbone tiny)
from kerasseg.methods import METHODS, MLMT, MeanTeacher, SegmenterConfig, Supervised
from kerasseg.optimizers import AdamW, layer_rates, not_decayed, segmenter_optimizer, segmenter_rate
from kerasseg.segmenters import build_segmenter, cut
from tests.kerasseg.methods import tiny
from tests.kerasseg.segmenters.test_cut import CUTS, FIELDS, u_net

PLAIN = {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
PLAIN |= {"head_multiplier": 1.0, "steps": 10}


def deeplab() -> keras.Model:
    return build_segmenter("deeplab_v2", backbone="tiny", num_classes=tiny.K, weights="none")


def batch():
    return tiny.batch(np.random.default_rng(0), height=32, width=32)


@pytest.mark.parametrize("share, steps, rising", [(0.25, 8, 2), (0.5, 10, 5), (0.01, 8, 0), (0.0, 8, 0)])
def test_the_rate_rises_in_equal_steps_to_its_schedule(share, steps, rising):
    rate = segmenter_rate(SegmenterConfig(learning_rate=0.5, warmup=share, steps=steps))
    poly = [0.5 * (1 - step / steps) ** 0.9 for step in range(steps + 1)]
    expected = [poly[rising] * (step + 1) / rising for step in range(rising)] + poly[rising:]
    np.testing.assert_allclose([float(rate(step)) for step in range(steps + 1)], expected, rtol=1e-6)
    again = type(rate).from_config(rate.get_config())
    np.testing.assert_array_equal([float(again(step)) for step in range(steps)], [float(rate(n)) for n in range(steps)])


def test_a_warm_up_counts_updates_where_a_step_has_two():
    config = METHODS["ecs"].Config(learning_rate=0.5, warmup=0.5, steps=4)
    assert config.main_updates == 2
    assert float(segmenter_rate(config)(0)) == pytest.approx(0.5 * 0.5**0.9 / 4)


def test_the_rate_of_a_layer_follows_from_its_place_in_the_backbone():
    """Five layers have weights in deeplab's, which ends in a depthwise convolution, and two in the U-Net's."""
    segmenter = deeplab()
    rates = layer_rates(segmenter.backbone, 0.0625)
    found = {variable.path: rates[id(variable)] for variable in segmenter.backbone.trainable_variables}
    expected = {"conv": 0.0625, "norm": 0.0625 ** (2 / 3), "middle": 0.0625 ** (1 / 3), "high": 1.0}
    assert found.keys() >= {"conv/kernel", "conv/bias", "norm/gamma", "norm/beta", "middle/kernel", "high/kernel"}
    assert found == pytest.approx({path: expected[path.split("/")[0]] for path in found})

    network = u_net()
    optimizer = segmenter_optimizer(SegmenterConfig(layer_decay=0.25, head_multiplier=7.0), cut(network, *CUTS))
    multipliers = dict(zip([each.path for each in network.trainable_variables], optimizer.multipliers, strict=True))
    expected = {"skip": 0.25, "bottom": 1.0, "logits": 7.0}
    assert multipliers == {path: expected[path.split("/")[0]] for path in multipliers}
    one = keras.Model(network.inputs, network.get_layer("skip").output)
    assert set(layer_rates(one, 0.25).values()) == {1.0}  # the first layer is the last one too


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_moves_each_layer_by_its_rate(optimizer):
    moved = {}
    for layer_decay in (1.0, 0.25):
        keras.utils.set_random_seed(0)
        segmenter = cut(u_net(), *CUTS)
        method = Supervised(segmenter, **PLAIN | {"optimizer": optimizer}, layer_decay=layer_decay)
        method.compile()
        before = segmenter.get_weights()
        method.train_step(tiny.tensors(*batch()))
        moved[layer_decay] = [new - old for new, old in zip(segmenter.get_weights(), before, strict=True)]
    factors = [0.25, 0.25, 1.0, 1.0, 1.0, 1.0]  # kernel and bias of skip, bottom, logits
    for slow, full, factor in zip(moved[0.25], moved[1.0], factors, strict=True):
        assert np.abs(full).max() > 1e-4
        np.testing.assert_allclose(slow, factor * full, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_matrices_decay(optimizer):
    """With gradients of 0 a step only decays."""
    image = keras.Input((4, 4, 3))
    x = keras.layers.Reshape((16, 3))(image)
    x = keras.layers.MultiHeadAttention(2, 2, name="attention")(x, x)  # its biases have two dimensions
    x = keras.layers.LayerNormalization(name="norm")(x)
    places = keras.ops.cast(keras.ops.cumsum(keras.ops.ones_like(x[..., 0]), axis=1) - 1, "int32")
    x = x + keras.layers.Embedding(16, 3, name="position_embedding")(places)
    network = keras.Model(image, keras.layers.Dense(3, name="logits")(keras.layers.Reshape((4, 4, 3))(x)))
    kept = {each.path for each in not_decayed(network.trainable_variables)}
    assert kept == {path for path in (v.path for v in network.trainable_variables) if not path.endswith("kernel")}
    assert {"attention/query/bias", "norm/gamma", "norm/beta", "position_embedding/embeddings", "logits/bias"} <= kept
    for matrices_only in (True, False):
        network.set_weights([np.full(weight.shape, 2.0, np.float32) for weight in network.weights])
        fields = {"optimizer": optimizer, "learning_rate": 0.5, "weight_decay": 0.25, "head_multiplier": 1.0}
        steps = segmenter_optimizer(SegmenterConfig(**fields, decay_matrices_only=matrices_only), network)
        steps.build(network.trainable_variables)
        steps.apply([tf.zeros_like(weight) for weight in network.trainable_variables])
        for weight in network.trainable_variables:
            decays = not (matrices_only and weight.path in kept)
            np.testing.assert_allclose(weight, 2.0 * (1 - 0.5 * 0.25) if decays else 2.0, rtol=1e-6)


def test_tokens_and_positions_are_found_by_their_names():
    def variable(name):
        return keras.Variable(np.ones((1, 2, 3)), name=name)

    left_out = ["cls_token", "register_tokens", "position_embeddings", "relative_position_bias_table", "pos_embed"]
    learned = ["kernel", "token_kernel", "depthwise_kernel"]
    assert [each.name for each in not_decayed(map(variable, left_out + learned))] == left_out


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("make", [deeplab, lambda: cut(u_net(), *CUTS)], ids=["deeplab", "cut"])
def test_a_frozen_backbone_keeps_its_weights_and_its_head_learns(make, parts):
    method = MeanTeacher(make(), **PLAIN, freeze_backbone=True, cons_start=0.0)
    segmenter = method.segmenter
    images = batch()[0]["labeled"]
    method.compile(accumulate=parts)
    backbone, head = segmenter.backbone.get_weights(), segmenter.head.get_weights()
    for _ in range(2):
        method.train_step(tiny.tensors(*batch()))
    for now, before in zip(segmenter.backbone.get_weights(), backbone, strict=True):  # batch norm's statistics too
        np.testing.assert_array_equal(now, before)
    assert all(np.abs(now - before).max() > 0 for now, before in zip(segmenter.head.get_weights(), head, strict=True))
    for train_mode, inference in zip(segmenter.encode(images, training=True), segmenter.encode(images), strict=True):
        np.testing.assert_array_equal(train_mode, inference)
    of_head = {id(variable) for variable in segmenter.head.trainable_variables}
    assert {id(variable) for variable in segmenter.trainable_variables} == of_head
    assert len(method.optimizer.multipliers) == len(of_head)


def test_the_classifier_of_mlmt_learns_where_the_segmenters_backbone_is_frozen():
    for segmenter in (deeplab(), cut(u_net(), *CUTS)):
        branch = Supervised(segmenter, steps=1, freeze_backbone=True)
        branch.compile()
        student = MLMT(branch, steps=1).student.get_layer(segmenter.backbone.name)
        assert len(student.trainable_variables) > 3 and not segmenter.backbone.trainable_variables


@pytest.mark.parametrize("fields", [{"freeze_backbone": True}, {"layer_decay": 0.5, "warmup": 0.3}], ids=str)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "mlmt"])
def test_every_method_has_them(name, fields):
    own = FIELDS.get(name, {}) | PLAIN | {"optimizer": "adamw", "learning_rate": 1e-3}
    own |= {"joint_update": True} if name == "ecs" else {}
    method = METHODS[name](cut(u_net(), *CUTS), **own, **fields)
    method.compile(run_eagerly=True)
    before = method.segmenter.get_weights()
    data = tf.data.Dataset.from_tensors(batch()).repeat()
    history = method.fit(data, steps_per_epoch=1, verbose=0).history
    assert np.isfinite([values[-1] for values in history.values()]).all()
    moved = [np.abs(now - old).max() for now, old in zip(method.segmenter.get_weights(), before, strict=True)]
    if "freeze_backbone" in fields:
        assert moved[:4] == [0.0] * 4 and moved[4] > 0
    else:  # AdamW's first update is the rate, whatever the gradient: here that of the first of three rising steps
        assert moved[4] == pytest.approx(1e-3 * 0.7**0.9 / 3, rel=0.05)
        assert moved[0] == pytest.approx(0.5 * moved[4], rel=0.05)


@pytest.mark.parametrize("fields", [{"layer_decay": 0.5}, {"freeze_backbone": True}], ids=str)
def test_they_need_to_know_where_the_backbone_ends(fields):
    [name] = fields
    message = rf"{name} needs a segmenter that knows where its backbone ends: give it kerasseg.segmenters.cut\("
    with pytest.raises(ValueError, match=message):
        Supervised(tiny.segmenter(), **fields)
    Supervised(tiny.segmenter(), warmup=0.1, decay_matrices_only=True)


def test_off_is_what_it_was():
    method = Supervised(cut(u_net(), *CUTS), optimizer="adamw", head_multiplier=3.0)
    optimizer = method.make_optimizers()["segmenter"]
    assert isinstance(optimizer, AdamW) and optimizer.multipliers == [1.0] * 4 + [3.0] * 2
    assert type(optimizer.schedule.schedule).__name__ == "Poly"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"warmup": 1.0}, r"warmup must be in 0..1 \(below 1\); got 1.0"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0, at most 1; got 0.0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0, at most 1; got 1.5"),
        (
            {"layer_decay": 0.5, "freeze_backbone": True},
            "layer_decay does nothing to a frozen backbone: leave it or freeze_backbone out; got 0.5",
        ),
    ],
    ids=str,
)
def test_impossible_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        SegmenterConfig(**fields)
