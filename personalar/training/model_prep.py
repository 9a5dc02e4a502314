"""Prepare the blocks of a network for training: float32 weights, checkpointing, torch.compile, 4 bits (NF4).

Parameters keep their names, so concepts and checkpoints do not depend on these settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint


class Rounded(nn.Module):
    """A parametrization that casts a float32 parameter to the base's dtype in the forward pass."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, parameter: Tensor) -> Tensor:
        """Return `parameter` in the base's dtype; its gradient is float32."""
        return parameter.to(self.dtype)


def train_in_float32(network: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Convert trained parameters to float32, in place, and cast them in each forward pass.

    In bfloat16 an update with a learning rate of 5e-6 would round to no change at all.

    Args:
        network: contains the parameters.
        weights: the parameters by name; they remain the same objects.
    """
    for name, parameter in weights.items():
        if parameter.dtype == torch.float32:
            continue
        # By `.data`, since `weights` and the optimizer refer to this object.
        dtype, parameter.data = parameter.dtype, parameter.data.float()
        owner, _, leaf = name.rpartition(".")
        parametrize.register_parametrization(network.get_submodule(owner), leaf, Rounded(dtype), unsafe=True)


def prepare_blocks(blocks: Iterable[nn.Module], *, recompute: bool, compiled: bool) -> None:
    """Use activation checkpointing, torch.compile or both in the training passes of each block, in place.

    Passes without gradients or with a KV cache (sampling) are unchanged.
    """
    if not (recompute or compiled):
        return
    for layer in blocks:
        layer.forward = _training_forward(layer.forward, recompute=recompute, compiled=compiled)


def _training_forward(plain: Any, *, recompute: bool, compiled: bool) -> Any:
    block = torch.compile(plain) if compiled else plain

    def forward(x: Tensor, rotary: Any, mask: Any, store: Any, dropout: Any) -> Tensor:
        # In sampling shapes change with every token, and torch.compile would compile for each of them.
        if store is not None or not torch.is_grad_enabled():
            return plain(x, rotary, mask, store, dropout)
        if recompute:  # non-reentrant: with frozen inputs the reentrant one would give no gradient
            return checkpoint(block, x, rotary, mask, None, dropout, use_reentrant=False)
        return block(x, rotary, mask, None, dropout)

    return forward


def require_bitsandbytes(knob: str) -> Any:
    """Return the module bitsandbytes. Raises ModuleNotFoundError, naming the setting `knob`, without it."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{knob} needs bitsandbytes, which is not installed: pip install "personalar[quantized]", or '
            "choose another value"
        ) from error
    return bitsandbytes


def quantize_base(blocks: Iterable[nn.Module]) -> None:
    """Quantize the frozen matrices of the blocks to NF4 with double quantization, in place, as in QLoRA.

    Matrix products are computed in bfloat16.
    """
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
                # Otherwise bitsandbytes 0.50.2 repacks the matrix in the first sampling pass on a CPU, and
                # no gradient passes through the packed form.
                small.support_avx512bf16_for_cpu = False
                small.weight = weight.to(linear.weight.device)  # Params4bit quantizes when it is moved
                setattr(part, name, small)
