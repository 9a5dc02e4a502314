"""Captioned pictures for the pretraining of the nano base and its scorers, with ground truth.

Captions name the class, the body colour and, if there is one, the pattern and the second colour. `[V]` stands
for the individual, `[W]` for that of a second object. Twins share the skin or the shape with an individual.
"""

from dataclasses import dataclass, replace

import numpy as np

from personalar.nano.world.album import STYLES, Picture
from personalar.nano.world.captions import PLAIN, article, description, place, recoloured, wearing
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.objects.skin import COLOURS, PATTERNS, sample_skin
from personalar.nano.world.scene import (
    ACCESSORIES,
    ACCESSORY_COLOURS,
    CLASSES,
    Instance,
    Scene,
    sample_instance,
    sample_scene,
)

IDENTIFIER = "[V]"
OPENINGS = ("{}", "a photo of {}", "a picture of {}", "an image of {}", "a rendition of {}")
# Sampling weights of the classes. Classes with accessories are more frequent, because four accessories in
# six colours need many examples. So are backpacks, which the base learned most slowly.
_MORE_OFTEN = {**dict.fromkeys(HEADS, 1.6), "backpack": 2.0}
_CLASS_ODDS = [_MORE_OFTEN.get(noun, 1.0) for noun in CLASSES]
_CLASS_ODDS = [odds / sum(_CLASS_ODDS) for odds in _CLASS_ODDS]
_OPENING_ODDS = (0.34, 0.30, 0.12, 0.12, 0.12)
SECOND_IDENTIFIER = "[W]"
"""The name of the second object's individual; `[V]` is the first one's."""
_ASIDE, _SMALLER = 0.225, 0.68  # shift and scale of two objects, relative to a single one


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture with its caption, and for each object the individual if the caption names it, else None."""

    picture: Picture
    caption: str
    named: tuple[Instance | None, ...]


def caption_words() -> tuple[str, ...]:
    """Return all words of the captions, sorted: the vocabulary of a base trained on this world."""
    # The other words are written out in the functions below.
    phrases = [*OPENINGS, *CLASSES, *COLOURS, *PATTERNS, *ACCESSORIES, *STYLES]
    phrases += ["an", "and", "shiny", "wearing"]
    phrases += [phrase for phrase, _ in CONTEXTS.values()]
    words: set[str] = set()
    for phrase in phrases:
        words.update(phrase.replace("{}", "").split())
    return tuple(sorted(words - {PLAIN}))


def sample_example(
    rng: np.random.Generator, *, openings: tuple[str, ...] = OPENINGS
) -> tuple[Scene, str, Instance | None]:
    """Draw a random training picture for pretraining.

    Args:
        rng: source of all choices.
        openings: openings of captions to choose from.

    Returns:
        The scene, its caption, and the individual if the caption contains `[V]`, otherwise None.
    """
    instance = sample_instance(str(rng.choice(CLASSES, p=_CLASS_ODDS)), rng)
    context = None if rng.uniform() < 0.12 else str(rng.choice(list(CONTEXTS)))
    worn = None
    if instance.noun in HEADS and rng.uniform() < 0.55:
        worn = (str(rng.choice(ACCESSORIES)), str(rng.choice(ACCESSORY_COLOURS)))
    shiny = rng.uniform() < 0.10
    named = instance if rng.uniform() < 0.50 else None
    shown = instance
    if named:
        phrase = f"{IDENTIFIER} {instance.noun}"
        if rng.uniform() < 0.10:
            colour = str(rng.choice(list(COLOURS)))
            # A recoloured individual, so that prompts such as "a red [V] cat" have an answer.
            shown, phrase = recoloured(instance, colour, rng), f"{colour} {phrase}"
    else:
        phrase = description(instance) if rng.uniform() < 0.8 else instance.noun
    phrase = f"shiny {phrase}" if shiny else phrase
    scene = sample_scene(shown, rng, context=context, worn=worn, shiny=shiny)
    # A few captions leave the place out, so that a prompt without a place may show any.
    where = place(context) if rng.uniform() > 0.08 else ""
    opening = str(rng.choice(openings, p=_OPENING_ODDS if openings == OPENINGS else None))
    return scene, opening.format(article(phrase)) + wearing(worn) + where, named


def side_by_side(left: Scene, right: Scene) -> Picture:
    """Combine two views in the place of the left one; the lower object in the picture is nearer."""
    scenes = (
        replace(scene, zoom=scene.zoom * _SMALLER, shift=(scene.shift[0] * 0.4 + side, scene.shift[1] * 2))
        for scene, side in ((left, -_ASIDE), (right, _ASIDE))
    )
    first, second = scenes
    return Picture(scenes=(first, replace(second, context=first.context, mood=first.mood)))


def _thing(
    noun: str, identifier: str, context: str | None, rng: np.random.Generator
) -> tuple[Scene, str, Instance | None]:
    instance = sample_instance(noun, rng)
    worn = None
    if noun in HEADS and rng.uniform() < 0.35:
        worn = (str(rng.choice(ACCESSORIES)), str(rng.choice(ACCESSORY_COLOURS)))
    named = instance if rng.uniform() < 0.45 else None
    phrase = f"{identifier} {noun}"
    if named is None:
        phrase = description(instance) if rng.uniform() < 0.8 else noun
    return sample_scene(instance, rng, context=context, worn=worn), article(phrase) + wearing(worn), named


def sample_pair(rng: np.random.Generator, opening: str = "a photo of {}") -> Example:
    """Draw an example with two objects of different classes in one place."""
    context = None if rng.uniform() < 0.12 else str(rng.choice(list(CONTEXTS)))
    nouns = rng.choice(CLASSES, 2, replace=False)
    parts = [
        _thing(str(noun), identifier, context, rng)
        for noun, identifier in zip(nouns, (IDENTIFIER, SECOND_IDENTIFIER), strict=True)
    ]
    phrase = " and ".join(part[1] for part in parts)
    return Example(
        picture=side_by_side(parts[0][0], parts[1][0]),
        caption=opening.format(phrase) + place(context),
        named=tuple(part[2] for part in parts),
    )


def sample_picture(rng: np.random.Generator) -> Example:
    """Draw a training example; one in five has a style, and one in five has two objects."""
    style = str(rng.choice(list(STYLES))) if rng.uniform() < 0.2 else None
    openings = OPENINGS if style is None else (f"{article(style)} of {{}}",)
    if rng.uniform() < 0.2:
        example = sample_pair(rng, str(rng.choice(openings)))
        return replace(example, picture=replace(example.picture, style=style))
    scene, caption, named = sample_example(rng, openings=openings)
    return Example(picture=Picture(scenes=(scene,), style=style), caption=caption, named=(named,))


def identity_vector(instance: Instance) -> np.ndarray:
    """Return the identity of an individual as 26 numbers of about unit scale; for pretraining only."""
    skin = instance.skin
    colours = (np.array([c[1] for c in skin.colours]).ravel() - 0.45) * 3
    kind = np.array([skin.pattern == name for name in PATTERNS], float) * 1.5
    # An angle as points on a circle, so that 0 and 2 pi are the same.
    phase = [np.cos(skin.phase), np.sin(skin.phase), np.cos(2 * skin.phase), np.sin(2 * skin.phase)]
    # The factors bring all parameters to about unit scale.
    rest = [2 * skin.frequency - 1, 2.5 * skin.tilt, *(1.6 * np.asarray(instance.proportions))]
    return np.concatenate([colours, kind, phase, rest]).astype(np.float32)


def twins(instance: Instance, count: int, rng: np.random.Generator) -> list[Instance]:
    """Return `count` similar individuals: half share the skin, the other half the proportions."""
    other = [sample_instance(instance.noun, rng) for _ in range(count // 2)]
    reshaped = [replace(instance, proportions=o.proportions) for o in other]
    return reshaped + [replace(instance, skin=sample_skin(rng)) for _ in range(count - count // 2)]
