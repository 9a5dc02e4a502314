"""Colours and patterns of surfaces.

Captions contain the names of the first two colours. Exact shades, the third colour and the parameters of the
pattern are not described: they define the individual and must be learned from its photos.
"""

from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.10, 0.10),
    "orange": (0.96, 0.50, 0.06),
    "yellow": (0.97, 0.87, 0.12),
    "green": (0.12, 0.58, 0.16),
    "blue": (0.10, 0.26, 0.86),
    "purple": (0.50, 0.13, 0.70),
    "pink": (0.97, 0.55, 0.72),
    "brown": (0.42, 0.24, 0.10),
    "black": (0.08, 0.08, 0.09),
    "white": (0.95, 0.95, 0.93),
}
PATTERNS = ("plain", "striped", "spotted", "two-tone", "patched")
MATERIALS: dict[str, tuple[float, float, float]] = {
    "dark": (0.05, 0.05, 0.06),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.62, 0.63, 0.66),
    "orange": (0.98, 0.55, 0.05),
    "glass": (0.66, 0.84, 0.94),
    "flame": (1.00, 0.80, 0.22),
}


@dataclass(frozen=True, kw_only=True)
class Skin:
    """Colours and pattern of an individual.

    colours: three (name, rgb in [0,1]) for body, pattern and accent. pattern: one of PATTERNS.
    frequency: in [0, 1], coarse to fine. phase: radians. tilt: radians, the direction of stripes and of the
    two-tone cut.
    """

    colours: tuple[tuple[str, tuple[float, float, float]], ...]
    pattern: str
    frequency: float
    phase: float
    tilt: float


def _shade(rng: np.random.Generator, name: str) -> tuple[str, tuple[float, float, float]]:
    # Two red cats differ in their shade, which no caption describes.
    jitter = rng.uniform(-0.055, 0.055, 3)
    red, green, blue = np.clip(np.array(COLOURS[name]) + jitter, 0, 1).tolist()
    return name, (red, green, blue)


def sample_skin(rng: np.random.Generator) -> Skin:
    """Draw a random skin with three different colour names."""
    names = rng.choice(list(COLOURS), 3, replace=False)
    return Skin(
        colours=tuple(_shade(rng, str(name)) for name in names),
        pattern=str(rng.choice(PATTERNS, p=(0.28, 0.18, 0.18, 0.18, 0.18))),
        frequency=float(rng.uniform()),
        phase=float(rng.uniform(0, 2 * np.pi)),
        tilt=float(rng.uniform(-0.6, 0.6)),
    )


def _soft(value: np.ndarray, width: float) -> np.ndarray:
    """Return a step at 0 with a linear ramp of `width`; hard edges would only cause aliasing."""
    return np.clip(value / width + 0.5, 0, 1)


def pattern_mask(skin: Skin, p: np.ndarray) -> np.ndarray:
    """Return the share of the second colour, in [0, 1], at object-space points (..., 3)."""
    x, y, z = p[..., 0], p[..., 1], p[..., 2]
    along = y * np.cos(skin.tilt) + x * np.sin(skin.tilt)
    if skin.pattern == "plain":
        return np.zeros(x.shape, np.float32)
    if skin.pattern == "striped":
        return _soft(np.sin((8 + 5 * skin.frequency) * along + skin.phase), 0.5)
    if skin.pattern == "spotted":
        f = 7.5 + 4 * skin.frequency
        # Maxima of three waves are isolated blobs in space: spots without seams.
        return _soft(np.cos(f * x + skin.phase) + np.cos(f * y) + np.cos(f * z - skin.phase) - 0.75, 0.6)
    if skin.pattern == "two-tone":
        return _soft(along - (0.55 + 0.5 * skin.frequency), 0.08)
    # "patched": large blobs from three incommensurable waves.
    waves = np.sin(3.1 * x + skin.phase) + np.sin(2.6 * y + 2 * skin.phase) + np.sin(2.9 * z - skin.phase)
    return _soft(waves - 0.2 + 0.5 * skin.frequency, 0.3)


def surface_colour(skin: Skin, material: str, p: np.ndarray, worn: tuple[float, float, float]) -> np.ndarray:
    """Return RGB (N, 3) in [0, 1] at object-space points (N, 3) of a material; `worn` is the accessory's."""
    if material == "body":
        mask = pattern_mask(skin, p)[..., None]
        first, second = (np.array(skin.colours[i][1], np.float32) for i in (0, 1))
        return first * (1 - mask) + second * mask
    fixed = {"accent": skin.colours[2][1], "worn": worn, **MATERIALS}[material]
    return np.broadcast_to(np.array(fixed, np.float32), p.shape)
