"""Prompts as ids, checked before any picture is made: a prompt too long fails at once and not after hours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from personalar.concepts.adapters.identifier import Identifier
from personalar.core.image_sizes import Size
from personalar.data.prompts import SUBJECT_TOKEN
from personalar.models.base import Backend

WORD = re.compile(r"\w+(?:[-'’]\w+)*")
MOST = 12
"""Unknown words that a note names."""
LEAST = 64
"""Tokens of a prompt that every base is trusted with; its own picture is beyond what some configs declare."""


def longest_prompt(backend: Backend) -> int:
    """Return how many tokens a prompt may have: all positions that the base declares."""
    return backend.max_tokens


def length_note(
    backend: Backend, prompts: Sequence[str], ids: Sequence[Sequence[int]], size: Size | None = None
) -> str | None:
    """Return a sentence where pictures end beyond the positions that the base declares, or None.

    They are drawn: rotary positions go on without an end, and the authors' code goes on too, with a reminder.

    Args:
        prompts, ids: what `encode_prompts` took and returned.
        size: of the pictures; None: the base's square.
    """
    answer = len(backend.grammar(*backend.code_shape(size)))
    safe = max(LEAST, longest_prompt(backend) - answer)
    long = [(prompt, len(some)) for prompt, some in zip(prompts, ids, strict=True) if len(some) > safe]
    if not long:
        return None
    prompt, length = max(long, key=lambda pair: pair[1])
    others = f" ({len(long)} prompts are longer than {safe})" if len(long) > 1 else ""
    return (
        f"the prompt {shortened(prompt)!r} has {length} tokens with its wrapping and its picture {answer}, "
        f"more than the {longest_prompt(backend)} that this base declares: the end of the picture may be "
        f"worse; a prompt of at most {safe} avoids that{others}"
    )


def shortened(prompt: str) -> str:
    """Return the beginning of a prompt, for a message."""
    return prompt if len(prompt) <= 60 else f"{prompt[:60]}..."


def encode_prompts(
    backend: Backend,
    prompts: Sequence[str],
    tokens: Mapping[str, int] | None,
    *,
    size: Size | None = None,
) -> list[list[int]]:
    """Return the ids of every prompt, which say the picture's size as they do in training.

    Args:
        tokens: names that are tokens of their own.
        size: one of the base's sizes; None: its square.

    Raises:
        ValueError: a prompt is longer than the base can read, with both lengths, or is no text.
    """
    allowed = longest_prompt(backend)
    ids = [backend.prompt_ids(prompt, size, tokens) for prompt in prompts]
    for prompt, some in zip(prompts, ids, strict=True):
        if len(some) > allowed:
            raise ValueError(
                f"the prompt {shortened(prompt)!r} has {len(some)} tokens with its wrapping, this base can "
                f"read {allowed}: shorten it"
            )
    return ids


class KnowsWords(Protocol):
    """A backend, or the layout of one: both say which words the base was trained on."""

    @property
    def known_words(self) -> Sequence[str] | None:
        """All words of its captions, or None where they are unknown."""
        ...


def unknown_words(base: KnowsWords, prompts: Iterable[str], names: Iterable[str] = ()) -> list[str]:
    """Return the words of `prompts` that the base was not trained on, in order; none where nobody knows.

    Args:
        names: tokens of their own, such as [V]; they are no words.
    """
    if base.known_words is None:
        return []
    learned = "|".join(re.escape(name) for name in {SUBJECT_TOKEN, *names})
    words = [word for prompt in prompts for word in WORD.findall(re.sub(learned, " ", prompt))]
    return [word for word in dict.fromkeys(words) if word not in base.known_words]


def words_note(base: KnowsWords, prompts: Iterable[str], names: Iterable[str] = ()) -> str | None:
    """Return a sentence that names the words a base was not trained on; None where there are none."""
    words = unknown_words(base, prompts, names)
    more = f" and {len(words) - MOST} more" if len(words) > MOST else ""
    return f"this base was not trained on: {', '.join(words[:MOST])}{more}" if words else None


class HasModel(Protocol):
    """What makes pictures: a state of the model."""

    backend: Backend
    identifier: Identifier | None


def check_prompts(
    generator: HasModel,
    prompts: Sequence[str],
    *,
    size: Size | None = None,
    words: bool = True,
    say: Callable[[str], object] = print,
) -> None:
    """Raise ValueError for a prompt that cannot be drawn, before the first one is.

    Args:
        size: of the pictures, one of the base's; None: its square.
        words: say which words the base was not trained on; False where that was said before.
        say: is told the notes.
    """
    tokens = generator.identifier.tokens if generator.identifier else {}
    ids = encode_prompts(generator.backend, prompts, tokens, size=size)
    notes = [length_note(generator.backend, prompts, ids, size)]
    if words:
        notes.append(words_note(generator.backend, prompts, tokens))
    for note in filter(None, notes):
        say(f"note: {note}")
