"""Residual dropout on the outputs of attention and MLP, as in the training of Lumina-mGPT.

It is an argument of a training pass, not a mode of the model. The mask is a hash of (sequence, block, place
in the block), so it is the same in recomputed activations, in a resumed run, and on every device and rank.
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
    """Probability of dropping a value, above 0 and below 1; the others are scaled up to keep the mean."""
    keys: Tensor
    """(B,) int64, one per sequence."""

    def at(self, place: int) -> Dropout:
        """Return an independent dropout for a place in the network, such as a block."""
        return replace(self, keys=mix(self.keys + place))

    def __call__(self, added: Tensor) -> Tensor:
        """Drop values of (N, D), where N = B T."""
        each = torch.arange(added.numel() // len(self.keys), device=added.device)  # (T D,)
        # (B, T D): a 32-bit random number per value is compared with the probability.
        stays = bits(mix(self.keys)[:, None], each) >= int(self.chance * 2**32)
        return torch.where(stays.view(added.shape), added * (1 / (1 - self.chance)), 0)


def drop(added: Tensor, dropout: Dropout | None, place: int) -> Tensor:
    """Return `added` (N, D) after `dropout` at `place`; without dropout it is unchanged."""
    return added if dropout is None else dropout.at(place)(added)
