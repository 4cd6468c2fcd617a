"""Serves exported models over HTTP and gRPC: `python -m serving.run MODELS`."""

import asyncio
import contextlib
import functools
import gc
import logging
import math
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import tyro
import uvicorn

from serving.common import cli
from serving.common.gpus import has_gpu
from serving.common.images import SUFFIXES, load_image, warm_up
from serving.common.inputs import read_text
from serving.http.app import make_app
from serving.http.connections import Connection, ConnectionLimit
from serving.http.label_studio.client import LabelStudio
from serving.model.engine import Provider, usable_cpus
from serving.model.model import ModelSettings
from serving.model.repository import Repository
from serving.service.limits import RequestLimits
from serving.service.logs import JsonFormatter, json_lines
from serving.service.service import Service

log = logging.getLogger("serving")

CLOSING = 1.0
"""Seconds that the end of the process may take once no request runs."""

SWITCH_INTERVAL = 0.001
"""Seconds for which a thread may keep Python's lock while others wait for it. With Python's own, 5 ms,
health waits twice as long next to threads that read JSON, which are no faster (benchmarks/results/health.md)."""

MAX_BUCKET_IMAGES = 50
"""How many of the folder's images buckets are tried on."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What is served, where, and within which limits."""

    models: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODELS")]
    """The folder of models, MODELS/name/VERSION; all of them are served."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine."""
    port: int = 8000
    """Port for HTTP; 0 takes a free one, which the log names."""
    grpc_port: int | None = None
    """Serve the V2 protocol over gRPC too, at this port of the same address; needs the extra grpc."""
    provider: Provider = "auto"
    """Where to run; auto takes the GPU where the machine has one, and fails if it cannot be used."""
    threads: int | None = None
    """CPU threads of a model; all that this process may use when left out."""
    workers: int = 1
    """Number of batches of a model that run in parallel on a CPU; they share its threads."""
    batch_size: int = 8
    """Images predicted together, at most."""
    max_delay: Annotated[float, tyro.conf.arg(name="max-delay-ms")] = 1.0
    """How long the first image of a batch waits for others, milliseconds."""
    max_queue: int = 64
    """Requests of a model that may wait; beyond it they are refused at once, with 503."""
    timeout: float = 30.0
    """Seconds that a request may wait for its turn."""
    warm_up: tuple[tuple[int, int], ...] = ((256, 256),)
    """H W H W ...: sizes of images that run once before the server is ready."""
    buckets: tuple[tuple[int, int], ...] = ()
    """H W H W ...: smaller images are padded to these sizes, so that mixed sizes share batches."""
    bucket_images: Path | None = None
    """A folder of your images, on which padding must not change labels for --buckets to be used."""
    versions: int = 1
    """How many of a model's newest versions are served."""
    poll: float = 2.0
    """Seconds between searches for new versions; 0: never."""
    allow_load: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Let clients load and unload models."""
    token_file: Path | None = None
    """A file with the token that requests must carry; health needs none."""
    allow_origin: tuple[str, ...] = ()
    """Origins (https://a.example) whose pages may use this server from a browser, by CORS; * for all."""
    label_studio_url: str | None = None
    """Address of a Label Studio, such as http://localhost:8080: its projects get predictions from this server, at
    /label-studio/MODEL. Images are fetched from this address only; without it nothing is fetched."""
    label_studio_token_file: Path | None = None
    """A file with a token of that Label Studio (Account & Settings, Personal Access Token), to fetch images with."""
    max_body_mb: int = 64
    """Largest body of a request, MiB."""
    max_bodies_mb: int = 256
    """All bodies that arrive or are decoded, with all answers that are sent, MiB; more are refused, with 503."""
    max_pixels: int = 2**24
    """Pixels of the largest image, or of all images of a tensor; sides count as padded to a multiple of 32."""
    max_connections: int = 1000
    """Most HTTP connections at a time, and as many gRPC calls; more are refused with 503."""
    drain_delay: float = 0.0
    """Seconds after SIGTERM in which the server still takes requests, while /v2/health/ready says no."""
    drain_timeout: int = 30
    """Seconds from the end of --drain-delay until the process ends, even if something hangs; at least 1. Running
    requests get all of it but the last second (below 10 seconds: nine tenths of it)."""
    access_log: bool = True
    """Log each request."""


def main(config: ServerConfig) -> dict[str, Any]:
    """Serves until SIGTERM or Ctrl-C; returns the figures printed at the end."""
    check(config)
    start = time.monotonic()
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.freeze()  # what was imported lives as long as the process: looking for cycles in it holds up requests
    with json_lines(requests=config.access_log):
        server = Server(config, give_up=give_up)
        server.serve_requests()
    return {"requests": server.server_state.total_requests, "seconds": round(time.monotonic() - start, 3)}


def give_up() -> None:
    """Ends the process, with what hangs in it: a disk, a session, a reader of its output."""
    line = JsonFormatter().format(logging.makeLogRecord({"msg": "ended before all was done", "levelname": "ERROR"}))
    if select.select([], [2], [], 0)[1]:  # if nothing hangs there
        os.write(2, line.encode() + b"\n")
    os._exit(1)


def check(config: ServerConfig) -> None:
    """Raises ValueError for a flag out of range, before anything else happens."""
    least = {
        "threads": 1,
        "workers": 1,
        "batch_size": 1,
        "max_queue": 1,
        "versions": 1,
        "max_body_mb": 1,
        "max_bodies_mb": 1,
        "max_pixels": 1,
        "max_connections": 1,
        "max_delay": 0,
        "poll": 0,
        "drain_delay": 0,
        "drain_timeout": 1,
    }
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and not smallest <= value < math.inf:
            flag = "max-delay-ms" if name == "max_delay" else name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least {smallest}, got {value}")
    for flag, port in {"port": config.port, "grpc-port": config.grpc_port}.items():
        if port is not None and not 0 <= port < 2**16:
            raise ValueError(f"--{flag} must be 0 to {2**16 - 1}, got {port}")
    if not config.timeout > 0:
        raise ValueError(f"--timeout must be above 0, got {config.timeout}")
    if any(length < 1 for size in (*config.warm_up, *config.buckets) for length in size):
        raise ValueError("--warm-up and --buckets are heights and widths of at least 1 pixel")
    for origin in config.allow_origin:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ValueError(f"--allow-origin {origin}: expected scheme and host, such as https://a.example:8080, or *")
    if bool(config.label_studio_url) != bool(config.label_studio_token_file):
        raise ValueError("--label-studio-url and --label-studio-token-file go together: images are fetched with both")
    if config.buckets and not config.bucket_images:
        raise ValueError(
            "--buckets needs --bucket-images: padding changes what some models see, and only your own images show it"
        )
    threads = config.threads or usable_cpus()
    if config.workers > max(threads, 1):
        raise ValueError(f"--workers {config.workers} share {threads} threads: take no more workers than that")


def model_settings(config: ServerConfig) -> ModelSettings:
    """How models are run.

    Raises:
        ValueError: several workers on a GPU, or no images to try buckets on.
    """
    # A server that quietly runs on the CPU of a machine with a GPU answers a hundred times slower than was paid for.
    provider = config.provider if config.provider != "auto" else "cuda" if has_gpu() else "cpu"
    if provider == "cuda" and config.workers > 1:
        raise ValueError(f"--workers {config.workers} are for CPUs: a GPU runs one batch at a time")
    samples = []
    if config.buckets and config.bucket_images:
        files = sorted(file for file in config.bucket_images.iterdir() if file.suffix.lower() in SUFFIXES)
        samples = [load_image(file) for file in files[:: -(-len(files) // MAX_BUCKET_IMAGES) or 1]]
        if not samples:
            raise ValueError(f"no images in {config.bucket_images}: --buckets are tried on them")
    return ModelSettings(
        provider=provider,
        threads=config.threads,
        workers=config.workers,
        batch_size=config.batch_size,
        max_delay=config.max_delay / 1000,
        max_queue=config.max_queue,
        warm_up=config.warm_up,
        buckets=config.buckets,
        samples=samples,
        versions=config.versions,
    )


def read_token(file: Path) -> str:
    """The token in a file; a file, so that no list of processes shows it."""
    token = read_text(file).strip()
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise ValueError(f"{file} must hold one word of ASCII letters, the token")
    return token


def listen(host: str, port: int) -> socket.socket:
    """Raises ValueError where the address cannot be had."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise ValueError(f"cannot listen at {host}, port {port}: {error}; --host and --port choose another") from error


def grpc_server_class() -> type:
    """`serving.grpc.server.GrpcServer`, imported when it is asked for: most servers do without gRPC, and its packages.

    Raises:
        ValueError: they are not installed.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core writes no JSON to stderr; our log has it
    try:
        from serving.grpc.server import GrpcServer
    except ImportError as error:
        raise ValueError(f'--grpc-port needs the extra grpc: pip install "kerasseg[grpc]" ({error})') from error
    return GrpcServer


class Server(uvicorn.Server):
    """uvicorn, which loads the models after it listens, so that it is alive before it is ready, and drains.

    Args:
        config: checked.
        give_up: called where the process does not end in time after a signal.

    Raises:
        ValueError, OSError: the address cannot be had, or a file that a flag names is not right.

    Attributes:
        url: where it listens.
        grpc_address: where it listens for gRPC, host:port, once it has started; None where it does not.
    """

    def __init__(self, config: ServerConfig, give_up: Callable[[], None] | None = None):
        token = read_token(config.token_file) if config.token_file else None
        self.repository = Repository(config.models, model_settings(config))
        limits = RequestLimits(
            max_body=config.max_body_mb * 2**20,
            max_bodies=max(config.max_bodies_mb, config.max_body_mb) * 2**20,
            max_pixels=config.max_pixels,
            timeout=config.timeout,
        )
        self.service = Service(self.repository, limits, token, config.allow_load)
        label_studio = None
        if config.label_studio_url and config.label_studio_token_file:
            its_token = read_token(config.label_studio_token_file)
            label_studio = LabelStudio(config.label_studio_url, its_token, limits.max_body)
        self._grpc = None
        if config.grpc_port is not None:
            self._grpc = grpc_server_class()(self.service, config.max_connections)
        self._failure: Exception | None = None
        self._poll = config.poll
        self._drain_delay = config.drain_delay
        self._give_up = give_up
        self._exit_at: float | None = None
        self._drain = config.drain_timeout
        self._closing = min(CLOSING, self._drain / 10)
        self._stopped = threading.Event()
        self._listener = listen(config.host, config.port)
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.grpc_address: str | None = None
        self._grpc_at = config.host, config.grpc_port
        self._grpc_stopped: asyncio.Future[None] | None = None
        super().__init__(
            uvicorn.Config(
                make_app(self.service, self._lifespan, config.allow_origin, label_studio),
                loop="uvloop",
                http=functools.partial(  # type: ignore[arg-type]
                    Connection, limit=ConnectionLimit(config.max_connections), is_crowded=self.service.is_crowded
                ),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                lifespan="on",
                timeout_graceful_shutdown=self._drain - self._closing,  # type: ignore[arg-type]
            )
        )
        if token is None and host not in ("127.0.0.1", "::1"):
            log.warning("anybody who reaches this address is served: --token-file asks for a token")

    def serve_requests(self) -> None:
        """Until a signal ends it.

        Raises:
            ValueError, OSError: the models cannot be loaded.
        """
        with self._listener:
            self.run(sockets=[self._listener])
        if self._failure:
            raise self._failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own raises the signal again when all is done, and so the process would end without its result.
        if self._exit_at is not None:
            self.should_exit = self.force_exit = True
            self._give_up_in(CLOSING)
            return
        self.service.state = "draining"
        self._exit_at = time.monotonic() + self._drain_delay
        self._give_up_in(self._drain_delay + self._drain)

    def _give_up_in(self, seconds: float) -> None:
        if self._give_up:
            timer = threading.Timer(seconds, self._give_up)
            timer.daemon = True
            timer.start()

    async def on_tick(self, counter: int) -> bool:
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._grpc:  # with HTTP; the end of the lifespan, which is that of the models too, waits for both
            self._grpc_stopped = asyncio.ensure_future(self._grpc.stop(self.config.timeout_graceful_shutdown))
        await super().shutdown(sockets)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        if self._grpc:
            try:
                self.grpc_address = await self._grpc.start(*self._grpc_at)
            except ValueError as error:
                self._failure, self.should_exit = error, True
                yield
                return
        loading = threading.Thread(target=self._load_and_follow, name="repository", daemon=True)
        loading.start()
        giving_back = asyncio.ensure_future(self.service.give_back_memory())
        try:
            yield
        finally:
            self._stopped.set()
            giving_back.cancel()
            if self._grpc_stopped:
                await self._grpc_stopped
            await asyncio.to_thread(self._close, loading)

    def _load_and_follow(self) -> None:
        start = time.monotonic()
        try:
            warm_up()
            self.repository.load()
        except Exception as error:  # whatever it is, a server that never gets ready helps nobody
            self._failure = error
            self.should_exit = True
            return
        if self.service.state == "loading":
            self.service.state = "ready"
            where = {"url": self.url} | ({"grpc": self.grpc_address} if self.grpc_address else {})
            log.info("ready", extra={**where, "seconds": round(time.monotonic() - start, 3)})
        while self._poll and not self._stopped.wait(self._poll):
            try:
                self.repository.scan()
            except Exception:
                log.exception("looking for new versions failed")

    def _close(self, loading: threading.Thread) -> None:
        # Where its disk hangs, it ends with the process.
        end = self._exit_at + self._drain if self._exit_at is not None else time.monotonic() + self._drain
        loading.join(max(end - time.monotonic() - self._closing / 2, 0))
        self.repository.close()
        self.service.close()


COMMON = (
    *("--host", "--port", "--grpc-port", "--provider", "--threads", "--batch-size", "--timeout", "--token-file"),
    *("--allow-origin", "--label-studio-url", "--label-studio-token-file", "--max-pixels"),
)
COMMAND = cli.Command(
    main, ServerConfig, "Serves exported models over HTTP, without TensorFlow.", common=lambda arguments: COMMON
)

if __name__ == "__main__":
    COMMAND.run()
