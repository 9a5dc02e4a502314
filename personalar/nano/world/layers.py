"""The layers of a picture before it gets a style: colours, light and visible solids."""

from dataclasses import dataclass

import numpy as np

from personalar.nano.world.contexts import paint
from personalar.nano.world.objects.skin import surface_colour
from personalar.nano.world.objects.solids import cast
from personalar.nano.world.scene import Scene, cast_shadow, light, stand


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The input of a style, arrays of (S, S) or (S, S, 3).

    albedo: colours without light, in [0, 1]. lit: amount of light; 1 in the place outside of shadows. shine:
    specular light, which is added. solid: number of the visible solid, -1 for the place. thing: index of the
    visible object, -1 for the place.
    """

    albedo: np.ndarray
    lit: np.ndarray
    shine: np.ndarray
    solid: np.ndarray
    thing: np.ndarray


def layers(scenes: tuple[Scene, ...], size: int) -> Layers:
    """Return the layers of objects in the place of the first scene, size x size pixels.

    Objects that are lower in the picture are nearer, and hide the others.
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
