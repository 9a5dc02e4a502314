"""A static key/value cache that is an argument of the model, never a part of it.

Rows of a batch are left-padded to one length, so a single write position serves all of them: slot `i` of
row `b` holds the token at position `i - pad[b]`. Everything a decoding step needs besides the keys and values
(rotary factors, attention mask) depends on the slot only and is computed once, when the cache is made.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values, `num_layers` tensors of (B, Hkv, L, hd) each.

    Args:
        keys, values: the storage, one tensor per layer.
        cos, sin: rotary factors of every slot, (B, 1, L, hd) or (1, 1, L, hd).
        pad: number of pad slots at the left of each row, (B,) int64.
    """

    def __init__(
        self, *, keys: list[Tensor], values: list[Tensor], cos: Tensor, sin: Tensor, pad: Tensor
    ) -> None:
        self.keys, self.values = keys, values
        self.cos, self.sin = cos, sin
        self.pad = pad
        self.length = 0
        """Slots written so far; the next token goes to this slot."""
        slots = torch.arange(self.capacity, device=pad.device)
        self._longest_pad = int(pad.max())
        hidden = slots[None, :] < pad[:, None]  # (B, L)
        self._visible = _additive(~hidden, keys[0].dtype)[:, None, None, :]  # (B, 1, 1, L)

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.keys[0].shape[2]

    def rotary(self, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin of the next `num_tokens` slots, (B or 1, 1, T, hd)."""
        window = self._window(num_tokens)
        return self.cos[:, :, window], self.sin[:, :, window]

    def mask(self, num_tokens: int) -> Tensor:
        """Return the additive attention mask of the next `num_tokens` slots, (B, 1, 1 or T, length + T).

        Pads are invisible and later slots too. A pad sees itself, because a row that sees nothing would
        become NaN and spread through `0 * NaN` to the tokens that do not even look at it.
        """
        end = self._window(num_tokens).stop
        visible = self._visible[..., :end]
        if num_tokens == 1 and self.length >= self._longest_pad:
            return visible
        slots = torch.arange(end, device=self.pad.device)
        rows = slots[self.length :]
        allowed = (slots[None, :] <= rows[:, None]) & (visible == 0)  # (B, 1, T, end)
        return _additive(allowed | (slots[None, :] == rows[:, None]), visible.dtype)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, Hkv, T, hd) at the write position of `layer`; return all it holds up to there."""
        window = self._window(key.shape[2])
        self.keys[layer][:, :, window] = key
        self.values[layer][:, :, window] = value
        return self.keys[layer][:, :, : window.stop], self.values[layer][:, :, : window.stop]

    def advance(self, num_tokens: int) -> None:
        """Move the write position, after all layers have written."""
        self.length = self._window(num_tokens).stop

    def rewind(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` slots; they are overwritten by what comes next."""
        if not 0 <= num_tokens <= self.length:
            raise ValueError(f"the cache holds {self.length} tokens, cannot forget {num_tokens} of them")
        self.length -= num_tokens

    def _window(self, num_tokens: int) -> slice:
        end = self.length + num_tokens
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {self.capacity} tokens, got {self.length} + {num_tokens}; "
                "make it as long as the prompt and the image together"
            )
        return slice(self.length, end)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn True (may look) into 0 and False into -inf: what attention adds without a conversion per layer."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return zeros.masked_fill_(~allowed, float("-inf"))
