"""Where the identifier rows start: at random, at words, or at the reserved id that fits the photos best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier, assign_tokens, random_rows, word_row
from personalar.config.recipe import IdentifierNumbers
from personalar.core.console import Reporter
from personalar.data.datamodule import collate
from personalar.data.prompts import SUBJECT_TOKEN, image_token_names
from personalar.models.base import Backend
from personalar.training.loss import sequence_loss


def start_identifier(
    backend: Backend,
    numbers: IdentifierNumbers,
    *,
    prompt: str,
    photos: Sequence[Tensor],
    generator: torch.Generator,
    reporter: Reporter,
) -> Identifier:
    """Return fresh rows for [V] and one token per photo.

    Args:
        prompt: one that training uses, with [V] and without a photo's own token, whose row means nothing yet.
        photos: codes (h, w) of each photo.
    """
    names = (SUBJECT_TOKEN, *image_token_names(len(photos)))
    tokens = assign_tokens(names, backend.reserved_ids)
    table = backend.word_table
    rows = random_rows(table, len(names), generator=generator)
    if numbers.init == "nearest":
        known = table[list(backend.reserved_ids)]
        rows[:1] = nearest_row(backend, known, prompt=prompt, photos=photos, reporter=reporter)
    if numbers.init == "words":
        words = [backend.encode_text(f" {word}") for word in numbers.words]
        rows[:1] = word_row(table, words)
    return Identifier(tokens=tokens, rows=rows)


@torch.no_grad()
def nearest_row(
    backend: Backend, rows: Tensor, *, prompt: str, photos: Sequence[Tensor], reporter: Reporter
) -> Tensor:
    """Return (1, D), that of `rows` (K, D) as [V] in `prompt` under which `photos` (codes) are likeliest.

    Where pretraining gave reserved ids a meaning, as names of things it saw, this begins with the thing that
    is most like the subject. It costs one forward pass over the photos for each row. On nano 164 of 187
    tokens come after [V]: with the others computed once a name took 0.37 s in place of 0.38 (one thread).
    """
    tokens = {SUBJECT_TOKEN: backend.reserved_ids[0]}
    sequences = [backend.training_sequence(prompt, codes, tokens, loss="image_tokens") for codes in photos]
    batch = {name: data.to(rows.device) for name, data in collate(sequences, pad=backend.pad_id).items()}

    def loss(row: Tensor) -> float:
        identifier = Identifier(tokens=tokens, rows=row[None].float()).to(rows.device)
        return float(sequence_loss(backend, identifier, batch, loss="image_tokens", z_loss=0.0))

    losses: list[float] = []
    with reporter.phase("start of [V]", len(rows), f"names tried on {len(photos)} photos") as advance:
        for row in rows:
            losses.append(loss(row))
            advance(1, f"least loss {min(losses):.3f}")
    return rows[losses.index(min(losses))][None].float()
