"""Sampling in less memory, at the price of other pictures: eight-bit caches, and matrices by torchao.

Nothing here is on by default, and whoever uses it is told. `python -m personalar.bench lossy` measures what
it changes.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from personalar.models.base import Backend


def make_lossy(backend: Backend, *, cache: str, weights: str) -> list[str]:
    """Change `backend` in place, after all weights are in; return what is lossy now, in words.

    Args:
        cache, weights: "exact", "int8" or "fp8".

    Raises:
        ModuleNotFoundError: torchao is not installed.
    """
    notes = []
    if cache != "exact":
        backend.transformer.cache_format = cache
        notes.append(f"keys and values in {cache}")
    if weights != "exact":
        quantize_weights(backend.transformer.model, weights)
        notes.append(f"matrices in {weights}")
    return notes


def quantize_weights(network: nn.Module, name: str) -> None:
    """Keep the blocks' matrices in eight bits, with a scale for every output; products are in full."""
    library = require_torchao("lossy.weights", "choose lossy.weights=exact")
    kinds = {"int8": library.Int8WeightOnlyConfig, "fp8": library.Float8WeightOnlyConfig}
    library.quantize_(network, kinds[name](), filter_fn=lambda module, _: isinstance(module, nn.Linear))


def require_torchao(knob: str, otherwise: str) -> Any:
    """Return the library, or raise ModuleNotFoundError: `knob` needs it; what one can do `otherwise`."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{knob} needs torchao, which is not installed: pip install "personalar[lossy]", or {otherwise}'
        ) from error
    return quantization
