"""What every test gets: a quiet TensorFlow on the CPU, the same random numbers, nothing left of others."""

import os

# Before TensorFlow is imported; commands that a test starts inherit it.
os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "MPLBACKEND": "Agg",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "1",  # as kerasseg does when it is imported before TensorFlow
    "TF_NUM_INTEROP_THREADS": "2",
    "TF_NUM_INTRAOP_THREADS": "2",
}

import random
import shutil
import sys

import hypothesis
import numpy as np
import pytest

# Neither the clock nor chance may decide whether a test passes.
hypothesis.settings.register_profile(
    "kerasseg",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("kerasseg")


LONGEST = ("test_readme.py", "test_examples.py", "test_killed.py", "test_workers.py", "test_papers.py")
"""Files of the longest tests."""


def pytest_collection_modifyitems(items):
    """The longest first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """Two logical CPU devices, for tests of several replicas: only possible before TensorFlow's first op."""
    if "tensorflow" in sys.modules:
        tensorflow = sys.modules["tensorflow"]
        cpu = tensorflow.config.list_physical_devices("CPU")[0]
        devices = [tensorflow.config.LogicalDeviceConfiguration()] * 2
        tensorflow.config.set_logical_device_configuration(cpu, devices)


@pytest.fixture(autouse=True)
def fresh_state():
    """Fixed seeds, and Keras' global state (names, dtype policy) as after its import."""
    random.seed(0)
    np.random.seed(0)
    if "keras" in sys.modules:  # tests of serving do without it, and without the seconds its import takes
        sys.modules["keras"].utils.clear_session(free_memory=False)
        sys.modules["keras"].utils.set_random_seed(0)
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture
def eager():
    """Functions run op by op, without the graphs that pay from the third step on.

    A test marks `filterwarnings("ignore:Even though the `tf.config")` where it has input pipelines, which stay graphs.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def two_replicas():
    """A strategy of two logical CPU devices: one for all tests, since those of one process share collective keys."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def tfds_directories(tmp_path, monkeypatch):
    """The manual and the data directory of published datasets, as small as those of tests.kerasseg.data.archives."""
    from kerasseg.data import builders
    from kerasseg.data.builders.builder import SegmentationBuilder
    from tests.kerasseg.data import archives

    manual, data = tmp_path / "manual", tmp_path / "data"
    monkeypatch.setenv("TFDS_MANUAL_DIR", str(manual))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data))
    monkeypatch.setattr(SegmentationBuilder, "require_published", lambda self, archive, source: None)
    monkeypatch.setattr(builders.Voc2012, "COUNTS", archives.VOC2012_COUNTS)
    monkeypatch.setattr(builders.PascalContext, "COUNTS", archives.CONTEXT_COUNTS)
    monkeypatch.setattr(builders.Cityscapes19, "COUNTS", archives.CITYSCAPES_COUNTS)
    monkeypatch.setattr(builders.Ade20k, "COUNTS", archives.ADE20K_COUNTS)
    monkeypatch.setattr(builders.Coco81, "COUNTS", archives.COCO_COUNTS)
    monkeypatch.setattr(builders.CocoStuff, "COUNTS", archives.COCO_COUNTS)
    return manual, data


@pytest.fixture(scope="module")
def browser():
    """A real browser that asks nothing of the network on its own."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()
