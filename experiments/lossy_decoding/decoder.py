"""A lossy decoder that needs less memory, as a plug-in for `personalar.sample`.

`decoder._target_=lossy_decoding.decoder.LossyDecoder` stores keys and values in 8 bits, and matrices in 8
bits with torchao. **Lossy**: the pictures change. Not for `personalar.run`, because the network is changed in
place.
"""

from __future__ import annotations

from typing import Any

import torch
from lossy_decoding.low_bits import FORMATS, LowBits
from torch import Tensor, nn

from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.base import GenerationRequest, Progress
from personalar.generation.decoders.plain import PlainDecoder
from personalar.models.network.cache import CacheWindow, KVCache, put

CHOICES = ("exact", *FORMATS)


class LossyDecoder(PlainDecoder):
    """Same call as `PlainDecoder`.

    Args:
        cache: format of keys and values: exact, int8 or fp8.
        weights: format of the matrices of the blocks: exact, int8 or fp8 (both need torchao). They are
            changed in place with the first batch.
        sampling: cfg_scale, top_k, top_p, temperature; see `Sampling`.

    Raises:
        ValueError: an unknown format.
    """

    def __init__(self, *, cache: str = "exact", weights: str = "exact", **sampling: float) -> None:
        super().__init__(**sampling)
        for name, value in (("cache", cache), ("weights", weights)):
            if value not in CHOICES:
                raise ValueError(f"invalid value {name}={value!r}; allowed: {', '.join(CHOICES)}")
        self.cache, self.weights = cache, weights
        self._packed: Any = None
        """The backend whose matrices are quantized."""

    def draw(
        self,
        backend: Any,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Return codes (B, N) and the largest logit of each code (B, K)."""
        if self.weights != "exact" and self._packed is not backend:
            quantize_weights(backend.transformer.model, self.weights)
            self._packed = backend
        if self.cache != "exact":
            backend = PackedBackend(backend, self.cache)
        return super().draw(backend, request, identifier, progress)


class PackedBackend:
    """A backend with quantized caches; everything else is that of the wrapped backend."""

    def __init__(self, backend: Any, form: str) -> None:
        self._backend, self._form = backend, form

    def __getattr__(self, name: str) -> Any:
        """Return the attribute of the wrapped backend."""
        return getattr(self._backend, name)

    def new_cache(self, positions: Tensor) -> KVCache:
        """Allocate a quantized cache, without ever allocating an exact one."""
        transformer = self._backend.transformer
        config, weight = transformer.config, transformer.lm_head.weight
        rows, slots = positions.shape
        cos, sin = transformer.rotary(torch.arange(slots, device=weight.device)[None], weight.dtype)
        like = weight.new_empty(1).expand(rows, config.num_key_value_heads, slots, config.head_dim)
        keys = [LowBits(like, self._form) for _ in self._backend.blocks]
        values = [LowBits(like, self._form) for _ in self._backend.blocks]
        factors = {"cos": cos[0, 0], "sin": sin[0, 0]}
        return PackedCache(keys=keys, values=values, positions=positions, **factors)  # type: ignore[arg-type]


class PackedCache(KVCache):
    """A cache with quantized keys and values."""

    def at(self, slots: Tensor, end: int) -> PackedWindow:
        """Return a view for a forward pass that writes `slots` and reads the slots before `end`."""
        return PackedWindow(self, slots, self._visible, end)


class PackedWindow(CacheWindow):
    """View of a quantized cache for a forward pass."""

    def store(self, layer: int) -> PackedStore:  # type: ignore[override]
        """Return the store of `layer`."""
        return PackedStore((self._cache.keys[layer], self._cache.values[layer]), self._slots, self._end)


class PackedStore:
    """The quantized cache of one layer in one forward pass."""

    def __init__(self, tables: tuple[LowBits, LowBits], slots: Tensor, end: int) -> None:
        self._tables, self._slots, self._end = tables, slots, end

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, Hkv, T, hd) to the slots; return keys and values of all slots before `end`."""
        for table, new in zip(self._tables, (key, value), strict=True):
            for part, piece in table.parts(new):
                put(part, self._slots, piece)
        keys, values = self._tables
        return keys.read(self._end), values.read(self._end)


def quantize_weights(network: nn.Module, name: str) -> None:
    """Quantize the matrices of the blocks to 8 bits with a scale per output; products are not quantized.

    Raises:
        ModuleNotFoundError: torchao is not installed.
    """
    try:
        from torchao import quantization
    except ImportError as error:
        raise ModuleNotFoundError(
            f"weights={name} needs torchao, which is not installed: pip install torchao, or choose "
            "weights=exact"
        ) from error
    kinds = {"int8": quantization.Int8WeightOnlyConfig, "fp8": quantization.Float8WeightOnlyConfig}
    quantization.quantize_(network, kinds[name](), filter_fn=lambda module, _: isinstance(module, nn.Linear))
