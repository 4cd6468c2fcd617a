"""`python -m benchmarks.health`: how long health takes to answer while others send requests that are slow to read.

The server has a process of its own. Three clients send the same request without pause, and a fourth asks
`/v2/health/live` again and again, from a process of its own. All share the machine's cores.
"""

import contextlib
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.fuzz import MODEL, served
from benchmarks.results_file import write_between_markers
from benchmarks.turns import circumstances
from serving.common import cli
from tests.serving.grpc_calls import calling, infer_request
from tests.serving.images import encoded

CLIENTS = 3
PAUSE = 0.01
"""Seconds between an answer of health and the next question."""


@dataclass(frozen=True, kw_only=True)
class Health:
    """How long to ask, and where the result goes."""

    seconds: float = 10.0
    """Seconds for each kind of request."""
    results: Path = Path("benchmarks/results/health.md")
    """The result is written between the markers of this file."""


def main(config: Health) -> dict[str, Any]:
    """Asks for health during each kind of request; returns its times, milliseconds."""
    before, rows = circumstances("uvicorn", "httpx"), {}
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder)) as (server, _, _),
        calling(server) as call,
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as asker,
    ):
        asker.submit(ask, server.url, 1.0).result()  # its imports
        for what, send in requests(server, call).items():
            with sending(send) as sent:
                times = asker.submit(ask, server.url, config.seconds).result()
            median, late = np.percentile(times, [50, 99])
            rows[what] = {
                "median": median,
                "99 %": late,
                "most": max(times),
                "asked": len(times),
                "answered": len(sent),
            }
    lines = [f"| {what} | {' | '.join(f'{value:.4g}' for value in row.values())} |" for what, row in rows.items()]
    head = "| during | median, ms | 99 %, ms | most, ms | asked | requests answered |\n| --- |" + " ---: |" * 5
    write_between_markers(config.results, f"{before}.\n\n{head}\n" + "\n".join(lines) + "\n")
    return rows


def requests(server: SimpleNamespace, call: Callable[..., Any]) -> dict[str, Callable[[], Any] | None]:
    """The requests, by name: each is a function that sends one and waits for its answer."""
    infer, segment = f"{server.url}/v2/models/{MODEL}/infer", f"{server.url}/v1/segment/{MODEL}"
    numbers = json.dumps({"inputs": [{"name": "image", "data": [1234] * 2_500_000}]}).encode()
    lists = b'{"inputs": [' + b",".join([b"[]"] * 60_000) + b"]}"
    keys = json.dumps({str(key): 0 for key in range(30_000)}).encode()
    png = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), np.uint8)))
    many = infer_request().SerializeToString() + b"\x2a\0" * 1_000_000  # empty inputs
    return {
        "nothing": None,
        f"JSON with 2,500,000 numbers, {len(numbers) / 1e6:.0f} MB": lambda: httpx.post(
            infer, content=numbers, timeout=60
        ),
        "JSON with 60,000 empty lists": lambda: httpx.post(infer, content=lists, timeout=60),
        "JSON with 30,000 keys": lambda: httpx.post(infer, content=keys, timeout=60),
        "a PNG of 2048x2048 pixels": lambda: httpx.post(segment, content=png, timeout=60),
        "gRPC with 1,000,000 empty inputs": lambda: call("ModelInfer", many).code(),
    }


@contextlib.contextmanager
def sending(send: Callable[[], Any] | None) -> Iterator[list[Any]]:
    """Some clients send without pause meanwhile; yields the answers."""
    answers: list[Any] = []
    ended = threading.Event()

    def go_on() -> None:
        while send and not ended.is_set():
            answers.append(send())

    threads = [threading.Thread(target=go_on) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def ask(url: str, seconds: float) -> list[float]:
    """How long health took each time, milliseconds."""
    times: list[float] = []
    with httpx.Client(base_url=url, timeout=60) as client:
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            assert client.get("/v2/health/live").status_code == 200
            times.append((time.perf_counter() - start) * 1000)
            time.sleep(PAUSE)
    return times


if __name__ == "__main__":
    cli.run(main, Health, "Measures how long health takes while others send requests that are slow to read.")
