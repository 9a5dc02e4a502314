"""Keys or values with 8 bits per number: **lossy**, with a half or a quarter of the memory.

Every vector (of a token and a head) has a scale, so that its largest value becomes the largest value of the
format. Vectors are dequantized when they are read, and attention uses the precision of the base.
"""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
"""Name -> (dtype, largest value)."""


def pack(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return `x` (..., hd) as bytes (..., hd) int8, and the scales (..., 1) in the precision of `x`."""
    storage, largest = FORMATS[name]
    scale = (x.abs().amax(-1, keepdim=True) / largest).clamp_min(torch.finfo(x.dtype).tiny)
    scaled = x / scale
    low = scaled.round() if storage == torch.int8 else scaled
    low = low.clamp(-largest, largest)  # bfloat16 rounds 127 to 128, which overflows int8
    return low.to(storage).view(torch.int8), scale


def unpack(low: Tensor, scale: Tensor, name: str) -> Tensor:
    """Return the vectors (..., hd) that were packed, with rounding errors."""
    return low.view(FORMATS[name][0]).to(scale.dtype) * scale


class LowBits:
    """Quantized vectors (B, H, L, hd) of a cache."""

    def __init__(self, like: Tensor, name: str) -> None:
        """Allocate zeros.

        Args:
            like: tensor with the shape, the device and the dtype of the exact vectors.
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
        """Bytes of vectors and scales."""
        return self.low.nbytes + self.scale.nbytes

    def parts(self, new: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return (table, values to write) pairs for vectors `new` (B, H, T, hd)."""
        low, scale = pack(new, self.name)
        return (self.low, low), (self.scale, scale)

    def read(self, end: int) -> Tensor:
        """Return the vectors of the slots before `end`, (B, H, end, hd)."""
        return unpack(self.low[:, :, :end], self.scale[:, :, :end], self.name)
