"""Devices and workers: the tf.distribute strategy of a run, and what its workers have to agree on."""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from training.config import RunConfig

READ_BY_ALL = ("config.json", "split", "checkpoints")


def make_strategy(config: RunConfig) -> tf.distribute.Strategy:
    """The tf.distribute strategy that --strategy names. With several workers it waits until all have come.

    Raises:
        ValueError: TF_CONFIG does not say which workers there are, or a batch cannot be shared out evenly.
    """
    made = tf.distribute.get_strategy()
    if config.strategy == "multiworker":
        made = join_workers()
    else:
        gpus = tf.config.list_logical_devices("GPU")
        if config.strategy == "mirrored" or (config.strategy == "auto" and len(gpus) > 1):
            devices = gpus or tf.config.list_logical_devices("CPU")
            made = tf.distribute.MirroredStrategy(tuple(device.name for device in devices))
    devices = made.num_replicas_in_sync
    for name, size in (("--batch-size", config.batch_size), ("--unlabeled-batch-size", config.unlabeled_batch_size)):
        if size is not None and size % (devices * config.accumulate):
            in_parts = f" in {config.accumulate} parts each (--accumulate)" if config.accumulate > 1 else ""
            raise ValueError(
                f"{name} is shared by {devices} devices{in_parts}, so it must be a multiple of "
                f"{devices * config.accumulate}; got {size}"
            )
    return made


def join_workers() -> tf.distribute.MultiWorkerMirroredStrategy:
    """The strategy of all workers of TF_CONFIG, this one among them."""
    require_tf_config(os.environ.get("TF_CONFIG"))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        made = tf.distribute.MultiWorkerMirroredStrategy()
        signal.signal(signal.SIGTERM, on_sigterm)  # TensorFlow has taken it for itself, and ignores it
        return made
    except (tf.errors.OpError, RuntimeError) as error:
        raise ValueError(f"this worker cannot join those of TF_CONFIG: {str(error).splitlines()[0]}") from error


def require_tf_config(text: str | None) -> None:
    """ValueError unless the text is a TF_CONFIG that names all workers and says which of them this one is."""
    example = '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": N}}'
    if text is None:
        raise ValueError(f"--strategy multiworker needs the environment variable TF_CONFIG on each worker: {example}")
    try:
        read = json.loads(text)
        cluster, kind, index = read["cluster"], read["task"]["type"], read["task"]["index"]
        known = set(cluster) <= {"chief", "worker"} and all(isinstance(cluster[name], list) for name in cluster)
        if not (known and 0 <= index < len(cluster[kind])):
            raise ValueError("no such worker")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"TF_CONFIG must look like {example}, the index counting from 0; got {text!r}") from error


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this worker is the one that writes the run folder: of several one is, a single one always."""
    resolver = several_workers(strategy) and strategy.cluster_resolver
    if not resolver:
        return True
    chiefs = "chief" in resolver.cluster_spec().jobs
    return (resolver.task_type, resolver.task_id) == ("chief" if chiefs else "worker", 0)


def several_workers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def gather(strategy: tf.distribute.Strategy, value: int) -> list[int]:
    """What each worker gives, once per device of its own; every worker has to call it."""
    if not several_workers(strategy):
        return [value]
    return _gather(strategy)(tf.constant([value])).numpy().tolist()


@functools.cache
def _gather(strategy: tf.distribute.Strategy):
    def from_all(value_1):
        return tf.distribute.get_replica_context().all_gather(tf.identity(value_1), axis=0)

    @tf.function  # traced once
    def gathered(value_1):
        return strategy.experimental_local_results(strategy.run(from_all, args=(value_1,)))[0]

    return gathered


@contextlib.contextmanager
def fail_together(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """A mistake that one worker finds inside ends all of them: none is left waiting for it."""
    mistake = None
    try:
        yield
    except (ValueError, OSError) as error:
        mistake = error
    failed = any(gather(strategy, int(mistake is not None)))
    if mistake is not None:
        raise mistake
    if failed:
        raise ValueError("another worker stopped; its own message says why")


@contextlib.contextmanager
def own_config(config: RunConfig, strategy: tf.distribute.Strategy) -> Iterator[RunConfig]:
    """The configuration by which this worker trains: the chief's run folder is the run's, that of any other worker a
    temporary one, with what a resumed run is read from."""
    if is_chief(strategy):
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="kerasseg-worker-") as folder:
        for name in READ_BY_ALL if config.resume else ():
            source, target = config.folder / name, Path(folder, name)
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copy(source, target)
        yield dataclasses.replace(config, out=Path(folder))
