"""Acceptance of drafts by rejection sampling, and other first drafts.

A forward pass gives the distribution q of the code at every position of a window, given the drafts before it.
A rule turns the draft into a sample from q that equals the draft as often as possible.

- maximal: a draft d, sampled from p, is accepted with probability min(1, q(d) / p(d)), otherwise a code is
  sampled from the residual max(0, q - p); at every position of the window (arXiv 2510.24211).
- independent: the same up to the first rejected draft, and new samples after it (arXiv 2410.01699).

Shapes: B images, W positions, K image codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

COUPLINGS = ("maximal", "independent")
INITS = ("random", "left", "above", "newline")


def residual(q: Tensor, p: Tensor) -> Tensor:
    """Return the distribution (..., K) for a rejected draft of p, not normalised; q if it would be zero."""
    rest = (q - p).clamp_min(0.0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, q)


def stays(q: Tensor, p: Tensor, drafts: Tensor, uniform: Tensor) -> Tensor:
    """Return which drafts (B, W), sampled from p (B, W, K), are accepted, with probability min(1, q / p)."""
    index = drafts[..., None]
    return uniform * p.gather(-1, index)[..., 0] < q.gather(-1, index)[..., 0]


def relaxed(q: Tensor, drafts: Tensor, near: Tensor, *, distance: float) -> Tensor:
    """Return q (B, W, K) with the probability of codes similar to a draft moved to it: **lossy**.

    Codes are added from the nearest on, as long as the total stays below `distance`. So `distance` bounds the
    total variation between q and the result (after LANTERN, arXiv 2410.03355).

    Args:
        near: (K, k) nearest other codes of each code, the nearest first.
    """
    close = near[drafts]  # (B, W, k)
    mass = q.gather(-1, close)
    mass = torch.where(mass.cumsum(-1) < distance, mass, 0.0)
    moved = q.scatter_add(-1, close, -mass).scatter_add(-1, drafts[..., None], mass.sum(-1, keepdim=True))
    return moved.clamp_min(0.0)  # rounding can make it negative


def nearest_codes(table: Tensor, count: int) -> Tensor:
    """Return the `count` nearest other codes of each code in a codebook (K, D): (K, count), nearest first."""
    if not 0 < count < len(table):
        raise ValueError(f"relax={count} must be less than the {len(table)} image codes of this model")
    return torch.cdist(table, table).fill_diagonal_(float("inf")).topk(count, largest=False).indices


def redraw(
    q: Tensor, p: Tensor, drafts: Tensor, drafted: Tensor, noise: Tensor, *, everywhere: bool
) -> Tensor:
    """Turn drafts from p into samples from q, (B, W), by rejection sampling.

    Args:
        q, p: (B, W, K) probabilities; p is only used where `drafted`.
        drafted: (B, W) bool; other positions are sampled from q.
        noise: (B, W, K + 1) standard Gumbel noise, different in every pass.
        everywhere: also accept drafts after the first rejection (maximal), or not (independent).
    """
    uniform = torch.exp(-torch.exp(-noise[..., -1]))
    kept = drafted & stays(q, p, drafts, uniform)
    fresh = ~drafted
    if not everywhere:
        rejections = (drafted & ~kept).long().cumsum(1)
        fresh = fresh | (rejections - (drafted & ~kept).long() > 0)  # after the first rejection
    law = torch.where(fresh[..., None], q, residual(q, p))
    drawn = (law.log() + noise[..., :-1]).argmax(-1)
    return torch.where(kept & ~fresh, drafts, drawn)


def draft_source(init: str, known: Tensor, index: Tensor, width: int) -> Tensor:
    """Return the index of the code that each draft (B, W) copies; -1 for a random draft.

    Args:
        init: "random"; "left": copy the last known code; "newline": as "left", but copy the code above at the
            start of a row.
        known: (B,) number of codes that are sampled or drafted.
        index: (B, W) indices of the drafts in reading order.
        width: codes per row.
    """
    last = (known - 1)[:, None]
    if init == "random":
        return torch.full_like(index, -1)
    if init == "left":
        return last.expand_as(index)
    return torch.where(index // width == last // width, last, last // width * width)
