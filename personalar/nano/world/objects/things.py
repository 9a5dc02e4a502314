"""The eight classes that cannot wear accessories.

The numbers are positions and sizes in object units (see `solids`), chosen by eye. p is the individual's six
proportions.
"""

from __future__ import annotations

import numpy as np

from personalar.nano.world.objects.solids import Proportions, Solid, box, eyes, pair, sphere, tube


def robot(p: Proportions) -> list[Solid]:
    wide, tall, head, arm = 1 + 0.2 * p[0], 1 + 0.14 * p[1], 1 + 0.2 * p[2], 1 + 0.25 * p[3]
    leg, antenna = 0.2 + 0.08 * p[4], 1 + 0.6 * p[5]
    base, half = 2 * leg, 0.42 * tall
    hy = base + 2 * half + 0.08 + 0.3 * head
    solids = [
        box(0, base + half, 0, 0.48 * wide, half, 0.32),  # body
        box(0, base + half, 0.3, 0.28 * wide, half * 0.55, 0.06, "accent"),  # chest panel
        tube(0, base + 2 * half + 0.05, 0, 0.16, 0.08, "grey"),  # neck
        box(0, hy, 0, 0.4 * head, 0.3 * head, 0.3 * head),  # head
        tube(0, hy + 0.3 * head + 0.12 * antenna, 0, 0.04, 0.13 * antenna, "grey"),  # antenna
        sphere(0, hy + 0.3 * head + 0.27 * antenna, 0, 0.1, 0.1, 0.1, "accent"),
        box(0, hy - 0.14 * head, 0.3 * head, 0.2 * head, 0.04, 0.03, "dark"),  # mouth
    ]
    x, y = 0.48 * wide + 0.14, base + half
    solids += pair(lambda s: tube(s * x, y + 0.05, 0, 0.12, 0.34 * arm, "accent"))  # arms
    solids += pair(lambda s: sphere(s * x, y - 0.34 * arm, 0, 0.15, 0.15, 0.15, "grey"))  # hands
    solids += pair(lambda s: box(s * 0.24 * wide, leg, 0, 0.15, leg, 0.17, "grey"))  # legs
    solids += pair(lambda s: box(s * 0.24 * wide, 0.08, 0.08, 0.2, 0.08, 0.28, "accent"))  # feet
    return solids + eyes(0.18 * head, hy + 0.08 * head, 0.3 * head, 0.11)


def teapot(p: Proportions) -> list[Solid]:
    wide, tall, spout, ring = 1 + 0.15 * p[0], 1 + 0.18 * p[1], 1 + 0.3 * p[2], 1 + 0.25 * p[3]
    lid, knob = 1 + 0.3 * p[4], 1 + 0.4 * p[5]
    y, top = 0.62 * tall, 1.14 * tall
    solids = [
        sphere(0, y, 0, 0.72 * wide, 0.58 * tall, 0.72 * wide),  # belly
        tube(0, 0.07, 0, 0.46, 0.07, "accent"),  # foot
        sphere(0, top, 0, 0.4 * lid, 0.15, 0.4 * lid, "accent"),  # lid
        sphere(0, top + 0.22, 0, 0.13 * knob, 0.13 * knob, 0.13 * knob, "accent"),  # knob
        tube(0.86 * wide, y + 0.18, 0, 0.19, 0.42 * spout, "body", (0, 0, -40), 0.55),  # spout
    ]
    for i in range(9):  # the handle: nine spheres on a half circle
        a = np.pi * (0.5 + i / 8)
        x, up = -0.66 * wide + 0.42 * ring * np.cos(a), y + 0.04 + 0.42 * ring * np.sin(a)
        solids.append(sphere(x, up, 0, 0.11, 0.11, 0.11, "accent"))
    return solids


def vase(p: Proportions) -> list[Solid]:
    belly, neck = 0.56 * (1 + 0.25 * p[0]), 0.24 * (1 + 0.35 * p[1])
    lip, foot = 1 + 0.35 * p[2], 0.34 * (1 + 0.25 * p[3])
    waist, tall = 0.85 + 0.22 * p[4], 1 + 0.12 * p[5]
    base, middle = 0.14, 0.14 + 0.62 * waist
    top = middle + 0.5 * waist
    return [
        tube(0, 0.07, 0, foot * 1.15, 0.07, "accent"),  # base
        tube(0, base + 0.2, 0, foot, 0.22, "body", taper=1.25),  # foot
        sphere(0, middle, 0, belly, 0.56 * waist, belly),  # belly
        tube(0, top + 0.3 * tall, 0, neck, 0.42 * tall, "body", taper=lip),  # neck
        tube(0, top + 0.7 * tall, 0, neck * lip * 1.2, 0.08, "accent"),  # rim
    ]


def backpack(p: Proportions) -> list[Solid]:
    wide, tall, pocket, flap = 1 + 0.15 * p[0], 1 + 0.12 * p[1], 1 + 0.25 * p[2], 1 + 0.3 * p[3]
    deep, side = 1 + 0.2 * p[4], 1 + 0.35 * p[5]
    w, h = 0.62 * wide, 0.72 * tall
    solids = [
        box(0, h, 0, w, h, 0.34 * deep),  # bag
        tube(0, 2 * h, 0, 0.34 * deep, w, "body", (0, 0, 90), 1.0, 0.34 * deep),  # rounded top
        box(0, 0.42 * pocket, 0.36 * deep, 0.46 * wide, 0.36 * pocket, 0.16, "accent"),  # front pocket
        box(0, 1.62 * h, 0.36 * deep, 0.5 * wide, 0.2 * flap, 0.08, "accent"),  # flap
        tube(0, 2 * h + 0.36 * deep, 0, 0.2, 0.06, "dark"),  # handle
        box(0, 0.42 * pocket + 0.22, 0.36 * deep + 0.15, 0.36 * wide, 0.04, 0.03, "dark"),  # zip
    ]
    # side pockets
    return solids + pair(lambda s: sphere(s * w, 0.42, 0, 0.16 * side, 0.36 * side, 0.24, "accent"))


def boot(p: Proportions) -> list[Solid]:
    tall, wide, toe, sole = 1 + 0.2 * p[0], 1 + 0.14 * p[1], 1 + 0.25 * p[2], 0.1 * (1 + 0.45 * p[3])
    cuff, heel = 1 + 0.35 * p[4], 1 + 0.5 * p[5]
    y, base = 2 * sole, 2 * sole
    return [
        tube(0, base + 0.72 * tall, -0.3, 0.42 * wide, 0.72 * tall, "body", taper=1.08),  # shaft
        sphere(0, base + 0.24, 0.2, 0.4 * wide, 0.34, 0.66 * toe),  # foot
        sphere(0, base + 0.16, 0.2 + 0.42 * toe, 0.36 * wide, 0.24, 0.3, "accent"),  # toe cap
        box(0, sole, 0.14, 0.4 * wide, sole, 0.76 * toe, "dark"),  # sole
        box(0, y * 0.5 * heel, -0.42, 0.38 * wide, sole * heel, 0.26, "dark"),  # heel
        tube(0, base + 1.44 * tall - 0.12 * cuff, -0.3, 0.49 * wide, 0.15 * cuff, "accent"),  # cuff
    ]


def clock(p: Proportions) -> list[Solid]:
    round_, deep, bell, feet = 1 + 0.12 * p[0], 1 + 0.3 * p[1], 1 + 0.3 * p[2], 1 + 0.4 * p[3]
    rim, handle = 0.16 + 0.07 * p[4], 1 + 0.5 * p[5]
    r, y, d = 0.74 * round_, 0.92, 0.26 * deep
    solids = [
        tube(0, y, 0, r, d, "body", (90, 0, 0)),  # case
        tube(0, y, 0.04, r * (1 - rim), d, "white", (90, 0, 0)),  # dial
        box(0, y + 0.18, d + 0.05, 0.05, 0.22, 0.02, "dark"),  # minute hand
        box(0.14, y, d + 0.05, 0.16, 0.05, 0.02, "dark"),  # hour hand
        tube(0, y + r + 0.22, 0, 0.07, 0.16 * handle, "dark"),  # handle
    ]
    b, up = 0.28 * bell, y + r * 0.92
    solids += pair(lambda s: sphere(s * 0.44, up, 0, b, 0.22 * bell, b, "accent", (0, 0, -s * 30)))  # bells
    return solids + pair(lambda s: tube(s * 0.5, 0.16, 0, 0.1 * feet, 0.2, "accent", (0, 0, s * 30)))  # feet


def candle(p: Proportions) -> list[Solid]:
    thick, tall = 0.34 * (1 + 0.3 * p[0]), 0.62 * (1 + 0.22 * p[1])
    plate, stem = 0.72 * (1 + 0.2 * p[2]), 0.08 * (1 + 0.7 * p[3])
    flame, ring = 1 + 0.3 * p[4], 1 + 0.4 * p[5]
    base = 0.14 + 2 * stem
    top = base + 2 * tall
    return [
        tube(0, 0.07, 0, plate * 0.8, 0.07, "accent", taper=1.25),  # plate
        tube(0, 0.14 + stem, 0, thick * 1.25, stem, "accent"),  # stem
        tube(0, base + tall, 0, thick, tall, "body"),  # candle
        tube(0, base + 0.1 * ring, 0, thick * 1.2, 0.1 * ring, "accent"),  # ring
        tube(0, top + 0.06, 0, 0.035, 0.08, "dark"),  # wick
        sphere(0, top + 0.12 + 0.2 * flame, 0, 0.13 * flame, 0.24 * flame, 0.13 * flame, "flame"),  # flame
    ]


def car(p: Proportions) -> list[Solid]:
    long, cabin, tall, wheel = 1 + 0.12 * p[0], 1 + 0.22 * p[1], 1 + 0.25 * p[2], 1 + 0.2 * p[3]
    nose, shift = 1 + 0.25 * p[4], 0.18 * p[5]
    y, z = 0.52, 0.95 * long
    top = y + 0.24 + 0.26 * tall
    solids = [
        box(0, y, 0, 0.5, 0.24, z),  # body
        sphere(0, y, z * 0.92, 0.5, 0.24, 0.2 * nose),  # bonnet
        box(0, top, -0.12 + shift, 0.42, 0.26 * tall, 0.5 * cabin),  # cabin
        box(0, top, -0.12 + shift, 0.44, 0.17 * tall, 0.4 * cabin, "glass"),  # side windows
        box(0, top, -0.12 + shift, 0.34, 0.17 * tall, 0.52 * cabin, "glass"),  # windscreen and rear window
        box(0, top + 0.26 * tall + 0.04, -0.12 + shift, 0.36, 0.05, 0.42 * cabin, "accent"),  # roof
        box(0, y - 0.2, 0, 0.53, 0.07, z * 1.04, "accent"),  # bumpers and sills
    ]
    for zz in (0.58 * long, -0.58 * long):
        for x, size, wide, colour in (
            (0.48, 0.28, 0.1, "dark"),
            (0.53, 0.14, 0.08, "grey"),
        ):  # tyres and hubs
            solids += [tube(s * x, 0.27 * wheel, zz, size * wheel, wide, colour, (0, 0, 90)) for s in (-1, 1)]
    return solids + pair(lambda s: sphere(s * 0.32, y + 0.06, z + 0.12, 0.11, 0.1, 0.1, "flame"))  # lamps
