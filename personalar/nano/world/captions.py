"""Phrases of captions and prompts of the rendered world, in the grammar of DreamBench's prompts.

A description names the class, the body colour and, if there is one, the pattern and the second colour. It
never describes the third colour, exact shades, proportions or parameters of the pattern.
"""

from dataclasses import replace

import numpy as np

from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.skin import COLOURS, Skin
from personalar.nano.world.scene import Instance

PLAIN = "plain"  # the pattern that captions do not mention


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
