"""The four classes with a head (cat, dog, bear, duck toy), and accessories for heads.

The numbers are positions and sizes in object units (see `solids`), chosen by eye. p is the individual's six
proportions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from personalar.nano.world.objects.solids import Proportions, Solid, box, eyes, pair, sphere, tube


def cat(p: Proportions) -> list[Solid]:
    fat, head, ear, tail = 1 + 0.18 * p[0], 1 + 0.16 * p[1], 1 + 0.45 * p[2], 1 + 0.4 * p[3]
    hy, leg, muzzle = 1.28 + 0.08 * p[4], 0.13 + 0.03 * p[4], 1 + 0.3 * p[5]
    r = 0.47 * head
    solids = [
        sphere(0, 0.55, -0.05, 0.5 * fat, 0.58, 0.5 * fat),  # body
        sphere(0, hy, 0.12, r, r * 0.88, r * 0.85),  # head
        sphere(0, 0.55, 0.14 * fat, 0.3 * fat, 0.42, 0.36 * fat, "accent"),  # belly
        sphere(0, hy - 0.14 * head, 0.12 + r * 0.72, 0.2 * muzzle, 0.14 * muzzle, 0.16, "accent"),  # muzzle
        sphere(0, hy - 0.07 * head, 0.12 + r * 0.72 + 0.14, 0.06, 0.045, 0.05, "dark"),  # nose
    ]
    # ears
    solids += pair(
        lambda s: tube(
            s * 0.27 * head, hy + r * 0.82, 0.1, 0.19, 0.26 * ear, "body", (0, 0, -s * 14), 0.05, 0.1
        )
    )
    solids += pair(lambda s: tube(s * 0.2, 0.28, 0.38 * fat, leg, 0.28))  # front legs
    solids += pair(lambda s: sphere(s * 0.2, 0.07, 0.45 * fat, leg * 1.25, 0.09, leg * 1.5, "accent"))  # paws
    solids += pair(lambda s: sphere(s * 0.42 * fat, 0.2, 0.1, 0.2, 0.2, 0.34))  # hind legs
    for i in range(6):  # the tail: six spheres on a curve, with an accent at its tip
        t = i / 5
        x, y, z = 0.42 + 0.34 * np.sin(t * 2.2), 0.12 + 0.85 * tail * t**1.4, -0.25 - 0.1 * t
        solids.append(sphere(x, y, z, 0.12, 0.15, 0.12, "accent" if i == 5 else "body"))
    return solids + eyes(0.19 * head, hy + 0.06, 0.12 + r * 0.68, 0.105)


def dog(p: Proportions) -> list[Solid]:
    long, head, ear, tail = 1 + 0.2 * p[0], 1 + 0.14 * p[1], 1 + 0.4 * p[2], 1 + 0.4 * p[3]
    leg, snout = 0.5 + 0.14 * p[4], 1 + 0.35 * p[5]
    y, z = leg + 0.3, 0.62 * long
    hy = y + 0.52
    r = 0.4 * head
    solids = [
        sphere(0, y, -0.05, 0.38, 0.36, 0.72 * long),  # body
        sphere(0, y + 0.24, z * 0.72, 0.24, 0.36, 0.24, "body", (25, 0, 0)),  # neck
        sphere(0, hy, z, r, r * 0.95, r * 0.95),  # head
        sphere(0, hy - 0.12, z + 0.36 * snout, 0.2, 0.17, 0.26 * snout, "accent"),  # snout
        sphere(0, hy - 0.04, z + 0.58 * snout, 0.085, 0.07, 0.07, "dark"),  # nose
        tube(0, y + 0.3, -0.8 * long, 0.1, 0.32 * tail, "body", (-35, 0, 0), 0.5),  # tail
    ]
    # ears
    solids += pair(
        lambda s: sphere(
            s * r * 0.95, hy - 0.08 * ear, z - 0.05, 0.11, 0.34 * ear, 0.2, "accent", (0, 0, s * 12)
        )
    )
    for zz in (0.42 * long, -0.48 * long):
        solids += [tube(s * 0.22, leg / 2, zz, 0.13, leg / 2) for s in (-1, 1)]  # legs
        solids += [sphere(s * 0.22, 0.08, zz + 0.06, 0.16, 0.1, 0.2, "accent") for s in (-1, 1)]  # paws
    return solids + eyes(0.17 * head, hy + 0.08, z + r * 0.74, 0.1)


def bear(p: Proportions) -> list[Solid]:
    fat, head, ear, arm = 1 + 0.18 * p[0], 1 + 0.15 * p[1], 1 + 0.35 * p[2], 1 + 0.25 * p[3]
    foot, muzzle = 1 + 0.25 * p[4], 1 + 0.3 * p[5]
    r = 0.5 * head
    solids = [
        sphere(0, 0.6, 0, 0.56 * fat, 0.6, 0.5 * fat),  # body
        sphere(0, 0.58, 0.22 * fat, 0.36 * fat, 0.42, 0.34 * fat, "accent"),  # belly
        sphere(0, 1.42, 0.05, r, r * 0.9, r * 0.88),  # head
        sphere(0, 1.3, 0.05 + r * 0.75, 0.23 * muzzle, 0.18 * muzzle, 0.18, "accent"),  # muzzle
        sphere(0, 1.37, 0.05 + r * 0.75 + 0.17, 0.09, 0.065, 0.05, "dark"),  # nose
    ]
    solids += pair(lambda s: sphere(s * r * 0.78, 1.42 + r * 0.7, 0, 0.2 * ear, 0.2 * ear, 0.12))  # ears
    # inner ears
    solids += pair(
        lambda s: sphere(s * r * 0.78, 1.42 + r * 0.7, 0.08, 0.11 * ear, 0.11 * ear, 0.08, "accent")
    )
    # arms
    solids += pair(
        lambda s: sphere(s * 0.6 * fat, 0.72, 0.12, 0.17, 0.36 * arm, 0.18, "body", (-20, 0, s * 32))
    )
    solids += pair(lambda s: sphere(s * 0.36 * fat, 0.2, 0.42, 0.21, 0.2, 0.38))  # legs
    # soles
    solids += pair(lambda s: sphere(s * 0.36 * fat, 0.24, 0.76, 0.2 * foot, 0.22 * foot, 0.1, "accent"))
    return solids + eyes(0.19 * head, 1.5, 0.05 + r * 0.74, 0.095)


def duck(p: Proportions) -> list[Solid]:
    fat, head, bill, tail = 1 + 0.16 * p[0], 1 + 0.18 * p[1], 1 + 0.4 * p[2], 1 + 0.4 * p[3]
    neck, wing = 0.12 * p[4], 1 + 0.3 * p[5]
    hy, hz, r = 1.35 + neck, 0.34, 0.42 * head
    solids = [
        sphere(0, 0.52, -0.05, 0.58 * fat, 0.52, 0.78),  # body
        sphere(0, 0.98 + neck / 2, 0.28, 0.27, 0.36, 0.27),  # neck
        sphere(0, hy, hz, r, r, r),  # head
        sphere(0, hy - 0.1, hz + r + 0.12 * bill, 0.24, 0.08, 0.26 * bill, "orange"),  # bill
        sphere(0, 0.78, -0.72, 0.22, 0.14, 0.34 * tail, "body", (35, 0, 0)),  # tail
    ]
    # wings
    solids += pair(
        lambda s: sphere(s * 0.53 * fat, 0.58, -0.12, 0.13, 0.28 * wing, 0.46 * wing, "accent", (-14, 0, 0))
    )
    return solids + eyes(0.2 * head, hy + 0.1, hz + r * 0.76, 0.1)


# (height, forward, radius) of the head; must be equal to those of the solids above.
HEADS: dict[str, Callable[[Proportions], tuple[float, float, float]]] = {
    "cat": lambda p: (1.28 + 0.08 * p[4], 0.12, 0.47 * (1 + 0.16 * p[1])),
    "dog": lambda p: (0.5 + 0.14 * p[4] + 0.82, 0.62 * (1 + 0.2 * p[0]), 0.4 * (1 + 0.14 * p[1])),
    "bear": lambda p: (1.42, 0.05, 0.5 * (1 + 0.15 * p[1])),
    "duck toy": lambda p: (1.35 + 0.12 * p[4], 0.34, 0.42 * (1 + 0.18 * p[1])),
}
"""Noun -> head, for the classes that can wear accessories ("live" subjects in DreamBench's terms)."""


def accessory(kind: str, head: tuple[float, float, float]) -> list[Solid]:
    """Return the solids of an accessory, with material "worn".

    They are large on purpose, because an image code covers 8 x 8 pixels.

    Args:
        kind: "hat", "scarf", "glasses" or "bow tie".
        head: (height, forward, radius), from `HEADS`.

    Raises:
        ValueError: `kind` is unknown.
    """
    # Accessories scale with the radius of the head, so that they fit every individual.
    y, z, r = head
    if kind == "hat":
        return [
            tube(0, y + r * 0.72, z, r * 1.15, 0.06, "worn"),  # brim
            tube(0, y + r * 0.72 + 0.3, z, r * 0.72, 0.3, "worn", taper=0.85),  # crown
        ]
    if kind == "scarf":
        ring = [
            sphere(0.4 * np.sin(a), y - r * 0.98, z * 0.8 + 0.34 * np.cos(a), 0.2, 0.19, 0.19, "worn")
            for a in np.linspace(0, 2 * np.pi, 10, endpoint=False)
        ]
        return [*ring, box(0.2, y - r * 0.98 - 0.34, z * 0.8 + 0.44, 0.16, 0.34, 0.09, "worn", (-8, 0, 6))]
    if kind == "glasses":
        lenses = pair(lambda s: tube(s * r * 0.5, y + 0.06, z + r * 0.98, r * 0.46, 0.06, "worn", (90, 0, 0)))
        return [*lenses, box(0, y + 0.08, z + r * 0.98, r * 0.3, 0.05, 0.05, "worn")]
    if kind == "bow tie":
        y, z = y - r * 0.98, z * 0.8 + 0.5
        wings = pair(lambda s: tube(s * 0.24, y, z, 0.24, 0.22, "worn", (0, 0, s * 90), 0.25))
        return [*wings, sphere(0, y, z + 0.06, 0.11, 0.12, 0.12, "worn")]
    raise ValueError(f"accessory={kind!r} is unknown; allowed: hat, scarf, glasses, bow tie")
