"""How drafts become draws by rejection, and other first drafts: functions of one pass's distributions.

A pass gives, for every position of a window, the law q of its code given the drafts before it. A rule turns
the draft into a draw from q that agrees with the draft as often as it can.

- maximal: a draft d, drawn from p, stays with probability min(1, q(d) / p(d)), else the draw comes from the
  residual max(0, q - p); at every position of the window (maximal coupling, arXiv 2510.24211).
- independent: the same up to the first draft that does not stay, fresh draws after it (arXiv 2410.01699).

Shapes: B images, W positions, K image codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

COUPLINGS = ("maximal", "independent")
INITS = ("random", "left", "above", "newline")


def residual(q: Tensor, p: Tensor) -> Tensor:
    """Return what a rejected draft of p is redrawn from, (..., K), not normalised; q if nothing is left."""
    rest = (q - p).clamp_min(0.0)
    return torch.where(rest.sum(-1, keepdim=True) > 0, rest, q)


def stays(q: Tensor, p: Tensor, drafts: Tensor, uniform: Tensor) -> Tensor:
    """Tell where drafts (B, W) from laws p (B, W, K) are draws from q too, with probability min(1, q / p)."""
    index = drafts[..., None]
    return uniform * p.gather(-1, index)[..., 0] < q.gather(-1, index)[..., 0]


def relaxed(q: Tensor, drafts: Tensor, near: Tensor, *, distance: float) -> Tensor:
    """Return q (B, W, K) with the probability of codes that look like a draft moved onto it: **lossy**.

    Codes count from the nearest on, as long as what they give stays below `distance`, which so bounds the
    total variation between q and what is returned (after LANTERN, arXiv 2410.03355).

    Args:
        near: (K, k) the codes nearest to each, nearest first, itself left out.
    """
    close = near[drafts]  # (B, W, k)
    mass = q.gather(-1, close)
    mass = torch.where(mass.cumsum(-1) < distance, mass, 0.0)
    moved = q.scatter_add(-1, close, -mass).scatter_add(-1, drafts[..., None], mass.sum(-1, keepdim=True))
    return moved.clamp_min(0.0)  # rounding


def nearest_codes(table: Tensor, count: int) -> Tensor:
    """Return the `count` other codes nearest to each in a codebook (K, D), (K, count), nearest first."""
    if not 0 < count < len(table):
        raise ValueError(f"relax={count} must be less than the {len(table)} image codes of this model")
    return torch.cdist(table, table).fill_diagonal_(float("inf")).topk(count, largest=False).indices


def redraw(
    q: Tensor, p: Tensor, drafts: Tensor, drafted: Tensor, noise: Tensor, *, everywhere: bool
) -> Tensor:
    """Turn drafts from p into draws from q, (B, W), by rejection.

    Args:
        q, p: (B, W, K) probabilities; p is read where `drafted`.
        drafted: (B, W) bool; the others are drawn from q.
        noise: (B, W, K + 1) standard Gumbel, fresh in every pass.
        everywhere: keep what can be kept after the first rejection too (maximal), or not (independent).
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


def draft_source(init: str, known: Tensor, index: Tensor, widths: Tensor) -> Tensor:
    """Return the code that each draft (B, W) copies, -1: none, it is random.

    Args:
        init: "random"; "left" copies the last known code; "newline" is "left" that knows newlines: the first
            of a row copies above.
        known: (B,) codes that have been drawn or drafted before.
        index: (B, W) codes in reading order.
        widths: (B,) codes in a row.
    """
    last, width = (known - 1)[:, None], widths[:, None]
    if init == "random":
        return torch.full_like(index, -1)
    if init == "left":
        return last.expand_as(index)
    return torch.where(index // width == last // width, last, last // width * width)
