"""First drafts: what stands at a position that no pass has looked at yet.

A draft may depend on the seed and on codes before it, never on the window, or losslessness would be lost.
Indices count codes in reading order; `known` codes of an image have been drawn or drafted before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from personalar.generation.sampling import random_codes


def first_drafts(
    codes: Tensor, known: Tensor, index: Tensor, widths: Tensor, *, seeds: Tensor, num_codes: int
) -> Tensor:
    """Return drafts (B, W) for positions `index` (B, W) that are not `known` (B,) yet.

    A draft copies the nearest known code above, or in the first row the last known one. Without a known code
    it is random.

    Args:
        codes: (B, N) codes so far.
        widths: (B,) codes in a row.
    """
    last, width = (known - 1)[:, None], widths[:, None]
    rows_up = (index - last + width - 1) // width  # as many as it takes to reach a known code
    source = index - rows_up.clamp_min(1) * width
    source = torch.where(source < 0, last, source)  # nothing above the first row: copy left
    copied = codes.gather(1, source.clamp_min(0))
    return torch.where((source < 0) | (known[:, None] == 0), random_codes(seeds, index, num_codes), copied)
