"""Weights of timm and torchvision, without PyTorch."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import tests.backbone  # noqa: F401 (tiny)
from benchmarks.weights_agreement import WeightsAgreement
from benchmarks.weights_agreement import main as weights_agreement
from kerasseg.segmenters import build_backbone, build_segmenter, load_weights, torch_files
from kerasseg.segmenters.torch_files import LEGACY_MAGIC, read_tensors
from tests.kerasseg.segmenters.torch_writer import write_legacy, write_safetensors, write_zip

WRITERS = {"zip.pth": write_zip, "legacy.pth": write_legacy, "model.safetensors": write_safetensors}
SHARED = Path(__file__).parents[4] / "shared"


def arrays():
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(4, 3, 2, 5)).astype(np.float32),
        "conv.bias": rng.normal(size=4).astype(np.float16),
        "bn.num_batches_tracked": np.array(7, np.int64),
    }


@pytest.mark.parametrize("name", WRITERS)
def test_tensors_are_read_as_they_were_written(name, tmp_path):
    WRITERS[name](tmp_path / name, arrays())
    found = read_tensors(tmp_path / name)
    assert list(found) == (sorted(arrays()) if "safetensors" in name else list(arrays()))
    for key, array in arrays().items():
        np.testing.assert_array_equal(found[key], array)
    assert found["conv.bias"].dtype == np.float32


def test_the_state_within_a_checkpoint(tmp_path):
    write_zip(tmp_path / "a.pth", arrays(), wrap=lambda state: {"epoch": 3, "state_dict": state})
    assert list(read_tensors(tmp_path / "a.pth")) == list(arrays())


def test_bfloat16(tmp_path):
    values = np.array([1.5, -2.0, 3.140625], np.float32)
    head = json.dumps({"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}).encode()
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + halves)
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.safetensors")["x"], values)


class Hostile:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("call", [os.system, eval, os.remove])
def test_no_code_of_a_file_is_run(call, legacy, tmp_path):
    victim = tmp_path / "victim"
    victim.touch()
    argument = {os.system: f"rm {victim}", eval: f"__import__('os').remove({str(victim)!r})"}.get(call, str(victim))
    hostile, path = pickle.dumps({"a": Hostile(call, argument)}, 2), tmp_path / "a.pth"
    if legacy:
        path.write_bytes(LEGACY_MAGIC + hostile)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", hostile)
    with pytest.raises(ValueError, match="only tensors are read"):
        read_tensors(path)
    assert victim.exists()


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_cut_short_is_named(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path, arrays())
    contents = path.read_bytes()
    for length in (len(contents) - 3, len(contents) // 2):
        path.write_bytes(contents[:length])
        with pytest.raises(ValueError, match=f"{name}"):
            load_weights(build_backbone("tiny", 32), path)


def test_a_file_changes_nothing_outside_of_what_it_is_read_into(tmp_path):
    """BUILD sets attributes of what a pickle is given: with the function itself, every later file would be misread."""
    build = b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\n(I1\ntstb."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", build)
    with pytest.raises(ValueError, match="holds no tensors"):
        read_tensors(tmp_path / "a.pth")
    assert torch_files._tensor.__defaults__ is None


def test_a_small_file_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "a.pth"
    write_zip(path, {"x": np.zeros(4, np.float32)})
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match="b.pth cannot be read: .* is compressed"):
        read_tensors(tmp_path / "b.pth")
    repeated = torch_files._tensor(torch_files._Storage(np.dtype("<f4"), lambda: bytes(16)), 0, (1000, 4), (0, 1))
    with pytest.raises(ValueError, match=r"\(1000, 4\) repeats its 4 numbers"):
        repeated()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(kind, key, count):
    return (
        b"("
        + text("storage")
        + f"ctorch\n{kind}Storage\n".encode()
        + text(key)
        + text("cpu")
        + bytes([75, count])
        + b"tQ"
    )


def rebuilt(numbers, shape=b"(K\x04t", strides=b"(K\x01t"):
    """The pickle of a tensor of four numbers, or of anything else in the place of its parts."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + numbers + b"K\x00" + shape + strides + b"tR"


def forged_storage():
    """A dictionary as storage: its attribute dtype makes NumPy read steps of 16 bytes from numbers of 4."""
    dictionary = b"ccollections\nOrderedDict\n)R"
    dtype = dictionary + b"(" + text("names") + b"]" + text("a") + b"a" + text("formats") + b"]" + text("<f4") + b"au"
    dtype += b"(N}" + text("itemsize") + b"K\x10stb"
    read = rebuilt(storage("Float", "0", 4))
    return dictionary + b"(N}" + text("read") + read + b"s" + text("dtype") + dtype + b"stb"


@pytest.mark.parametrize(
    "tensor",
    [
        rebuilt(forged_storage()),
        # The shape is an array of int64, which can overflow.
        rebuilt(storage("Float", "0", 4), shape=rebuilt(storage("Long", "1", 1), shape=b"(K\x01t") + b")R"),
        rebuilt(storage("Float", "0", 4), strides=b"(K\x02t"),
        rebuilt(storage("Float", "0", 4), strides=b"(J\xff\xff\xff\xfft"),
    ],
    ids=["a forged storage", "an array as shape", "too long strides", "negative strides"],
)
def test_a_file_reads_no_memory_outside_of_its_numbers(tensor, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}" + text("x") + tensor + b"s.")
        archive.writestr("archive/data/0", np.ones(4, "<f4").tobytes())
        archive.writestr("archive/data/1", np.array([4]).tobytes())
    with pytest.raises(ValueError, match="a.pth cannot be read: .*(something else|outside of its 4 numbers)"):
        read_tensors(tmp_path / "a.pth")


def test_a_damaged_zip_file_is_one_line(tmp_path):
    path = tmp_path / "a.pth"
    write_zip(path, arrays())
    contents = path.read_bytes()
    path.write_bytes(contents.replace(b"PK\x01\x02", b"PK\x01\x00"))
    with pytest.raises(ValueError, match="a.pth cannot be read: Bad magic number for central directory; is the file"):
        load_weights(build_backbone("tiny", 32), path)
    path.write_bytes(contents[:-30])
    with pytest.raises(
        ValueError, match=r"expected a .*\.pth or .* a ZIP archive without its end; copy the file again"
    ):
        load_weights(build_backbone("tiny", 32), path)


def test_many_names_of_the_same_numbers_do_not_fill_the_memory(tmp_path):
    large, path = {"x": np.arange(50_000, dtype=np.float32)}, tmp_path / "a.pth"
    write_zip(path, large, wrap=lambda state: {f"{place}": state["x"] for place in range(7)})
    assert list(read_tensors(path)) == list("0123456")
    write_zip(path, large, wrap=lambda state: {f"{place}": state["x"] for place in range(1000)})
    with pytest.raises(ValueError, match="need more than 8 times its size"):
        read_tensors(path)


def test_text_of_a_file_stays_within_a_line(tmp_path):
    path = tmp_path / "a.pth"
    write_zip(path, {"x": np.zeros(2, np.float32)}, wrap=lambda state: {"a\nb\x1b[2J": state["x"], 7: state["x"]})
    assert list(read_tensors(path)) == [r"a\nb\x1b[2J", "7"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"(" + text("no\nstorage") + text("x") + text("y") + b"tQ.")
    with pytest.raises(ValueError, match=r"something that is no tensor: no\\nstorage"):
        read_tensors(path)


def torch_state(backbone, rng):
    """Random weights of the backbone `tiny` under the names and in the layout of PyTorch, and a classifier."""
    conv, norm, middle, high = (backbone.get_layer(name) for name in ("conv", "norm", "middle", "high"))
    values = {
        layer.name: [rng.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in layer.weights]
        for layer in (conv, norm, middle, high)
    }
    state = {
        "stem.weight": values["conv"][0].transpose(3, 2, 0, 1),
        "stem.bias": values["conv"][1],
        **dict(zip(("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"), values["norm"], strict=True)),
        "bn.num_batches_tracked": np.array(1, np.int64),
        "body.0.weight": values["middle"][0].transpose(3, 2, 0, 1),
        "body.0.bias": values["middle"][1],
        "body.1.weight": values["high"][0].transpose(2, 3, 0, 1),
        "body.1.bias": values["high"][1],
        "fc.weight": np.zeros((10, 8), np.float32),
    }
    return {name: np.ascontiguousarray(array) for name, array in state.items()}, values


@pytest.mark.parametrize("name", WRITERS)
def test_layers_are_matched_by_their_order(name, tmp_path):
    backbone = build_backbone("tiny", 32, maps="pyramid")
    state, values = torch_state(backbone, np.random.default_rng(0))
    WRITERS[name](tmp_path / name, state)
    loaded = load_weights(backbone, tmp_path / name)
    for layer, expected in values.items():
        for ours, theirs in zip(backbone.get_layer(layer).get_weights(), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert loaded.by == "order" and loaded.skipped == ("fc 8x10",) and not loaded.reinitialised
    assert f"4 layers from {name} by order, 0 reinitialised, 1 of the file skipped" in loaded.summary()


def test_a_segmenter_takes_its_backbone_from_the_file(tmp_path):
    state, values = torch_state(build_backbone("tiny", 32, maps="pyramid"), np.random.default_rng(0))
    write_zip(tmp_path / "a.pth", state)
    segmenter = build_segmenter("fpn", backbone="tiny", num_classes=2, head_channels=8, weights=str(tmp_path / "a.pth"))
    np.testing.assert_array_equal(segmenter.backbone.get_layer("high").get_weights()[0], values["high"][0])
    assert len(segmenter.loaded_weights.loaded) == 4 and len(segmenter.loaded_weights.reinitialised) > 4


def test_a_file_of_another_network_changes_nothing(tmp_path):
    backbone = build_backbone("tiny", 32, maps="pyramid")
    before = backbone.get_weights()
    state, _ = torch_state(backbone, np.random.default_rng(0))
    for wrong in (
        state | {"body.0.weight": np.zeros((8, 8, 5, 5), np.float32)},
        {name: array for name, array in state.items() if not name.startswith(("body.1", "fc"))},
    ):
        write_zip(tmp_path / "a.pth", wrong)
        with pytest.raises(
            ValueError, match=r"a.pth does not fit tiny: .*(body.0 in its place has 5x5x8x8|no counterpart)"
        ):
            load_weights(backbone, tmp_path / "a.pth")
    for ours, theirs in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_layers_side_by_side_have_no_order(tmp_path):
    image = keras.Input((None, None, 3))
    ways = [keras.layers.Conv2D(4, 1, name=name)(image) for name in ("left", "right")]
    network = keras.Model(image, keras.layers.Add()(ways), name="block")
    write_zip(tmp_path / "a.pth", {"a.weight": np.zeros((4, 3, 1, 1), np.float32)})
    with pytest.raises(ValueError, match=r"branches that add.* joins are equally long"):
        load_weights(network, tmp_path / "a.pth")


def block(image, bias=False):
    """Two convolutions beside a shortcut of the same shape as the second: only their order separates them."""
    conv, norm = keras.layers.Conv2D, keras.layers.BatchNormalization
    x = norm(name="stem_norm")(conv(4, 3, name="first", use_bias=bias)(image))
    shortcut = norm(name="0_norm")(conv(8, 1, name="0", use_bias=bias)(x))
    y = norm(name="1_norm")(conv(4, 1, name="1", use_bias=bias)(x))
    y = norm(name="2_norm")(conv(8, 1, name="2", use_bias=bias)(y))
    return keras.Model(image, keras.layers.Add()([shortcut, y]), name="block")


@pytest.mark.parametrize("bias", [False, True], ids=["", "a bias here that the file does not have"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_shortcut_comes_after_the_longer_way(name, bias, tmp_path):
    network = block(keras.Input((None, None, 3)), bias)
    parts = {
        "first": ("conv1", "bn1"),
        "1": ("layer1.0.conv1", "layer1.0.bn1"),
        "2": ("layer1.0.conv2", "layer1.0.bn2"),
        "0": ("layer1.0.downsample.0", "layer1.0.downsample.1"),
    }
    rng, state = np.random.default_rng(0), {}
    for layer, (conv, norm) in parts.items():
        height, width, channels, filters = network.get_layer(layer).kernel.shape
        state[f"{conv}.weight"] = rng.normal(size=(filters, channels, height, width)).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{part}"] = rng.uniform(1, 2, filters).astype(np.float32)
    WRITERS[name](tmp_path / name, state)
    loaded = load_weights(network, tmp_path / name)
    assert len(loaded.loaded) == 8 and not loaded.reinitialised and not loaded.skipped
    for layer, (conv, norm) in parts.items():
        kernel, *others = network.get_layer(layer).get_weights()
        np.testing.assert_array_equal(kernel, state[f"{conv}.weight"].transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(others, [np.zeros(len(kernel[0, 0, 0]))] * bias)
        statistics = network.get_layer("stem_norm" if layer == "first" else f"{layer}_norm").get_weights()
        for ours, part in zip(statistics, ("weight", "bias", "running_mean", "running_var"), strict=True):
            np.testing.assert_array_equal(ours, state[f"{norm}.{part}"])


@pytest.mark.slow
def test_weights_from_imagenet_fit_photographs(tmp_path):
    """What enters each batch norm has the mean and the variance that the file says, and not with layers exchanged."""
    file = SHARED / "weights" / "efficientnet_lite0" / "efficientnet-lite0-57934424.pth"
    folder = SHARED / "data" / "msrc21" / "images" / "train"
    if not file.exists() or not folder.exists():
        pytest.skip("needs shared/weights/efficientnet_lite0 and shared/data/msrc21")
    pytest.importorskip("keras_hub")
    config = WeightsAgreement(weights=file, folder=folder, pixels=("torch",), results=tmp_path / "results.md")
    own, torch, _, exchanged = weights_agreement(config)["rows"]
    assert own["mean"] > 0.98 and own["variance"] > 0.9 and 0.9 < own["ratio"] < 1.1
    assert torch["mean"] < own["mean"] and torch["ratio"] > 1.15
    assert abs(exchanged["mean"]) < 0.3 and abs(exchanged["variance"]) < 0.3
