"""A picture before it has a style: colours, light and which solid shows, for one thing or several."""

from dataclasses import dataclass

import numpy as np

from personalar.nano.world.contexts import paint
from personalar.nano.world.scene import Scene, cast_shadow, light, stand
from personalar.nano.world.skin import surface_colour
from personalar.nano.world.solids import cast


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Everything that a style paints with, (S, S[, 3]).

    albedo: colours without light, in [0, 1]. lit: how much light falls there; 1 on the place outside
    shadows. shine: what a gloss adds. solid: a number per solid, -1 where the place shows. thing: which
    thing shows, -1 for the place.
    """

    albedo: np.ndarray
    lit: np.ndarray
    shine: np.ndarray
    solid: np.ndarray
    thing: np.ndarray


def layers(scenes: tuple[Scene, ...], size: int) -> Layers:
    """The layers of things in one place, size x size pixels; the first scene says which place.

    Things that stand lower in the picture are nearer and hide the others.
    """
    albedo = paint(scenes[0].context, np.random.default_rng(scenes[0].seed), size)
    lit = np.ones((size, size, 1), np.float32)
    shine = np.zeros((size, size), np.float32)
    solid = np.full((size, size), -1)
    thing = np.full((size, size), -1)
    standing = [stand(scene, size) for scene in scenes]
    for each in standing:
        lit = cast_shadow(lit, each, scenes[0].context == "water")
    lit = lit[..., 0]
    for which in sorted(range(len(scenes)), key=lambda i: scenes[i].shift[1]):
        scene, each = scenes[which], standing[which]
        hits = cast(each.solids, view=each.view, scale=each.scale, centre=each.centre, size=size)
        for number in np.unique(hits.solid[hits.solid >= 0]):
            where = hits.solid == number
            material = each.solids[number].material
            albedo[where] = surface_colour(scene.instance.skin, material, hits.position[where], each.worn)
            lit[where], shine[where] = light(scene, material, hits.normal[where])
            solid[where], thing[where] = which * 1000 + number, which
    return Layers(albedo=albedo, lit=lit, shine=shine, solid=solid, thing=thing)
