"""Prepare a network's blocks for training: float32 copies, recomputing, compiling, four bits.

Only the number format of a block's results may change; parameters keep their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint


class Rounded(nn.Module):
    """A parameter as the forward pass sees it: in the base's precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, parameter: Tensor) -> Tensor:
        """Round `parameter`; the gradient comes back in float32."""
        return parameter.to(self.dtype)


def train_in_float32(network: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Keep what trains in float32 under a base of lower precision, which would swallow steps of 5e-6.

    The parameters stay the same objects; `weights` goes on naming them.
    """
    for name, parameter in weights.items():
        if parameter.dtype == torch.float32:
            continue
        dtype, parameter.data = parameter.dtype, parameter.data.float()
        owner, _, leaf = name.rpartition(".")
        parametrize.register_parametrization(network.get_submodule(owner), leaf, Rounded(dtype), unsafe=True)


def prepare_blocks(blocks: Iterable[nn.Module], *, recompute: bool, compiled: bool) -> None:
    """Make training passes through each block recompute its inside, run as compiled code, or both.

    Passes without gradients or with a cache (sampling) go the plain way.
    """
    if not (recompute or compiled):
        return
    for layer in blocks:
        layer.forward = _training_forward(layer.forward, recompute=recompute, compiled=compiled)


def _training_forward(plain: Any, *, recompute: bool, compiled: bool) -> Any:
    block = torch.compile(plain) if compiled else plain

    def forward(x: Tensor, rotary: Any, mask: Any, store: Any, dropout: Any) -> Tensor:
        if store is not None or not torch.is_grad_enabled():
            return plain(x, rotary, mask, store, dropout)
        if recompute:
            return checkpoint(block, x, rotary, mask, None, dropout, use_reentrant=False)
        return block(x, rotary, mask, None, dropout)

    return forward


def require_bitsandbytes(knob: str) -> Any:
    """Return the library, or raise ModuleNotFoundError that names the setting which needs it."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{knob} needs bitsandbytes, which is not installed: pip install "personalar[quantized]", or '
            "choose another value"
        ) from error
    return bitsandbytes


def quantize_base(blocks: Iterable[nn.Module]) -> None:
    """Keep the blocks' frozen matrices in four bits (NF4, with quantised scales); products are bfloat16."""
    library = require_bitsandbytes("method.base_bits=4")
    for layer in blocks:
        for part in layer.children():
            for name, linear in list(part.named_children()):
                if not isinstance(linear, nn.Linear):
                    continue
                small = library.nn.Linear4bit(
                    linear.in_features, linear.out_features, bias=False, quant_type="nf4",
                    compute_dtype=torch.bfloat16, compress_statistics=True, device="meta",
                )  # fmt: skip
                weight = library.nn.Params4bit(
                    linear.weight.data.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True
                )
                # On a CPU, sampling would pack the matrix in a form that lets no gradient through (0.50.2).
                small.support_avx512bf16_for_cpu = False
                small.weight = weight.to(linear.weight.device)  # moving to a device is what quantises
                setattr(part, name, small)
