"""The identifier: a few trainable embeddings beside the frozen embedding table.

`[V]` stands for the subject, and `[S1]`, `[S2]`, ... for what is particular to one training photo (arXiv
2504.13162). Each name has a reserved id of the vocabulary. The embeddings are a separate parameter, so weight
decay and momentum cannot change other rows of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from personalar.concepts.validation import ALLOWED, NAME
from personalar.models.base import Backend


class Identifier(nn.Module):
    """Trainable embeddings (K, D) that replace those of K reserved token ids."""

    ids: Tensor

    def __init__(
        self, *, tokens: Mapping[str, int], rows: Tensor, words: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Create the module.

        Args:
            tokens: name -> reserved token id, K entries.
            rows: initial embeddings (K, D) in the order of `tokens`.
            words: words of prompts that stand for other names, or for several; see `data.prompts.spell`.
        """
        super().__init__()
        self.tokens, self.words = dict(tokens), dict(words or {})
        self.rows = nn.Parameter(rows.detach().clone())
        # Not persistent: the ids depend on the base's vocabulary and are no result of the training.
        self.register_buffer("ids", torch.tensor(list(tokens.values())), persistent=False)

    def forward(self, ids: Tensor, embeds: Tensor) -> Tensor:
        """Replace the embeddings of the reserved ids.

        Args:
            ids: token ids (B, T).
            embeds: their embeddings (B, T, D) from the frozen table.

        Returns:
            Embeddings (B, T, D) of the dtype of `embeds`, differentiable with respect to the rows.
        """
        # One gather and one where without a host sync: boolean indexing would wait for the device.
        match = ids.unsqueeze(-1) == self.ids  # (B, T, K)
        first = match.to(torch.uint8).argmax(-1)  # (B, T); 0 where nothing matches
        rows = self.rows.to(embeds.dtype)[first]  # (B, T, D)
        return torch.where(match.any(-1, keepdim=True), rows, embeds)


def assign_tokens(names: Sequence[str], concept_ids: Sequence[int]) -> dict[str, int]:
    """Assign the reserved ids `concept_ids` to `names`, in order.

    Raises:
        ValueError: the vocabulary has fewer reserved ids than names, or a concept cannot have such a name.
    """
    if strange := [name for name in names if not NAME.fullmatch(name)]:
        raise ValueError(f"an adapter needs a token {strange[0]!r:.40}; allowed: {ALLOWED}: rename it")
    if len(names) > len(concept_ids):
        photos = sum(name.startswith("[S") for name in names)
        most = len(concept_ids) - (len(names) - photos)
        advice = f"use at most {most} photos" if most > 0 else "set model.recipe.identifier.rows to less"
        raise ValueError(
            f"{len(names)} learned tokens ([V], those of adapters, one per photo) need as many reserved ids, "
            f"but the tokenizer has {len(concept_ids)}: {advice}"
        )
    return dict(zip(names, concept_ids, strict=False))


def random_rows(table: Tensor, num_rows: int, *, generator: torch.Generator) -> Tensor:
    """Draw embeddings (num_rows, D) in float32 from a normal distribution.

    Its mean and standard deviation per dimension are those of the embedding table (V, D).
    """
    vocabulary = table.detach().float()
    # Drawn on the CPU and then moved, so that the same seed gives the same start on every device.
    noise = torch.randn(num_rows, vocabulary.shape[1], generator=generator).to(vocabulary.device)
    return vocabulary.mean(0) + noise * vocabulary.std(0)


def word_row(table: Tensor, word_ids: Sequence[Sequence[int]]) -> Tensor:
    """Return an initial embedding (1, D): the mean over words of the mean over each word's tokens.

    Args:
        table: embedding table (V, D).
        word_ids: token ids of each word.
    """
    vocabulary = table.detach().float()
    return torch.stack([vocabulary[list(ids)].mean(0) for ids in word_ids]).mean(0, keepdim=True)


def class_row(backend: Backend, noun: str) -> Tensor:
    """Return the embedding (1, D) in float32 of a class such as "duck toy": the mean over its tokens."""
    return word_row(backend.word_table, [backend.encode_text(f" {noun}")])


def word_norms(backend: Backend) -> Tensor:
    """Return the norms (N,) of the trained rows of the embedding table, without those of image codes."""
    norms = torch.linalg.vector_norm(backend.word_table.detach(), dim=1, dtype=torch.float32)
    is_word = torch.zeros(len(norms), dtype=torch.bool, device=norms.device)
    is_word[backend.trained_rows] = True
    is_word[backend.choices("image_tokens")] = False
    return norms[is_word]


def slide(word: Tensor, rows: Tensor, strength: float) -> Tensor:
    """Return embeddings (n, D) between `word` (1, D), at strength 0, and `rows` (n, D), at 1, or beyond.

    From strength 0 to 1 the direction rotates evenly from the word to the row, and the norm changes linearly.
    (A straight line between vectors of very different lengths would have the direction of the longer one
    almost everywhere.) Above 1 the straight line through both is extended, because rotating further would
    leave the subject. Measurements: experiments/LOG.md.
    """
    if strength == 0 or strength >= 1:
        return torch.lerp(word, rows, strength)
    units = F.normalize(word, dim=1), F.normalize(rows, dim=1)
    angle = (units[0] * units[1]).sum(1, keepdim=True).clamp(-1, 1).arccos()
    across = F.normalize(units[1] - angle.cos() * units[0], dim=1)
    turned = (strength * angle).cos() * units[0] + (strength * angle).sin() * across
    return turned * torch.lerp(word.norm(), rows.norm(dim=1, keepdim=True), strength)
