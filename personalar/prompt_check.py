"""Prompts as ids, checked before any picture is made: a prompt too long fails at once and not after hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from personalar.identifier import Identifier
from personalar.models.backend import ChameleonBackend

LEAST = 64
"""Tokens of a prompt that every base is trusted with; its own image is beyond what some configs declare."""


def longest_prompt(backend: ChameleonBackend) -> int:
    """Return how many tokens a prompt may have, so that its picture still lies where the base was trained."""
    side = backend.protocol.config.resolution
    answer = len(backend.grammar(*backend.protocol.code_shape(side, side)))
    return max(LEAST, backend.transformer.config.max_position_embeddings - answer)


def encode_prompts(
    backend: ChameleonBackend, prompts: Sequence[str], tokens: Mapping[str, int] | None
) -> list[list[int]]:
    """Return the ids of every prompt at the model's own (square) size.

    Args:
        tokens: names that are tokens of their own.

    Raises:
        ValueError: a prompt is longer than the base can read, with both lengths, or is no text.
    """
    side, allowed = backend.protocol.config.resolution, longest_prompt(backend)
    ids = [backend.protocol.prompt_ids(prompt, side, side, tokens) for prompt in prompts]
    for prompt, some in zip(prompts, ids, strict=True):
        if len(some) > allowed:
            short = prompt if len(prompt) <= 60 else f"{prompt[:60]}..."
            raise ValueError(
                f"the prompt {short!r} has {len(some)} tokens with its wrapping, this base can read "
                f"{allowed} before a picture: shorten it"
            )
    return ids


class HasModel(Protocol):
    """What makes pictures: a state of the model."""

    backend: ChameleonBackend
    identifier: Identifier | None


def check_prompts(generator: HasModel, prompts: Sequence[str]) -> None:
    """Raise ValueError for a prompt that cannot be drawn, before the first one is."""
    encode_prompts(generator.backend, prompts, generator.identifier.tokens if generator.identifier else None)
