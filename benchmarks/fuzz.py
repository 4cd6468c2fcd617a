"""`python -m benchmarks.fuzz`: sends a server requests that no client should, and checks its answers.

schemathesis makes some requests from the server's own OpenAPI document. Most are bytes: binary tensors, images and
forms that are nearly right, thin images, JSON that is deep or wide, chunks and trailers, odd paths, queries and
headers, messages over gRPC with repeated fields; some clients read slowly, or hang up. No answer may be a 5xx other
than 503 (INTERNAL or UNKNOWN over gRPC), every complete request must have one, and the server's memory must not grow.
`tests/serving/test_fuzz.py` sends a few of the same.
"""

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.fuzz_requests import MODEL, Sent, damaged, http_requests, mostly, repeated
from benchmarks.results_file import write_between_markers
from benchmarks.server_process import server_process
from benchmarks.turns import circumstances, resident_mib
from serving.common import cli
from tests.serving.grpc_calls import calling, infer_request
from tests.serving.servers import answer_to, connect
from tests.serving.toy_model import write_toy_model


@dataclass(frozen=True, kw_only=True)
class Fuzz:
    """How much to send, and where the result goes."""

    requests: int = 10_000
    """In all."""
    seed: int = 0
    """Seed of every random choice."""
    results: Path = Path("benchmarks/results/fuzz.md")
    """The result is written between the markers of this file."""


def status_of(server: Any, sent: Sent) -> int | None:
    """Sends it; the status of the answer, None where there is none."""
    if not sent.whole:
        with connect(server) as raw:
            raw.sendall(sent.contents)
        return None
    answer = answer_to(server, sent.contents, read=256 if sent.slow else 65536)
    return int(answer.split(b" ", 2)[1]) if answer else None


def is_right(status: int | str | None, whole: bool = True) -> bool:
    if isinstance(status, str):
        return status not in ("INTERNAL", "UNKNOWN")
    return not whole if status is None else status < 500 or status == 503


# Requests made from the OpenAPI document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, st.SearchStrategy]]:
    """For each operation, by name, requests that follow the document, and where it has a body, requests that do not."""
    there = {"model": MODEL, "version": "1"}
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        names = [parameter.name for parameter in operation.path_parameters]
        for mode in schemathesis.GenerationMode:
            if mode.is_negative and not operation.body:
                continue
            strategy = operation.as_strategy(
                generation_mode=mode, path_parameters={name: there[name] for name in names}
            )
            anywhere = operation.as_strategy(generation_mode=mode) if names else strategy
            yield f"{operation.label} {mode.value}", mostly(strategy, anywhere)


# The command


def repeat(strategy: st.SearchStrategy, times: int, number: int, send: Callable[[Any], None]) -> None:
    """Sends up to so many examples of the strategy, fewer where it has fewer."""

    @seed(number)
    @settings(
        max_examples=times, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    @given(strategy)
    def each(example: Any) -> None:
        send(example)

    each()


@contextlib.contextmanager
def served(folder: Path, more: Sequence[str] = ()) -> Iterator[tuple[SimpleNamespace, int, list[str]]]:
    """A `server_process` with the tests' model."""
    write_toy_model(folder / MODEL, 1)
    with server_process(folder, more) as running:
        yield running


def main(config: Fuzz) -> dict[str, Any]:
    """Sends all; returns statuses, the server's memory in MiB, and what was wrong."""
    before, started = circumstances("schemathesis", "hypothesis", "uvicorn"), time.monotonic()
    statuses: Counter[str] = Counter()
    memory: dict[int, int] = {}
    wrong: list[str] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder)) as (server, pid, errors),
        calling(server) as call,
    ):

        def count(status: int | str | None, whole: bool, what: str) -> None:
            statuses[str(status) if whole else "client gone"] += 1
            if not is_right(status, whole):
                wrong.append(f"{status}: {what}")
            if statuses.total() in (config.requests // 10, config.requests // 2, config.requests):
                memory[statuses.total()] = resident_mib(pid)

        def from_document(case: Any) -> None:
            count(case.call(base_url=server.url).status_code, True, case.as_curl_command())

        def from_bytes(sent: Sent) -> None:
            count(status_of(server, sent), sent.whole, repr(sent.contents[:1000]))

        def over_grpc(message: bytes) -> None:
            count(call("ModelInfer", message).code().name, True, repr(message[:1000]))

        made = list(operations(httpx.get(f"{server.url}/openapi.json").json()))
        for _, strategy in made:
            repeat(strategy, config.requests // 4 // len(made), config.seed, from_document)
        by_document = statuses.total()
        for raw in (True, False):
            message = infer_request(raw=raw).SerializeToString()
            repeat(repeated(message) | damaged(message), config.requests // 20, config.seed, over_grpc)
        while missing := config.requests - statuses.total():
            repeat(http_requests(), missing, config.seed + missing, from_bytes)
    wrong += [f"in the log: {error}" for error in errors]
    result = {
        "requests": statuses.total(),
        "from_document": by_document,
        "statuses": dict(sorted(statuses.items())),
        "memory_mib": memory,
        "wrong": wrong[:10],
        "seconds": round(time.monotonic() - started),
    }
    write_between_markers(config.results, f"{before}.\n\n{table(result)}")
    return result | {"exit_status": 1 if wrong else 0}


def table(result: dict[str, Any]) -> str:
    memory = ", ".join(f"{mib} MiB after {count}" for count, mib in result["memory_mib"].items())
    return (
        f"{result['requests']} requests, {result['from_document']} of them made from the OpenAPI document, in "
        f"{result['seconds']} s; the server's memory: {memory}; {len(result['wrong'])} wrong.\n\n"
        "| answer | requests |\n| --- | ---: |\n"
        + "".join(f"| {status} | {count} |\n" for status, count in result["statuses"].items())
    )


if __name__ == "__main__":
    cli.run(main, Fuzz, "Sends a server requests that no client should, and checks its answers.")
