"""A static key/value cache that is an argument of the model, never a part of it.

The rows of a batch share their slots: a forward writes the same slots of every row. Where the rows' tokens do
not line up (prompts of other lengths, images of other widths), some slots of a row are empty: nothing ever
looks at them. Everything a decoding step needs besides the keys and values (rotary factors, attention mask)
depends on the slot only and is computed once, when the cache is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Slots = slice | Tensor
"""Where a forward writes: a window of slots, or slots (T,), or (B, T)."""


@dataclass(frozen=True)
class Store:
    """What one layer needs of a cache in one forward: its tables, where to write, and how far to read.

    Layers differ in nothing but the tensors in it, so that a program compiled for one serves all.
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
    """Preallocated keys and values, `num_layers` tables of (B, Hkv, L, hd) each.

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
        """Forget all, and say which position of its row each slot holds, (B, L) int64; -1: none, it is empty.

        For a cache that was made without pads, where slot i holds position i until told otherwise. Placed
        again, a cache keeps its tensors: a captured graph that reads them stays valid.
        """
        if self.pad.any():
            raise ValueError(f"a cache with pads {self.pad.tolist()} cannot be laid out; make it with pad=0")
        if self._by_position is None:
            self._by_position = self.cos[0, 0], self.sin[0, 0]
            self.cos, self.sin = (
                t.expand(len(positions), -1, -1, -1).clone() for t in (self.cos[:1], self.sin[:1])
            )
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

        Empty slots are invisible and later slots too. An empty slot sees itself, because a row that sees
        nothing would become NaN and spread through `0 * NaN` to the tokens that do not even look at it.
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
        """Return where `layer` keeps the next `num_tokens` tokens, and all that it holds up to there."""
        window = self._window(num_tokens)
        return self.store_at(layer, window, window.stop)

    def store_at(self, layer: int, slots: Slots, end: int) -> Store:
        """Return where `layer` keeps tokens in `slots`, and all slots below `end`.

        Every way of writing comes through here: a cache that keeps tokens in another form overrides it.
        """
        return Store(self.keys[layer], self.values[layer], slots, end)

    def advance(self, num_tokens: int) -> None:
        """Move the write position, after all layers have written."""
        self.length = self._window(num_tokens).stop

    def rewind(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` slots; they are overwritten by what comes next."""
        if not 0 <= num_tokens <= self.length:
            raise ValueError(f"the cache holds {self.length} tokens, cannot forget {num_tokens} of them")
        self.length -= num_tokens

    def shared(self, rows: Sequence[int], twins: Tensor) -> SharedRows:
        """Return a view for one forward of `rows` alone, written for all rows: row i as `rows[twins[i]]`."""
        return SharedRows(self, torch.tensor(rows, device=twins.device), twins)

    def at(self, slots: Tensor, end: int) -> CacheWindow:
        """Return a view for one forward that writes `slots`, (T,) or (B, T) int64, and reads below `end`.

        Every slot before those must have been written; what lies in later slots is not looked at.
        """
        return CacheWindow(self, slots, self._visible, end)

    def _window(self, num_tokens: int) -> slice:
        end = self.length + num_tokens
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens, got {self.length} + {num_tokens}; "
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
        """Keep (len(rows), Hkv, T, hd) for every row; return what the rows hold below the end."""
        key, value = self.store.write(key[self.twins], value[self.twins])
        return key[self.rows], value[self.rows]


class SharedRows:
    """A forward's view of some rows of a cache, whose tokens all others have too."""

    def __init__(self, cache: KVCache, rows: Tensor, twins: Tensor) -> None:
        self._cache, self._rows, self._twins = cache, rows, twins

    def rotary(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the next slots, (len(rows) or 1, 1, T, hd)."""
        cos, sin = self._cache.rotary(num_tokens)
        return (cos, sin) if len(cos) == 1 else (cos[self._rows], sin[self._rows])

    def mask(self, num_tokens: int) -> Tensor:
        """Return the additive attention mask, (len(rows), 1, 1 or T, length + T)."""
        return self._cache.mask(num_tokens)[self._rows]

    def store(self, layer: int, num_tokens: int) -> SharedStore:
        """Return where `layer` keeps the tokens."""
        return SharedStore(self._cache.store(layer, num_tokens), self._rows, self._twins)

    def advance(self, num_tokens: int) -> None:
        """Move the cache's write position, after all layers have written."""
        self._cache.advance(num_tokens)


class CacheWindow:
    """A forward's view of a cache whose slots are a tensor: no shape depends on how far decoding is.

    That is what a captured graph needs, and rows that decode at their own pace.
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
        """Return the additive attention mask, (B, 1, T, end): what is not empty and not later."""
        slots = torch.arange(self._end, device=self._slots.device)
        rows = self._slots[:, None] if self._slots.ndim == 1 else self._slots[:, None, :, None]
        return self._visible.masked_fill(slots > rows, float("-inf"))

    def store(self, layer: int, num_tokens: int) -> Store:
        """Return where `layer` keeps the tokens, and all slots below the end."""
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
    """Turn True (may look) into 0 and False into -inf: what attention adds without a conversion per layer."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, float("-inf"))
