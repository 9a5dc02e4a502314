"""Several concepts in one picture: each has its own word, strength and reserved ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def check_together(parts: Sequence[Part]) -> None:
    """Raise ValueError if the concepts cannot be used in one picture."""
    if len(parts) == 1:
        return
    bases = {part.concept.base["fingerprint"]: part.concept.base["name"] for part in parts}
    if len(bases) > 1:
        found = ", ".join(f"{name} ({digest[:12]})" for digest, name in bases.items())
        raise ValueError(
            f"the concepts were learned on different bases, {found}: train them on one base, or sample them "
            "in separate pictures"
        )
    for part in parts:
        if problem := part.concept.unscalable():
            raise ValueError(
                f"the concept {part.word} {problem}, so it cannot be combined with others: {WITHOUT_WEIGHTS}"
            )


def apply_together(
    parts: Sequence[Part], backend: Backend, adapters: Mapping[str, Adapter] | None = None
) -> Identifier:
    """Load all concepts into `backend`, in place, and return their learned embeddings as one module.

    A concept alone keeps its ids and the tokens of its photos. Of several, each gets new ids for its subject.

    Args:
        parts: see `check_together`.
        adapters: user-defined adapters by name.

    Raises:
        ValueError: see `Concept.apply`; or the base has too few reserved ids.
    """
    used = [part.concept.apply(backend, adapters, strength=part.strength) for part in parts]
    if len(used) == 1:
        used[0].words[parts[0].word] = subject_names(used[0].tokens)
        return used[0]
    words, rows = {}, []
    for part, identifier in zip(parts, used, strict=True):
        own = subject_names(identifier.tokens)
        words[part.word] = row_names(part.word, len(own))
        rows += [identifier.rows[list(identifier.tokens).index(name)] for name in own]
    if len(rows) > len(backend.reserved_ids):
        raise ValueError(
            f"the concepts need {len(rows)} reserved ids, but this base has {len(backend.reserved_ids)}: use "
            "fewer concepts, or ones with fewer rows"
        )
    names = [name for names in words.values() for name in names]
    tokens = dict(zip(names, backend.reserved_ids, strict=False))
    return Identifier(tokens=tokens, rows=torch.stack(rows), words=words).to(backend.device)
