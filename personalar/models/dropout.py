"""Residual dropout, as Lumina-mGPT trains: some channels of the outputs of attention and MLP are left out.

It is an argument of a training pass, not a mode of the model: a pass without it cannot drop anything. The
choice is a hash of (sequence, block, place in it): it is the same when a block is computed again for the
backward pass, when a killed stage goes on, and on every device and process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from personalar.models.random_keys import bits, mix


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The dropout of one pass."""

    chance: float
    """Of every single number, above 0 and below 1; the others are scaled up, so that the mean stays."""
    keys: Tensor
    """(B,) int64, one for each sequence."""

    def at(self, place: int) -> Dropout:
        """Return the dropout of one of several places in the network."""
        return replace(self, keys=mix(self.keys + place))

    def __call__(self, added: Tensor) -> Tensor:
        """Leave some of (N, D) out, N being B sequences of T tokens."""
        each = torch.arange(added.numel() // len(self.keys), device=added.device)  # (T D,)
        stays = bits(mix(self.keys)[:, None], each) >= int(self.chance * 2**32)
        return torch.where(stays.view(added.shape), added * (1 / (1 - self.chance)), 0)


def drop(added: Tensor, dropout: Dropout | None, place: int) -> Tensor:
    """Return `added` (N, D) after `dropout` at `place`; None: unchanged."""
    return added if dropout is None else dropout.at(place)(added)
