"""Rendered subjects: one fixed individual in five training views, and what a personalization is judged by.

floor: other individuals of the class; ceiling: held-out views of the same individual; hard negatives: twins
that share the skin or the shape.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from personalar.world.animals import HEADS
from personalar.world.captions import description
from personalar.world.contexts import CONTEXTS
from personalar.world.scene import Instance, render, sample_instance, sample_scene
from personalar.world.skin import sample_skin

TRAINING_CONTEXTS = (None, "sunflowers", "floor", "beach", "street")
HOLDOUT_VIEWS = 24
OTHERS = 24


@dataclass(frozen=True, kw_only=True)
class RenderedSubject:
    """All images are RGB of size x size; `description` has no article."""

    noun: str
    live: bool
    description: str
    train: tuple[Image.Image, ...]
    holdout: tuple[Image.Image, ...]
    others: tuple[Image.Image, ...]
    hard_negatives: tuple[Image.Image, ...]


def subject_instance(noun: str, seed: int) -> Instance:
    """The individual that (noun, seed) names."""
    return sample_instance(noun, np.random.default_rng([seed, 1]))


def _views(
    instances: list[Instance], contexts: list, rng: np.random.Generator, size: int
) -> tuple[Image.Image, ...]:
    pairs = zip(instances, contexts, strict=True)
    return tuple(render(sample_scene(instance, rng, context=context), size) for instance, context in pairs)


def twins(instance: Instance, count: int, rng: np.random.Generator) -> list[Instance]:
    """Half with the same skin and other proportions, half with the same proportions and another skin."""
    other = [sample_instance(instance.noun, rng) for _ in range(count // 2)]
    reshaped = [replace(instance, proportions=o.proportions) for o in other]
    return reshaped + [replace(instance, skin=sample_skin(rng)) for _ in range(count - count // 2)]


def rendered_subject(noun: str, seed: int, size: int = 96) -> RenderedSubject:
    """The subject (noun, seed) with its views; about 80 pictures, two seconds on one core."""
    instance = subject_instance(noun, seed)
    rng = np.random.default_rng([seed, 2])
    names = list(CONTEXTS)
    turns = [names[i % len(names)] for i in range(HOLDOUT_VIEWS)]
    return RenderedSubject(
        noun=noun,
        live=noun in HEADS,
        description=description(instance),
        train=_views([instance] * len(TRAINING_CONTEXTS), list(TRAINING_CONTEXTS), rng, size),
        holdout=_views([instance] * HOLDOUT_VIEWS, turns, rng, size),
        others=_views([sample_instance(noun, rng) for _ in range(OTHERS)], turns, rng, size),
        hard_negatives=_views(twins(instance, 24, rng), turns, rng, size),
    )
