"""The layers of a picture: a photo, and what styles are drawn from: colours, light and visible solids."""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from personalar.nano.world.contexts import paint
from personalar.nano.world.objects.skin import surface_colour
from personalar.nano.world.objects.solids import cast
from personalar.nano.world.scene import Scene, cast_shadow, light, place_object


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A photo and the input of a style, arrays of (S, S) or (S, S, 3).

    photo: colours with light and shine, in about [0, 1]. albedo: colours without light, in [0, 1]. lit:
    amount of light; 1 in the place outside of shadows. solid: number of the visible solid, counted over all
    objects, -1 for the place. thing: index of the visible object, -1 for the place.
    """

    photo: np.ndarray
    albedo: np.ndarray
    lit: np.ndarray
    solid: np.ndarray
    thing: np.ndarray


def layers(scenes: tuple[Scene, ...], size: int) -> Layers:
    """Return the layers of objects in the place of the first scene, size x size pixels.

    Objects that are lower in the picture are nearer, and hide the others.
    """
    albedo = paint(scenes[0].context, np.random.default_rng(scenes[0].seed), size)
    photo, lit = albedo, np.ones((size, size, 1), np.float32)
    solid = np.full((size, size), -1)
    thing = np.full((size, size), -1)
    placed = [place_object(scene, size) for scene in scenes]
    for each in placed:
        photo, lit = (cast_shadow(image, each, scenes[0].context == "water") for image in (photo, lit))
    lit = lit[..., 0]
    before = [0, *accumulate(len(each.solids) for each in placed)]
    for which in sorted(range(len(scenes)), key=lambda i: scenes[i].shift[1]):
        scene, each = scenes[which], placed[which]
        hits = cast(each.solids, view=each.view, scale=each.scale, centre=each.centre, size=size)
        for number in np.unique(hits.solid[hits.solid >= 0]):
            where = hits.solid == number
            material = each.solids[number].material
            # In object space, so that a pattern turns with the object.
            colour = surface_colour(scene.instance.skin, material, hits.position[where], each.worn)
            bright, shine = light(scene, material, hits.normal[where])
            # From `colour` and `bright` in full precision; `albedo` and `lit` are float32, and their rounding
            # would change the pixels.
            photo[where] = colour * bright[:, None] + shine[:, None]
            albedo[where], lit[where] = colour, bright
            solid[where], thing[where] = before[which] + number, which
    return Layers(photo=photo, albedo=albedo, lit=lit, solid=solid, thing=thing)
