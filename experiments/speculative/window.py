"""The window of the package with rejection sampling of drafts, and with other first drafts."""

from __future__ import annotations

from typing import Any

import torch
from speculative.rules import draft_source, redraw, relaxed
from torch import Tensor
from torch.nn.functional import one_hot

from personalar.generation.decoders.jacobi import Window
from personalar.generation.sampling import gumbel_noise
from personalar.models.random_keys import _ODD, bits, mix

PASS = 2**32  # pass n uses the noise of position + n * PASS, so passes share no noise


class RejectionWindow(Window):
    """A window that stores the distribution of every draft.

    Args:
        init: first drafts; "above" as in the package, others see `rules.draft_source`.
        coupling: "maximal" or "independent"; see `rules`.
        near, distance: see `rules.relaxed`; lossy unless `near` is None.
    """

    def __init__(
        self, *batch: Any, size: int, init: str, coupling: str, near: Tensor | None, distance: float
    ) -> None:
        super().__init__(*batch, size=size)
        self._init, self._coupling, self._near, self._distance = init, coupling, near, distance
        self._laws = torch.zeros(*self._codes.shape, self._num_codes, device=self._codes.device)
        self._number = 0

    def _draft(self, tokens: Tensor) -> Tensor:
        """Return the drafts (B, W), and record which of them are new."""
        index, known = self._body.code_index[tokens], self._known
        self._fresh = (index >= known[:, None]) & self._body.is_code[tokens]
        drafts = super()._draft(tokens)
        if self._init == "above":
            return drafts
        source = draft_source(self._init, known, index, self._row_width)
        copied = self._codes.gather(1, source.clamp_min(0))
        at_random = (source < 0) | (known[:, None] == 0)
        own = torch.where(at_random, random_codes(self._seeds, index, self._num_codes), copied)
        self._store(self._codes, index, own, self._fresh)
        return self._codes.gather(1, index)

    def _choose(self, logits: Tensor, tokens: Tensor, drafts: Tensor) -> Tensor:
        """Return samples (B, W) from guided logits (B, W, K), and store the distributions."""
        self._number += 1
        index, is_code = self._body.code_index[tokens], self._body.is_code[tokens]
        law = self._sampling.probabilities(logits)
        drafted = is_code & (self._offset(tokens) < self._size - 1)
        if self._near is not None:
            moved = relaxed(law, drafts, self._near, distance=self._distance)
            law = torch.where(drafted[..., None], moved, law)
        before = self._laws.gather(1, index[..., None].expand(-1, -1, self._num_codes))
        before = torch.where(self._fresh[..., None], one_hot(drafts, self._num_codes).to(law.dtype), before)
        noise = gumbel_noise(self._seeds, index + self._number * PASS, self._num_codes + 1)
        draws = redraw(law, before, drafts, drafted, noise, everywhere=self._coupling == "maximal")
        self._store(self._laws, index, law, is_code & (self._offset(tokens) < self._size))
        return draws


def random_codes(seeds: Tensor, positions: Tensor, num_codes: int) -> Tensor:
    """Return uniformly distributed codes (B, P), independent of the Gumbel noise at these positions."""
    place = mix(mix(seeds[:, None] ^ _ODD) + positions)
    # Multiply-shift instead of a remainder, which would prefer small codes.
    return (bits(place, torch.zeros_like(place)) * num_codes) >> 32
