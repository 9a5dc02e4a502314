"""Several concepts in one picture: each has its own word, strength and reserved ids."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from personalar.concepts.adapters.base import Adapter
from personalar.concepts.adapters.identifier import Identifier
from personalar.concepts.concept import WITHOUT_WEIGHTS, Concept
from personalar.data.prompts import row_names, subject_names
from personalar.models.base import Backend


@dataclass(frozen=True, kw_only=True)
class Part:
    """A concept, and how a picture uses it."""

    concept: Concept
    word: str
    """Its word in prompts, such as "[cat]"."""
    strength: float = 1.0
    """See `Concept.apply`."""


def check_together(parts: Sequence[Part], adapters: Mapping[str, Adapter] | None = None) -> None:
    """Raise ValueError if the concepts cannot be used in one picture, or not with their strengths.

    Args:
        parts: the concepts.
        adapters: the configured ones.
    """
    for part in parts:
        part.concept.check_strength(part.strength)
    if len(parts) == 1:
        return
    bases = {part.concept.base["fingerprint"]: part.concept.base["name"] for part in parts}
    if len(bases) > 1:
        found = ", ".join(f"{name} ({digest[:12]})" for digest, name in bases.items())
        raise ValueError(
            f"the concepts were learned on different bases, {found}: train them on one base, or sample them "
            "in separate pictures"
        )
    known = adapters or {}
    for part in parts:
        concept = part.concept
        if concept.weights or not all(name in known and known[name].combinable for name in concept.adapters):
            raise ValueError(
                f"the concept {part.word} {concept.unscalable()}, so it cannot be combined with others: "
                f"{WITHOUT_WEIGHTS}"
            )


def apply_together(
    parts: Sequence[Part], backend: Backend, adapters: Mapping[str, Adapter] | None = None
) -> Identifier:
    """Load all concepts into `backend`, in place, and return their learned embeddings as one module.

    A concept alone keeps its ids and the tokens of its photos. Of several, each gets new ids for its subject.

    Args:
        parts: see `check_together`.
        adapters: the configured adapters by name.

    Raises:
        ValueError: see `Concept.apply`; or the base has too few reserved ids.
    """
    if len(parts) == 1:
        alone = parts[0].concept.apply(backend, adapters, strength=parts[0].strength)
        alone.words[parts[0].word] = subject_names(alone.tokens)
        return alone
    needed = sum(len(used_tokens(part.concept, adapters or {})) for part in parts)
    if needed > len(backend.reserved_ids):
        raise ValueError(
            f"the concepts need {needed} reserved ids, but this base has {len(backend.reserved_ids)}: use "
            "fewer concepts, or ones with fewer rows"
        )
    ids, words, rows = iter(backend.reserved_ids), {}, []
    tokens: dict[str, int] = {}
    for part in parts:
        # Each has adapters of its own: they are attached once.
        own = copy.deepcopy(dict(adapters or {}))
        identifier = with_ids(part.concept, ids, own).apply(backend, own, strength=part.strength)
        subject = subject_names(identifier.tokens)
        words[part.word] = row_names(part.word, len(subject))
        others = [f"{name} of {part.word}" for name in identifier.tokens if name not in subject]
        tokens.update(zip([*words[part.word], *others], identifier.tokens.values(), strict=True))
        rows.append(identifier.rows.detach())
    return Identifier(tokens=tokens, rows=torch.cat(rows), words=words).to(backend.device)


def used_tokens(concept: Concept, adapters: Mapping[str, Adapter]) -> list[str]:
    """Return the names of the tokens of `concept` that pictures use: not those of its photos."""
    more = [name for adapter in concept.adapters for name in adapters[adapter].tokens]
    return [*subject_names(concept.tokens), *(name for name in more if name in concept.tokens)]


def with_ids(concept: Concept, ids: Iterator[int], adapters: Mapping[str, Adapter]) -> Concept:
    """Return `concept` with the next of `ids` for its tokens, and without those of its photos."""
    names = used_tokens(concept, adapters)
    places = [list(concept.tokens).index(name) for name in names]
    return replace(concept, tokens={name: next(ids) for name in names}, rows=concept.rows[places])
