"""Short hands for building things out of solids. Coordinates and sizes in object units, see `solids`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from personalar.nano.world.solids import Solid

Proportions = np.ndarray
"""Six numbers in [-1, 1]: part of an individual's identity, never named in a caption."""


def sphere(x, y, z, rx, ry, rz, material="body", rotation=(0, 0, 0)) -> Solid:
    return Solid(kind="sphere", centre=(x, y, z), size=(rx, ry, rz), rotation=rotation, material=material)


def box(x, y, z, rx, ry, rz, material="body", rotation=(0, 0, 0)) -> Solid:
    return Solid(kind="box", centre=(x, y, z), size=(rx, ry, rz), rotation=rotation, material=material)


def tube(x, y, z, radius, half, material="body", rotation=(0, 0, 0), taper=1.0, depth=None) -> Solid:
    size = (radius, half, depth or radius)
    return Solid(
        kind="frustum", centre=(x, y, z), size=size, rotation=rotation, material=material, taper=taper
    )


def pair(make: Callable[[int], Solid]) -> list[Solid]:
    """The left and the right one of a mirrored part."""
    return [make(-1), make(1)]


def eyes(x, y, z, r) -> list[Solid]:
    white = pair(lambda s: sphere(s * x, y, z, r, r * 1.1, r * 0.6, "white"))
    return white + pair(
        lambda s: sphere(s * x, y - r * 0.05, z + r * 0.45, r * 0.6, r * 0.7, r * 0.4, "dark")
    )
