"""The twelve places, painted in two dimensions behind and below the object.

Phrases are those of DreamBench if it has the place. A painter gets (u, v, rng), where u and v are pixel
coordinates (S, S) in [0, 1] (v points down), and returns an image (S, S, 3) in [0, 1]. Places are smooth and
vary little on purpose: with one code per 8 x 8 pixels fine texture becomes noise, and variation that the
caption does not describe uses capacity that a small model needs for the object.
"""

from collections.abc import Callable

import numpy as np

GROUND = 0.60  # v of the horizon in places with a floor

HOUSES = ((0.08, 0.1, 0.2), (0.3, 0.09, 0.34), (0.52, 0.1, 0.14), (0.74, 0.09, 0.3), (0.94, 0.1, 0.2))
"""Houses of the city: x, half width, top."""
LEAVES = ((0.08, 0.12, 0.7, 0.32), (0.42, 0.02, -0.5, 0.3), (0.88, 0.1, -0.8, 0.34), (0.04, 0.46, -0.3, 0.28),
          (0.97, 0.44, 0.4, 0.3))  # fmt: skip
"""Leaves of the jungle: x, y, angle in radians, half length."""


def _mix(a, b, t):
    t = np.clip(t, 0, 1)[..., None]
    return np.asarray(a, np.float32) * (1 - t) + np.asarray(b, np.float32) * t


def _edge(value, width=0.03):
    return np.clip(value / width + 0.5, 0, 1)


def _floor(sky, floor, v, horizon=GROUND):
    return sky * (1 - _edge(v - horizon))[..., None] + floor * _edge(v - horizon)[..., None]


def _triangle(u, v, x, top, base, half):
    """Return a mask that is 1 inside the triangle with its tip at (x, top): a fir, a mountain or a roof."""
    t = (v - top) / (base - top)
    return _edge(half * t - np.abs(u - x)) * (t >= 0) * (v <= base)


def jungle(u, v, rng):
    image = _floor(
        _mix((0.05, 0.24, 0.08), (0.16, 0.42, 0.14), v / GROUND),
        _mix((0.22, 0.20, 0.08), (0.30, 0.26, 0.10), (v - GROUND) * 2),
        v,
    )
    for x, y, angle, long in LEAVES:
        du, dv = u - (x + rng.uniform(-0.03, 0.03)), v - (y + rng.uniform(-0.03, 0.03))
        angle += rng.uniform(-0.1, 0.1)
        a, b = du * np.cos(angle) + dv * np.sin(angle), -du * np.sin(angle) + dv * np.cos(angle)
        image = _mix(image, (0.22, 0.64, 0.18), _edge(1 - (a / long) ** 2 - (b / (0.26 * long)) ** 2, 0.35))
    return image


def snow(u, v, rng):
    image = _floor(
        _mix((0.55, 0.74, 0.94), (0.86, 0.93, 0.99), v / GROUND),
        _mix((0.93, 0.96, 1.0), (0.84, 0.89, 0.97), (v - GROUND) * 2.5),
        v,
    )
    for x, top in ((0.1, 0.18), (0.88, 0.24)):
        x, top = x + rng.uniform(-0.03, 0.03), top + rng.uniform(-0.03, 0.03)
        image = _mix(image, (0.16, 0.42, 0.34), _triangle(u, v, x, top, GROUND + 0.02, 0.12))  # firs
    return image


def beach(u, v, rng):
    sky = _mix((0.30, 0.62, 0.95), (0.78, 0.91, 0.99), v / 0.45)
    sea = _floor(sky, _mix((0.05, 0.42, 0.66), (0.16, 0.66, 0.74), (v - 0.45) / 0.16), v, 0.44)
    shore = GROUND + 0.02 * np.sin(5 * u + rng.uniform(0, 1))
    image = _floor(sea, _mix((0.95, 0.86, 0.62), (0.87, 0.74, 0.48), (v - GROUND) * 2.5), v, shore)
    return _mix(image, (0.97, 0.99, 0.99), _edge(0.012 - np.abs(v - shore), 0.012))  # foam


def cobblestone(u, v, rng):
    wall = _mix((0.74, 0.64, 0.54), (0.66, 0.56, 0.48), v / GROUND)
    for x in (0.16 + 0.03 * rng.uniform(), 0.80 + 0.03 * rng.uniform()):
        # Two windows.
        wall = _mix(wall, (0.30, 0.36, 0.44), _edge(0.085 - np.abs(u - x)) * _edge(0.14 - np.abs(v - 0.24)))
    # Rows of stones, each shifted by half a stone.
    row = np.floor((v - GROUND) / 0.085)
    du = (u / 0.15 + 0.5 * (row % 2) + 0.2 * rng.uniform()) % 1 - 0.5
    dv = ((v - GROUND) / 0.085) % 1 - 0.5
    stones = _mix((0.40, 0.41, 0.44), (0.62, 0.63, 0.66), _edge(0.20 - (du**2 + dv**2), 0.16))
    return _floor(wall, stones, v)


def fabric(u, v, rng):
    folds = 0.5 + 0.5 * np.sin(
        9 * (u * np.cos(0.5) + v * 0.9) + 1.2 * np.sin(4 * u + rng.uniform(0, 1)) + rng.uniform(0, 1)
    )
    return _mix((0.90, 0.42, 0.62), (1.0, 0.70, 0.82), folds)


def wooden_floor(u, v, rng):
    wall = _mix((0.93, 0.89, 0.80), (0.87, 0.82, 0.72), v / GROUND)
    away = (v - GROUND) / (1 - GROUND)
    # In perspective: planks become narrower towards the wall.
    plank = (u - 0.5) / (0.35 + 0.75 * np.clip(away, 0, 1)) * 6 + 0.2 * rng.uniform()
    # Four shades in turn, so that neighbouring planks differ.
    tone = np.array([0.0, 0.55, 0.25, 0.8])[np.floor(plank).astype(int) % 4]
    wood = _mix((0.60, 0.36, 0.16), (0.74, 0.48, 0.24), tone)
    # Dark joints between the planks.
    wood = _mix(wood, (0.36, 0.20, 0.08), _edge(0.06 + np.abs(plank % 1 - 0.5) - 0.5, 0.05))
    # With a skirting board.
    return _mix(_floor(wall, wood, v), (0.98, 0.97, 0.94), _edge(0.016 - np.abs(v - GROUND + 0.02)))


def city(u, v, rng):
    image = _mix((0.08, 0.07, 0.26), (0.42, 0.22, 0.46), v / GROUND)
    for x, half, top in HOUSES:
        x, top = x + rng.uniform(-0.015, 0.015), top + rng.uniform(-0.03, 0.03)
        image = _mix(image, (0.10, 0.10, 0.22), _edge(half - np.abs(u - x)) * _edge(v - top))
        # A column of lit windows in the middle of each house.
        lit = _edge(0.045 - np.abs(u - x), 0.06) * _edge(np.sin((v - top) / 0.022 - 1.6) - 0.3, 1.2)
        image = _mix(image, (0.90, 0.72, 0.34), lit * (v > top + 0.02))
    return _floor(image, _mix((0.26, 0.26, 0.32), (0.36, 0.36, 0.42), (v - GROUND) * 2.5), v)


def mountain(u, v, rng):
    image = _mix((0.42, 0.66, 0.92), (0.84, 0.91, 0.97), v / GROUND)
    for x, top, half in ((0.2, 0.22, 0.5), (0.78, 0.12, 0.46)):
        x, top = x + rng.uniform(-0.03, 0.03), top + rng.uniform(-0.03, 0.03)
        inside = _triangle(u, v, x, top, GROUND + 0.02, half)
        image = _mix(image, (0.42, 0.44, 0.54), inside)
        # Snow on the tops.
        image = _mix(image, (0.97, 0.98, 1.0), inside * _edge(top + 0.15 - v))
    return _floor(image, _mix((0.46, 0.66, 0.30), (0.34, 0.54, 0.22), (v - GROUND) * 2.5), v)


def blue_house(u, v, rng):
    image = _mix((0.66, 0.82, 0.96), (0.88, 0.94, 0.99), v / GROUND)
    x, half = rng.uniform(0.46, 0.54), 0.36
    image = _mix(image, (0.16, 0.38, 0.74), _edge(half - np.abs(u - x)) * _edge(v - 0.26))  # walls
    image = _mix(image, (0.66, 0.24, 0.20), _triangle(u, v, x, 0.03, 0.27, half + 0.08))  # roof
    for s in (-0.25, 0.25):  # windows
        image = _mix(
            image, (0.97, 0.95, 0.84), _edge(0.065 - np.abs(u - x - s)) * _edge(0.075 - np.abs(v - 0.39))
        )
    return _floor(image, _mix((0.42, 0.68, 0.32), (0.32, 0.56, 0.24), (v - GROUND) * 2.5), v)


def wheat_field(u, v, rng):
    sky = _mix((0.48, 0.72, 0.94), (0.98, 0.90, 0.70), v / 0.42)
    top = 0.44 + 0.008 * np.sin(30 * u + rng.uniform(0, 1))
    # Wavy vertical lines.
    stalks = 0.5 + 0.5 * np.sin(38 * u + 3 * np.sin(5 * v + rng.uniform(0, 1)))
    wheat = _mix((0.80, 0.60, 0.16), (0.95, 0.78, 0.32), 0.75 * stalks) * np.float32(
        1.06 - 0.22 * v[..., None]
    )
    return _floor(sky, wheat, v, top)


def water(u, v, rng):
    # 0 at the horizon, 1 at the viewer: waves become wider.
    near = np.clip((v - 0.3) / 0.7, 0, 1)
    waves = 0.5 + 0.5 * np.sin(
        (34 - 16 * near) * v * 1.6 + 1.6 * np.sin(5 * u + rng.uniform(0, 1)) + rng.uniform(0, 1)
    )
    sea = _mix((0.04, 0.30, 0.58), (0.26, 0.62, 0.84), 0.75 * waves)
    return _floor(_mix((0.62, 0.82, 0.97), (0.88, 0.95, 0.99), v / 0.3), sea, v, 0.30)


def sunflowers(u, v, rng):
    image = _floor(
        _mix((0.44, 0.72, 0.96), (0.82, 0.93, 0.99), v / 0.4),
        _mix((0.36, 0.66, 0.20), (0.24, 0.52, 0.14), (v - 0.4) * 1.6),
        v,
        0.40,
    )
    for x in (0.08, 0.24, 0.78, 0.92):
        x, y = x + rng.uniform(-0.02, 0.02), (0.4 if x in (0.08, 0.78) else 0.54) + rng.uniform(-0.03, 0.03)
        image = _mix(image, (0.16, 0.42, 0.12), _edge(0.014 - np.abs(u - x)) * (v > y) * (v < y + 0.3))
        r = np.hypot(u - x, v - y)
        image = _mix(_mix(image, (0.99, 0.80, 0.08), _edge(0.088 - r)), (0.40, 0.22, 0.06), _edge(0.042 - r))
    return image


CONTEXTS: dict[str, tuple[str, Callable]] = {
    "jungle": ("in the jungle", jungle),
    "snow": ("in the snow", snow),
    "beach": ("on the beach", beach),
    "street": ("on a cobblestone street", cobblestone),
    "fabric": ("on top of pink fabric", fabric),
    "floor": ("on top of a wooden floor", wooden_floor),
    "city": ("with a city in the background", city),
    "mountain": ("with a mountain in the background", mountain),
    "house": ("with a blue house in the background", blue_house),
    "wheat": ("with a wheat field in the background", wheat_field),
    "water": ("floating on top of water", water),
    "sunflowers": ("on top of green grass with sunflowers around it", sunflowers),
}
"""Name -> (phrase in captions, painter)."""


def studio(u, v, rng):
    """Paint the background for captions without a place: a pale tint with a soft gradient."""
    # A new colour for each picture: no background may become part of [V].
    tint = 0.78 + 0.17 * rng.uniform(0.3, 1, 3)
    return _mix(tint * 1.05, tint * 0.86, v) * np.ones_like(u)[..., None]


def paint(name: str | None, rng: np.random.Generator, size: int) -> np.ndarray:
    """Paint a place as an image (size, size, 3) float32 in [0, 1]; None is the studio."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    painter = studio if name is None else CONTEXTS[name][1]
    return np.clip(painter(u, v, rng), 0, 1).astype(np.float32)
