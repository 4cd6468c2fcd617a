"""Segments a folder of pictures with an exported model: `python -m serving.batch MODELS/name INPUT OUTPUT`.

    pictures --> decoding threads --> batches of one size --> engine --> writing threads --> files, manifest

Decoding, prediction and writing overlap; every stage holds a bounded number of pictures, so memory does not
grow with their number. `manifest.jsonl` gets a line after the files of a picture are written: a job that was
killed takes up where it was, and a second run redoes only what changed (the picture, the model or the kind of
output).
"""

import contextlib
import glob
import hashlib
import itertools
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
import tyro
from tqdm import tqdm

from serving import cli
from serving.artifact import Artifact, open_artifact
from serving.engine import Engine, Provider, batch_limit, usable_cpus
from serving.pictures import PICTURE_SUFFIXES, index_png, jpeg, load_picture, overlay, write_atomically

MANIFEST = "manifest.jsonl"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of `python -m serving.batch`."""

    model: tyro.conf.Positional[Path]
    """MODELS/name for its newest version, or MODELS/name/VERSION."""
    input: tyro.conf.Positional[str]
    """A folder, a picture, or a pattern in quotes such as 'photos/*.jpg'."""
    output: tyro.conf.Positional[Path]
    """Folder for labels/NAME.png, overlays/NAME.jpg and manifest.jsonl."""
    recursive: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also take the pictures of INPUT's subfolders."""
    overlay: bool = True
    """Also write the pictures tinted by class."""
    batch_size: int = 4
    """Pictures of one size predicted together, at most."""
    provider: Provider = "auto"
    """Where to run; auto takes the GPU if it works."""
    threads: int | None = None
    """CPU threads of a prediction; all that this process may use when left out."""


@dataclass(frozen=True)
class Job:
    """One picture and where its results go."""

    source: Path
    name: str
    """Path below INPUT, with forward slashes."""
    output_name: str
    """The same without suffix where that is unambiguous."""


@dataclass
class Decoded:
    job: Job
    image_HWC: np.ndarray
    record: dict[str, Any]


def main(config: Config) -> dict[str, Any]:
    """Segments the pictures; returns the figures printed at the end."""
    if config.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {config.batch_size}")
    artifact = open_artifact(config.model)
    jobs = find_jobs(config.input, config.output, config.recursive)
    engine = Engine(artifact, config.provider, config.threads)
    name = f"{artifact.info.name}/{artifact.info.version}"
    print(f"{name} on {engine.provider}, {len(jobs)} pictures to {config.output}", file=sys.stderr)

    start = time.perf_counter()
    statuses: Counter[str] = Counter()
    with Manifest(config.output / MANIFEST) as manifest, tqdm(total=len(jobs), unit="picture") as progress:
        for record in segment(jobs, engine, config, manifest.records):
            statuses[record["status"]] += 1
            if record["status"] == "error":
                progress.write(f"failed: {record['error']}", file=sys.stderr)
            if record["status"] != "skipped":
                manifest.append(record)
            progress.update()
    seconds = time.perf_counter() - start
    return {
        "pictures": len(jobs),
        "written": statuses["ok"],
        "skipped": statuses["skipped"],
        "failed": statuses["error"],
        "seconds": round(seconds, 3),
        "images_per_second": round(statuses["ok"] / seconds, 3),
        "provider": engine.provider,
        "model": name,
        "exit_status": 1 if statuses["error"] else 0,
    }


def find_jobs(input: str, output: Path, recursive: bool) -> list[Job]:
    """The pictures that `input` (a folder, file or pattern) names, in order of their names.

    Of folders and patterns, files with a picture's suffix are taken, hidden ones and earlier results left
    out.

    Raises:
        ValueError: there are none.
    """
    path = Path(input)
    if path.is_file():
        return _name_outputs([path], path.parent)
    if path.is_dir():
        root, found = path, list(path.rglob("*") if recursive else path.iterdir())
    elif glob.has_magic(input):
        root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        found = [Path(match) for match in glob.iglob(input, recursive=True)]
    else:
        raise ValueError(f"{input} does not exist: give a folder, a picture, or a pattern in quotes")
    results = [(output / kind).absolute() for kind in ("labels", "overlays")]
    sources = [
        source
        for source in found
        if source.suffix.lower() in PICTURE_SUFFIXES
        and not source.name.startswith(".")
        and source.is_file()
        and not any(source.absolute().is_relative_to(result) for result in results)
    ]
    if not sources:
        if path.is_dir() and not recursive and any(child.is_dir() for child in found):
            raise ValueError(f"no pictures in {input} itself: add --recursive to look into its subfolders")
        raise ValueError(f"no pictures in {input}: expected files ending in {', '.join(sorted(PICTURE_SUFFIXES))}")
    return _name_outputs(sources, root)


def segment(
    jobs: list[Job], engine: Engine, config: Config, done: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Segments the pictures and writes the results; yields a manifest record for each, in any order.

    Args:
        done: records of an earlier run by picture name; what they cover is yielded as `{"status":
            "skipped"}`.
    """
    workers = usable_cpus()
    writing: deque[Future[dict[str, Any]]] = deque()
    with ThreadPoolExecutor(workers, "decode") as decoders, ThreadPoolExecutor(workers, "write") as writers:
        ahead = 2 * config.batch_size + workers
        decoded = bounded_map(decoders, lambda job: decode(job, engine.artifact, config, done), jobs, ahead)
        for result in group_by_size(decoded, config.batch_size):
            if isinstance(result, dict):
                yield result
                continue
            for picture, outputs in predict(engine, result):
                if "error" in picture.record:
                    yield picture.record
                else:
                    writing.append(writers.submit(write, picture, outputs, engine.artifact, config))
            while len(writing) > 2 * workers or (writing and writing[0].done()):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()


def bounded_map(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`pool.map` with at most `ahead` items begun and not yet taken: the input may be longer than memory."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def decode(job: Job, artifact: Artifact, config: Config, done: dict[str, dict[str, Any]]) -> Decoded | dict[str, Any]:
    """Reads one picture, or returns the record that says why it need not, or cannot, be segmented."""
    start = time.perf_counter()
    record: dict[str, Any] = {
        "input": job.name,
        "status": "error",
        "sha256": None,
        "model": f"{artifact.info.name}/{artifact.info.version}",
        "model_sha256": artifact.info.sha256,
    }
    try:
        contents = job.source.read_bytes()
        record["sha256"] = hashlib.sha256(contents).hexdigest()
        outputs = {"labels": f"labels/{job.output_name}.png"}
        if config.overlay:
            outputs["overlay"] = f"overlays/{job.output_name}.jpg"
        wanted = {"status": "ok", "outputs": outputs} | {key: record[key] for key in ("sha256", "model_sha256")}
        if wanted.items() <= done.get(job.name, {}).items() and all(
            (config.output / output).is_file() for output in outputs.values()
        ):
            return {"status": "skipped"}
        image_HWC = load_picture(contents, name=str(job.source))
    except (OSError, ValueError) as error:
        return record | {"error": str(error)}
    height, width = image_HWC.shape[:2]
    seconds = time.perf_counter() - start
    return Decoded(job, image_HWC, record | {"outputs": outputs, "height": height, "width": width, "seconds": seconds})


def group_by_size(
    pictures: Iterable[Decoded | dict[str, Any]], batch_size: int
) -> Iterator[list[Decoded] | dict[str, Any]]:
    """Collects pictures of one size into batches; records pass through.

    Holds at most `2 * batch_size` pictures back: where every picture has its own size, the batches are
    smaller.
    """
    groups: dict[tuple[int, ...], list[Decoded]] = {}
    waiting = 0
    for picture in pictures:
        if isinstance(picture, dict):
            yield picture
            continue
        size = picture.image_HWC.shape[:2]
        groups.setdefault(size, []).append(picture)
        waiting += 1
        if len(groups[size]) < batch_limit(size, batch_size):
            if waiting < 2 * batch_size:
                continue
            size = max(groups, key=lambda size: len(groups[size]))  # of equals, the one that has waited longest
        batch = groups.pop(size)
        waiting -= len(batch)
        yield batch
    yield from groups.values()


def predict(engine: Engine, batch: list[Decoded]) -> Iterator[tuple[Decoded, dict[str, np.ndarray]]]:
    """Segments pictures of one size, one by one if the batch fails; what still fails gets an error record."""
    start = time.perf_counter()
    try:
        outputs = engine.predict(np.stack([picture.image_HWC for picture in batch]))
    except Exception as error:  # out of memory, most likely; onnxruntime's exceptions have no public base class
        if len(batch) > 1:
            for picture in batch:
                yield from predict(engine, [picture])
            return
        batch[0].record["error"] = f"{batch[0].job.source} cannot be segmented: {error}"
        yield batch[0], {}
        return
    seconds = (time.perf_counter() - start) / len(batch)
    for index, picture in enumerate(batch):
        picture.record["seconds"] += seconds
        picture.record["provider"] = engine.provider
        yield picture, {name: output[index] for name, output in outputs.items()}


def write(picture: Decoded, outputs: dict[str, np.ndarray], artifact: Artifact, config: Config) -> dict[str, Any]:
    """Writes the files of one picture and returns its finished record.

    A file that cannot be written (a full disk, a forbidden folder) is not the picture's fault: the OSError
    ends the job.
    """
    start = time.perf_counter()
    info, labels_HW, record = artifact.info, outputs["labels"], picture.record
    files = {"labels": index_png(labels_HW, info.palette)}
    if config.overlay:
        files["overlay"] = jpeg(overlay(picture.image_HWC, labels_HW, info.palette))
    for kind, contents in files.items():
        path = config.output / record["outputs"][kind]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, contents)
    shares = np.bincount(labels_HW.ravel(), minlength=len(info.classes)) / labels_HW.size
    return record | {
        "status": "ok",
        "classes": {name: round(float(share), 6) for name, share in zip(info.classes, shares, strict=False) if share},
        "mean_confidence": round(float(outputs["confidence"].mean()), 6),
        "seconds": round(record["seconds"] + time.perf_counter() - start, 4),
    }


class Manifest:
    """`manifest.jsonl`: a line per picture, written as it is finished; sorted in the end, the last of a name
    kept.

    Attributes:
        records: by picture name, what earlier runs wrote.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.records = self._tidy() if self.path.exists() else {}
        self._file = self.path.open("a", encoding="utf-8", buffering=1)  # a line at a time
        return self

    def append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._tidy()

    def _tidy(self) -> dict[str, dict[str, Any]]:
        records = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            # A killed job may have left half a last line: the picture it speaks of is done again.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                records[record["input"]] = record
        lines = "".join(json.dumps(records[name]) + "\n" for name in sorted(records))
        write_atomically(self.path, lines.encode())
        return records


def _name_outputs(sources: list[Path], root: Path) -> list[Job]:
    """Drops the suffix from output names; inputs that would then share one (a.jpg, a.png) keep their whole
    name.

    Upper and lower case count as the same, as they do to some file systems.
    """
    names = {source: source.relative_to(root).as_posix() for source in sorted(set(sources))}
    stems = {source: name.removesuffix(source.suffix) for source, name in names.items()}
    taken = Counter(stem.casefold() for stem in stems.values()) + Counter(name.casefold() for name in names.values())
    return [
        Job(source, name, stems[source] if taken[stems[source].casefold()] == 1 else name)
        for source, name in names.items()
    ]


if __name__ == "__main__":
    cli.run(main, Config, "Segments pictures with an exported model, without TensorFlow.")
