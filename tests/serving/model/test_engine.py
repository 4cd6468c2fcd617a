import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest

from serving.common.artifact import GRAPH_FILE, INFO_FILE, Tensor, open_artifact, sha256_of
from serving.model import engine as engine_module
from serving.model.engine import Engine, cgroup_cpus, gpu_batch, usable_cpus
from tests.serving.conftest import OnGpu
from tests.serving.toy_model import write_toy_model


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
    with pytest.raises(ValueError, match=r"expected uint8 images of shape \(N,H,W,3\), got"):
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


@pytest.fixture
def on_gpu(toy_model, gpu):
    """(engine that keeps two shapes prepared, the sessions that were opened)."""
    return Engine(open_artifact(toy_model), "cuda", gpu_shapes=2), gpu


def test_session_that_fell_back_to_the_cpu_is_no_cuda_session(toy_model, on_gpu, monkeypatch):
    """onnxruntime lists CUDA as available, and then quietly runs on the CPU."""
    engine, [session] = on_gpu
    assert (engine.provider, session.fallback) == ("cuda", False)
    monkeypatch.setattr(OnGpu, "provider", "CPUExecutionProvider")
    with pytest.raises(ValueError, match="CUDA was asked for"):
        Engine(open_artifact(toy_model), "cuda")
    assert Engine(open_artifact(toy_model), "auto").provider == "cpu"


def segment_some(engine, count, height, width):
    """Segments random images and checks what comes of them."""
    images_NHWC = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    outputs = engine.predict(images_NHWC)
    np.testing.assert_array_equal(outputs["labels"], images_NHWC[..., 0] // 64)
    np.testing.assert_allclose(outputs["confidence"], images_NHWC[..., 1] / 255, rtol=1e-6)


def test_a_gpu_has_a_session_for_each_shape(on_gpu, toy_model):
    """One that is given another shape than the last makes its plans again, for a second."""
    engine, opened = on_gpu
    graph = open_artifact(toy_model).graph
    graph.rename(graph.with_suffix(".removed"))  # whose checksum nobody would look at again
    for height in (4, 6, 4, 6, 4):
        segment_some(engine, 1, height, 5)
    assert [session.shapes for session in opened] == [[(1, 4, 5)] * 3, [(1, 6, 5)] * 2]
    for height in (8, 4, 8):  # a third takes the place of the one whose batch was longest ago
        segment_some(engine, 1, height, 5)
    assert [session.shapes for session in opened[1:]] == [[(1, 6, 5)] * 2, [(1, 8, 5)] * 2]
    gone = weakref.ref(opened.pop(1))
    gc.collect()
    assert gone() is None


def test_sessions_give_their_memory_to_one_that_has_none(on_gpu, monkeypatch):
    engine, opened = on_gpu
    segment_some(engine, 1, 4, 5)
    run = OnGpu.run

    def limited(self, wanted, inputs, options):
        if len(engine._gpu_sessions._by_shape) > 1:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        return run(self, wanted, inputs, options)

    monkeypatch.setattr(OnGpu, "run", limited)
    segment_some(engine, 1, 6, 5)
    segment_some(engine, 1, 4, 5)
    assert [session.shapes for session in opened] == [[(1, 4, 5)], [(1, 6, 5)], [(1, 4, 5)]]

    def failing(self, wanted, inputs, options):
        self.shapes.append("failed")
        raise RuntimeError(message)

    monkeypatch.setattr(OnGpu, "run", failing)
    for height, message, runs in ((9, "CUDA failure 2: out of memory", 2), (10, "an illegal instruction", 1)):
        opened.clear()
        with pytest.raises(RuntimeError, match=message):  # the second time it has all there is; or they are innocent
            segment_some(engine, 1, height, 5)
        assert [len(session.shapes) for session in opened] == [runs]


def test_a_gpu_is_given_powers_of_two(on_gpu, monkeypatch):
    engine, opened = on_gpu
    for count in (5, 8, 7):
        segment_some(engine, count, 4, 5)
    assert [session.shapes for session in opened] == [[(8, 4, 5)] * 3]
    assert [gpu_batch((321, 321), count) for count in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 8, 16]
    assert [gpu_batch((1000, 1000), count) for count in (3, 4, 5)] == [4, 4, 5]  # 8 would be beyond MAX_BATCH_PIXELS


def test_threads_share_the_sessions_of_a_gpu(on_gpu):
    engine, _ = on_gpu
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda count: segment_some(engine, 1 + count % 5, 3 + count % 4, 5), range(60)))


def test_only_the_outputs_that_are_wanted(toy_model):
    images_NHWC = np.full((1, 2, 2, 3), 200, np.uint8)
    outputs = Engine(open_artifact(toy_model), "cpu").predict(images_NHWC, ["labels"])
    assert list(outputs) == ["labels"]
    np.testing.assert_array_equal(outputs["labels"], np.full((1, 2, 2), 3))


class Recorded:
    """A session; how many images each run had, in which thread. Runs of threads of their own wait for each other."""

    def __init__(self, session, runs, barrier=None):
        self.session, self.runs, self.barrier = session, runs, barrier

    def run(self, wanted, inputs, options):
        [images_NHWC] = inputs.values()
        self.runs.append((len(images_NHWC), threading.current_thread()))
        if self.barrier:
            self.barrier.wait(60)
        if (images_NHWC == 255).all():
            raise RuntimeError("this image fails")
        return self.session.run(wanted, inputs, options)


@pytest.fixture
def recorded(toy_model, monkeypatch):
    """(engine of so many threads, its runs with all threads, its runs of one thread each)."""
    monkeypatch.setattr(engine_module, "MIN_PIXELS_PER_THREAD", 35)

    def make(threads, barrier=None):
        engine, together, apart = Engine(open_artifact(toy_model), "cpu", threads), [], []
        engine._session = Recorded(engine._session, together)
        engine._one_thread_session = Recorded(engine._one_thread_session, apart, barrier)
        return engine, together, apart

    return make


@pytest.mark.parametrize(
    ("threads", "count", "apart", "together"),
    [(1, 3, 3, []), (2, 4, 4, []), (2, 5, 4, [1]), (3, 8, 6, [2]), (4, 3, 0, [3])],
)
def test_images_of_a_batch_run_side_by_side_on_a_cpu(recorded, threads, count, apart, together):
    engine, runs_together, runs_apart = recorded(threads, threading.Barrier(threads))
    images_NHWC = np.random.default_rng(0).integers(0, 255, (count, 5, 7, 3), np.uint8)
    outputs = engine.predict(images_NHWC)
    np.testing.assert_array_equal(outputs["labels"], images_NHWC[..., 0] // 64)
    np.testing.assert_allclose(outputs["confidence"], images_NHWC[..., 1] / 255, rtol=1e-6)
    assert [number for number, _ in runs_together] == together
    assert [number for number, _ in runs_apart] == [1] * apart
    assert len({thread for _, thread in runs_apart}) == (threads if apart else 0)


def test_single_and_small_images_have_all_threads(recorded):
    engine, together, apart = recorded(2)
    engine.predict(np.zeros((1, 5, 7, 3), np.uint8))
    engine.predict(np.zeros((4, 5, 6, 3), np.uint8))
    assert ([number for number, _ in together], apart) == ([1, 4], [])


@pytest.mark.parametrize("failing", [[0], [1], [5], [0, 1, 2]])
def test_images_that_fail_fail_their_batch_and_no_other(recorded, failing):
    engine, _, _ = recorded(3)
    good = np.zeros((6, 5, 7, 3), np.uint8)
    bad = good.copy()
    bad[failing] = 255
    with ThreadPoolExecutor(4) as callers:
        futures = [callers.submit(engine.predict, images) for images in (good, bad, good, good)]
        with pytest.raises(RuntimeError, match="this image fails"):
            futures[1].result(60)
        for future in (futures[0], *futures[2:]):
            np.testing.assert_array_equal(future.result(60)["labels"], np.zeros((6, 5, 7)))


def test_after_a_failure_the_others_are_not_computed(recorded):
    engine, _, runs = recorded(3, threading.Barrier(3))
    images_NHWC = np.full((9, 5, 7, 3), 255, np.uint8)
    with pytest.raises(RuntimeError, match="this image fails"):
        engine.predict(images_NHWC)
    assert len(runs) == 3


def test_the_input_is_called_as_the_artifact_says(tmp_path):
    other = Tensor(name="pixels", datatype="UINT8", shape=(-1, -1, -1, 3), description="")
    folder = write_toy_model(tmp_path / "toy", 1, inputs=(other,))
    assert Engine(open_artifact(folder), "cpu").input == "pixels"
    two = write_toy_model(tmp_path / "two", 1, inputs=(other, other))
    with pytest.raises(ValueError, match="a model must have one input"):
        Engine(open_artifact(two), "cpu")


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "ABSOLUTE"])
def test_weights_in_other_files_are_refused(tmp_path, location):
    """Beside the graph they are not covered by its checksum, and elsewhere they may be any file of the machine."""
    folder = tmp_path / "toy" / "1"
    write_toy_model(tmp_path / "toy", 1)
    for place in (folder, folder.parent):
        np.full(256, 64, np.float32).tofile(place / "weights.bin")
    model = onnx.load(folder / GRAPH_FILE)
    [step] = [constant for constant in model.graph.initializer if constant.name == "step"]
    step.ClearField("float_data")
    step.dims.append(256)
    step.data_location = onnx.TensorProto.EXTERNAL
    named = location if location != "ABSOLUTE" else str(folder / "weights.bin")
    step.external_data.add(key="location", value=named)
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString())
    fields = json.loads((folder / INFO_FILE).read_text()) | {"sha256": sha256_of(folder / GRAPH_FILE)}
    (folder / INFO_FILE).write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"model.onnx cannot be opened: .*External data path"):
        Engine(open_artifact(tmp_path / "toy"), "cpu")


@pytest.mark.parametrize(
    ("line", "files", "cpus"),
    [
        ("0::/", {"cpu.max": "max 100000"}, np.inf),
        ("0::/", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/pod/box", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "max 100000"}, 3),
        ("0::/pod/box", {"pod/cpu.max": "300000 100000", "pod/box/cpu.max": "50000 100000"}, 0.5),
        ("0::/host/path", {"cpu.max": "400000 100000"}, 4),
        ("4:cpu,cpuacct:/box", {"cpu/box/cpu.cfs_quota_us": "150000", "cpu/box/cpu.cfs_period_us": "100000"}, 1.5),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, np.inf),
        ("5:memory:/box", {"cpu/box/cpu.cfs_quota_us": "1", "cpu/box/cpu.cfs_period_us": "1"}, np.inf),
        ("0::/", {"cpu.max": "nonsense"}, np.inf),
    ],
)
def test_cpu_time_of_a_container(tmp_path, line, files, cpus):
    (tmp_path / "cgroup").write_text(f"{line}\n")
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(f"{text}\n")
    assert cgroup_cpus(tmp_path / "cgroup", tmp_path / "root") == cpus


def test_threads_follow_the_container(monkeypatch):
    assert cgroup_cpus(Path("nowhere")) == np.inf
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for limit, cpus in ((2.5, 2), (0.5, 1), (16, 8), (np.inf, 8)):
        monkeypatch.setattr(engine_module, "cgroup_cpus", lambda limit=limit: limit)
        assert usable_cpus() == cpus


LARGE_IMAGE = """
import sys
from pathlib import Path

import numpy as np

from benchmarks.turns import resident_mib
from serving.common.artifact import open_artifact
from serving.model.engine import Engine

engine = Engine(open_artifact(Path(sys.argv[1])), "cpu", threads=1)
image_NHWC = np.zeros((1, 4000, 4000, 3), np.uint8)
engine.predict(image_NHWC[:, :64, :64], ["labels"])
before = resident_mib("self")
for _ in range(2):
    engine.predict(image_NHWC, ["labels"])
print(resident_mib("self") - before)
"""


def test_a_large_image_leaves_no_memory_behind(toy_model):
    """Its intermediate values, as float32, take 16 bytes a pixel and more."""
    # A process of its own: what other tests leave behind in theirs is freed and taken at any time.
    found = subprocess.run([sys.executable, "-c", LARGE_IMAGE, toy_model], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 80  # a third of them


def test_thin_images_make_small_batches():
    """They count as the network pads them."""
    assert [engine_module.batch_limit(size, 8) for size in ((1024, 1024), (1, 2**20 // 32), (1, 2**20))] == [4, 4, 1]


def test_onnxruntime_says_nothing_of_its_own(toy_model, capfd):
    """What goes wrong is raised: its lines would stand between those of a log in JSON."""
    graph = onnx.load(toy_model / "1" / GRAPH_FILE)
    three = onnx.helper.make_tensor("three", onnx.TensorProto.INT64, [3], [1, 1, 3])
    graph.graph.initializer.append(three)
    graph.graph.node.append(onnx.helper.make_node("Reshape", ["confidence", "three"], ["other"]))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, [1, 1, 3]))
    onnx.save(graph, toy_model / "1" / GRAPH_FILE)
    fields = json.loads((toy_model / "1" / INFO_FILE).read_text())
    fields["sha256"] = sha256_of(toy_model / "1" / GRAPH_FILE)
    fields["outputs"].append(fields["outputs"][1] | {"name": "other"})
    (toy_model / "1" / INFO_FILE).write_text(json.dumps(fields))
    engine = Engine(open_artifact(toy_model), "cpu")
    with pytest.raises(Exception, match="Reshape"):
        engine.predict(np.zeros((1, 2, 2, 3), np.uint8))
    assert engine.predict(np.zeros((1, 1, 3, 3), np.uint8))["other"].shape == (1, 1, 3)
    assert capfd.readouterr().err == ""


def test_memory_is_given_back(toy_model, monkeypatch):
    """By a run of each session that shrinks what it has allocated."""
    runs = []

    class Noted:
        def __init__(self, session):
            self.session = session

        def run(self, wanted, inputs, options):
            runs.append(options)
            return self.session.run(wanted, inputs, options)

    engine = Engine(open_artifact(toy_model), "cpu", threads=2)
    engine._session, engine._one_thread_session = Noted(engine._session), Noted(engine._one_thread_session)
    engine.give_back_memory()
    assert runs == [engine._shrink] * 2


def test_features_come_when_they_are_asked_for(tmp_path):
    """Those of the toy model are the means of red, green and blue; those of a large image the means of its windows."""
    model = write_toy_model(tmp_path / "toy", 1, maps=("confidence", "logits"), features=True)
    engine = Engine(open_artifact(model), "cpu")
    images_NHWC = np.random.default_rng(0).integers(0, 256, (3, 6, 9, 3), np.uint8)
    assert engine.predict(images_NHWC).keys() == {"labels", "confidence", "logits"}
    features_ND = engine.predict(images_NHWC, ["features"])["features"]
    np.testing.assert_allclose(features_ND, images_NHWC.mean(axis=(1, 2)), rtol=1e-5)

    image_HW3 = images_NHWC[0]
    logits = {"logits": np.zeros((1, 6, 6, len(engine.artifact.info.classes)), np.float32)}
    predict = engine.predict
    engine.predict = lambda windows, names: predict(windows, names) | logits
    found = engine.predict_large(image_HW3, (6, 6), stride=0.5, batch_size=1, features=True)
    expected_D = np.mean([image_HW3[:, x : x + 6].mean(axis=(0, 1)) for x in (0, 3)], axis=0)
    np.testing.assert_allclose(found["features"], expected_D, rtol=1e-5)
    assert "features" not in engine.predict_large(image_HW3, (6, 6), stride=0.5, batch_size=1)


def test_an_output_that_the_graph_does_not_have_is_refused(toy_model):
    file = toy_model / "1" / INFO_FILE
    fields = json.loads(file.read_text())
    fields["outputs"].append(fields["outputs"][1] | {"name": "reliability"})
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="lists the output reliability, and its graph gives labels, confidence"):
        Engine(open_artifact(toy_model), "cpu")
    file.write_text(json.dumps(fields | {"outputs": fields["outputs"][:-1], "features": 3}))
    with pytest.raises(ValueError, match="lists the output features, and its graph gives labels, confidence"):
        Engine(open_artifact(toy_model), "cpu")
