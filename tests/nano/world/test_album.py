"""Pictures of two things and of styles: deterministic, true to their captions, with the truth about both."""

import numpy as np
import pytest

from personalar.nano.world.album import STYLES, Picture, draw
from personalar.nano.world.contexts import CONTEXTS, paint
from personalar.nano.world.layers import layers
from personalar.nano.world.objects.skin import surface_colour
from personalar.nano.world.objects.solids import cast
from personalar.nano.world.scene import (
    cast_shadow,
    light,
    place_object,
    sample_instance,
    sample_scene,
)


def scene(noun="cat", seed=3, **options):
    rng = np.random.default_rng(seed)
    return sample_scene(sample_instance(noun, rng), rng, **{"context": "snow", **options})


def pixels(picture: Picture, size: int = 64) -> np.ndarray:
    return np.asarray(draw(picture, size)).astype(float)


@pytest.mark.parametrize("context", [None, *CONTEXTS])
def test_a_photo_of_one_thing_is_what_it_always_was(context):
    """Bit by bit, without layers: a run refuses photos that differ from those it has started with."""
    one = scene("bear", seed=9, context=context, shiny=True, worn=("hat", "red"))
    each = place_object(one, 128)
    image = cast_shadow(paint(context, np.random.default_rng(one.seed), 128), each, context == "water")
    hits = cast(each.solids, view=each.view, scale=each.scale, centre=each.centre, size=128)
    for number in np.unique(hits.solid[hits.solid >= 0]):
        where, material = hits.solid == number, each.solids[number].material
        lit, shine = light(one, material, hits.normal[where])
        albedo = surface_colour(one.instance.skin, material, hits.position[where], each.worn)
        image[where] = albedo * lit[:, None] + shine[:, None]
    assert np.array_equal(layers((one,), 128).photo, image)


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_deterministic_and_unlike_the_photo_and_the_other_styles(style):
    drawn = pixels(Picture(scenes=(scene(),), style=style))
    assert np.array_equal(drawn, pixels(Picture(scenes=(scene(),), style=style)))
    for other in {None, *STYLES} - {style}:
        assert np.abs(drawn - pixels(Picture(scenes=(scene(),), style=other))).mean() > 4


def test_unknown_style_and_a_third_thing_are_answered_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"style must be None or one of pencil drawing.*got 'oil'"):
        Picture(scenes=(scene(),), style="oil")
    with pytest.raises(ValueError, match=r"one or two objects; got 3 scenes"):
        Picture(scenes=(scene(),) * 3)
