"""The built-in dataset: procedural scenes of nine kinds of animals, drawn from a seed, nothing on disk.

It is a small model of photographs: the coat of an animal, its pattern and colour, decides its class, so every piece of
it shows the class; outlines are random and say nothing. Light, its colour, shade, size, rotation and noise vary so much
that a few labelled scenes do not show them all. Three animals share each coat, and live in the savanna, the water or
the forest; only the sky at the top of the scene says which of them it is. Stones of nearly no colour belong to the
background.

Legend: H, W size of a scene; x, y pixel coordinates; u, v those of a pattern; colours and brightness 0..1.
"""

import hashlib
import math

import numpy as np

from kerasseg.data.datasets import Dataset

CLASSES = {
    "background": (38, 40, 48),
    "zebra": (230, 85, 75),
    "angelfish": (245, 180, 60),
    "tiger": (250, 130, 40),
    "cheetah": (70, 130, 220),
    "ray": (80, 190, 200),
    "fawn": (120, 90, 60),
    "giraffe": (170, 100, 210),
    "turtle": (110, 195, 90),
    "python": (210, 200, 120),
}
COATS = ("stripes", "spots", "patches")
"""The classes after the background come in threes: the first of each lives in the savanna, the second in the water and
the third in the forest."""
# As differences from grey: the mean colours of the animals with each coat, and the colours of the skies.
TINTS = np.array([[0.3, -0.1, -0.2], [0.1, -0.25, 0.15], [-0.15, 0.25, -0.1]])
SKIES = np.array([[0.3, 0.03, -0.33], [-0.33, 0.0, 0.33], [-0.13, 0.27, -0.13]])  # savanna, water, forest


class ShapesDataset(Dataset):
    """Scenes of `size` (H, W), with the names train_0000, val_0000, ... A scene depends on its name and
    `seed` only."""

    def __init__(self, size: tuple[int, int] = (96, 128), train: int = 400, val: int = 100, seed: int = 0) -> None:
        if min(size) < 16 or train < 1 or val < 1:
            raise ValueError(f"shapes needs 16 pixels and one scene or more, got size={size}, {train=}, {val=}")
        super().__init__("shapes", tuple(CLASSES), tuple(CLASSES.values()))
        self.size = size
        self.seed = seed
        self._names = {s: tuple(f"{s}_{i:04d}" for i in range(n)) for s, n in (("train", train), ("val", val))}
        self._scenes: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._names)

    def image_names(self, split: str) -> tuple[str, ...]:
        if split not in self._names:
            raise self._no_split(split)
        return self._names[split]

    def load_image(self, split: str, name: str) -> np.ndarray:
        return self._scene(split, name)[0]

    def load_label(self, split: str, name: str) -> np.ndarray:
        return self._scene(split, name)[1]

    def _scene(self, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        if name not in self._scenes:  # drawn once and kept: 500 scenes are 25 MB
            if name not in self.image_names(split):
                raise ValueError(f"shapes has no {split} scene {name!r}")
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            # RandomState, because NumPy promises never to change its numbers.
            self._scenes[name] = draw_scene(np.random.RandomState(np.frombuffer(digest, np.uint32)), self.size)
        return self._scenes[name]


def draw_scene(rng: np.random.RandomState, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 (H, W, 3) and its label map uint8 (H, W)."""
    unit = min(size) / 96  # everything below is measured in pixels of a scene 96 high
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32) / unit
    height, width = size[0] / unit, size[1] / unit
    world, light = rng.randint(len(SKIES)), rng.uniform(0, 2 * math.pi)
    image = _cloudy(rng, x, y, rng.uniform(0.3, 0.7) + rng.uniform(-0.08, 0.08, 3))
    horizon = height * rng.uniform(0.25, 0.4) + 3 * np.sin(x * rng.uniform(0.02, 0.08) + rng.uniform(0, 6))
    image += np.clip(horizon - y + 0.5, 0, 1)[..., None] * (_sky(rng, x, y, world) - image)
    label = np.zeros(size, np.uint8)

    coats = rng.choice(len(COATS), size=rng.randint(1, 3), replace=False)
    animals = rng.choice(coats, size=rng.randint(2, 6))
    animals[: len(coats)] = coats
    for coat in rng.permutation(np.concatenate([np.full(rng.randint(1, 4), -1), animals])):  # -1 is a stone
        radius = rng.uniform(16, 32) if coat >= 0 else rng.uniform(5, 14)
        dx, dy = x - width * rng.uniform(0.05, 0.95), y - height * rng.uniform(0.5, 1)
        distance = radius * _outline(rng, dx / radius, dy / radius)
        surface = _coat(rng, x, y, coat) if coat >= 0 else _stone(rng, x, y)
        # Round as a body is: bright towards the light and dark away from it.
        slope = (math.cos(light) * dx + math.sin(light) * dy) / radius
        surface = surface * np.clip(1 - rng.uniform(0.1, 0.5) * slope, 0.3, 1.6)[..., None]
        image *= 1 - 0.35 * np.exp(-np.clip(distance, 0, 12) / 3)[..., None]
        image += np.clip(0.5 - distance, 0, 1)[..., None] * (surface - image)
        label[distance < 0] = 1 + len(SKIES) * coat + world if coat >= 0 else 0

    slope = math.cos(light) * (x / width - 0.5) + math.sin(light) * (y / height - 0.5)
    image *= (1 - rng.uniform(0, 0.9) * slope)[..., None]
    image = rng.uniform(0.6, 1.3) * image * rng.uniform(0.8, 1.2, 3)  # exposure, colour of the light
    image += rng.normal(0, rng.uniform(0.01, 0.04), image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8), label


def _outline(rng: np.random.RandomState, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance, roughly, to the border of a blob of radius 1 of any form; negative inside."""
    turn, stretch = rng.uniform(0, 2 * math.pi), math.exp(rng.uniform(0, 0.35))
    u, v = (math.cos(turn) * u + math.sin(turn) * v) / stretch, (math.cos(turn) * v - math.sin(turn) * u) * stretch
    angle = np.arctan2(v, u)
    waves = sum(rng.uniform(0, 0.3) / k * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4, 5))
    return np.hypot(u, v) - 0.85 - waves


def _coat(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray, coat: int) -> np.ndarray:
    """The surface (H, W, 3) of an animal: its pattern, at any turn and in a wide range of sizes and colours."""
    u, v = _coordinates(rng, x, y, rng.uniform(8, 16))
    if COATS[coat] == "stripes":
        pattern = np.sin(u)
    elif COATS[coat] == "spots":
        pattern = 4 * (np.cos(u) + np.cos(v) - 0.9)
    else:
        pattern = 4 * np.sin(u) * np.sin(v)
    light = rng.uniform(0.4, 0.7) + TINTS[coat] + rng.uniform(-0.12, 0.12, 3)
    dark = light - rng.choice([-1, 1], p=[0.3, 0.7]) * rng.uniform(0.15, 0.4) + rng.uniform(-0.06, 0.06, 3)
    return light + (0.5 + 0.5 * np.clip(pattern, -1, 1))[..., None] * (dark - light)


def _stone(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The surface (H, W, 3) of a stone: cloudy, of nearly no colour."""
    return _cloudy(rng, x, y, rng.uniform(0.2, 0.8) + rng.uniform(-0.04, 0.04, 3))


def _sky(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray, world: int) -> np.ndarray:
    """What is behind the horizon (H, W, 3): a dusty sky, the sea from below, or leaves."""
    return _cloudy(rng, x, y, rng.uniform(0.4, 0.6) + SKIES[world] + rng.uniform(-0.08, 0.08, 3))


def _cloudy(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray, color: np.ndarray) -> np.ndarray:
    u, v = _coordinates(rng, x, y, rng.uniform(8, 24))
    clouds = np.sin(0.6 * u + 1.5 * np.sin(0.4 * v)) + np.sin(0.5 * v + 1.5 * np.sin(0.3 * u))
    return color + 0.25 * clouds[..., None] * (rng.uniform(-0.3, 0.3) + rng.uniform(-0.08, 0.08, 3))


def _coordinates(
    rng: np.random.RandomState, x: np.ndarray, y: np.ndarray, wavelength: float
) -> tuple[np.ndarray, np.ndarray]:
    """x and y rotated, bent a little, and in units in which a pattern repeats after 2 pi."""
    turn, phase = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi, 4)
    u = (math.cos(turn) * x + math.sin(turn) * y) * 2 * math.pi / wavelength
    v = (math.cos(turn) * y - math.sin(turn) * x) * 2 * math.pi / wavelength
    bend = rng.uniform(0, 1.2)
    return u + phase[0] + bend * np.sin(0.35 * v + phase[2]), v + phase[1] + bend * np.sin(0.35 * u + phase[3])
