"""`python -m serving.run` from start to end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from serving import run
from serving.common import cli
from serving.common.images import png
from serving.model.repository import Repository
from tests.serving.http_calls import SEGMENT
from tests.serving.images import encoded_image
from tests.serving.model.test_model import SAMPLES
from tests.serving.servers import clients, running, until
from tests.serving.toy_model import write_toy_model


@pytest.fixture
def refused(toy_model, capfd, tmp_path, monkeypatch):
    """Starts the command with wrong flags; returns what it says."""
    monkeypatch.chdir(tmp_path)

    def start(*args):
        with pytest.raises(SystemExit) as exit:
            cli.run(run.main, run.ServerConfig, "", ["models", "--port", "0", "--provider", "cpu", *map(str, args)])
        captured = capfd.readouterr()
        assert (exit.value.code, captured.out) == (2, "")
        return captured.err.splitlines()[-1]

    return start


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch-size", 0], "--batch-size must be at least 1, got 0"),
        (["--max-delay-ms", -1], "--max-delay-ms must be at least 0, got -1.0"),
        (["--drain-timeout", 0], "--drain-timeout must be at least 1, got 0"),
        (["--timeout", 0], "--timeout must be above 0"),
        (["--warm-up", 0, 4], "--warm-up and --buckets are heights and widths"),
        (["--buckets", 8, 8], "--buckets needs --bucket-images"),
        (["--buckets", 8, 8, "--bucket-images", "empty"], "no images in empty"),
        (["--threads", 2, "--workers", 3], "--workers 3 share 2 threads"),
        (["--provider", "cuda", "--threads", 2, "--workers", 2], "--workers 2 are for CPUs"),
        (["--token-file", "nothing"], "nothing"),
        (["--token-file", "words"], "words must hold one word"),
        (["--host", "not.an.address"], "cannot listen at not.an.address, port 0"),
        (["--port", 70000], "--port must be 0 to 65535, got 70000"),
        (["--allow-origin", "a.example"], "--allow-origin a.example: expected scheme and host"),
        (["--allow-origin", "https://a.example/"], "--allow-origin https://a.example/: expected scheme and host"),
        (["--grpc-port", -1], "--grpc-port must be 0 to 65535, got -1"),
    ],
)
def test_mistakes_are_one_line(refused, tmp_path, args, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").write_text("two words")
    error = refused(*args)
    assert error.startswith("error: ")
    assert said in error


def test_a_port_that_is_taken(refused):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"cannot listen at 127.0.0.1, port {port}: [Errno 98]" in refused("--port", port)


def test_models_that_cannot_be_served(refused, toy_model):
    with (toy_model / "1" / "model.onnx").open("ab") as graph:
        graph.write(b" ")
    assert "sha256 differs" in refused()


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has a GPU")
def test_a_gpu_that_cannot_be_used(refused, monkeypatch):
    assert "CUDA was asked for and cannot be used" in refused("--provider", "cuda")
    # It is there, so running on the CPU would not be what was meant.
    monkeypatch.setattr(run, "has_gpu", lambda: True)
    assert "CUDA was asked for and cannot be used" in refused("--provider", "auto")


def test_auto_takes_the_cpu_where_there_is_no_gpu(toy_model, monkeypatch):
    monkeypatch.setattr(run, "has_gpu", lambda: False)
    with running(toy_model.parent, provider="auto") as server:
        assert server.repository.get("toy").provider == "cpu"


def test_alive_before_it_is_ready(toy_model, monkeypatch):
    load, allowed = Repository.load, threading.Event()
    monkeypatch.setattr(Repository, "load", lambda self: allowed.wait(600) and load(self))
    server = run.Server(run.ServerConfig(models=toy_model.parent, port=0, provider="cpu"))
    thread = threading.Thread(target=server.serve_requests)
    thread.start()
    until(lambda: server.started)
    with httpx.Client(base_url=server.url, timeout=600) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/toy").status_code == 503
        allowed.set()
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        assert client.get("/v2/models/toy").status_code == 200
    server.should_exit = True
    thread.join()


def test_a_new_version_is_found(toy_model):
    with running(toy_model.parent, poll=0.01) as server:
        elsewhere = write_toy_model(toy_model.parent.parent / "elsewhere" / "toy", 2) / "2"
        elsewhere.rename(toy_model / "2")
        until(lambda: server.repository.versions("toy") == [2])
        assert httpx.post(server.url + SEGMENT, content=encoded_image()).status_code == 200


def test_flags_reach_the_models(toy_model, tmp_path):
    for index, sample in enumerate(SAMPLES):
        (tmp_path / "samples").mkdir(exist_ok=True)
        (tmp_path / "samples" / f"{index}.png").write_bytes(png(sample))
    flags = dict(buckets=((8, 8), (16, 16)), bucket_images=tmp_path / "samples", batch_size=5, max_delay=2.5)
    with running(toy_model.parent, **flags) as server:
        config = httpx.get(f"{server.url}/v2/models/toy/config").json()
    assert config["max_batch_size"] == 5
    assert config["dynamic_batching"] == {"max_queue_delay_microseconds": 2500}
    assert config["parameters"]["buckets"] == {"string_value": "8x8 16x16"}


def test_a_signal_drains(toy_model, gate):
    """With a delay new requests are taken, while ready says no; then those that run are finished."""
    gate.open()
    with running(toy_model.parent, drain_delay=3600) as server, clients(server) as post:
        gate._open.clear()
        gate.batches.clear()
        first = post(SEGMENT, encoded_image())
        until(lambda: gate.batches)
        server.handle_exit(signal.SIGTERM, None)
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503
        second = post(SEGMENT, encoded_image())
        until(lambda: server.repository.get("toy").pending == 1)
        server._exit_at = 0.0  # the delay is over
        until(lambda: server.should_exit)
        gate.open()
        assert (first.result().status_code, second.result().status_code) == (200, 200)


HANGS = {
    "nothing": "",
    "a reader of stderr": "fill(2)",
    "a reader of stdout": "fill(1)",
    "a disk at the start": "model.open_artifact = lambda folder: time.sleep(3600)",
    "a disk later": "repository.Repository.scan = lambda self: time.sleep(3600)",
    "a session": """
        predict = engine.Engine.predict  # which hangs once it is warm
        engine.Engine.predict = lambda self, images, *rest: images.shape[1] > 99 and predict(self, images) or hang()
    """,
}


@pytest.mark.parametrize("what", HANGS)
def test_a_signal_ends_the_server_whatever_hangs(toy_model, what):
    code = f"""if True:
        import os, time
        from serving import run
        from serving.common import cli
        from serving.model import engine, model, repository

        def hang():
            time.sleep(3600)

        def fill(descriptor):
            os.set_blocking(descriptor, False)
            try:
                while os.write(descriptor, b" "):
                    pass
            except BlockingIOError:
                os.set_blocking(descriptor, True)

        {HANGS[what]}
        cli.run(run.main, run.ServerConfig, '')
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    at_once = what in ("nothing", "a reader of stderr")
    seconds = "60" if at_once else "2"  # enough for a machine that is busy; or what is waited for
    flags = ["--port", str(port), "--provider", "cpu", "--poll", "0.01", "--drain-timeout", seconds]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(toy_model.parent), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"
    loading = what == "a disk at the start"

    def alive():
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/v2/health/{'live' if loading else 'ready'}").status_code == 200

    until(lambda: process.poll() is not None or alive())
    with contextlib.suppress(httpx.TransportError):
        httpx.post(url + SEGMENT, content=encoded_image(), timeout=1)
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(60)
    finally:
        process.kill()
        stdout, stderr = process.communicate()
    if at_once:
        assert status == 0 and "requests" in json.loads(stdout)
    elif status:
        assert status == 1 and json.loads(stderr.splitlines()[-1])["event"] == "ended before all was done"
    else:
        assert "a disk" in what and "requests" in json.loads(stdout)


def test_terminated_under_load(toy_model, tmp_path):
    """As a process: it says where it listens, answers what it has taken, and ends with its result."""
    code = (
        "import sys; from serving import run; from serving.common import cli\n"
        "try: cli.run(run.main, run.ServerConfig, '')\n"
        "finally: print([name for name in ('tensorflow', 'keras', 'kerasseg', 'onnx', 'ray', 'grpc')"
        " if name in sys.modules])\n"
    )
    arguments = [str(toy_model.parent), "--port", "0", "--provider", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines, urls = [], []

    def read():
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["event"] == "ready":
                urls.append(lines[-1]["url"])

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: urls or process.poll() is not None)
    statuses, refused = [], []

    def client(seed):
        with httpx.Client(base_url=urls[0], timeout=600) as http:
            while not refused:
                try:
                    statuses.append(http.post(SEGMENT, content=encoded_image(seed=seed)).status_code)
                except httpx.ConnectError:
                    refused.append(seed)  # it listens no more
                except httpx.TransportError:
                    pass  # an idle connection was closed when the next request was on its way

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(statuses) > 30)
    process.send_signal(signal.SIGTERM)
    for thread in [*threads, reader]:
        thread.join()
    result, modules = process.stdout.read().splitlines()[-2:]
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 0
    assert set(statuses) == {200}
    assert json.loads(result)["requests"] >= len(statuses)
    assert modules == "[]"
    requests = [line for line in lines if line["event"] == "request"]
    assert {line["status"] for line in requests if line["path"] == SEGMENT} == {200}
    assert sum(line["status"] == 200 for line in requests) >= len(statuses)
