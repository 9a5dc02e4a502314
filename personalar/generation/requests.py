"""Requests for pictures, cut into batches, and prompts, checked before the first picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import TYPE_CHECKING

from PIL import Image

from personalar.config.model_config import ProtocolConfig
from personalar.core.image_sizes import Size
from personalar.core.types import PromptSpec, Sample, SampleKind
from personalar.data.prompts import SUBJECT_TOKEN, sample_prompt
from personalar.models.base import Backend

if TYPE_CHECKING:
    from personalar.generation.generator import Generator

Ask = tuple[str, int]
"""Prompt and seed: with the weights, all that a picture depends on."""
WORD = re.compile(r"\w+(?:[-'’]\w+)*")
MOST = 12
"""Unknown words that a note names."""
LEAST = 64
"""Tokens of a prompt that no note is about, though its picture passes what some configs declare."""


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
    found = []
    for kind, seed, spec in product(wanted, seeds, specs):
        prompt = sample_prompt(
            spec,
            kind=kind,
            noun=noun,
            description=description,
            learned=stage != "base",
            class_name=class_name,
        )
        found.append(Request(stage=stage, kind=kind, seed=seed, spec=spec, prompt=prompt))
    return found


def pick_grid_prompts(specs: Sequence[PromptSpec], count: int) -> list[PromptSpec]:
    """Pick `count` prompts for a picture, taking turns between the categories."""
    by_category: dict[str, list[PromptSpec]] = {}
    for spec in specs:
        by_category.setdefault(spec.category, []).append(spec)
    turns = [spec for turn in zip_longest(*by_category.values()) for spec in turn if spec is not None]
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


def length_note(
    backend: Backend, prompts: Sequence[str], ids: Sequence[Sequence[int]], size: Size | None = None
) -> str | None:
    """Return a sentence if pictures end beyond the positions that the base declares, else None.

    They are drawn, as by the authors' code: rotary positions have no end.

    Args:
        prompts, ids: what `encode_prompts` took and returned.
        size: of the pictures; None: the base's square.
    """
    answer = len(backend.grammar(*backend.code_shape(size)))
    safe = max(LEAST, backend.max_tokens - answer)
    long = [(prompt, len(some)) for prompt, some in zip(prompts, ids, strict=True) if len(some) > safe]
    if not long:
        return None
    prompt, length = max(long, key=lambda pair: pair[1])
    others = f" ({len(long)} prompts are longer than {safe})" if len(long) > 1 else ""
    return (
        f"the prompt {shortened(prompt)!r} has {length} tokens with its wrapping and its picture {answer}, "
        f"more than the {backend.max_tokens} that this base declares: the end of the picture may be "
        f"worse; a prompt of at most {safe} avoids that{others}"
    )


def shortened(prompt: str) -> str:
    """Return the beginning of a prompt, for a message."""
    return prompt if len(prompt) <= 60 else f"{prompt[:60]}..."


def encode_prompts(
    backend: Backend, prompts: Sequence[str], tokens: Mapping[str, int] | None, *, size: Size | None = None
) -> list[list[int]]:
    """Return the ids of every prompt, which say the picture's size as they do in training.

    Args:
        tokens: names that are tokens of their own.
        size: one of the base's sizes; None: its square.

    Raises:
        ValueError: a prompt is longer than the base can read, with both lengths, or is no text.
    """
    allowed = backend.max_tokens
    ids = [backend.prompt_ids(prompt, size, tokens) for prompt in prompts]
    for prompt, some in zip(prompts, ids, strict=True):
        if len(some) > allowed:
            raise ValueError(
                f"the prompt {shortened(prompt)!r} has {len(some)} tokens with its wrapping, this base can "
                f"read {allowed}: shorten it"
            )
    return ids


def unknown_words(
    base: Backend | ProtocolConfig, prompts: Iterable[str], names: Iterable[str] = ()
) -> list[str]:
    """Return the words of `prompts` that the base was not trained on, in order; none if it lists no words.

    Args:
        names: tokens of their own, such as [V], which do not count as words.
    """
    if base.known_words is None:
        return []
    learned = "|".join(re.escape(name) for name in {SUBJECT_TOKEN, *names})
    words = [word for prompt in prompts for word in WORD.findall(re.sub(learned, " ", prompt))]
    return [word for word in dict.fromkeys(words) if word not in base.known_words]


def words_note(
    base: Backend | ProtocolConfig, prompts: Iterable[str], names: Iterable[str] = ()
) -> str | None:
    """Return a sentence that names the words a base was not trained on; None where there are none."""
    words = unknown_words(base, prompts, names)
    more = f" and {len(words) - MOST} more" if len(words) > MOST else ""
    return f"this base was not trained on: {', '.join(words[:MOST])}{more}" if words else None


def check_prompts(
    generator: Generator,
    prompts: Sequence[str],
    *,
    size: Size | None = None,
    words: bool = True,
    say: Callable[[str], object] = print,
) -> None:
    """Raise ValueError for a prompt that cannot be drawn, before the first one is.

    Args:
        size: of the pictures, one of the base's; None: its square.
        words: note the words that the base was not trained on.
        say: called with every note.
    """
    tokens = generator.identifier.tokens if generator.identifier else {}
    ids = encode_prompts(generator.backend, prompts, tokens, size=size)
    notes = [length_note(generator.backend, prompts, ids, size)]
    if words:
        notes.append(words_note(generator.backend, prompts, tokens))
    for note in filter(None, notes):
        say(f"note: {note}")
