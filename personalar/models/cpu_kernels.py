"""Faster float32 matrix products on AMD processors with AVX-512.

There `F.linear` uses MKL, which is half as fast as oneDNN, the other library in PyTorch (EPYC of family 26,
torch 2.13, 2700 x 256 x 704 on one thread: 88 and 195 GFLOP/s). Two rows, as in guided sampling, read the
weights of Janus-Pro-1B at 8.5 and 24 GB/s (two threads). On other processors both are equally fast, or
MKL is faster, and nothing is changed. `experiments/LOG.md` has the measurements of whole runs.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def use_fast_linears(network: nn.Module) -> None:
    """Make the `nn.Linear` modules of `network` use oneDNN if that is faster on this processor.

    Parameters and their names stay the same, and the modules are still instances of `nn.Linear`.
    """
    if not onednn_is_faster():
        return
    for module in network.modules():
        # Exactly this class: a subclass, such as LoRA's, has a forward pass of its own.
        if type(module) is nn.Linear and module.bias is None:
            # Only the class changes, so hooks, parametrizations and references to the module stay valid.
            module.__class__ = OneDNNLinear


def onednn_is_faster() -> bool:
    """Return whether this is an AMD processor with AVX-512 and PyTorch was built with oneDNN."""
    info = Path("/proc/cpuinfo")
    maker = info.read_text() if info.exists() else platform.processor()
    return (
        "AuthenticAMD" in maker
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        # A private operator of PyTorch, which a later version may remove.
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class OneDNNLinear(nn.Linear):
    """An `nn.Linear` without a bias that uses oneDNN for float32 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        weight = self.weight
        # torch.compile has kernels of its own and cannot trace the private operator.
        if torch.compiler.is_compiling() or not _suits(x, weight):
            return F.linear(x, weight)
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return _Product.apply(x, weight)
        return _product(x, weight)


def _suits(x: Tensor, weight: Tensor) -> bool:
    plain = type(weight) in (Tensor, nn.Parameter)  # quantised weights compute by themselves
    same = x.dtype == weight.dtype == torch.float32 and x.is_cpu and weight.is_cpu and x.numel() > 0
    allowed = bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")
    return plain and same and allowed and weight.is_contiguous()


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _Product(torch.autograd.Function):
    """The matrix product with its two gradients, because oneDNN's operator has no autograd formula."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # Most weights are frozen; `x` is then not needed in the backward pass.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight)

    @staticmethod
    @once_differentiable  # without it a second derivative would be zero, silently
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None  # (..., in)
        if x is None:
            return for_x, None
        return for_x, _product(gradient.flatten(0, -2).t(), x.flatten(0, -2).t())
