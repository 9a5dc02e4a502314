"""Pictures of one or two objects, as photos or in a style, with captions and ground truth."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from personalar.nano.world.captions import (
    IDENTIFIER,
    OPENINGS,
    article,
    description,
    place,
    sample_example,
    wearing,
)
from personalar.nano.world.contexts import CONTEXTS
from personalar.nano.world.layers import layers
from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.scene import (
    ACCESSORIES,
    ACCESSORY_COLOURS,
    CLASSES,
    SIZE,
    SUPERSAMPLING,
    Instance,
    Scene,
    sample_instance,
    sample_scene,
    shrink,
)
from personalar.nano.world.styles import STYLES

SECOND_IDENTIFIER = "[W]"
"""The name of the second object's individual; `[V]` is the first one's."""
_ASIDE, _SMALLER = 0.225, 0.68  # shift and scale of two objects, relative to a single one


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Objects from left to right, in the place of the first scene, and in a style (None: a photo)."""

    scenes: tuple[Scene, ...]
    style: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown style or more than two objects."""
        if self.style is not None and self.style not in STYLES:
            raise ValueError(f"style must be None or one of {', '.join(STYLES)}; got {self.style!r}")
        if not 1 <= len(self.scenes) <= 2:
            raise ValueError(f"a picture has one or two objects; got {len(self.scenes)} scenes")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture with its caption, and for each object the individual if the caption names it, else None."""

    picture: Picture
    caption: str
    named: tuple[Instance | None, ...]


def draw(picture: Picture, size: int = SIZE) -> Image.Image:
    """Render a picture to an RGB image of size x size pixels; it depends only on `picture`."""
    found = layers(picture.scenes, size * SUPERSAMPLING)
    if picture.style is None:
        return shrink(found.photo)
    return shrink(STYLES[picture.style](found, np.random.default_rng([picture.scenes[0].seed, 1])))


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
