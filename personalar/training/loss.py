"""The training loss: cross-entropy of image tokens, with the head on supervised positions only.

The logits are computed in chunks, and again in the backward pass, so that only one chunk is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from personalar.concepts.adapters.identifier import Identifier
from personalar.models.base import Backend, Head
from personalar.models.dropout import Dropout

LOGITS_AT_ONCE = 2**25  # 128 MB in float32


def _chunk_loss(hidden: Tensor, head: Head, targets: Tensor, z_loss: float) -> Tensor:
    """Return the summed loss of (N, D) hidden states."""
    logits = head(hidden)
    total = F.cross_entropy(logits, targets, reduction="sum")
    return total + z_loss * torch.logsumexp(logits, -1).square().sum() if z_loss else total


def head_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    num_choices: int,
    z_loss: float = 0.0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Return the mean cross-entropy of `targets` (N,) under hidden states (N, D).

    Args:
        num_choices: K, the logits that `head` gives for each state.
        z_loss: weight of the mean squared log-partition (Lumina-mGPT).
        logits_at_once: the most logits in one chunk.
    """
    rows = max(1, logits_at_once // num_choices)
    if len(hidden) <= rows:
        return _chunk_loss(hidden, head, targets, z_loss) / len(targets)
    parts = [
        checkpoint(_chunk_loss, part, head, wanted, z_loss, use_reentrant=False)
        for part, wanted in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.stack(parts).sum() / len(targets)


def sequence_loss(
    backend: Backend,
    identifier: Identifier,
    batch: Mapping[str, Tensor],
    *,
    loss: str,
    z_loss: float,
    dropout: float = 0.0,
) -> Tensor:
    """Return the mean next-token cross-entropy over the supervised positions.

    With loss="image_tokens" the choice is among the image codes, "the image split of the total vocabulary"
    (arXiv 2504.13162, eq. 1), as in sampling; with "answer" it is among all of the vocabulary.

    Args:
        batch: "ids" (B, T), "loss_mask" (B, T), true where a token is to be predicted, and "keys" (B,).
        z_loss: weight of the mean squared log-partition (Lumina-mGPT).
        dropout: probability of dropping a number that a block adds, drawn by the sequences' keys.
    """
    ids, mask = batch["ids"], batch["loss_mask"][:, 1:]
    left_out = Dropout(chance=dropout, keys=batch["keys"]) if dropout else None
    hidden = backend.forward(identifier(ids, backend.embed(ids)), dropout=left_out)  # (B, T, D)
    rows = backend.choices(loss)
    targets = ids[:, 1:][mask] - rows.start
    return head_loss(
        hidden[:, :-1][mask],
        backend.head(loss),
        targets,
        num_choices=rows.stop - rows.start,
        z_loss=z_loss,
    )
