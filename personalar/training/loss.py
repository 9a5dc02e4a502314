"""The training loss: cross-entropy over image tokens. The output layer runs on supervised positions only.

The logits are computed in chunks and recomputed in the backward pass, so that only one chunk is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from personalar.concepts.adapters.identifier import Identifier
from personalar.config.recipe import PriorWeights
from personalar.models.base import Backend, Head
from personalar.models.dropout import Dropout

LOGITS_AT_ONCE = 2**25  # 128 MB in float32


def _cross_entropy(hidden: Tensor, targets: Tensor, shares: Tensor, *, head: Head, z_loss: float) -> Tensor:
    """Return the weighted sum (scalar) of the losses of hidden states (N, D) with targets (N,)."""
    logits = head(hidden)
    losses = F.cross_entropy(logits, targets, reduction="none")
    if z_loss:
        losses = losses + z_loss * torch.logsumexp(logits, -1).square()
    return (losses * shares).sum()


def _divergence(hidden: Tensor, frozen: Tensor, shares: Tensor, *, head: Head) -> Tensor:
    """Return the weighted sum of KL(frozen || model) of hidden states (N, D) with frozen logits (N, K).

    ARBooth (ICCV 2025) samples new images for it in every step; here they are sampled once.
    """
    ours, theirs = head(hidden).log_softmax(-1), frozen.float().log_softmax(-1)
    return (F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * shares).sum()


def _in_chunks(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    hidden: Tensor,
    wanted: Tensor,
    shares: Tensor | None,
    rows: int,
) -> Tensor:
    """Return `loss`, a weighted sum over hidden states (N, D), computed in chunks of `rows`."""
    if shares is None:
        shares = torch.full((len(hidden),), 1 / len(hidden), device=hidden.device)
    if len(hidden) <= rows:  # one chunk: recomputing it would save nothing
        return loss(hidden, wanted, shares)
    parts = [
        checkpoint(loss, *part, use_reentrant=False)
        for part in zip(hidden.split(rows), wanted.split(rows), shares.split(rows), strict=True)
    ]
    return torch.stack(parts).sum()


def head_loss(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    *,
    num_choices: int,
    shares: Tensor | None = None,
    z_loss: float = 0.0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Tensor:
    """Return the weighted sum of the cross-entropy of `targets` (N,) under hidden states (N, D).

    Args:
        num_choices: number of logits that `head` returns per state.
        shares: weight of each state (N,); None: their mean.
        z_loss: weight of the squared log-partition (as in Lumina-mGPT).
        logits_at_once: largest number of logits in one chunk.

    Returns:
        A scalar.
    """
    rows = max(1, logits_at_once // num_choices)
    return _in_chunks(partial(_cross_entropy, head=head, z_loss=z_loss), hidden, targets, shares, rows)


def sequence_loss(
    backend: Backend,
    identifier: Identifier,
    batch: Mapping[str, Tensor],
    *,
    loss: str,
    z_loss: float,
    dropout: float = 0.0,
    prior: PriorWeights | None = None,
) -> Tensor:
    """Return the mean over the sequences of each one's mean next-token cross-entropy.

    Not the mean over all supervised positions: with masks of different sizes it would not be the mean of its
    micro-batches, and the larger masks would count more.

    With loss="image_tokens" the softmax is over the image codes, "the image split of the total vocabulary"
    (arXiv 2504.13162, eq. 1), as in sampling; with loss="answer" it is over the whole vocabulary.

    Args:
        batch: "ids" (B, T) int64; "loss_mask" (B, T) bool, True for tokens to predict; "keys" (B,) int64;
            with `prior` also "is_class" (B,) bool and, for distillation, "frozen" (codes of class images, K).
        z_loss: weight of the mean squared log-partition (as in Lumina-mGPT).
        dropout: dropout probability of the residual branches; masks are drawn from the sequences' keys.
        prior: weights of photos and class images in the mean over the sequences; None: equal.

    Returns:
        A scalar, differentiable with respect to the identifier and the trained weights.
    """
    # The state at position t predicts the token at t + 1, hence mask and targets from 1, states up to -1.
    ids, mask = batch["ids"], batch["loss_mask"][:, 1:]
    left_out = Dropout(chance=dropout, keys=batch["keys"]) if dropout else None
    hidden = backend.forward(identifier(ids, backend.embed(ids)), dropout=left_out, ids=ids)[:, :-1]
    shares = mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)
    if prior is None:
        return _predict(backend, hidden, ids[:, 1:], mask, shares, loss, z_loss)
    return _weighted(backend, hidden, batch, prior, shares, loss, z_loss)


def _predict(
    backend: Backend, hidden: Tensor, next_ids: Tensor, mask: Tensor, shares: Tensor, loss: str, z_loss: float
) -> Tensor:
    """Return the loss of `next_ids` (B, T) where `mask`, weighted by `shares`, for states (B, T, D)."""
    rows = backend.choices(loss)
    targets = next_ids[mask] - rows.start  # ids of the vocabulary to indices of the chosen rows
    return head_loss(
        hidden[mask], backend.head(loss), targets,
        num_choices=rows.stop - rows.start, shares=shares[mask], z_loss=z_loss,
    )  # fmt: skip


def _weighted(
    backend: Backend,
    hidden: Tensor,
    batch: Mapping[str, Tensor],
    weights: PriorWeights,
    shares: Tensor,
    loss: str,
    z_loss: float,
) -> Tensor:
    """Return the loss of a batch with hidden states (B, T, D), in which `weights` sets each part's weight."""
    next_ids = batch["ids"][:, 1:]
    mask, is_class = batch["loss_mask"][:, 1:], batch["is_class"][:, None]
    codes = backend.choices("image_tokens")
    distilled = mask & is_class & (next_ids >= codes.start) & (next_ids < codes.stop)

    def predict(chosen: Tensor) -> Tensor:
        return _predict(backend, hidden, next_ids, chosen, shares, loss, z_loss)

    def distill(chosen: Tensor) -> Tensor:
        divergence = partial(_divergence, head=backend.head("image_tokens"))
        rows = max(1, LOGITS_AT_ONCE // batch["frozen"].shape[1])
        return _in_chunks(divergence, hidden[chosen], batch["frozen"], shares[chosen], rows)

    total = torch.zeros((), device=hidden.device)
    for chosen, weight, term in (
        (mask & ~is_class, weights.photos, predict),
        (mask & is_class, weights.codes, predict),
        (distilled, weights.distillation, distill),
    ):
        if weight and chosen.any():  # a micro-batch can contain photos or class images only
            total = total + weight * term(chosen)
    return total
