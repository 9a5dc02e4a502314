"""The twelve kinds of things, each built from solids and six proportions; they mirror DreamBench's classes.

Materials: "body" carries the individual's pattern, "accent" its third colour; the rest are fixed.
"""

from __future__ import annotations

from collections.abc import Callable

from personalar.nano.world.animals import bear, cat, dog, duck
from personalar.nano.world.parts import Proportions
from personalar.nano.world.solids import Solid
from personalar.nano.world.things import backpack, boot, candle, car, clock, robot, teapot, vase

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
"""Noun -> builder. The order is the class index everywhere."""
