"""Rendered subjects: five training views of one individual, and reference pictures for its evaluation.

The ceiling of fidelity is from unseen views of the same individual, the floor from other individuals of
its class. Both are rendered for the evaluation's prompts (place, accessory, colour, style), because a
recoloured cat with a hat is less similar to the photos even if it was learned perfectly.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from personalar.core.types import Box, PromptSpec
from personalar.nano.world.album import Picture, draw
from personalar.nano.world.captions import description, recoloured
from personalar.nano.world.objects.animals import HEADS
from personalar.nano.world.prompt_set import bench_prompts
from personalar.nano.world.scene import SIZE, Instance, Scene, sample_instance, sample_scene, thing_box

TRAINING_CONTEXTS = (None, "sunflowers", "floor", "beach", "street")
VIEWS_PER_PROMPT = 2


@dataclass(frozen=True, kw_only=True)
class RenderedSubject:
    """A subject with its pictures (RGB, size x size); `description` has no article.

    train: training views. holdout: unseen views, for the ceiling. others: other individuals, for the floor.
    """

    noun: str
    live: bool
    description: str
    train: tuple[Image.Image, ...]
    boxes: tuple[Box, ...]
    """Bounding boxes of the object in `train`."""
    holdout: tuple[Image.Image, ...]
    others: tuple[Image.Image, ...]


def subject_instance(noun: str, seed: int) -> Instance:
    """Return the individual for a class and a seed."""
    # Separate streams: the individual must not depend on the number of pictures drawn.
    return sample_instance(noun, np.random.default_rng([seed, 1]))


def scene_for_prompt(instance: Instance, spec: PromptSpec, rng: np.random.Generator) -> Scene:
    """Return a random view of the individual that matches a prompt of `bench_prompts`, but for its style."""
    worn = (spec.accessory, spec.colour) if spec.accessory and spec.colour else None
    if spec.category == "property" and spec.colour:
        instance = recoloured(instance, spec.colour, rng)
    return sample_scene(instance, rng, context=spec.context, worn=worn, shiny="shiny" in spec.text)


def _drawn(instance: Instance, spec: PromptSpec, rng: np.random.Generator, size: int) -> Image.Image:
    return draw(Picture(scenes=(scene_for_prompt(instance, spec, rng),), style=spec.style), size)


def rendered_subject(noun: str, seed: int, size: int = SIZE) -> RenderedSubject:
    """Render a subject: about 100 pictures, four seconds on one core.

    Args:
        noun: the class, one of `scene.CLASSES`.
        seed: which individual.
        size: side of the pictures in pixels.
    """
    instance = subject_instance(noun, seed)
    rng = np.random.default_rng([seed, 2])
    asked = bench_prompts(noun) * VIEWS_PER_PROMPT
    # Without accessories: photos of a subject rarely show them.
    train = [sample_scene(instance, rng, context=context) for context in TRAINING_CONTEXTS]
    return RenderedSubject(
        noun=noun,
        live=noun in HEADS,
        description=description(instance),
        train=tuple(draw(Picture(scenes=(scene,)), size) for scene in train),
        boxes=tuple(thing_box(scene, size) for scene in train),
        # In this order, because all pictures are drawn from one stream.
        holdout=tuple(_drawn(instance, spec, rng, size) for spec in asked),
        others=tuple(_drawn(sample_instance(noun, rng), spec, rng, size) for spec in asked),
    )
