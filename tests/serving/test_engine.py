import os

import numpy as np
import onnxruntime
import pytest

from serving import engine as engine_module
from serving.artifact import open_artifact
from serving.engine import Engine, usable_cpus


def cuda_works():
    return os.path.exists("/dev/nvidiactl")


def test_predicts_by_output_name(toy_model):
    images_NHWC = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    outputs = Engine(open_artifact(toy_model), "cpu").predict(images_NHWC)
    assert list(outputs) == ["labels", "confidence"]
    assert outputs["labels"].dtype == np.uint8
    np.testing.assert_array_equal(outputs["labels"], images_NHWC[..., 0] // 64)
    np.testing.assert_allclose(outputs["confidence"], images_NHWC[..., 1] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((1, 0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(toy_model, images):
    with pytest.raises(ValueError, match=r"expected uint8 pictures of shape \(N,H,W,3\), got"):
        Engine(open_artifact(toy_model), "cpu").predict(images)


def test_threads_follow_the_cpus_of_this_process(toy_model, monkeypatch):
    artifact = open_artifact(toy_model)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 9}, raising=False)
    assert usable_cpus() == 3
    assert Engine(artifact, "cpu").threads == 3
    assert Engine(artifact, "cpu", threads=1).threads == 1
    with pytest.raises(ValueError, match="threads"):
        Engine(artifact, "cpu", threads=0)


@pytest.mark.skipif(cuda_works(), reason="this machine has a GPU")
def test_gpu_that_cannot_be_used_is_an_error_unless_left_to_us(toy_model):
    artifact = open_artifact(toy_model)
    with pytest.raises(ValueError, match="CUDA was asked for and cannot be used"):
        Engine(artifact, "cuda")
    assert Engine(artifact, "auto").provider == "cpu"
    assert Engine(artifact, "cpu").provider == "cpu"


def test_session_that_fell_back_to_the_cpu_is_no_cuda_session(toy_model, monkeypatch):
    """onnxruntime lists CUDA as available, and then quietly runs on the CPU."""
    artifact = open_artifact(toy_model)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        engine_module.Engine, "_new_session", lambda self, providers: FakeSession(["CPUExecutionProvider"])
    )
    with pytest.raises(ValueError, match="CUDA was asked for"):
        Engine(artifact, "cuda")
    monkeypatch.setattr(engine_module.Engine, "_new_session", lambda self, providers: FakeSession([providers[0][0]]))
    engine = Engine(artifact, "auto")
    assert engine.provider == "cuda"
    assert engine._session.fallback is False


class FakeSession:
    fallback = True

    def __init__(self, providers):
        self.providers = providers

    def get_providers(self):
        return self.providers

    def disable_fallback(self):
        self.fallback = False
