"""What is to be drawn: pictures that do not exist yet, and how they are cut into batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import Image

from personalar.core.types import PromptSpec, Sample, SampleKind
from personalar.data.prompts import sample_prompt

Ask = tuple[str, int]
"""Prompt and seed: with the weights, all that a picture depends on."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to make: a `Sample` that does not exist yet."""

    stage: str
    prompt: str
    kind: SampleKind
    seed: int
    spec: PromptSpec


def requests_for(
    stage: str,
    specs: Sequence[PromptSpec],
    *,
    seeds: Sequence[int],
    kinds: Sequence[SampleKind],
    noun: str,
    description: str | None,
    class_name: bool = True,
) -> list[Request]:
    """Return every image that `stage` is judged by; descriptions are for the base, which has no [V]."""
    wanted = [kind for kind in kinds if kind != "description" or (stage == "base" and description)]
    return [
        Request(
            stage=stage,
            kind=kind,
            seed=seed,
            spec=spec,
            prompt=sample_prompt(
                spec,
                kind=kind,
                noun=noun,
                description=description,
                learned=stage != "base",
                class_name=class_name,
            ),
        )
        for kind in wanted
        for seed in seeds
        for spec in specs
    ]


def pick_grid_prompts(specs: Sequence[PromptSpec], count: int) -> list[PromptSpec]:
    """Pick `count` prompts for a picture, taking turns between the categories."""
    by_category = [
        list(group) for _, group in groupby(sorted(specs, key=lambda s: s.category), lambda s: s.category)
    ]
    by_category.sort(key=lambda group: specs.index(group[0]))
    turns = [group[k] for k in range(max(map(len, by_category))) for group in by_category if k < len(group)]
    return turns[:count]


def unique(requests: Sequence[Request]) -> list[Ask]:
    """Return what is to be drawn for `requests`: every prompt and seed once."""
    return list(dict.fromkeys((request.prompt, request.seed) for request in requests))


def as_samples(
    requests: Sequence[Request], asked: Sequence[Ask], pictures: Sequence[Image.Image]
) -> list[Sample]:
    """Hand the pictures of `asked` to the requests that asked for them."""
    made = dict(zip(asked, pictures, strict=True))
    return [Sample(**vars(request), image=made[request.prompt, request.seed]) for request in requests]


def chunks(requests: Sequence[Request], size: int, *, first: Iterable[Request] = ()) -> list[list[Request]]:
    """Cut `requests` into batches of `size`, those of `first` in a batch of their own before all.

    The cut does not depend on what exists already: a resumed run decodes the same batches.
    """
    head = list(first)
    rest = [request for request in requests if request not in head]
    rest.sort(key=lambda request: (request.seed, request.prompt))  # equal prompts of two kinds side by side
    return ([head] if head else []) + [rest[start : start + size] for start in range(0, len(rest), size)]
