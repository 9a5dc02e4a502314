"""The root-mean-square norm: on a CPU by fewer calls than `F.rms_norm` makes, forth and back."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps), the mean over the last axis of float32 (..., D)."""
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    if x.requires_grad and torch.is_grad_enabled():
        return _RMSNorm.apply(x, eps)
    return x * _scale(x, eps)


def _scale(x: Tensor, eps: float) -> Tensor:
    squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return squares.mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """With y = s x, the gradient is s (g - y mean(g y))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        scale = _scale(x, eps)
        normalised = x * scale
        ctx.save_for_backward(normalised, scale)
        return normalised

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        normalised, scale = ctx.saved_tensors
        along = (gradient * normalised).sum(-1, keepdim=True)
        return torch.addcmul(gradient, normalised, along, value=-1.0 / gradient.shape[-1]).mul_(scale), None
