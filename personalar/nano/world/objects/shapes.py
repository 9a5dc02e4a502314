"""The twelve classes, built from solids and six proportions; they correspond to classes of DreamBench.

Materials: "body" has the individual's pattern, "accent" its third colour; the others have fixed colours.
"""

from __future__ import annotations

from collections.abc import Callable

from personalar.nano.world.objects.animals import bear, cat, dog, duck
from personalar.nano.world.objects.parts import Proportions
from personalar.nano.world.objects.solids import Solid
from personalar.nano.world.objects.things import backpack, boot, candle, car, clock, robot, teapot, vase

SHAPES: dict[str, Callable[[Proportions], list[Solid]]] = {
    "cat": cat,
    "dog": dog,
    "bear": bear,
    "duck toy": duck,
    "robot toy": robot,
    "teapot": teapot,
    "vase": vase,
    "backpack": backpack,
    "boot": boot,
    "clock": clock,
    "candle": candle,
    "car": car,
}
"""Noun -> function that builds its solids. The order defines the class index and must not change."""
