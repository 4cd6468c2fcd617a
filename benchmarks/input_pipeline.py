"""`python -m benchmarks.input_pipeline`: JPEG files to training batches, ours against PyTorch's DataLoader.

Both decode images and label maps of VOC's size, scale, crop, flip and change colours at random. Each has a process of
its own, limited to the given cores, and they take turns. On a busy machine the processor time says more than the
clock. Needs `pip install -e ".[train,bench]"`.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.results_file import write_between_markers
from benchmarks.turns import (
    Record,
    circumstances,
    hold_to_cores,
    measure,
    processor_seconds,
    require_cores,
    spread,
    take_turns,
)
from serving.common import cli

CROP, SCALE, JITTER = 321, (0.5, 1.5), 0.5
SIZE_HW, CLASSES = (375, 500), 21
LATE_STEP = 100_000
SIDES = ("kerasseg", "pytorch")


@dataclass(frozen=True, kw_only=True)
class InputPipeline:
    """How much to measure, and where the table goes."""

    cores: tuple[int, ...] = (1, 2)
    """How many cores each measurement has."""
    images: int = 60
    """Number of different files."""
    batch_size: int = 8
    """Images in a batch."""
    batches: int = 30
    """Batches in one repeat."""
    repeats: int = 5
    """Repeats of each side, in turns; the table has their median, smallest and largest."""
    results: Path = Path("benchmarks/results/input_pipeline.md")
    """The table is written between the markers of this file."""
    side: str | None = None
    """kerasseg or pytorch: be the process that is measured; set by the benchmark itself."""
    folder: Path | None = None
    """Where the images are; set by the benchmark itself."""


def make_images(folder: Path, count: int) -> float:
    """A dataset folder of JPEGs that have the spectrum of photographs; returns their mean size in kB."""
    frequency = np.hypot(np.fft.fftfreq(SIZE_HW[0])[:, None], np.fft.fftfreq(SIZE_HW[1]))
    frequency[0, 0] = 1 / SIZE_HW[1]
    to_rgb = np.array([[1.0, 1.0, 1.0], [0.3, 0.0, -0.3], [0.1, -0.2, 0.1]])
    images, labels = folder / "images/train", folder / "labels/train"
    for place in (images, labels):
        place.mkdir(parents=True)
    (folder / "classes.json").write_text(json.dumps({"classes": [f"class {k}" for k in range(CLASSES)]}))
    for number in range(count):
        rng = np.random.default_rng(number)
        spectrum = rng.normal(size=(3, *SIZE_HW)) + 1j * rng.normal(size=(3, *SIZE_HW))
        image = np.fft.ifft2(spectrum / frequency**1.2).real.transpose(1, 2, 0) @ to_rgb
        image = np.clip(120 + 50 * (image - image.mean()) / image.std(), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(images / f"{number}.jpg", quality=90)
        regions = rng.integers(0, CLASSES, (6, 8), dtype=np.uint8).repeat(63, 0).repeat(63, 1)
        Image.fromarray(regions[: SIZE_HW[0], : SIZE_HW[1]]).save(labels / f"{number}.png")
    return statistics.mean(path.stat().st_size for path in images.iterdir()) / 1000


def kerasseg_batches(folder: Path, batch_size: int, start_step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (B,H,W,3) in 0..255 and labels (B,H,W) from `train_dataset`."""
    from kerasseg.data import Augmentation, make_split, open_dataset, train_dataset

    dataset = open_dataset(folder)
    split = make_split(dataset, "all", 0)
    augmentation = Augmentation(crop=(CROP, CROP), scale=SCALE, flip=True, color_jitter=JITTER)
    batches = train_dataset(
        dataset, split, augmentation, batch_size=batch_size, unlabeled_batch_size=0, start_step=start_step
    )
    for x, labels in batches:
        yield x["labeled"], labels


class TorchImages:
    """The same files as a map-style dataset, as training scripts in PyTorch have it: Pillow and NumPy.

    With a `seed` an image's view is always the same.
    """

    def __init__(self, folder: Path, seed: int | None = None):
        self.seed = seed
        self.images = sorted((folder / "images/train").iterdir())
        self.labels = folder / "labels/train"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(None if self.seed is None else [self.seed, index])
        path = self.images[index]
        image, label = Image.open(path).convert("RGB"), Image.open(self.labels / f"{path.stem}.png")
        scale = rng.uniform(*SCALE)
        size = round(image.width * scale), round(image.height * scale)
        image, label = image.resize(size, Image.Resampling.BILINEAR), label.resize(size, Image.Resampling.NEAREST)
        left, top = (int(rng.integers(0, max(length - CROP, 0) + 1)) for length in size)
        box = left, top, min(left + CROP, size[0]), min(top + CROP, size[1])
        image, label = jittered(image.crop(box), rng), label.crop(box)
        image_HWC, label_HW = np.asarray(image, np.float32), np.asarray(label, np.int64)
        below, right = CROP - label_HW.shape[0], CROP - label_HW.shape[1]
        image_HWC = np.pad(image_HWC, ((0, below), (0, right), (0, 0)), constant_values=127.5)
        label_HW = np.pad(label_HW, ((0, below), (0, right)), constant_values=255)
        if rng.uniform() < 0.5:
            image_HWC, label_HW = image_HWC[:, ::-1], label_HW[:, ::-1]
        return np.ascontiguousarray(image_HWC.transpose(2, 0, 1)), np.ascontiguousarray(label_HW)


def jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue by as much as `kerasseg.data.augment.jitter_color` changes them."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(1 - JITTER, 1 + JITTER))
    hue, saturation, value = image.convert("HSV").split()
    turn = round(255 * rng.uniform(-JITTER / 4, JITTER / 4)) % 256
    return Image.merge("HSV", (hue.point([(k + turn) % 256 for k in range(256)]), saturation, value)).convert("RGB")


def pytorch_batches(folder: Path, batch_size: int, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `kerasseg_batches`, channels first: endless epochs of a DataLoader with a worker for each core."""
    import torch

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        TorchImages(folder), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )
    while True:
        yield from loader


def measured_process(config: InputPipeline) -> None:
    """Checks a batch, then takes turns: a repeat each."""
    hold_to_cores(config.cores[0])
    ready: dict[str, float] = {}
    if config.side == "pytorch":
        batches = pytorch_batches(config.folder, config.batch_size, config.cores[0])
    else:
        for step in (LATE_STEP, 0, LATE_STEP, 0):  # the first two warm up
            began = time.perf_counter()
            next(kerasseg_batches(config.folder, config.batch_size, step))
            ready[f"first batch at step {step}, s"] = time.perf_counter() - began
        batches = kerasseg_batches(config.folder, config.batch_size, 0)
    images, labels = (np.asarray(part) for part in next(batches))
    if config.side == "pytorch":
        images = images.transpose(0, 2, 3, 1)
    check(images, labels, config.batch_size)

    def turn() -> Record:
        for _ in range(4):  # batches prepared while the other side had its turn
            next(batches)
        began, processor_began = time.perf_counter(), processor_seconds()
        for _ in range(config.batches):
            next(batches)
        seconds, processor = time.perf_counter() - began, processor_seconds() - processor_began
        count = config.batches * config.batch_size
        return {"images/s": count / seconds, "processor ms": 1000 * processor / count}

    take_turns(ready, turn)


def check(images: np.ndarray, labels: np.ndarray, batch_size: int) -> None:
    """ValueError unless a batch is what both sides promise."""
    facts = {
        "shape of images": images.shape == (batch_size, CROP, CROP, 3),
        "shape of labels": labels.shape == (batch_size, CROP, CROP),
        "type of images": images.dtype == np.float32,
        "range of images": 0 <= images.min() < 60 and 180 < images.max() <= 255,
        "labels": set(np.unique(labels)) <= {*range(CLASSES), 255} and len(np.unique(labels)) > 3,
    }
    if wrong := [name for name, holds in facts.items() if not holds]:
        raise ValueError(f"the sides do not do the same: {', '.join(wrong)}")


def main(config: InputPipeline) -> dict:
    if config.side is not None:
        measured_process(config)
        return {}
    require_cores(max(config.cores))
    ratios = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        kilobytes = make_images(folder, config.images)
        lines = [
            f"{circumstances('tensorflow', 'torch', 'pillow')}; JPEGs of {kilobytes:.0f} kB; {config.repeats} repeats "
            f"of {config.batches} batches of {config.batch_size}: median (smallest to largest).",
            "",
            "| cores | side | images/s | to pytorch | processor ms an image | to pytorch | first batch at step 0, s "
            f"| at step {LATE_STEP}, s |",
            "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for cores in config.cores:
            flags = ["--folder", str(folder), "--cores", str(cores), "--batch-size", str(config.batch_size)]
            flags += ["--batches", str(config.batches)]
            command = [sys.executable, "-m", "benchmarks.input_pipeline", *flags]
            ready, repeats = measure({side: [*command, "--side", side] for side in SIDES}, config.repeats)
            first = ready["kerasseg"]
            speeds = {side: [repeat["images/s"] for repeat in repeats[side]] for side in SIDES}
            costs = {side: [repeat["processor ms"] for repeat in repeats[side]] for side in SIDES}
            # Each repeat against its neighbour: other work of the machine slows both.
            faster = [ours / theirs for ours, theirs in zip(*speeds.values(), strict=True)]
            cheaper = [theirs / ours for ours, theirs in zip(*costs.values(), strict=True)]
            ratios[str(cores)] = {"images/s": statistics.median(faster), "processor": statistics.median(cheaper)}
            for side in SIDES:
                ours = side == "kerasseg"
                begins = [f"{first[f'first batch at step {step}, s']:.2f}" if ours else "" for step in (0, LATE_STEP)]
                cells = [str(cores), side, spread(speeds[side]), spread(faster) if ours else ""]
                cells += [spread(costs[side]), spread(cheaper) if ours else "", *begins]
                lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    write_between_markers(config.results, text)
    print(text, file=sys.stderr)
    return ratios


if __name__ == "__main__":
    cli.run(main, InputPipeline, __doc__ or "")
