"""Short constructors for solids. Positions (x, y, z) and half sizes are in object units; see `solids`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from personalar.nano.world.objects.solids import Solid

Proportions = np.ndarray
"""Six numbers of about -1.3 to 1.3: part of an individual's identity, never described in a caption."""


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
    """Return a mirrored part twice: `make` is called with -1 for the left and 1 for the right side."""
    return [make(-1), make(1)]


def eyes(x, y, z, r) -> list[Solid]:
    white = pair(lambda s: sphere(s * x, y, z, r, r * 1.1, r * 0.6, "white"))
    return white + pair(
        lambda s: sphere(s * x, y - r * 0.05, z + r * 0.45, r * 0.6, r * 0.7, r * 0.4, "dark")
    )
