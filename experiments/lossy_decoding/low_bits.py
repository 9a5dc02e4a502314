"""Keys or values in eight bits a number: a half or a quarter of the memory, and **lossy**.

Every vector (one token, one head) has its own scale, so that its largest number is the largest that the
format holds. Reading multiplies back; the arithmetic of attention stays in the base's precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
"""Name -> storage and its largest number."""


def pack(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return `x` (..., hd) as bytes (..., hd) int8, and the scales (..., 1) in the precision of `x`."""
    storage, largest = FORMATS[name]
    scale = (x.abs().amax(-1, keepdim=True) / largest).clamp_min(torch.finfo(x.dtype).tiny)
    scaled = x / scale
    low = scaled.round() if storage == torch.int8 else scaled
    low = low.clamp(-largest, largest)  # bfloat16 rounds 127 to 128, which int8 turns around
    return low.to(storage).view(torch.int8), scale


def unpack(low: Tensor, scale: Tensor, name: str) -> Tensor:
    """Return what `pack` was given, rounded."""
    return low.view(FORMATS[name][0]).to(scale.dtype) * scale


class LowBits:
    """A table of vectors (B, H, L, hd) of a cache, packed."""

    def __init__(self, like: Tensor, name: str) -> None:
        """Allocate a table in the place of `like`.

        Args:
            name: a key of `FORMATS`.
        """
        self.name = name
        self.low = torch.zeros(like.shape, dtype=torch.int8, device=like.device)
        self.scale = like.new_zeros(*like.shape[:-1], 1)

    @property
    def shape(self) -> torch.Size:
        """(B, H, L, hd)."""
        return self.low.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the table, scales included."""
        return self.low.nbytes + self.scale.nbytes

    def parts(self, new: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return (where, what) to write for vectors `new` (B, H, T, hd)."""
        low, scale = pack(new, self.name)
        return (self.low, low), (self.scale, scale)

    def read(self, end: int) -> Tensor:
        """Return the vectors below slot `end`, (B, H, end, hd)."""
        return unpack(self.low[:, :, :end], self.scale[:, :, :end], self.name)
