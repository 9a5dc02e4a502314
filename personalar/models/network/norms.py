"""The norms of a block: RMSNorm, and Chameleon's norm of queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QK_NORM_EPS = 1e-5  # a constant in all implementations of Chameleon, not rms_norm_eps


class RMSNorm(nn.Module):
    """Root-mean-square norm with statistics in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D) over its last axis."""
        # Rounded to the dtype of x before the product with the weight, as in transformers.
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class HeadNorm(nn.Module):
    """Layer norm of queries or keys, with separate statistics, scale and shift per head."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, T, heads, hd) over its last axis."""
        # The weights of F.layer_norm would be the same for all heads.
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:], eps=QK_NORM_EPS), self.weight)
