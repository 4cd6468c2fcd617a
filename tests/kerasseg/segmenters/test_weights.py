"""Weights of every file format, into networks that they fit wholly, partly or not at all."""

import hashlib
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import tests.backbone  # noqa: F401 (the backbone "tiny")
from kerasseg.methods import METHODS
from kerasseg.segmenters import build_backbone, build_segmenter, load_weights

STOCK = Path(__file__).parents[4] / "shared/weights/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"


def build(num_classes=3, weights="none", segmenter="deeplab_v3plus", **arguments):
    head = {"head_channels": 8} if segmenter == "deeplab_v3plus" else {}
    return build_segmenter(
        segmenter, backbone="tiny", num_classes=num_classes, weights=str(weights), **head | arguments
    )


def trained(network):
    """Gives every weight, batch norm's included, a value of its own."""
    rng = np.random.default_rng(0)
    network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    return network


def same(network, other):
    return [np.array_equal(a, b) for a, b in zip(network.get_weights(), other.get_weights(), strict=True)]


def nameless(path, tmp_path):
    """The file as Keras wrote it before 3.6: its groups do not know their layers' names."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
        inner = nameless(tmp_path / "model.weights.h5", tmp_path)
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("config.json", "metadata.json"):
                archive.write(tmp_path / name, name)
            archive.write(inner, "model.weights.h5")
        return path
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, node: node.attrs.pop("name", None) and None)
        file["vars"].attrs.pop("name", None)
    return path


@pytest.mark.parametrize("file", ["segmenter.keras", "segmenter.weights.h5", "segmenter.h5"])
def test_every_format_gives_the_same_values_back(file, tmp_path):
    source, path = trained(build()), tmp_path / file
    if file == "segmenter.weights.h5":
        source.save_weights(path)
    elif file == "segmenter.h5":
        keras.Model(source.input, source.output).save(path)
    else:
        source.save(path)
    segmenter = build(weights=path)
    assert all(same(segmenter, source))
    loaded = segmenter.loaded_weights
    assert len(loaded.loaded) == 24 and "decoder/logits 1x1x8x3 3" in loaded.loaded
    assert loaded.counts() == {
        "source": file,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "by": "name",
        "loaded": 24,
        "reinitialised": 0,
        "skipped": 0,
    }
    assert loaded.summary() == f"weights: 24 layers from {file}, 0 reinitialised, 0 of the file skipped"


def test_other_classes_leave_the_last_layer_alone_as_it_was(tmp_path):
    source, path = trained(build(num_classes=21)), tmp_path / "coco.weights.h5"
    source.save_weights(path)
    keras.utils.set_random_seed(1)
    fresh = build()
    keras.utils.set_random_seed(1)
    segmenter = build(weights=path)
    loaded = segmenter.loaded_weights
    assert len(loaded.loaded) == 23
    assert loaded.reinitialised == ("decoder/logits 1x1x8x3 3",)
    assert loaded.skipped == ("deep_lab_v3_plus/decoder/logits 1x1x8x21 21",)
    assert loaded.summary().splitlines()[1:] == [
        "  reinitialised: decoder/logits 1x1x8x3 3",
        "  skipped: deep_lab_v3_plus/decoder/logits 1x1x8x21 21",
    ]
    assert loaded.listing().count("\nloaded ") == 23 and "\nreinitialised decoder/logits" in loaded.listing()
    assert same(segmenter, fresh)[-2:] == [True, True]  # the last layer, initialised as ever
    for ours, theirs in zip(segmenter.get_weights()[:-2], source.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ecs", "mlmt", "latent"])
def test_of_a_run_s_model_the_segmenter_is_read(method, tmp_path):
    """Not the corrector, the student or the teacher, though they have layers of the same names and shapes."""
    # The corrector has a class more: with 3 classes here it would fit better than the segmenter of 2.
    source, path = build(num_classes=2), tmp_path / "model.keras"
    fields = {"ecs": {"corrector_head_channels": 8}, "latent": {"latent_classes": 3}}
    method = METHODS[method].from_segmenter(source, {method: fields.get(method, {}) | {"steps": 1}})
    trained(method)
    method.save(path)
    segmenter = build(num_classes=3, weights=path)
    assert segmenter.loaded_weights.reinitialised == ("decoder/logits 1x1x8x3 3",)
    assert len(segmenter.loaded_weights.skipped) == 1
    for ours, theirs in zip(segmenter.get_weights()[:-2], source.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(same(build(num_classes=2, weights=path), source))


@pytest.mark.parametrize("file", ["backbone.keras", "backbone.weights.h5", "backbone.h5"])
def test_a_backbone_alone_loads_into_a_segmenter_and_into_a_dilated_backbone(file, tmp_path):
    source, path = trained(build_backbone("tiny", 32)), tmp_path / file
    (source.save_weights if file == "backbone.weights.h5" else source.save)(path)
    segmenter = build(weights=path, output_stride=8)
    assert all(same(segmenter.backbone, source)) and len(segmenter.loaded_weights.loaded) == 4
    assert not segmenter.loaded_weights.skipped and len(segmenter.loaded_weights.reinitialised) == 20
    assert all(same(build_backbone("tiny", 8, str(path)), source))
    wider = build_backbone("tiny", 16, str(path), extra_channels=2)
    assert wider.get_layer("conv").kernel.shape == (3, 3, 5, 8)
    assert all(same(wider.get_layer("middle"), source.get_layer("middle")))


def test_of_another_segmenter_the_backbone_is_taken(tmp_path):
    source, path = trained(build(segmenter="deeplab_v2")), tmp_path / "v2.keras"
    source.save(path)
    segmenter = build(weights=path)
    assert all(same(segmenter.backbone, source.backbone)) and len(segmenter.loaded_weights.loaded) == 4
    assert len(segmenter.loaded_weights.skipped) == 4


def test_files_that_name_no_layers(tmp_path):
    source = trained(build())
    source.save(tmp_path / "old.keras")
    source.save_weights(tmp_path / "old.weights.h5")
    loaded = []
    for file in ("old.keras", "old.weights.h5"):
        segmenter = build(weights=nameless(tmp_path / file, tmp_path))
        assert all(same(segmenter, source)) and len(segmenter.loaded_weights.loaded) == 24
        loaded.append(segmenter.loaded_weights)
    assert [weights.by for weights in loaded] == ["name", "position"]
    assert "24 layers from old.weights.h5 by position, " in loaded[1].summary()


def test_a_file_without_names_that_only_the_stock_backbone_loads(tmp_path):
    """The published network has other classes of layers than its dilated form, so its numbered groups do not fit."""

    def stock(weights=None):
        network = tests.backbone.build(None)
        if weights:
            network.load_weights(weights)
        return network

    source = trained(stock())
    source.save_weights(tmp_path / "stock.weights.h5")
    path = nameless(tmp_path / "stock.weights.h5", tmp_path)
    segmenter = build(output_stride=8)
    head = segmenter.head.get_weights()
    assert load_weights(segmenter, path, stock).by == "position"
    assert all(same(segmenter.backbone, source))
    for before, after in zip(head, segmenter.head.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_optimizer_of_a_compiled_model_is_no_layer(tmp_path):
    source, path = trained(tests.backbone.build(None)), tmp_path / "compiled.keras"
    source.compile("adam", "mse")
    source.optimizer.build(source.trainable_variables)
    source.save(path)
    assert build(weights=path).loaded_weights.skipped == ()


def test_a_file_of_which_nothing_fits_is_refused(tmp_path):
    image = keras.Input((None, None, 3))
    other = keras.Model(image, keras.layers.Conv2D(4, 3, name="another")(image), name="other")
    for file in ("other.keras", "other.h5"):
        other.save(tmp_path / file)
        with pytest.raises(
            ValueError, match="expected layers such as tiny/conv, tiny/norm, tiny/middle and 21 more; it ho"
        ):
            build(weights=tmp_path / file)
        with pytest.raises(ValueError, match=r"it holds (other/)?another; give the file of such a network"):
            build(weights=tmp_path / file)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x89HDF\r\n\x1a\n cut short",
        b"PK\x05\x06" + bytes(18),
    ],
)
def test_what_is_no_file_of_weights_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "weights.h5"
    path.write_bytes(content)
    message = {
        b"<": "it is a web page; download the file itself",
        b"v": "it is a Git LFS pointer; fetch .*: git lfs pull",
        b"P": "no item named 'config.json' .*a .keras archive has it",
    }.get(content[:1], "cannot be read: .*is the file complete")
    for refuse in (lambda: build(weights=path), lambda: build_backbone("tiny", 16, str(path))):
        with pytest.raises(ValueError, match=message) as error:
            refuse()
        assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not STOCK.exists(), reason="ImageNet weights are not beside the project")
@pytest.mark.parametrize("backbone, layers, skipped", [("mobilenet_v2", 102, 2), ("mobilenet_v2_c4", 80, 24)])
def test_the_stock_file_loads_into_the_dilated_backbone(backbone, layers, skipped):
    stock = keras.applications.MobileNetV2(weights=str(STOCK), include_top=False, input_shape=(None, None, 3))
    segmenter = build_segmenter("deeplab_v2", backbone=backbone, num_classes=4, output_stride=8, weights=str(STOCK))
    for layer in segmenter.backbone.layers:
        if layer.weights:
            assert all(same(layer, stock.get_layer(layer.name)))
    assert len(segmenter.loaded_weights.loaded) == layers and len(segmenter.loaded_weights.skipped) == skipped


@pytest.mark.parametrize("branch", [False, True], ids=["meanteacher", "mlmt on it"])
def test_a_run_that_predicts_with_a_teacher_lends_the_teachers_weights(branch, tmp_path):
    method = METHODS["meanteacher"](trained(build()))
    method.averaged.set_weights([weight + 1.0 for weight in method.segmenter.get_weights()])
    saved = METHODS["mlmt"](method) if branch else method
    saved.save(tmp_path / "model.keras")
    network = build()
    load_weights(network, tmp_path / "model.keras")
    assert all(same(network, method.averaged))
