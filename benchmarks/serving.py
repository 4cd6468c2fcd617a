"""`python -m benchmarks.serving MODELS`: the server against its bare engine and against LitServe, on loopback.

    engine      a process that predicts, in batches, the same images as the servers, already decoded
    kerasseg    python -m serving.run
    litserve-N  the same ONNX file in LitServe with N workers (benchmarks.litserve_server)

They take turns; all others are stopped meanwhile. One client, here, keeps `--concurrency` requests under way (JPEG in,
index PNG out), then sends them one by one. After that only our server: one V2 request at a time against the engine;
four times as many requests as it can answer; how long it takes to start. Needs `pip install -e ".[serve]"
litserve`.
"""

import functools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from benchmarks.inference import random_images
from benchmarks.load import closed_loop, jpegs, open_loop, post, rate_of, run
from benchmarks.results_file import write_between_markers
from benchmarks.turns import Record, circumstances, measured, resident_mib, spread, take_turns
from serving.common import cli
from serving.common.artifact import open_artifact, versions
from serving.common.images import load_image
from serving.model.engine import Engine, Provider

STARTS = 60
"""Seconds within which a server must answer."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What to measure, and where the tables go."""

    models: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODELS")]
    """The folder of models, MODELS/name/VERSION."""
    model: str | None = None
    """Its name; the first when left out."""
    provider: Provider = "cpu"
    """Where to run."""
    size: tuple[int, int] = (321, 321)
    """Height and width of the images."""
    batch_size: int = 8
    """Images predicted together, at most."""
    concurrency: int = 32
    """Requests under way at saturation."""
    seconds: float = 10.0
    """Seconds of one turn."""
    repeats: int = 3
    """Turns of each; the tables have their median, smallest and largest."""
    litserve_workers: tuple[int, ...] = (1, 2)
    """A LitServe server for each number."""
    max_delay_ms: float = 1.0
    """The server's flag; LitServe has 1 ms too."""
    flags: tuple[str, ...] = ()
    """Further flags of the server."""
    overload_seconds: float = 60.0
    """How long it is sent four times its capacity."""
    results: Path = Path("benchmarks/results/serving.md")
    """The tables are written between the markers of this file."""
    side: str | None = None
    """engine: be the process that is measured; set by the benchmark itself."""


# Requests, as bytes that are sent again and again


def image_requests(config: Serving, name: str) -> list[bytes]:
    return [post(f"/v1/segment/{name}", jpeg, Accept="image/png") for jpeg in jpegs(config.size)]


def form_requests(config: Serving) -> list[bytes]:
    """LitServe takes files as forms."""
    head = (
        b'--part\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    )
    kind = "multipart/form-data; boundary=part"
    return [post("/predict", head + jpeg + b"\r\n--part--\r\n", Content_Type=kind) for jpeg in jpegs(config.size)]


def tensor_request(config: Serving, name: str) -> bytes:
    """V2, binary, one image in and labels out."""
    image_NHW3 = random_images((1, *config.size))
    size = {"binary_data_size": image_NHW3.nbytes}
    image = {"name": "image", "datatype": "UINT8", "shape": image_NHW3.shape, "parameters": size}
    wanted = [{"name": "labels", "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": [image], "outputs": wanted}).encode()
    return post(
        f"/v2/models/{name}/infer", header + image_NHW3.tobytes(), Inference_Header_Content_Length=str(len(header))
    )


# The client


# The sides


def engine_process(config: Serving, name: str) -> None:
    """Predicts one image, and full batches, already decoded."""
    engine = Engine(open_artifact(config.models / name), config.provider)
    images = np.stack([load_image(jpeg) for jpeg in jpegs(config.size)])
    batches = [images[start : start + config.batch_size] for start in range(0, len(images), config.batch_size)]
    for batch in (batches[0], images[:1]):
        engine.predict(batch)

    def turn() -> Record:
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < config.seconds:
            for batch in batches:
                engine.predict(batch, ["labels"])
                done += len(batch)
        rate = done / (time.perf_counter() - began)
        times: list[float] = []
        while sum(times) < config.seconds / 2:
            started = time.perf_counter()
            engine.predict(images[:1], ["labels"])
            times.append(time.perf_counter() - started)
        return {"rate": rate, "one": statistics.median(times)}

    take_turns({}, turn)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def server(command: list[str], port: int, health: str) -> Iterator[tuple[subprocess.Popen, float]]:
    """A server's process, and the seconds until its health was good."""
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        # A group of its own: LitServe's workers outlive it when it is terminated.
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            request = f"GET {health} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            while not _healthy(port, request):
                if process.poll() is not None or time.perf_counter() - began > STARTS:
                    log.seek(0)
                    raise ValueError(f"{' '.join(command)} does not get ready: {log.read().decode()[-2000:]}")
                time.sleep(0.005)
            yield process, time.perf_counter() - began
        finally:
            process.terminate()
            _signal_group(process, signal.SIGCONT)  # a stopped process would not receive the signal
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STARTS)
            finally:
                _signal_group(process, signal.SIGKILL)
                process.wait()


@contextmanager
def its_turn(process: subprocess.Popen) -> Iterator[None]:
    """Its processes run inside, and are stopped afterwards: LitServe's poll even without requests."""
    _signal_group(process, signal.SIGCONT)
    try:
        yield
    finally:
        _signal_group(process, signal.SIGSTOP)


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _healthy(port: int, request: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(request)
            return connection.recv(4096).split()[1:2] == [b"200"]
    except OSError:
        return False


def kerasseg_server(config: Serving, port: int, max_delay_ms: float | None = None):
    command = [sys.executable, "-m", "serving.run", str(config.models), "--port", str(port), "--no-access-log"]
    command += ["--provider", config.provider, "--batch-size", str(config.batch_size)]
    command += ["--warm-up", *map(str, config.size), *config.flags]
    delay = config.max_delay_ms if max_delay_ms is None else max_delay_ms
    return server([*command, "--max-delay-ms", str(delay)], port, "/v2/health/ready")


def litserve_server(config: Serving, graph: Path, port: int, workers: int):
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    command = [sys.executable, "-m", "benchmarks.litserve_server", str(graph), str(port), config.provider]
    return server([*command, str(config.batch_size), str(workers), str(threads)], port, "/health")


# The measurements


def side_by_side(config: Serving, name: str, graph: Path) -> dict[str, list[Record]]:
    """Turns of each: answers a second at saturation, and seconds of one at a time."""
    engine = [sys.executable, "-m", "benchmarks.serving", str(config.models), "--model", name, "--side", "engine"]
    engine += ["--provider", config.provider, "--size", *map(str, config.size), "--seconds", str(config.seconds)]
    engine += ["--batch-size", str(config.batch_size)]
    turns: dict[str, list[Record]] = {}
    with ExitStack() as stack:
        _, ask = stack.enter_context(measured(engine, "engine"))
        ports = {"kerasseg": free_port()} | {f"litserve-{count}": free_port() for count in config.litserve_workers}
        requests = dict.fromkeys(ports, form_requests(config)) | {"kerasseg": image_requests(config, name)}
        servers = {"kerasseg": functools.partial(kerasseg_server, config, ports["kerasseg"])}
        for count in config.litserve_workers:
            side = f"litserve-{count}"
            servers[side] = functools.partial(litserve_server, config, graph, ports[side], count)
        processes = {}
        for side, start in servers.items():
            processes[side], _ = stack.enter_context(start())
            with its_turn(processes[side]):  # it prepares new shapes
                run(closed_loop(ports[side], requests[side], config.concurrency, 2.0))
        for _ in range(config.repeats):
            turns.setdefault("engine", []).append(ask())
            for side, port in ports.items():
                with its_turn(processes[side]):
                    replies = run(closed_loop(port, requests[side], config.concurrency, config.seconds, lead=1.0))
                    single = run(closed_loop(port, requests[side], 1, config.seconds / 2))
                rate_of(single, config.seconds)
                one = statistics.median(reply.seconds for reply in single)
                turns.setdefault(side, []).append({"rate": rate_of(replies, config.seconds), "one": one})
    return turns


def overhead(config: Serving, name: str) -> list[Record]:
    """Turns of one V2 request at a time, to a server that waits for no second one, and of the engine."""
    engine = [sys.executable, "-m", "benchmarks.serving", str(config.models), "--model", name, "--side", "engine"]
    engine += ["--provider", config.provider, "--size", *map(str, config.size), "--seconds", "1"]
    engine += ["--batch-size", "1"]
    port, requests, turns = free_port(), [tensor_request(config, name)], []
    with measured(engine, "engine") as (_, ask), kerasseg_server(config, port, max_delay_ms=0):
        run(closed_loop(port, requests, 1, 1.0))
        for _ in range(10 * config.repeats):  # many and short: the machine's speed varies more than the difference
            replies = run(closed_loop(port, requests, 1, 1.0))
            rate_of(replies, 1.0)
            served = statistics.median(reply.seconds for reply in replies)
            turns.append({"engine": ask()["one"], "served": served})
    return turns


def overload(config: Serving, name: str) -> dict[str, float]:
    """Four times as many requests as can be answered."""
    port = free_port()
    with kerasseg_server(config, port) as (process, _):
        requests = image_requests(config, name)
        replies = run(closed_loop(port, requests, config.concurrency, config.seconds, lead=1.0))
        capacity = rate_of(replies, config.seconds)
        before = resident_mib(process.pid)
        rate = 4 * capacity
        replies = run(open_loop(port, requests, rate, config.overload_seconds / 2))
        halfway = resident_mib(process.pid)
        replies += run(open_loop(port, requests, rate, config.overload_seconds / 2))
        after = resident_mib(process.pid)
    by_status: dict[int, list[float]] = {}
    for reply in replies:
        by_status.setdefault(reply.status, []).append(reply.seconds)
    if others := set(by_status) - {200, 503}:
        raise ValueError(f"an overloaded server answered with {sorted(others)}")
    return {
        "capacity": capacity,
        "sent a second": len(replies) / config.overload_seconds,
        "answered": len(by_status.get(200, [])),
        "refused": len(by_status.get(503, [])),
        "refused, median ms": 1000 * percentile(by_status.get(503, [0.0]), 50),
        "refused, p99 ms": 1000 * percentile(by_status.get(503, [0.0]), 99),
        "refused, slowest ms": 1000 * max(by_status.get(503, [0.0])),
        "answered, p99 ms": 1000 * percentile(by_status[200], 99),
        "a full queue takes, ms": 1000 * (64 + config.batch_size) / capacity,
        "MiB before": before,
        "MiB halfway": halfway,
        "MiB after": after,
    }


def percentile(values: list[float], share: int) -> float:
    return float(np.percentile(values, share))


def start_times(config: Serving) -> dict[str, list[float]]:
    """Seconds until ready, and of importing the server."""
    ready, imported = [], []
    for _ in range(config.repeats):
        with kerasseg_server(config, free_port()) as (_, seconds):
            ready.append(seconds)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import serving.run"], check=True)
        imported.append(time.perf_counter() - began)
    return {"ready": ready, "imported": imported}


def main(config: Serving) -> dict:
    names = sorted(child.name for child in config.models.iterdir() if versions(child))
    name = config.model or names[0]
    if config.side == "engine":
        engine_process(config, name)
        return {}
    artifact = open_artifact(config.models / name)
    print("turns of the engine and the servers", file=sys.stderr)
    turns = side_by_side(config, name, artifact.graph)
    lines = [
        f"{circumstances('onnxruntime-gpu')}; {artifact.info.name}, {artifact.info.precision}, {config.provider}, "
        f"images of {config.size[0]}x{config.size[1]}, batches of up to {config.batch_size}, {config.concurrency} "
        f"requests at a time, {config.repeats} turns of {config.seconds:g} s: median (smallest to largest).",
        "",
        "| side | images a second | to engine | one at a time, ms |",
        "| --- | ---: | ---: | ---: |",
    ]
    for side, records in turns.items():
        pairs = [own["rate"] / bare["rate"] for own, bare in zip(records, turns["engine"], strict=True)]
        ratio = statistics.median(r["rate"] for r in records) / statistics.median(r["rate"] for r in turns["engine"])
        cells = [side, spread([r["rate"] for r in records]), spread(pairs, ratio)]
        lines.append(f"| {' | '.join([*cells, spread([1000 * r['one'] for r in records])])} |")
    finish = functools.partial(write_between_markers, config.results)
    finish("\n".join(lines) + "\n")

    print("one V2 request at a time", file=sys.stderr)
    pairs = overhead(config, name)
    added = [1000 * (turn["served"] - turn["engine"]) for turn in pairs]
    lines += ["", f"One V2 request at a time, `--max-delay-ms 0`: {spread(added)} ms over the engine's "]
    lines[-1] += f"{spread([1000 * turn['engine'] for turn in pairs])} ms."
    finish("\n".join(lines) + "\n")

    print(f"four times what it can answer, for {config.overload_seconds:g} s", file=sys.stderr)
    under_load = overload(config, name)
    lines += ["", f"Four times what it can answer, for {config.overload_seconds:g} s:", "", "| | |", "| --- | ---: |"]
    lines += [f"| {what} | {value:.{1 if value < 100 else 0}f} |" for what, value in under_load.items()]

    started = start_times(config)
    lines += ["", f"Ready {spread(started['ready'])} s after its start; `import serving.run` takes "]
    lines[-1] += f"{spread(started['imported'])} s."
    finish("\n".join(lines) + "\n")
    return {"added_ms": round(statistics.median(added), 3)} | {k: round(v, 3) for k, v in under_load.items()}


if __name__ == "__main__":
    cli.run(main, Serving, __doc__ or "")
