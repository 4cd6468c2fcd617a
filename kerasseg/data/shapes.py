"""The built-in dataset: procedural scenes of six shapes, drawn from a seed, nothing on disk.

What makes it a small model of the real task: colour tells a pair of classes at most, only the outline tells which of
the two (disc or ring, square or triangle, star or cross); texture tells nothing; shapes hide each other; light,
shadows, noise and clutter of any colour get in the way. Each scene has its own one to three classes, and each class a
ground that it is mostly found on, as cows are found on grass, another one than its pair's: so the picture as a whole
tells something about what is in it, and that in turn which of two a half-hidden outline is.

Legend: H, W size of a scene; x, y pixel coordinates; colours and brightness 0..1.
"""

import hashlib
import math

import numpy as np

from kerasseg.data.datasets import Dataset

CLASSES = {
    "background": (38, 40, 48),
    "disc": (230, 85, 75),
    "ring": (245, 180, 60),
    "square": (70, 130, 220),
    "triangle": (80, 190, 200),
    "star": (170, 100, 210),
    "cross": (110, 195, 90),
}
NUM_SHAPES = len(CLASSES) - 1
# Around which the colours of a pair of classes lie, as differences from grey: warm, cool, green.
TINTS = np.array([[0.2, 0.0, -0.2], [-0.2, 0.0, 0.2], [-0.1, 0.2, -0.1]])
# The same for the grounds: rose, teal, straw; and which of them each class is at home on.
GROUNDS = np.array([[0.15, -0.15, 0.0], [-0.15, 0.07, 0.08], [0.07, 0.08, -0.15]])
HOMES = np.arange(NUM_SHAPES) % len(GROUNDS)
AT_HOME = 20.0  # weight of a class there, beside 1 elsewhere, in each of a scene's one to three draws


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
    """A picture uint8 (H, W, 3) and its label map uint8 (H, W)."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    unit = min(size) / 96  # everything below is measured in pixels of a scene 96 high
    brightness, ground = rng.uniform(0.25, 0.75), rng.randint(len(GROUNDS))
    picture = _texture(rng, x / unit, y / unit, brightness, GROUNDS[ground])
    label = np.zeros(size, np.uint8)

    likely = np.where(ground == HOMES, AT_HOME, 1.0)
    theme = 1 + rng.choice(NUM_SHAPES, size=rng.randint(1, 4), replace=False, p=likely / likely.sum())
    shapes = rng.choice(theme, size=rng.randint(len(theme) + 1, 7))
    shapes[: len(theme)] = theme
    things = np.concatenate([np.zeros(rng.randint(2, 6), int), shapes])  # 0 is clutter: part of the background
    light = rng.uniform(0, 2 * math.pi)
    for shape in rng.permutation(things):
        distance = _outline(rng, shape, x, y, size, unit)
        shade = _contrasting(rng, brightness)
        tint = TINTS[(shape - 1) // 2] if shape else None
        shadow = np.clip(
            np.roll(distance, (round(2 * math.sin(light)), round(2 * math.cos(light))), (0, 1)) / unit, 0, 6
        )
        picture *= 1 - 0.35 * np.exp(-shadow / 2)[..., None]
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        picture += cover * (_texture(rng, x / unit, y / unit, shade, tint) - picture)
        label[distance < 0] = shape

    slope = math.cos(light) * (x / size[1] - 0.5) + math.sin(light) * (y / size[0] - 0.5)
    picture *= (1 - rng.uniform(0, 0.9) * slope)[..., None]
    picture += rng.normal(0, rng.uniform(0.01, 0.05), picture.shape)
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8), label


def _outline(
    rng: np.random.RandomState, shape: int, x: np.ndarray, y: np.ndarray, size: tuple[int, int], unit: float
) -> np.ndarray:
    """Signed distance (H, W) in pixels, roughly, to the border of a thing at a random place; negative
    inside."""
    radius = unit * (rng.uniform(12, 26) if shape else rng.uniform(4, 14))
    turn, stretch = rng.uniform(0, 2 * math.pi), math.exp(rng.uniform(-0.2, 0.2))
    dx, dy = x - size[1] * rng.uniform(0.05, 0.95), y - size[0] * rng.uniform(0.05, 0.95)
    u = (math.cos(turn) * dx + math.sin(turn) * dy) / (radius * stretch)
    v = (math.cos(turn) * dy - math.sin(turn) * dx) / (radius / stretch)
    if not shape:
        return radius * _clutter(rng, u, v)
    return radius * _SHAPES[shape - 1](u, v)


def _clutter(rng: np.random.RandomState, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A stick or a blob: distance to its border, in its own coordinates."""
    if rng.rand() < 0.5:
        return np.maximum(np.abs(v) - rng.uniform(0.06, 0.14), np.abs(u) - 2.5)
    angle, waves = np.arctan2(v, u), rng.randint(2, 6)
    return np.hypot(u, v) - 0.7 - 0.3 * np.sin(waves * angle + rng.uniform(0, 6)) * np.sin(angle + rng.uniform(0, 6))


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.9


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.68) - 0.25


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.8


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _sector(u, v, 3)[0] - 0.58


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Within a sector half the star's edge is a line, from the inner corner on the sector's axis to the tip on
    # its rim.
    along, across = _sector(u, v, 5)
    tip, inner = np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)]) * 1.15, np.array([0.46, 0.0])
    normal = np.array([tip[1] - inner[1], inner[0] - tip[0]]) / np.hypot(*(tip - inner))
    return (along - inner[0]) * normal[0] + (across - inner[1]) * normal[1]


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(u, v) - 0.3, np.maximum(u, v) - 1.0)


def _sector(u: np.ndarray, v: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Folds the plane into one of `count` equal sectors: coordinates along its axis and, >= 0, across it."""
    width = 2 * math.pi / count
    angle = np.abs((np.arctan2(v, u) + width / 2) % width - width / 2)
    radius = np.hypot(u, v)
    return radius * np.cos(angle), radius * np.sin(angle)


_SHAPES = (_disc, _ring, _square, _triangle, _star, _cross)


def _contrasting(rng: np.random.RandomState, brightness: float) -> float:
    """A brightness away from that of the ground, so that a thing can be seen."""
    return (brightness + rng.uniform(0.2, 0.5) * rng.choice([-1, 1])) % 1.0


def _texture(
    rng: np.random.RandomState, x: np.ndarray, y: np.ndarray, brightness: float, tint: np.ndarray | None = None
) -> np.ndarray:
    """A surface (H, W, 3): one of four patterns between two shades of a colour, any colour unless near a tint."""
    color = brightness + (rng.uniform(-0.25, 0.25, 3) if tint is None else tint + rng.uniform(-0.12, 0.12, 3))
    color = np.clip(color, 0, 1)
    other = np.clip(color + rng.uniform(-0.22, 0.22) + rng.uniform(-0.06, 0.06, 3), 0, 1)
    turn, wavelength, phase = rng.uniform(0, 2 * math.pi), rng.uniform(4, 16), rng.uniform(0, 2 * math.pi)
    u = (math.cos(turn) * x + math.sin(turn) * y) * 2 * math.pi / wavelength + phase
    v = (math.cos(turn) * y - math.sin(turn) * x) * 2 * math.pi / wavelength
    pattern = rng.randint(4)
    if pattern == 0:  # stripes
        mix = 0.5 + 0.5 * np.sin(u)
    elif pattern == 1:  # checks
        mix = 0.5 + 0.5 * np.clip(4 * np.sin(u) * np.sin(v), -1, 1)
    elif pattern == 2:  # cloudy
        mix = 0.5 + 0.25 * (np.sin(0.6 * u + 1.5 * np.sin(0.4 * v)) + np.sin(0.5 * v + 1.5 * np.sin(0.3 * u + phase)))
    else:  # plain
        mix = np.zeros_like(u)
    return (color + mix[..., None] * (other - color)).astype(np.float32)
