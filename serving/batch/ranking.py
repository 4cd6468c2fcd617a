"""In what order the images of a batch job should be labelled, in `ranking.csv`.

Shapes: N images, D features.
"""

import csv
import io
import itertools
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from serving.batch.manifest import EarlierRecords
from serving.common.artifact import FEATURES
from serving.common.files import naming, write_atomically

RANKING = "ranking.csv"

Order = Literal["diverse", "uncertainty"]

CANDIDATES = 10_000
"""Images, the least certain ones, among which different ones are looked for: they and the time are bounded."""

MOST_CHOSEN = 1_000
"""Images that are chosen so; the others follow by uncertainty. Nobody labels more before the next training."""

CHUNK = 1_024
"""Labelled images whose features are in memory at a time."""


def write_ranking(
    folder: Path, names: Iterable[str], labeled: Collection[str], answer: dict[str, Any], order: Order
) -> Path:
    """Which image to label next.

    Writes `ranking.csv`, a line `input,uncertainty` for each image without a label map that is segmented, by any shard
    so far. The uncertainty, 0..1, is 1 less the mean over the image of `reliability`, where the model gives one, or of
    the confidence.

    In the order "uncertainty" the least certain image comes first. In the order "diverse" a third column, `distance`,
    says how far an image's features are from those of the nearest image that has a label map or stands above it, and
    the product of both decides: `farthest_first`.

    Args:
        folder: the job's output, with features where the order is "diverse".
        names: of the images.
        labeled: those of them that have a label map.
        answer: what their records must hold, so that only answers of one model are compared.
    """
    wanted = {"status": "ok", **answer}.items()
    with EarlierRecords(folder) as records:

        def done(names: Iterable[str]) -> Iterator[dict[str, Any]]:
            return (record for record in map(records.find, names) if wanted <= record.items())

        sureness, missing = [], 0  # no records: there may be a million
        for record in done(name for name in names if name not in labeled):
            if order == "diverse" and not _has_features(folder, record):
                missing += 1
            else:
                sureness.append((record.get("mean_reliability", record["mean_confidence"]), record["input"]))
        if missing:
            print(f"{missing} images without features are not ranked: do them with --rank diverse", file=sys.stderr)
        rows: list[tuple] = [(name, round(1 - sure, 6)) for sure, name in sorted(sureness)]
        header = ["input", "uncertainty"]
        if order == "diverse":
            header.append("distance")
            candidates = rows[:CANDIDATES]
            known = (record for record in done(sorted(labeled)) if _has_features(folder, record))
            chosen = _choose(folder, candidates, done(name for name, _ in candidates), known)
            rows = [(*candidates[index], round(distance, 6)) for index, distance in chosen] + [
                (*row, "") for row in rows[CANDIDATES:]
            ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path = folder / RANKING
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))
    return path


def _choose(
    folder: Path,
    candidates: list[tuple[str, float]],
    records: Iterable[dict[str, Any]],
    labeled: Iterator[dict[str, Any]],
) -> list[tuple[int, float]]:
    """The order of the candidates, by their indices, and the distance of each."""
    if not candidates:
        return []
    features_ND = _features(folder, records)
    nearest_N = np.ones(len(candidates), np.float32)
    while some := list(itertools.islice(labeled, CHUNK)):
        np.minimum(nearest_N, _distances(features_ND, _features(folder, some)), out=nearest_N)
    uncertainty_N = np.array([uncertainty for _, uncertainty in candidates], np.float32)
    chosen = farthest_first(features_ND, uncertainty_N, nearest_N, MOST_CHOSEN)
    rest = set(range(len(candidates))).difference(index for index, _ in chosen)
    return chosen + [(index, float(nearest_N[index])) for index in sorted(rest)]


def farthest_first(
    features_ND: np.ndarray, weights_N: np.ndarray, nearest_N: np.ndarray, most: int
) -> list[tuple[int, float]]:
    """Chooses images that differ from what is labelled and from each other: the greedy k-center algorithm by which
    core-sets are chosen (Sener and Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    ICLR 2018, algorithm 1), with each distance times the image's weight.

    Args:
        features_ND: unit vectors, float32 (N,D).
        weights_N: of the images, 0 or more.
        nearest_N: their distances, 1 less the cosine, to the nearest of the labelled images; 1 for all without one. It
            is brought up to date.
        most: how many are chosen.

    Returns:
        Index and distance of each, at the time when it was chosen.
    """
    chosen = []
    left_N = np.ones(len(features_ND), bool)
    for _ in range(min(most, len(features_ND))):
        index = int(np.where(left_N, weights_N * nearest_N, -1.0).argmax())  # of equals the first
        chosen.append((index, float(nearest_N[index])))
        left_N[index] = False
        np.minimum(nearest_N, _distances(features_ND, features_ND[index : index + 1]), out=nearest_N)
    return chosen


def _distances(features_ND: np.ndarray, others_MD: np.ndarray) -> np.ndarray:
    """The distance of each to the nearest of the others, 0..2: 1 less the cosine, float32 (N,)."""
    return np.maximum(0.0, 1.0 - (features_ND @ others_MD.T).max(axis=1, initial=-1.0))


def _has_features(folder: Path, record: dict[str, Any]) -> bool:
    """Another shard may have done an image without them, or somebody has deleted them."""
    return FEATURES in record["outputs"] and (folder / record["outputs"][FEATURES]).is_file()


def _features(folder: Path, records: Iterable[dict[str, Any]]) -> np.ndarray:
    """Unit vectors float32 (N,D)."""
    found = []
    for record in records:
        path = folder / record["outputs"][FEATURES]
        with naming(path):
            found.append(np.load(path, allow_pickle=False))
    features_ND = np.array(found, np.float32)
    return features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), 1e-12)
