"""Captions of the rendered world: the grammar of DreamBench's prompts, with a few neutral openings.

A caption names the class, the body colour and, if there is one, the pattern and the second colour. It never
describes the third colour, exact shades, proportions or parameters of the pattern. `[V]` stands for the
individual.
"""

from dataclasses import replace

import numpy as np

from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.objects.skin import COLOURS, PATTERNS, Skin
from personalar.nano.world.scene import (
    ACCESSORIES,
    ACCESSORY_COLOURS,
    CLASSES,
    Instance,
    Scene,
    sample_instance,
    sample_scene,
)
from personalar.nano.world.styles import STYLES

IDENTIFIER = "[V]"
PLAIN = "plain"  # the pattern that captions do not mention
OPENINGS = ("{}", "a photo of {}", "a picture of {}", "an image of {}", "a rendition of {}")
# Sampling weights of the classes. Classes with accessories are more frequent, because four accessories in
# six colours need many examples. So are backpacks, which the base learned most slowly.
_MORE_OFTEN = {**dict.fromkeys(HEADS, 1.6), "backpack": 2.0}
_CLASS_ODDS = [_MORE_OFTEN.get(noun, 1.0) for noun in CLASSES]
_CLASS_ODDS = [odds / sum(_CLASS_ODDS) for odds in _CLASS_ODDS]
_OPENING_ODDS = (0.34, 0.30, 0.12, 0.12, 0.12)


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


def article(phrase: str) -> str:
    """Return the phrase with its indefinite article, such as "an orange cat"."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def description(instance: Instance) -> str:
    """Return the most precise description that captions allow, such as "striped green and white cat"."""
    skin = instance.skin
    first, second = skin.colours[0][0], skin.colours[1][0]
    return (
        f"{first} {instance.noun}"
        if skin.pattern == PLAIN
        else f"{skin.pattern} {first} and {second} {instance.noun}"
    )


def wearing(worn: tuple[str, str] | None) -> str:
    """Return the phrase of an accessory with a leading space, or an empty string."""
    if worn is None:
        return ""
    kind, colour = worn
    # "glasses" is a plural and has no article.
    return f" wearing {colour} {kind}" if kind == "glasses" else f" wearing {article(f'{colour} {kind}')}"


def place(context: str | None) -> str:
    """Return the phrase of a place with a leading space; an empty string for the studio."""
    return "" if context is None else f" {CONTEXTS[context][0]}"


def recoloured(instance: Instance, colour: str, rng: np.random.Generator) -> Instance:
    """Return the individual with another body colour and everything else unchanged."""
    red, green, blue = np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.05, 0.05, 3), 0, 1).tolist()
    skin: Skin = replace(instance.skin, colours=((colour, (red, green, blue)), *instance.skin.colours[1:]))
    return replace(instance, skin=skin)


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
