"""Segments images with an exported model: `python -m serving.batch MODELS/name INPUT OUTPUT`.

An image's line in `manifest.jsonl` is written after its files: a job that was killed continues where it stopped, and a
second run redoes only what changed (the image, the model, how it is segmented, or what is written).
"""

import functools
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from tqdm import tqdm

from serving.batch.annotations.job_files import TOOLS, require_own, write_job_files
from serving.batch.jobs import Job, Kind, find_jobs, labeled_among, parse_shard, shard_of
from serving.batch.manifest import RUNS, Manifest, file_name
from serving.batch.pipeline import FindRecord, SegmentOptions, segment
from serving.batch.ranking import Order, write_ranking
from serving.common import cli
from serving.common.artifact import Artifact, open_artifact
from serving.common.images import MAX_PIXELS
from serving.common.windows import steps
from serving.model.engine import Engine, Provider


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What is segmented, and what is written."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """MODELS/name for its newest version, or MODELS/name/VERSION."""
    input: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
    """A folder, an image, a pattern in quotes ('photos/*.jpg'), or a list of paths: a .txt file, or - for stdin."""
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT")]
    """Folder for the results and manifest.jsonl."""
    recursive: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also take the images of INPUT's subfolders."""
    write: tuple[Kind, ...] = ("labels", "overlay")
    """What to write: labels (PNG of class numbers), overlay (the image tinted by class), confidence and reliability
    (grey PNG, 255 is sure), features (a vector that says what the image looks like, NumPy), rle (run lengths, in
    rle.jsonl); or for a person to correct: labelme (a JSON file per image), coco, cvat, label-studio (one file for
    all)."""
    polygons: float | None = None
    """For annotation tools, polygons in place of exact masks: simplified borders, at most so many pixels away."""
    rank: Order | None = None
    """Write ranking.csv: which images without a label map to label next. uncertainty: the least certain first; diverse:
    uncertain ones that differ from what is labelled and from each other."""
    label_maps: Path | None = None
    """For --rank: the folder with the label maps, PNGs of the images' names; by default the folder labels next to the
    folder images of a dataset."""
    window: tuple[int, int] | None = None
    """Height and width, pixels: larger images are segmented window by window. Needs a model exported with --logits."""
    stride: float = 2 / 3
    """Step from one window to the next, as a share of the window: above 0, at most 1."""
    max_pixels: int = MAX_PIXELS
    """Images with more pixels than this are refused before they are decoded."""
    shard: str = "1/1"
    """i/n: do the i-th of n parts, for hosts that share INPUT and OUTPUT."""
    batch_size: int = 4
    """Images of one size predicted together, at most."""
    provider: Provider = "auto"
    """Where to run; auto takes the GPU if it works."""
    threads: int | None = None
    """CPU threads of a prediction; all that this process may use when left out."""
    engine: Literal["local", "ray"] = "local"
    """ray: over a Ray cluster, whose machines share MODEL, INPUT and OUTPUT."""
    ray_address: str | None = None
    """host:port; RAY_ADDRESS when left out, and without it a cluster of this machine only."""
    ray_actors: int | None = None
    """Number of Ray actors; by default one for each GPU, or without GPUs one for each machine."""


def main(config: BatchConfig) -> dict[str, Any]:
    """Segments the images; returns the figures printed at the end."""
    for name in ("batch_size", "threads", "max_pixels", "ray_actors"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    shard = parse_shard(config.shard)
    artifact = open_artifact(config.model)
    options = make_options(config, artifact, shard)
    tools = [kind for kind in config.write if kind in TOOLS]
    require_own(config.output, tools)
    jobs = find_jobs(config.input, config.output, config.recursive)
    labeled = labeled_among(jobs, config.output, config.label_maps) if config.rank else set()
    mine = shard_of(jobs, shard)
    segment_jobs = make_worker(config, artifact, options)

    start = time.perf_counter()
    statuses: Counter[str] = Counter()
    providers: set[str] = set()
    with Manifest(config.output, shard, "rle" in config.write, tools) as manifest:
        name = f"{artifact.info.name}/{artifact.info.version}"
        with tqdm(total=len(mine), desc=name, unit="image") as progress:
            for record in segment_jobs(mine, manifest.find):
                statuses[record["status"]] += 1
                if record["status"] == "error":
                    progress.write(f"failed: {record['error']}", file=sys.stderr)
                if record["status"] != "skipped":
                    manifest.append(record, record.pop("runs", None), record.pop("pieces", None))
                if "provider" in record:
                    providers.add(record["provider"])
                progress.update()
    seconds = time.perf_counter() - start
    ranking = {}
    answer = {"model_sha256": artifact.info.sha256, "options": options.affecting_results}
    names = [job.name for job in jobs]
    files = write_job_files(config.output, tools, names, artifact.info, answer, config.polygons is not None)
    if config.rank:
        path = write_ranking(config.output, names, labeled, answer, config.rank)
        ranking = {"ranking": str(path), "labeled": len(labeled)}
    return {
        "images": len(mine),
        "written": statuses["ok"],
        "skipped": statuses["skipped"],
        "failed": statuses["error"],
        "seconds": round(seconds, 3),
        "images_per_second": round(statuses["ok"] / seconds, 3),
        "provider": ", ".join(sorted(providers)) or None,
        "model": name,
        **ranking,
        **({"annotations": list(map(str, files))} if files else {}),
        "exit_status": 1 if statuses["error"] else 0,
    }


def make_options(config: BatchConfig, artifact: Artifact, shard: tuple[int, int]) -> SegmentOptions:
    """Raises ValueError where the flags contradict each other or the model."""
    outputs = {tensor.name for tensor in artifact.info.outputs}
    if not config.write and not config.rank:
        raise ValueError(f"--write names nothing to write: add one of {', '.join(get_args(Kind))}")
    if config.polygons is not None:
        if not any(kind in (*TOOLS, "labelme") for kind in config.write):
            raise ValueError("--polygons is for annotation tools: add --write labelme, coco, cvat or label-studio")
        if not 0 <= config.polygons < math.inf:
            raise ValueError(f"--polygons is a number of pixels, 0 or more, got {config.polygons}")
    if "reliability" in config.write and ("reliability" not in outputs or config.window):
        reason = "windows are put together without it" if "reliability" in outputs else "its run has no critic for it"
        raise ValueError(f"{artifact.folder} gives no reliability here ({reason}): leave it out of --write")
    write = config.write
    if config.rank == "diverse" and "features" not in write:
        write = (*write, "features")
    if "features" in write:
        artifact.info.require_features()
    if config.label_maps and not config.rank:
        raise ValueError("--label-maps says what is labelled already, for --rank: add --rank diverse")
    if config.window:
        steps(config.window, config.stride)
        if min(config.window) < 1:
            raise ValueError(f"--window is a height and a width of at least 1 pixel, got {config.window}")
        artifact.require_logits()
    return SegmentOptions(
        output=config.output.absolute(),
        write=write,
        runs_file=file_name(RUNS, shard),
        batch_size=config.batch_size,
        max_pixels=config.max_pixels,
        window=config.window,
        stride=config.stride,
        polygons=config.polygons,
    )


def make_worker(
    config: BatchConfig, artifact: Artifact, options: SegmentOptions
) -> Callable[[list[Job], FindRecord], Iterator[dict[str, Any]]]:
    """What segments images: this process, or a cluster. Raises ValueError where it cannot be had."""
    if config.engine == "local":
        return functools.partial(segment, Engine(artifact, config.provider, config.threads), options)
    try:
        from serving.batch.ray import Cluster, segment_on_ray
    except ImportError as error:
        raise ValueError(f"--engine ray needs Ray ({error}): pip install 'kerasseg[ray]'") from error
    cluster = Cluster(config.ray_address, config.ray_actors)
    return functools.partial(segment_on_ray, cluster, artifact, config.provider, config.threads, options)


COMMON = ("--recursive", "--write", "--polygons", "--rank", "--window", "--batch-size", "--provider", "--threads")
COMMAND = cli.Command(
    main, BatchConfig, "Segments images with an exported model, without TensorFlow.", common=lambda arguments: COMMON
)


def ask_for_labels(arguments: list[str]) -> BatchConfig:
    """The defaults of `kerasseg label`."""
    return BatchConfig(
        model=tyro.MISSING,
        input=tyro.MISSING,
        output=tyro.MISSING,
        rank="diverse",
        write=("labelme",),
        polygons=2.0,
    )


LABEL = cli.Command(
    main,
    BatchConfig,
    "Says which images to label next (ranking.csv), and writes predictions of them for a person to correct.",
    default=ask_for_labels,
    common=lambda arguments: COMMON,
)
