"""Products with weight matrices, by the library inside PyTorch that is faster on the CPU at hand.

`F.linear` computes float32 by MKL. On AMD's cores with AVX-512 (EPYC of family 26, one thread, torch 2.13)
that is half the speed of oneDNN (2700 x 256 x 704: 88 and 195 GFLOP/s), and slow where a few rows meet a
weight that lies row by row (2 rows: 55 us, and 35 us where it lies column by column). There weights lie by
columns, and all but a few rows go to oneDNN, which is what `torch.compile` calls too.

Without AVX-512 (EPYC of family 25, two threads) the two are level, but for a weight's gradient, where oneDNN
takes 1.2 to 1.7 times as long. There all is left to MKL, weights lie by rows, and few rows are multiplied
the other way round (`TURNED_ROWS`).

On Intel's own processors (a Xeon with AVX-512 and AMX, two threads) MKL is faster where few rows meet a
weight, and likes it by rows: a picture takes .43 s, and .53 by oneDNN and columns, 16 pictures 1.40 and 1.71;
learning is level. There everything is `F.linear`.

Everything that is not float32 on an x86 CPU takes `F.linear`, and so does everything when
`torch.backends.mkldnn.enabled` is False.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _maker() -> str:
    """Return what names the processor's maker, "GenuineIntel" among it, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else platform.processor()


AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
INTEL = "GenuineIntel" in _maker()
FEW_ROWS = 4
"""Below so many rows oneDNN's preparations cost more than it saves."""
TURNED_ROWS = range(2, 65) if torch.backends.mkl.is_available() and not (AVX512 or INTEL) else range(0)
"""So many rows are multiplied from the right, W x^T, where nothing is learned; the result is a view that lies
column by column. Two threads, weights from memory: 704 x 256 with 8 rows 122 us in place of 200, with 32 rows
228 and 268, 1024 x 1024 with 64 rows 1.4 and 1.7 ms. One row is a product with a vector, fast either way. x^T
has to be turned by a view: 2 rows that lie by columns take 2.6 times as long."""


def _has_onednn() -> bool:
    known = platform.machine().lower() in ("x86_64", "amd64") and torch.backends.mkldnn.is_available()
    return known and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_TAKES_ONEDNN = AVX512 and not INTEL and _has_onednn()


class Linear(nn.Linear):
    """`nn.Linear` without a bias, computed by `linear`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return `F.linear(x, weight)`, (..., in) times (out, in)."""
    if torch.compiler.is_compiling():  # the compiler chooses its own
        return F.linear(x, weight)
    turned = x.ndim == 2 and len(x) in TURNED_ROWS
    onednn = _TAKES_ONEDNN and x.numel() >= FEW_ROWS * x.shape[-1]
    if not (turned or onednn) or not _suits(x, weight):
        return F.linear(x, weight)
    learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if turned:
        return F.linear(x, weight) if learns else torch.mm(weight, x.contiguous().t()).t()
    return _OneDNN.apply(x, weight) if learns else _product(x, weight)


def lay_columns(network: nn.Module) -> None:
    """Make every `Linear` weight of `network` lie in memory column by column, where that is faster to read.

    Values, shapes and names stay; who copies into such a weight keeps its layout.
    """
    for module in network.modules():
        if isinstance(module, Linear) and _TAKES_ONEDNN and _plain_float32(module.weight):
            module.weight.data = module.weight.data.t().contiguous().t()


def lay_rows(network: nn.Module) -> None:
    """Undo `lay_columns`: DeepSpeed sends weights between processes, and can only send rows."""
    for module in network.modules():
        if isinstance(module, Linear):
            module.weight.data = module.weight.data.contiguous()


def _plain_float32(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype == torch.float32


def _suits(x: Tensor, weight: Tensor) -> bool:
    return (
        type(weight) in (Tensor, nn.Parameter)  # a library's own kind of tensor computes by itself
        and _plain_float32(x)
        and _plain_float32(weight)
        and (weight.is_contiguous() or weight.t().is_contiguous())  # others take oneDNN's slow path
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _OneDNN(torch.autograd.Function):
    """The product with its two gradients; only what they need is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        for_x = _product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        if x is None:
            return for_x, None
        rows, given = gradient.flatten(0, -2), x.flatten(0, -2)
        if weight.is_contiguous():
            return for_x, _product(rows.t(), given.t())
        return for_x, _product(given.t(), rows.t()).t()  # a gradient lies as its weight does
