"""A static key/value cache, which is an argument of the model and not part of it.

A forward pass writes the same slots in every row of the batch. If the rows have prompts of different lengths,
some slots of a row stay empty and are masked in attention. Rotary factors and masks depend only on the slot,
and are computed once when the cache is made.
Shapes: B batch, T tokens, L slots, Hkv key/value heads, hd head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Store:
    """The cache of one layer in one forward pass.

    Only the tensors differ between layers, so a layer that is compiled once works for all.
    """

    keys: Tensor
    """(B, Hkv, L, hd), like the values."""
    values: Tensor
    slots: Tensor
    """The slots to write, (T,) or (B, T) int64."""
    end: int
    """Slots from here on are not read."""

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, Hkv, T, hd) to the slots; return keys and values of all slots before `end`."""
        put(self.keys, self.slots, key)
        put(self.values, self.slots, value)
        # Views, so nothing is copied.
        return self.keys.narrow(2, 0, self.end), self.values.narrow(2, 0, self.end)


class KVCache:
    """Preallocated keys and values of all layers.

    Args:
        keys, values: one tensor (B, Hkv, L, hd) per layer.
        cos, sin: rotary factors of the positions 0 to L - 1, (L, hd).
        positions: (B, L) int64, see `place`.
    """

    def __init__(
        self, *, keys: list[Tensor], values: list[Tensor], cos: Tensor, sin: Tensor, positions: Tensor
    ) -> None:
        self.keys, self.values = keys, values
        self._by_position = cos, sin
        self.cos, self.sin = (factors.new_empty(len(positions), 1, *factors.shape) for factors in (cos, sin))
        """Rotary factors of every slot, (B, 1, L, hd)."""
        # (B, 1, 1, L): 0 for slots with a token, -inf for empty ones.
        self._visible = cos.new_empty(len(positions), 1, 1, self.capacity)
        self.place(positions)

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.keys[0].shape[2]

    def place(self, positions: Tensor) -> None:
        """Clear the cache, and set the position of the token in each slot.

        The tensors of the cache are overwritten and not replaced, so CUDA graphs that read them stay valid.

        Args:
            positions: (B, L) int64; -1 for an empty slot.
        """
        self._visible.zero_().masked_fill_((positions < 0)[:, None, None], float("-inf"))
        for table, factors in zip((self.cos, self.sin), self._by_position, strict=True):
            table.copy_(factors[positions.clamp_min(0)][:, None])

    def at(self, slots: Tensor, end: int) -> CacheWindow:
        """Return a view for a forward pass that writes `slots` and reads the slots before `end`.

        Args:
            slots: (T,) or (B, T) int64. All slots before them must be written; later ones are masked.
            end: the same number in every pass keeps shapes constant.
        """
        return CacheWindow(self, slots, self._visible, end)


class CacheWindow:
    """View of a cache for a forward pass with the slots as a tensor.

    No shape depends on the progress of decoding, as CUDA graphs need, and every row can be at another slot.
    """

    def __init__(self, cache: KVCache, slots: Tensor, visible: Tensor, end: int) -> None:
        self._cache, self._slots, self._end = cache, slots, end
        self._visible = visible[..., :end]
        self._rows = torch.arange(len(visible), device=slots.device)[:, None]

    def rotary(self) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the slots, (B, 1, T, hd)."""
        tables = (self._cache.cos, self._cache.sin)
        if self._slots.ndim == 1:
            cos, sin = (table.index_select(2, self._slots) for table in tables)
        else:
            cos, sin = (table[self._rows, 0, self._slots][:, None] for table in tables)
        return cos, sin

    def mask(self) -> Tensor:
        """Return the additive attention mask, (B, 1, T, end); empty and later slots are masked."""
        slots = torch.arange(self._end, device=self._slots.device)
        rows = self._slots[:, None] if self._slots.ndim == 1 else self._slots[:, None, :, None]
        # An empty slot may attend to itself. Softmax over nothing is NaN, and spreads to other rows as 0 *
        # NaN.
        return self._visible.masked_fill(slots > rows, float("-inf")).masked_fill_(slots == rows, 0.0)

    def store(self, layer: int) -> Store:
        """Return the store of `layer`."""
        return Store(self._cache.keys[layer], self._cache.values[layer], self._slots, self._end)


def put(table: Tensor, slots: Tensor, new: Tensor) -> None:
    """Write `new` (B, Hkv, T, hd) into `slots` of `table` (B, Hkv, L, hd)."""
    if slots.ndim == 1:
        table.index_copy_(2, slots, new)
    else:
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        # Index tensors must be adjacent, otherwise their dimensions move to the front.
        table.transpose(1, 2)[rows, slots] = new.transpose(1, 2)
