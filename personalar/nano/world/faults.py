"""Planted faults: a view of a subject with one error, to measure which errors a scorer detects."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.skin import COLOURS, sample_skin
from personalar.nano.world.scene import Scene, sample_instance


def recolour_part(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with another colour of the accents (paws, snout, lid, wheels, ...)."""
    skin = scene.instance.skin
    worn = (scene.worn[1],) if scene.worn else ()
    # Not a colour of the scene, because the fault would hardly be visible.
    free = [name for name in COLOURS if name not in (*(name for name, _ in skin.colours), *worn)]
    name = str(rng.choice(free))
    changed = replace(skin, colours=(*skin.colours[:2], (name, COLOURS[name])))
    return replace(scene, instance=replace(scene.instance, skin=changed))


def change_proportions(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with the proportions of another individual; colours and pattern are unchanged."""
    other = sample_instance(scene.instance.noun, rng)
    return replace(scene, instance=replace(scene.instance, proportions=other.proportions))


def change_skin(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with other colours and another pattern; the proportions are unchanged."""
    return replace(scene, instance=replace(scene.instance, skin=sample_skin(rng)))


def other_individual(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with another individual of the class."""
    return replace(scene, instance=sample_instance(scene.instance.noun, rng))


def drop_accessory(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Return the scene without the accessory of the prompt; None if the prompt has none."""
    return replace(scene, worn=None) if scene.worn else None


def change_place(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Return the scene in another place than that of the prompt; None if the prompt has none."""
    others = [name for name in CONTEXTS if name != scene.context]
    return replace(scene, context=str(rng.choice(others))) if scene.context else None


FAULTS: dict[str, Callable[[Scene, np.random.Generator], Scene | None]] = {
    "part recoloured": recolour_part,
    "proportions changed": change_proportions,
    "skin changed": change_skin,
    "other individual": other_individual,
    "accessory dropped": drop_accessory,
    "place changed": change_place,
}
"""Name -> function that returns the faulty view, or None if the fault does not apply. Local faults first."""
