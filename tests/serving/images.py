"""Images to send or to save, and what the toy model makes of them: labels are red // 64."""

import io
import json

import numpy as np
from PIL import Image

from serving.common.images import load_image
from tests.serving.toy_model import PALETTE


def random_image(height=6, width=8, seed=0):
    """Pixels of which 2 x 2 are alike, so that lossy formats keep them nearly."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 2, width // 2, 3), np.uint8)
    return small.repeat(2, axis=0).repeat(2, axis=1)


def encoded(image, format="PNG", **options):
    """A Pillow image as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def encoded_image(height=6, width=8, seed=0, format="PNG", **options):
    """A random image as a file's bytes."""
    return encoded(Image.fromarray(random_image(height, width, seed)), format, **options)


def save_image(path, height=6, width=8, seed=0, **options):
    """Saves a random image; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image_HWC = random_image(height, width, seed)
    Image.fromarray(image_HWC).save(path, **options)
    return image_HWC


def expected_labels(source):
    """What the model finds in an image: a path, or a file's bytes."""
    return load_image(source)[..., 0] // 64


def labels_at(path):
    """A label map that was written, in the model's colours."""
    with Image.open(path) as stored:
        assert stored.mode == "P"
        assert stored.getpalette()[: 3 * len(PALETTE)] == [value for color in PALETTE for value in color]
        return np.asarray(stored)


def manifest(output):
    """By name, the records of a batch job."""
    lines = (output / "manifest.jsonl").read_text().splitlines()
    return {record["input"]: record for record in map(json.loads, lines)}
