"""Pictures for a batch job, and what it made of them."""

import json

import numpy as np
from PIL import Image

from serving.common.pictures import load_picture
from tests.serving.toy_model import PALETTE


def picture(path, height=6, width=8, seed=0, **options):
    """Saves random pixels, with 2 x 2 pixels alike so that JPEG keeps them nearly; returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (height // 2, width // 2, 3), np.uint8)
    image_HWC = small.repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(image_HWC).save(path, **options)
    return image_HWC


def labels_at(path):
    with Image.open(path) as stored:
        assert stored.mode == "P"
        assert stored.getpalette()[: 3 * len(PALETTE)] == [value for color in PALETTE for value in color]
        return np.asarray(stored)


def manifest(output):
    lines = (output / "manifest.jsonl").read_text().splitlines()
    return {record["input"]: record for record in map(json.loads, lines)}


def expected_labels(path):
    return load_picture(path)[..., 0] // 64
