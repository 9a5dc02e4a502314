"""Planted faults: the same view of a subject with one thing wrong, to find out which judge sees what."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.scene import Scene, sample_instance
from personalar.nano.world.skin import COLOURS, sample_skin


def recolour_part(scene: Scene, rng: np.random.Generator) -> Scene:
    """Give the accents (paws, snout, lid, wheels, ...) another colour; the body stays."""
    skin = scene.instance.skin
    worn = (scene.worn[1],) if scene.worn else ()
    free = [name for name in COLOURS if name not in (*(name for name, _ in skin.colours), *worn)]
    name = str(rng.choice(free))
    changed = replace(skin, colours=(*skin.colours[:2], (name, COLOURS[name])))
    return replace(scene, instance=replace(scene.instance, skin=changed))


def change_proportions(scene: Scene, rng: np.random.Generator) -> Scene:
    """Take the proportions of another individual; colours and pattern stay."""
    other = sample_instance(scene.instance.noun, rng)
    return replace(scene, instance=replace(scene.instance, proportions=other.proportions))


def change_skin(scene: Scene, rng: np.random.Generator) -> Scene:
    """Take other colours and another pattern; the proportions stay."""
    return replace(scene, instance=replace(scene.instance, skin=sample_skin(rng)))


def other_individual(scene: Scene, rng: np.random.Generator) -> Scene:
    """Show another one of its class."""
    return replace(scene, instance=sample_instance(scene.instance.noun, rng))


def drop_accessory(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Leave out what the prompt asks the subject to wear; None where it asks for nothing."""
    return replace(scene, worn=None) if scene.worn else None


def change_place(scene: Scene, rng: np.random.Generator) -> Scene | None:
    """Put it into another place than the prompt asks for; None where it asks for none."""
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
"""Name -> the view with that fault, or None where it cannot have it. Local faults first."""
