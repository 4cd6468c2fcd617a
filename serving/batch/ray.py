"""A batch job over a Ray cluster: the worker of `serving.batch.pipeline` in actors, one for each GPU, or machine.

The images go out in blocks, which Ray Data hands to whichever actor is free, and to another one if an actor or its
machine is lost. Images, model and output lie on a file system that all machines share; only names and records travel.
"""

import contextlib
import functools
import json
import logging
import math
import os
import platform
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.batch.jobs import Job
from serving.batch.pipeline import FindRecord, SegmentOptions, segment
from serving.common.artifact import Artifact, open_artifact
from serving.model.engine import Engine, Provider

# Read by Ray when it is imported.
os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")

import ray  # noqa: E402
import ray.data  # noqa: E402

MAX_BLOCK = 64
"""Images that an actor is given at once: of so many it sends the records when it has done them all."""

BLOCKS_PER_ACTOR = 8
"""At least, where images are few: the last actor to end is not far behind the first."""

CONNECT_SECONDS = 10


class Cluster(NamedTuple):
    """Where a job runs."""

    address: str | None = None
    """That of the environment variable RAY_ADDRESS when None; without it, a cluster of this machine for this job."""
    actors: int | None = None
    """One for each GPU when None, or, without GPUs or with the provider "cpu", for each machine."""


class Actor:
    """Opens the model once, and segments one block after the other.

    What ends a job is returned, not raised: Ray would try again, and wrap it in tracebacks.
    """

    def __init__(self, model: Path, provider: Provider, threads: int | None, options: SegmentOptions):
        self._open = functools.cache(lambda: Engine(open_artifact(model), provider, threads))
        self._options = options

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, list[str]]:
        jobs = [Job(*json.loads(job)) for job in block["job"]]
        earlier = dict(zip((job.name for job in jobs), map(json.loads, block["earlier"]), strict=True))
        records = []
        try:
            for record in segment(self._open(), self._options, jobs, earlier.__getitem__):
                records.append(record)
        except (OSError, ValueError) as error:
            records.append({"status": "given up", "error": f"{platform.node()}: {error}"})
        return {"record": list(map(json.dumps, records))}


def segment_on_ray(
    cluster: Cluster,
    artifact: Artifact,
    provider: Provider,
    threads: int | None,
    options: SegmentOptions,
    jobs: list[Job],
    find: FindRecord,
) -> Iterator[dict[str, Any]]:
    """`serving.batch.pipeline.segment` over a cluster.

    Args:
        provider, threads: of each actor's `Engine`.

    Raises:
        ValueError: there is no cluster at the address, or an actor cannot open the model.
        OSError: a result cannot be written, or Ray gives up.
    """
    if not jobs:
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    with contextlib.redirect_stdout(sys.stderr), connected(address):
        gpus = int(ray.cluster_resources().get("GPU", 0)) if provider != "cpu" else 0
        machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        cores = [count for count in machines if count]
        if not cores:
            raise ValueError(f"no machine of the Ray cluster at {address} has a CPU to spare")
        count = cluster.actors or gpus or len(cores)
        # An actor of a machine without a GPU asks for the cores of the smallest, so that these hold one each.
        needs = {"num_gpus": 1} if gpus else {"num_cpus": threads or min(cores)}
        block = min(MAX_BLOCK, math.ceil(len(jobs) / (count * BLOCKS_PER_ACTOR)))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        rows = [
            {"job": json.dumps([job.source, job.name, job.output_name]), "earlier": json.dumps(find(job.name))}
            for job in jobs
        ]
        records = ray.data.from_items(rows, override_num_blocks=math.ceil(len(jobs) / block)).map_batches(
            Actor,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=count),
            fn_constructor_args=(artifact.folder.absolute(), provider, threads, options),
            **needs,
        )
        for row in records.iter_rows():
            record = json.loads(row["record"])
            if record["status"] == "given up":
                raise OSError(record["error"])
            yield record


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray, at the address, until the block ends; its exceptions become an OSError of one line.

    Raises:
        ValueError: nobody answers there.
    """
    host, separator, port = (address or "").rpartition(":")
    try:
        if separator and "/" not in host:  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield
    except ray.exceptions.RayError as error:
        raise OSError(f"Ray gave up: {str(error).splitlines()[0]}") from error
    finally:
        ray.shutdown()
