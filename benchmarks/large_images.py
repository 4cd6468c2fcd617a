"""`python -m benchmarks.large_images MODELS DATASET`: the same photographs at several sizes, over HTTP.

The validation images of a dataset are enlarged, sent to each model of the folder as JPEGs, one at a time, and the
answers compared with label maps enlarged in the same way. While an image of the largest size is segmented, another
client sends a small one. On a machine of two cores the server has both.
"""

import concurrent.futures
import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import tyro
from PIL import Image

from benchmarks.results_file import write_between_markers
from benchmarks.server_process import server_process
from benchmarks.turns import circumstances
from serving.common import cli
from serving.common.artifact import open_artifact, versions
from serving.common.images import load_image, load_labels

IGNORED = 255
AHEAD = (0.05, 0.1, 0.2, 0.3, 0.4)
"""Seconds from the start of a large request to that of the small one behind it: the large one is decoded first."""


@dataclass(frozen=True, kw_only=True)
class LargeImages:
    """What to send, and where the result goes."""

    models: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODELS")]
    """The folder of the models."""
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """A dataset folder."""
    sides: tuple[int, ...] = (480, 1182, 2016, 4032)
    """Longer sides, pixels, in ascending order."""
    images: int = 6
    """How many validation images are sent at each size."""
    results: Path = Path("benchmarks/results/large_images.md")
    """The result is written between the markers of this file."""


def enlarged(config: LargeImages, side: int) -> list[tuple[bytes, np.ndarray]]:
    """JPEGs of that longer side, pixels, and their label maps (H,W)."""
    labels = sorted((config.dataset / "labels/val").glob("*.png"))
    chosen = labels[:: max(1, len(labels) // config.images)][: config.images]
    pairs = []
    for path in chosen:
        [source] = (config.dataset / "images/val").glob(f"{path.stem}.*")
        image, truth = Image.fromarray(load_image(source)), Image.fromarray(load_labels(path))
        factor = side / max(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        file = io.BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pairs.append((file.getvalue(), np.asarray(truth.resize(size, Image.Resampling.NEAREST))))
    return pairs


def segment(url: str, model: str, jpeg: bytes) -> tuple[np.ndarray, float]:
    """The label map of the answer, and the seconds until it was there."""
    began = time.perf_counter()
    answer = httpx.post(f"{url}/v1/segment/{model}?output=labels", content=jpeg, timeout=600).raise_for_status()
    seconds = time.perf_counter() - began
    return np.asarray(Image.open(io.BytesIO(answer.content))), seconds


def pixel_accuracy(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The share of pixels with the right label, 0..1, of predictions and truths."""
    right = sum(int((found == truth)[truth != IGNORED].sum()) for found, truth in pairs)
    return right / sum(int((truth != IGNORED).sum()) for _, truth in pairs)


def peak_memory(pid: int) -> float:
    """The most memory that a process has held since the last call, MiB."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return int(line.split()[1]) / 1024


def small_behind_large(url: str, model: str, small: bytes, large: bytes, ahead: float) -> float:
    """Seconds of a small request that is sent so many seconds after a large one."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(segment, url, model, large)
        time.sleep(ahead)
        _, seconds = segment(url, model, small)
        first.result()
    return seconds


def main(config: LargeImages) -> dict[str, Any]:
    """Measures all; returns the rows."""
    before, rows = circumstances("onnxruntime-gpu", "pillow"), []
    files = {side: enlarged(config, side) for side in config.sides}
    small, large = files[config.sides[0]][0][0], files[config.sides[-1]][0][0]
    for model in sorted(child.name for child in config.models.iterdir() if versions(child)):
        size = open_artifact(config.models / model).info.working_size
        with server_process(config.models) as (server, pid, _):
            segment(server.url, model, small)
            for pairs in files.values():
                peak_memory(pid)
                answers = [segment(server.url, model, jpeg) for jpeg, _ in pairs]
                truths = [truth for _, truth in pairs]
                found = [(labels, truth) for (labels, _), truth in zip(answers, truths, strict=True)]
                row = {
                    "model": model,
                    "working size": size or "none",
                    "images": f"{truths[0].shape[1]}x{truths[0].shape[0]}",
                    "pixel accuracy, %": round(100 * pixel_accuracy(found), 1),
                    "seconds": round(statistics.median(seconds for _, seconds in answers), 2),
                    "most memory, MiB": round(peak_memory(pid)),
                }
                rows.append(row)
            alone = statistics.median(segment(server.url, model, small)[1] for _ in range(5))
            behind = max(
                statistics.median(small_behind_large(server.url, model, small, large, ahead) for _ in range(3))
                for ahead in AHEAD
            )
            rows[-1]["a small request behind it waits longer by, s"] = round(behind - alone, 2)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [f"| {' | '.join(names)} |", "| --- | ---: | ---: |" + " ---: |" * (len(names) - 3)]
    table += [f"| {' | '.join(str(row.get(name, '')) for name in names)} |" for row in rows]
    text = f"{before}; {config.images} images of each size, one at a time: medians."
    write_between_markers(config.results, f"{text}\n\n" + "\n".join(table) + "\n")
    return {"rows": rows}


if __name__ == "__main__":
    cli.run(main, LargeImages, __doc__)
