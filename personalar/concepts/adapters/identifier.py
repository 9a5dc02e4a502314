"""The identifier: a few trainable rows beside a frozen embedding table.

`[V]` stands for the subject and `[S1]`, `[S2]`, ... for the particulars of one training photo (arXiv
2504.13162). Each name owns a reserved id of the vocabulary. The rows are a parameter of their own, so the
optimizer cannot change the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Identifier(nn.Module):
    """Rows (K, D) that replace the embeddings of K reserved ids."""

    ids: Tensor

    def __init__(self, *, tokens: Mapping[str, int], rows: Tensor) -> None:
        """Hold `rows[k]` for the k-th of `tokens` (name -> reserved id).

        Raises:
            ValueError: `rows` is not (len(tokens), D), or two names share an id.
        """
        super().__init__()
        if rows.ndim != 2 or len(rows) != len(tokens):
            raise ValueError(
                f"identifier rows have shape {tuple(rows.shape)}, expected ({len(tokens)}, width)"
            )
        if len(set(tokens.values())) != len(tokens):
            raise ValueError(f"identifier names share a token id: {dict(tokens)}")
        self.tokens = dict(tokens)
        self.rows = nn.Parameter(rows.detach().clone())
        self.register_buffer("ids", torch.tensor(list(tokens.values())), persistent=False)

    def forward(self, ids: Tensor, embeds: Tensor) -> Tensor:
        """Put the rows where `ids` (B, T) names them in `embeds` (B, T, D); return (B, T, D)."""
        match = ids.unsqueeze(-1) == self.ids  # (B, T, K)
        first = match.to(torch.uint8).argmax(-1)  # (B, T); 0 where nothing matches
        rows = self.rows.to(embeds.dtype)[first]  # (B, T, D)
        return torch.where(match.any(-1, keepdim=True), rows, embeds)


def assign_tokens(names: Sequence[str], concept_ids: Sequence[int]) -> dict[str, int]:
    """Give each name its own reserved id, in order.

    Raises:
        ValueError: the vocabulary has fewer reserved ids than names.
    """
    if len(names) > len(concept_ids):
        raise ValueError(
            f"{len(names)} identifier names ([V] and one per photo) need as many reserved ids, the tokenizer "
            f"has {len(concept_ids)}: use at most {len(concept_ids) - 1} photos"
        )
    return dict(zip(names, concept_ids, strict=False))


def random_rows(table: Tensor, num_rows: int, *, generator: torch.Generator) -> Tensor:
    """Draw (num_rows, D) float32 rows with the mean and deviation of `table` (V, D) per dimension."""
    vocabulary = table.detach().float()
    noise = torch.randn(num_rows, vocabulary.shape[1], generator=generator).to(vocabulary.device)
    return vocabulary.mean(0) + noise * vocabulary.std(0)


def word_row(table: Tensor, word_ids: Sequence[Sequence[int]]) -> Tensor:
    """Return (1, D): the mean over words of the mean embedding of each word's tokens.

    Raises:
        ValueError: no word is given or a word has no token.
    """
    if not word_ids or not all(word_ids):
        raise ValueError(
            "identifier.init=words needs at least one word: model.recipe.identifier.words=[orange,striped]"
        )
    vocabulary = table.detach().float()
    return torch.stack([vocabulary[list(ids)].mean(0) for ids in word_ids]).mean(0, keepdim=True)
