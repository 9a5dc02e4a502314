"""Evaluation prompts of the rendered world, in DreamBench's grammar, with the expected content of each."""

from personalar.core.types import PromptSpec
from personalar.nano.world.album import STYLES
from personalar.nano.world.captions import article, wearing
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.objects.animals import HEADS

_WORN = (
    ("hat", "red"),
    ("scarf", "blue"),
    ("glasses", "pink"),
    ("bow tie", "yellow"),
    ("glasses", "green"),
    ("scarf", "purple"),
)
_COLOURS = ("red", "purple")


def bench_prompts(noun: str, *, live: bool | None = None) -> tuple[PromptSpec, ...]:
    """Return all prompts for a class; "{}" is replaced by the subject.

    Args:
        noun: the class.
        live: an animal or a person: 26 prompts, with accessories; else 20. None: as this world draws it.
    """
    plain = (
        PromptSpec(text="a photo of a {}", category="plain"),
        PromptSpec(text="a picture of a {}", category="plain"),
    )
    places = tuple(
        PromptSpec(text=f"a {{}} {phrase}", category="recontext", context=name)
        for name, (phrase, _) in CONTEXTS.items()
    )
    worn = tuple(
        PromptSpec(
            text=f"a {{}}{wearing((kind, colour))}", category="accessory", accessory=kind, colour=colour
        )
        for kind, colour in (_WORN if (noun in HEADS if live is None else live) else ())
    )
    changes = tuple(
        PromptSpec(text=f"a {colour} {{}}", category="property", colour=colour) for colour in _COLOURS
    )
    styled = tuple(
        PromptSpec(text=f"{article(style)} of a {{}}", category="property", style=style) for style in STYLES
    )
    shiny = PromptSpec(text="a shiny {}", category="property")
    return (*plain, *places, *worn, *changes, shiny, *styled)
