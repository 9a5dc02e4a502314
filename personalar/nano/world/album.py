"""Pictures of one or two objects, as photos or in a style that a caption can name.

A style is drawn from the layers of a picture and not from a finished photo: it gets `Layers` and a generator,
and returns an image (S, S, 3) in about [0, 1]. Strokes and lines are several pixels wide on purpose, because
a code covers 8 x 8 pixels of the finished picture.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from personalar.nano.world.layers import Layers, layers
from personalar.nano.world.scene import SIZE, SUPERSAMPLING, Scene, shrink

PAPER = np.array([0.97, 0.96, 0.93], np.float32)
STROKES = 16
"""Strokes across a picture: one per code of a 128-px picture, so that hatching is the same in all codes."""
GRAPHITE = np.array([0.20, 0.20, 0.24], np.float32)
INK = np.array([0.05, 0.05, 0.07], np.float32)


def cartoon(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """Paint flat, strong colours with two levels of light and black outlines."""
    inside = layers.thing >= 0
    grey = np.maximum(layers.albedo.mean(-1, keepdims=True), 0.02)
    colour = np.where(inside[..., None], layers.albedo, layers.albedo * np.round(grey * 7) / 7 / grey)
    strong = np.clip(colour + 0.25 * (colour - grey), 0, 1)
    step = np.where(layers.lit < np.where(inside, 0.78, 0.8), 0.72, 1.0)
    return _draw(strong * step[..., None], INK, _outline(layers.solid, 2))


def pencil(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """Paint coloured strokes on paper, denser in dark areas, and grey contours."""
    inside = layers.thing >= 0
    picture = layers.albedo * layers.lit[..., None]
    depth = 1 - picture.mean(-1) + 0.5 * np.ptp(picture, axis=-1)
    depth = np.clip(depth * np.where(inside, 1.0, 0.6), 0.05, 0.95)
    size = len(depth)
    y, x = np.mgrid[0:size, 0:size] / size
    strokes = 0.5 + 0.5 * np.sin(np.where(inside, x + y, x - y) * 2 * np.pi * STROKES)
    share = np.where(inside, 0.5, 0.35)
    cover = (1 - share) * depth + share * np.clip((depth - strokes) / 0.6 + 0.5, 0, 1)
    drawn = _draw(np.broadcast_to(PAPER, picture.shape), layers.albedo * 0.85, cover)
    jump = np.abs(np.diff(layers.albedo.mean(-1), axis=0, prepend=0)) * (~inside)
    drawn = _draw(drawn, GRAPHITE, 0.4 * np.clip(jump * 14 - 0.3, 0, 1))
    return _draw(drawn, GRAPHITE, 0.85 * _outline(layers.solid, 1))


def watercolour(layers: Layers, rng: np.random.Generator) -> np.ndarray:
    """Paint thin, uneven washes with irregular, darker borders, and a white margin."""
    size = len(layers.lit)
    y, x = np.mgrid[0:size, 0:size]
    waver = 0.008 * size
    y = np.clip(y + waver * _drift(size, rng, 9), 0, size - 1).astype(int)
    x = np.clip(x + waver * _drift(size, rng, 9), 0, size - 1).astype(int)
    wet = replace(layers, **{name: value[y, x] for name, value in vars(layers).items()})
    inside = wet.thing >= 0
    pigment = wet.albedo * (0.35 + 0.65 * wet.lit[..., None])
    thickness = np.where(inside, 0.84, 0.55) + 0.13 * _drift(size, rng, 4)
    washed = _draw(np.broadcast_to(PAPER, pigment.shape), pigment, np.clip(thickness, 0, 1))
    rims = 0.16 * _outline(wet.solid, 1) + 0.10 * _outline(wet.thing, 4)
    washed = washed * (1 - rims[..., None])
    axis = np.abs((np.arange(size) + 0.5) / size - 0.5)
    margin = np.maximum(axis[:, None], axis[None]) + 0.012 * _drift(size, rng, 6)
    return _draw(washed, PAPER, np.clip((margin - 0.462) / 0.012, 0, 1))


STYLES: dict[str, Callable[[Layers, np.random.Generator], np.ndarray]] = {
    "pencil drawing": pencil,
    "watercolour": watercolour,
    "flat cartoon": cartoon,
}
"""Name in captions -> function that paints the style."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Objects from left to right, in the place of the first scene, and in a style (None: a photo)."""

    scenes: tuple[Scene, ...]
    style: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown style or more than two objects."""
        if self.style is not None and self.style not in STYLES:
            raise ValueError(f"style must be None or one of {', '.join(STYLES)}; got {self.style!r}")
        if not 1 <= len(self.scenes) <= 2:
            raise ValueError(f"a picture has one or two objects; got {len(self.scenes)} scenes")


def draw(picture: Picture, size: int = SIZE) -> Image.Image:
    """Render a picture to an RGB image of size x size pixels; it depends only on `picture`."""
    found = layers(picture.scenes, size * SUPERSAMPLING)
    if picture.style is None:
        return shrink(found.photo)
    return shrink(STYLES[picture.style](found, np.random.default_rng([picture.scenes[0].seed, 1])))


def _draw(image: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return image + (colour - image) * cover[..., None]


def _outline(regions: np.ndarray, width: int) -> np.ndarray:
    """Return 1 within `width` pixels of a border between regions (S, S), otherwise 0."""
    line = np.zeros(regions.shape, bool)
    line[:, :-1] |= regions[:, 1:] != regions[:, :-1]
    line[:-1] |= regions[1:] != regions[:-1]
    for _ in range(width):
        grown = line.copy()
        grown[1:] |= line[:-1]
        grown[:-1] |= line[1:]
        grown[:, 1:] |= line[:, :-1]
        grown[:, :-1] |= line[:, 1:]
        line = grown
    return line.astype(np.float32)


def _drift(size: int, rng: np.random.Generator, fine: float) -> np.ndarray:
    """Return smooth noise (S, S) in about [-1, 1] with up to `fine` waves across the picture."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    total = np.zeros((size, size), np.float32)
    for _ in range(6):
        angle, waves, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1) * fine, rng.uniform(0, 6.28)
        total += np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return total / 3
