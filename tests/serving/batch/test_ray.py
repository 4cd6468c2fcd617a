"""A batch job over a cluster of two machines, which are processes of this one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from serving.batch.command import BatchConfig, main
from serving.batch.pipeline import SegmentOptions
from tests.serving.images import expected_labels, labels_at, manifest, save_image

batch_ray = pytest.importorskip("serving.batch.ray", reason="needs kerasseg[ray]", exc_type=ImportError)

IMAGES = 240


@pytest.fixture
def cluster():
    """Two machines with a core each, and one of the driver."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster
    cluster.shutdown()


def processes_of_actors():
    commands = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
    return [int(pid) for pid, command in commands.items() if b"MapBatches(Actor)" in command]


@pytest.mark.slow
def test_a_job_goes_on_when_a_worker_is_killed_and_a_machine_lost(cluster, toy_model, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    for index in range(IMAGES):
        save_image(photos / f"p{index:03}.png", 60, 80, seed=index)
    (photos / "broken.png").write_bytes(b"no image")
    flags = [
        "--provider",
        "cpu",
        "--write",
        "labels",
        "rle",
        "coco",
        "--engine",
        "ray",
        "--ray-address",
        cluster.address,
    ]
    command = [sys.executable, "-m", "serving.batch", str(toy_model), str(photos), str(out), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    job = subprocess.Popen(command, text=True, **pipes)
    lines, deadline = out / "manifest.jsonl", time.monotonic() + 120

    def wait_for(count):
        while not lines.exists() or lines.read_bytes().count(b"\n") < count:
            assert job.poll() is None and time.monotonic() < deadline, job.communicate()
            time.sleep(0.01)

    wait_for(10)
    while len(processes_of_actors()) < 2:
        assert job.poll() is None and time.monotonic() < deadline
    os.kill(processes_of_actors()[0], signal.SIGKILL)
    wait_for(40)
    cluster.remove_node(cluster.machines[0])
    assert job.poll() is None
    stdout, stderr = job.communicate(timeout=120)

    assert job.returncode == 1, stderr
    result = json.loads(stdout)
    assert result.items() >= {"written": IMAGES, "failed": 1, "skipped": 0, "provider": "cpu"}.items()
    assert manifest(out)["broken.png"]["status"] == "error"
    runs = [json.loads(line)["input"] for line in (out / "rle.jsonl").read_text().splitlines()]
    assert runs == [f"p{index:03}.png" for index in range(IMAGES)]
    for name in runs:
        np.testing.assert_array_equal(labels_at(out / "labels" / name), expected_labels(photos / name))
    assert [image["file_name"] for image in json.loads((out / "coco.json").read_text())["images"]] == runs


def block_of(*sources, earlier=None):
    job = [json.dumps([str(source), source.name, source.stem]) for source in sources]
    return {"job": np.array(job), "earlier": np.array([json.dumps(earlier or {})] * len(job))}


def actor(model, output, threads=1):
    options = SegmentOptions(
        output=output,
        write=("labels",),
        runs_file="rle.jsonl",
        batch_size=4,
        max_pixels=10**6,
        window=None,
        stride=1.0,
    )
    return batch_ray.Actor(model, "cpu", threads, options)


def test_an_actor_leaves_what_is_done(toy_model, tmp_path):
    save_image(tmp_path / "a.png")
    call = actor(toy_model, tmp_path / "out")
    [record] = map(json.loads, call(block_of(tmp_path / "a.png"))["record"])
    assert (record["status"], record["input"]) == ("ok", "a.png")
    [again] = map(json.loads, call(block_of(tmp_path / "a.png", earlier=record))["record"])
    assert again == {"status": "skipped"}


def test_what_ends_a_job_is_told_by_the_machine(toy_model, tmp_path):
    """After the records of what it could write."""
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name)
    out = tmp_path / "out"
    (out / "labels" / "b.png").mkdir(parents=True)
    done, record = map(json.loads, actor(toy_model, out)(block_of(tmp_path / "a.png", tmp_path / "b.png"))["record"])
    assert (done["status"], done["input"], record["status"]) == ("ok", "a.png", "given up")
    assert record["error"].startswith(f"{os.uname().nodename}: [Errno 21] Is a directory")
    [record] = map(json.loads, actor(tmp_path / "none", tmp_path)(block_of(tmp_path / "a.png"))["record"])
    assert "there is no model at" in record["error"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_no_cluster_is_told_at_once(toy_model, tmp_path, address):
    save_image(tmp_path / "photos" / "a.png")
    with pytest.raises(ValueError, match=f"no Ray cluster at {address}"):
        main(
            BatchConfig(
                model=toy_model,
                input=str(tmp_path / "photos"),
                output=tmp_path / "out",
                provider="cpu",
                engine="ray",
                ray_address=address,
            )
        )
