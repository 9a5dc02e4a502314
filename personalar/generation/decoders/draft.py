"""First drafts: what stands at a position that no pass has looked at yet.

A draft may depend on the seed and on codes before it, never on the window, or losslessness would be lost.
Indices count codes in reading order; `known` codes of an image have been drawn or drafted before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from personalar.generation.sampling import random_codes

INITS = ("random", "left", "above", "newline")


def first_drafts(
    codes: Tensor, known: Tensor, index: Tensor, widths: Tensor, *, init: str, seeds: Tensor, num_codes: int
) -> Tensor:
    """Return drafts (B, W) for positions `index` (B, W) that are not `known` (B,) yet.

    Args:
        codes: (B, N) codes so far.
        widths: (B,) codes in a row.
        init: "random"; "left" and "above" copy the nearest known code there; "newline" is "left" that knows
            newlines: the first of a row copies above. Without a known code it is random.
    """
    last, width = (known - 1)[:, None], widths[:, None]
    if init == "random":
        source = torch.full_like(index, -1)
    elif init == "left":
        source = last.expand_as(index)
    elif init == "above":
        rows_up = (index - last + width - 1) // width  # as many as it takes to reach a known code
        source = index - rows_up.clamp_min(1) * width
    else:
        same_row = index // width == last // width
        source = torch.where(same_row, last, last // width * width)
    if init == "above":  # nothing above the first row: copy left
        source = torch.where(source < 0, last, source)
    copied = codes.gather(1, source.clamp_min(0))
    return torch.where((source < 0) | (known[:, None] == 0), random_codes(seeds, index, num_codes), copied)
