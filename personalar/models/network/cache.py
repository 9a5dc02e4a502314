"""A static key/value cache that is an argument of the model, never a part of it.

The rows of a batch share their slots: a forward writes the same slots of every row. Where the rows' tokens do
not line up (prompts of other lengths, images of other widths), some slots of a row are empty and invisible.
Rotary factors and attention masks depend on the slot alone; they are computed once, when the cache is made.
Shapes: B batch, T tokens, L slots, Hkv key/value heads, hd head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Slots = slice | Tensor
"""The slots that a forward writes: a window of them, or their numbers (T,), or (B, T)."""


@dataclass(frozen=True)
class Store:
    """One layer's part of a cache in one forward: its tables, the slots to write, and the end of reading.

    Layers differ only in the tensors in it: a program compiled for one layer serves all.
    """

    keys: Tensor
    """(B, Hkv, L, hd), as the values."""
    values: Tensor
    slots: Slots
    end: int

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (B, Hkv, T, hd) in the slots; return all vectors below the end, (B, Hkv, end, hd)."""
        put(self.keys, self.slots, key)
        put(self.values, self.slots, value)
        return self.keys.narrow(2, 0, self.end), self.values.narrow(2, 0, self.end)


class KVCache:
    """Preallocated keys and values, one table of (B, Hkv, L, hd) per layer.

    Args:
        keys, values: the storage, one table per layer.
        cos, sin: rotary factors of every slot, (B, 1, L, hd) or (1, 1, L, hd).
        pad: number of empty slots at the left of each row, (B,) int64.
    """

    def __init__(
        self, *, keys: list[Tensor], values: list[Tensor], cos: Tensor, sin: Tensor, pad: Tensor
    ) -> None:
        self.keys, self.values = keys, values
        self.cos, self.sin = cos, sin
        self.pad = pad
        self.length = 0
        """Slots written so far; the next token goes to this slot."""
        self._by_position: tuple[Tensor, Tensor] | None = None
        self._visible = cos.new_zeros(len(pad), 1, 1, self.capacity)
        self._show(torch.arange(self.capacity, device=pad.device)[None, :] >= pad[:, None])

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.keys[0].shape[2]

    def place(self, positions: Tensor) -> None:
        """Forget all, and set the position that each slot of a row contains, (B, L) int64; -1: empty.

        Only for a cache made without pads, where slot i contains position i. The cache keeps its tensors when
        this is called again: a captured graph that reads them stays valid.
        """
        if self.pad.any():
            raise ValueError(f"a cache with pads {self.pad.tolist()} cannot be laid out; make it with pad=0")
        if self._by_position is None:
            self._by_position = self.cos[0, 0], self.sin[0, 0]
            self.cos = self.cos[:1].expand(len(positions), -1, -1, -1).clone()
            self.sin = self.sin[:1].expand(len(positions), -1, -1, -1).clone()
        self.length = 0
        self._show(positions >= 0)
        for table, factors in zip((self.cos, self.sin), self._by_position, strict=True):
            table.copy_(factors[positions.clamp_min(0)][:, None])

    def _show(self, real: Tensor) -> None:
        self._visible.copy_(_additive(real, self._visible.dtype)[:, None, None, :])
        self._all_see = int(real.int().argmax(1).max())  # from this slot on, every row has something to see

    def rotary(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the next `num_tokens` slots, (B or 1, 1, T, hd)."""
        window = self._window(num_tokens)
        return self.cos[:, :, window], self.sin[:, :, window]

    def mask(self, num_tokens: int) -> Tensor:
        """Return the additive attention mask of the next `num_tokens` slots, (B, 1, 1 or T, length + T).

        An empty slot sees itself: a row that sees nothing would become NaN and spread through `0 * NaN`.
        """
        end = self._window(num_tokens).stop
        visible = self._visible[..., :end]
        if num_tokens == 1 and self.length >= self._all_see:
            return visible
        slots = torch.arange(end, device=self.pad.device)
        rows = slots[self.length :]
        allowed = (slots[None, :] <= rows[:, None]) & (visible == 0)  # (B, 1, T, end)
        return _additive(allowed | (slots[None, :] == rows[:, None]), visible.dtype)

    def store(self, layer: int, num_tokens: int) -> Store:
        """Return the store of `layer` for the next `num_tokens` tokens."""
        window = self._window(num_tokens)
        return self.store_at(layer, window, window.stop)

    def store_at(self, layer: int, slots: Slots, end: int) -> Store:
        """Return the store of `layer` for tokens in `slots`, reading below `end`; every write asks for it."""
        return Store(self.keys[layer], self.values[layer], slots, end)

    def advance(self, num_tokens: int) -> None:
        """Move the write position, after all layers have written."""
        self.length = self._window(num_tokens).stop

    def rewind(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` slots; the next tokens overwrite them."""
        if not 0 <= num_tokens <= self.length:
            raise ValueError(f"the cache contains {self.length} tokens, so {num_tokens} cannot be removed")
        self.length -= num_tokens

    def shared(self, rows: Sequence[int], twins: Tensor) -> SharedRows:
        """Return a view for one forward of `rows` alone, written for all rows: row i as `rows[twins[i]]`."""
        return SharedRows(self, torch.tensor(rows, device=twins.device), twins)

    def at(self, slots: Tensor, end: int) -> CacheWindow:
        """Return a view for one forward that writes `slots`, (T,) or (B, T) int64, and reads below `end`.

        Every slot before those must have been written; later slots are invisible.
        """
        return CacheWindow(self, slots, self._visible, end)

    def _window(self, num_tokens: int) -> slice:
        end = self.length + num_tokens
        if end > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} tokens, got {self.length} + {num_tokens}; "
                "make it as long as the prompt and the image together"
            )
        return slice(self.length, end)


@dataclass(frozen=True)
class SharedStore:
    """A layer's part of `SharedRows`."""

    store: Store
    rows: Tensor
    twins: Tensor

    def write(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (len(rows), Hkv, T, hd) for every row; return the vectors of `rows` below the end."""
        key, value = self.store.write(key[self.twins], value[self.twins])
        return key[self.rows], value[self.rows]


class SharedRows:
    """A forward's view of some rows of a cache; all other rows equal one of them."""

    def __init__(self, cache: KVCache, rows: Tensor, twins: Tensor) -> None:
        self._cache, self._rows, self._twins = cache, rows, twins
        self.advance = cache.advance

    def rotary(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the next slots, (len(rows) or 1, 1, T, hd)."""
        cos, sin = self._cache.rotary(num_tokens)
        return (cos, sin) if len(cos) == 1 else (cos[self._rows], sin[self._rows])

    def mask(self, num_tokens: int) -> Tensor:
        """Return the additive attention mask, (len(rows), 1, 1 or T, length + T)."""
        return self._cache.mask(num_tokens)[self._rows]

    def store(self, layer: int, num_tokens: int) -> SharedStore:
        """Return the store of `layer`."""
        return SharedStore(self._cache.store(layer, num_tokens), self._rows, self._twins)


class CacheWindow:
    """A forward's view of a cache whose slots are a tensor: no shape depends on the progress of decoding.

    Captured graphs need that, and rows that decode at their own pace.
    """

    def __init__(self, cache: KVCache, slots: Tensor, visible: Tensor, end: int) -> None:
        self._cache, self._slots, self._end = cache, slots, end
        self._visible = visible[..., :end]
        self._rows = torch.arange(len(visible), device=slots.device)[:, None]

    def rotary(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the slots, (B or 1, 1, T, hd)."""
        tables = (self._cache.cos, self._cache.sin)
        if self._slots.ndim == 1:
            cos, sin = (table.index_select(2, self._slots) for table in tables)
        else:
            cos, sin = (table[self._rows % len(table), 0, self._slots][:, None] for table in tables)
        return cos, sin

    def mask(self, num_tokens: int) -> Tensor:
        """Return the additive attention mask, (B, 1, T, end): empty and later slots are invisible."""
        slots = torch.arange(self._end, device=self._slots.device)
        rows = self._slots[:, None] if self._slots.ndim == 1 else self._slots[:, None, :, None]
        return self._visible.masked_fill(slots > rows, float("-inf"))

    def store(self, layer: int, num_tokens: int) -> Store:
        """Return the store of `layer`."""
        return self._cache.store_at(layer, self._slots, self._end)

    def advance(self, num_tokens: int) -> None:
        """Leave the write position alone: the caller says where every forward writes."""


def put(table: Tensor, slots: Slots, new: Tensor) -> None:
    """Write vectors (B, Hkv, T, hd) into `slots` of a table."""
    if isinstance(slots, slice):
        table.narrow(2, slots.start, slots.stop - slots.start).copy_(new)
    elif slots.ndim == 1:
        table.index_copy_(2, slots, new)
    else:
        rows = torch.arange(len(slots), device=slots.device)[:, None]
        table.transpose(1, 2)[rows, slots] = new.transpose(1, 2)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn True (may look) into 0 and False into -inf: attention adds it without a conversion per layer."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, float("-inf"))
