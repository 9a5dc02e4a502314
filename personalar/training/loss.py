"""The training loss: cross-entropy over image tokens. The output layer runs on supervised positions only.

The logits are computed in chunks and recomputed in the backward pass, so that only one chunk is in memory.
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
    """Return the summed loss (scalar) of hidden states (N, D) with targets (N,)."""
    logits = head(hidden)
    # A sum, because chunks differ in length; the caller divides by the number of all targets.
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
        num_choices: number of logits that `head` returns per state.
        z_loss: weight of the mean squared log-partition (as in Lumina-mGPT).
        logits_at_once: largest number of logits in one chunk.

    Returns:
        A scalar.
    """
    rows = max(1, logits_at_once // num_choices)
    if len(hidden) <= rows:  # one chunk: recomputing it would save nothing
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

    With loss="image_tokens" the softmax is over the image codes, "the image split of the total vocabulary"
    (arXiv 2504.13162, eq. 1), as in sampling; with loss="answer" it is over the whole vocabulary.

    Args:
        batch: "ids" (B, T) int64; "loss_mask" (B, T) bool, True for tokens to predict; "keys" (B,) int64.
        z_loss: weight of the mean squared log-partition (as in Lumina-mGPT).
        dropout: dropout probability of the residual branches; masks are drawn from the sequences' keys.

    Returns:
        A scalar, differentiable with respect to the identifier and the trained weights.
    """
    # The state at position t predicts the token at t + 1, hence mask and targets from 1, states up to -1.
    ids, mask = batch["ids"], batch["loss_mask"][:, 1:]
    left_out = Dropout(chance=dropout, keys=batch["keys"]) if dropout else None
    hidden = backend.forward(identifier(ids, backend.embed(ids)), dropout=left_out)  # (B, T, D)
    rows = backend.choices(loss)
    targets = ids[:, 1:][mask] - rows.start  # ids of the vocabulary to indices of the chosen rows
    return head_loss(
        hidden[:, :-1][mask],
        backend.head(loss),
        targets,
        num_choices=rows.stop - rows.start,
        z_loss=z_loss,
    )
