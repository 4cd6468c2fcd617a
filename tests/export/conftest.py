"""Finished runs of real methods around a network that has every awkward layer and hardly any weights."""

import json

import keras
import pytest

from kerasseg.layers import (
    AtrousConv2D,
    AtrousDepthwiseConv2D,
    CropLike,
    PadToMultiple,
    PixelNormalization,
    Upsample,
)
from kerasseg.methods import MLMT, Supervised

CLASSES = ("ground", "tree", "sky")
PALETTE = ((10, 20, 30), (200, 100, 50), (0, 255, 0))


def tiny_segmenter(dilated=AtrousConv2D):
    """Images (B,H,W,3) to logits (B,H,W,3): pads to the stride, strides, dilates, upsamples, crops."""
    image = keras.Input((None, None, 3), name="image")
    x = PixelNormalization("tf")(image)
    x = PadToMultiple(8)(x)
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", activation="relu")(x)
    x = dilated(8, 3, dilation_rate=2, padding="same", activation="relu")(x)
    x = AtrousDepthwiseConv2D(3, dilation_rate=4, padding="same")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Conv2D(len(CLASSES), 1, kernel_initializer="random_normal")(x)
    x = Upsample(4, dtype="float32")(x)
    x = CropLike(dtype="float32")([x, image])
    x = keras.layers.Rescaling(200.0, dtype="float32")(x)  # an untrained network is sure of nothing
    return keras.Model(image, x, name="tiny")


def tiny_classifier():
    """Images (B,H,W,3) to one logit per class (B,3), which depend on the image."""
    image = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(PixelNormalization("tf")(image))
    return keras.Model(image, keras.layers.Dense(len(CLASSES), kernel_initializer="random_normal")(x))


def tiny_method(name):
    keras.utils.set_random_seed(1)
    if name == "supervised":
        return Supervised(tiny_segmenter())
    return MLMT(tiny_segmenter(), student=tiny_classifier(), tau=0.5)


def write_run(folder, trained, **changes):
    """Writes what the export reads of a finished run; returns `folder`."""
    folder.mkdir(parents=True)
    trained.save(folder / "model.keras")
    config = {
        "method": "supervised",
        "dataset": "shapes",
        "steps": 1,
        "finished": True,
        "classes": CLASSES,
        "palette": PALETTE,
        "commit": "abc",
        "split_fingerprint": "def",
        "seed": 3,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "result.json").write_text(json.dumps({"mIoU": 0.25, "protocol": {"name": "native"}}))
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Run folder by method."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: write_run(folder / name, tiny_method(name)) for name in ("supervised", "mlmt")}
