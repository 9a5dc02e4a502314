"""Requests for pictures and their batches, and checks of prompts before the first picture is sampled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import TYPE_CHECKING

from PIL import Image

from personalar.concepts.adapters.identifier import Identifier
from personalar.config.model_config import ProtocolConfig
from personalar.core.image_sizes import Size
from personalar.core.types import PromptSpec, Sample, SampleKind
from personalar.data.prompts import SUBJECT_TOKEN, sample_prompt, spell
from personalar.models.base import Backend

if TYPE_CHECKING:
    from personalar.generation.generator import Generator

PromptAndSeed = tuple[str, int]
"""With the same weights, two pictures with the same prompt and seed are identical."""
WORD = re.compile(r"\w+(?:[-'’]\w+)*")
MAX_LISTED_WORDS = 12
"""Unknown words that a note lists."""
MIN_PROMPT_TOKENS = 64
"""No note for shorter prompts: some bases declare a context that is barely longer than one image."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to generate; with the picture it becomes a `Sample`."""

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
    """Return requests for all images that a stage is evaluated on.

    Args:
        stage: name of the stage; "base" is the model before training, which has no [V].
        specs: prompts with "{}" for the subject.
        seeds: every prompt is sampled with every seed.
        kinds: kinds of samples; "description" is used for the base only.
        noun: the class of the subject.
        description: words that describe the subject, or None.
        class_name: whether the class follows [V].
    """
    # A description is sampled without [V], so it is the same at every stage: the base is enough.
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
    """Choose `count` prompts for the grid of samples, in turn from each category."""
    by_category: dict[str, list[PromptSpec]] = {}
    for spec in specs:
        by_category.setdefault(spec.category, []).append(spec)
    chosen = []
    for turn in zip_longest(*by_category.values()):
        chosen += [spec for spec in turn if spec is not None]
    return chosen[:count]


def unique(requests: Sequence[Request]) -> list[PromptAndSeed]:
    """Return the pairs of prompt and seed in `requests`, each once, in order."""
    return list(dict.fromkeys((request.prompt, request.seed) for request in requests))


def pair_with_images(
    requests: Sequence[Request], pairs: Sequence[PromptAndSeed], pictures: Sequence[Image.Image]
) -> list[Sample]:
    """Return one sample per request, with the picture of its prompt and seed.

    Args:
        requests: the requests.
        pairs: prompts and seeds of the pictures, from `unique(requests)`.
        pictures: one per pair.
    """
    made = dict(zip(pairs, pictures, strict=True))
    return [Sample(**vars(request), image=made[request.prompt, request.seed]) for request in requests]


def chunks(requests: Sequence[Request], size: int, *, first: Iterable[Request] = ()) -> list[list[Request]]:
    """Split `requests` into batches of `size`; those of `first` begin a batch of their own.

    The batches do not depend on the pictures that exist already, so a resumed run samples the same batches.
    """
    head = list(first)
    pairs = {(request.prompt, request.seed) for request in head}
    rest = [request for request in requests if request not in head]
    # Requests of two kinds can have the same prompt and seed; in one batch they are sampled once.
    head += [request for request in rest if (request.prompt, request.seed) in pairs]
    rest = [request for request in rest if (request.prompt, request.seed) not in pairs]
    rest.sort(key=lambda request: (request.seed, request.prompt))
    return ([head] if head else []) + [rest[start : start + size] for start in range(0, len(rest), size)]


def length_note(
    backend: Backend, prompts: Sequence[str], ids: Sequence[Sequence[int]], size: Size | None = None
) -> str | None:
    """Return a note if a prompt and its image are longer than the context that the base declares, else None.

    They are sampled all the same, as in the authors' code: rotary embeddings have no maximum position.

    Args:
        backend: the base.
        prompts: the prompts as text.
        ids: the same prompts as token ids, from `encode_prompts`.
        size: (width, height) of the pictures; None means the base's square.
    """
    answer = len(backend.grammar(*backend.code_shape(size)))
    # The number of tokens that a prompt may have without a note.
    safe = max(MIN_PROMPT_TOKENS, backend.max_tokens - answer)
    long = [(prompt, len(some)) for prompt, some in zip(prompts, ids, strict=True) if len(some) > safe]
    if not long:
        return None
    prompt, length = max(long, key=lambda pair: pair[1])
    others = f" ({len(long)} prompts are longer than {safe} tokens)" if len(long) > 1 else ""
    return (
        f"the prompt {shortened(prompt)!r} has {length} tokens including its template, and the picture "
        f"{answer}: together more than the {backend.max_tokens} that this base declares, so the end of the "
        f"picture may be worse; shorten the prompt to {safe} tokens{others}"
    )


def shortened(prompt: str) -> str:
    """Return the first 60 characters of a prompt, for a message."""
    return prompt if len(prompt) <= 60 else f"{prompt[:60]}..."


def names_of(learned: Identifier | None) -> tuple[dict[str, int], dict[str, Sequence[str]]]:
    """Return the tokens and words of the learned tokens; empty if there are none."""
    return (learned.tokens, learned.words) if learned is not None else ({}, {})


def encode_prompts(
    backend: Backend, prompts: Sequence[str], learned: Identifier | None, *, size: Size | None = None
) -> list[list[int]]:
    """Tokenize prompts for sampling, with the base's template, which contains the image size.

    Args:
        backend: the base.
        prompts: the prompts as text.
        learned: the learned tokens, or None.
        size: (width, height), one of the base's sizes; None means its square.

    Raises:
        ValueError: a prompt is longer than the base's context.
    """
    tokens, words = names_of(learned)
    ids = [backend.prompt_ids(spell(prompt, words), size, tokens) for prompt in prompts]
    for prompt, some in zip(prompts, ids, strict=True):
        check_length(backend, prompt, some)
    return ids


def check_length(backend: Backend, prompt: str, ids: Sequence[int]) -> None:
    """Raise ValueError if `ids`, the tokens of `prompt`, are more than the base reads."""
    if len(ids) > backend.max_tokens:
        raise ValueError(
            f"the prompt {shortened(prompt)!r} has {len(ids)} tokens including its template, but this "
            f"base reads at most {backend.max_tokens}: shorten it"
        )


def words_note(
    base: Backend | ProtocolConfig, prompts: Iterable[str], names: Iterable[str] = ()
) -> str | None:
    """Return a note on the words in `prompts` that the base was not trained on, in order of appearance.

    None if there are none, or if the base has no list of known words.

    Args:
        base: a loaded base or its settings.
        prompts: the prompts as text.
        names: learned tokens such as [V], which are not counted as words.
    """
    if base.known_words is None:
        return None
    # Learned tokens are removed first: "[V]" would count as the unknown word "V".
    learned = "|".join(re.escape(name) for name in {SUBJECT_TOKEN, *names})
    found: dict[str, None] = {}  # a dict as an ordered set
    for prompt in prompts:
        found |= dict.fromkeys(WORD.findall(re.sub(learned, " ", prompt)))
    words = [word for word in found if word not in base.known_words]
    more = f" and {len(words) - MAX_LISTED_WORDS} more" if len(words) > MAX_LISTED_WORDS else ""
    return f"this base was not trained on: {', '.join(words[:MAX_LISTED_WORDS])}{more}" if words else None


def check_prompts(
    generator: Generator,
    prompts: Sequence[str],
    *,
    size: Size | None = None,
    words: bool = True,
    say: Callable[[str], object] = print,
) -> None:
    """Check all prompts before the first picture is sampled, and print notes.

    Args:
        generator: the generator that will sample them.
        prompts: the prompts as text.
        size: (width, height) of the pictures; None means the base's square.
        words: whether to note words that the base was not trained on.
        say: called with every note.

    Raises:
        ValueError: a prompt is too long for the base.
    """
    learned = generator.identifier
    ids = encode_prompts(generator.backend, prompts, learned, size=size)
    notes = [length_note(generator.backend, prompts, ids, size)]
    if words:
        tokens, spelled = names_of(learned)
        notes.append(words_note(generator.backend, prompts, [*tokens, *spelled]))
    for note in filter(None, notes):
        say(f"note: {note}")
