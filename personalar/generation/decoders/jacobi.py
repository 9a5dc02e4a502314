"""Speculative Jacobi decoding: one forward pass checks a window of draft codes and can accept several.

A code is the argmax of logits plus noise, and the noise depends only on seed and position. The accepted codes
are therefore exactly those of plain decoding, whatever the drafts (shared-noise coupling, arXiv 2510.24211).

Token t of an image, counted from its first code and including forced ids, is in cache slot
`longest prompt + t`, so images at different positions share one cache. A pass feeds the last final token and
the drafts after it. The next pass overwrites the cache entries of drafts that were wrong.

Shapes: B images, R rows (B, or 2B with guidance), W tokens per pass (`size` codes and the forced ids among
them), K image codes, N codes of an image, M its tokens from the first to the last code.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.base import GenerationRequest, Progress
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import Sampling, gumbel_noise, seed_tensor
from personalar.generation.schedule import batch_rows, image_schedule, num_codes, prefill
from personalar.models.base import Backend

NOISE_AT_ONCE = 16
"""Codes of an image for which noise is computed at once."""


class JacobiDecoder(PlainDecoder):
    """Speculative decoder; called like `PlainDecoder`.

    Args:
        window: codes that one forward pass checks, at least 2.
        max_batch: largest batch that is decoded this way; larger ones use plain decoding, which is faster
            for them.
        sampling: cfg_scale, top_k, top_p, temperature; see `Sampling`.
    """

    def __init__(self, *, window: int = 16, max_batch: int = 1, **sampling: float) -> None:
        super().__init__(**sampling)  # type: ignore[arg-type]
        self.window, self.max_batch = window, max_batch

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Sample with a window of drafts; see `PlainDecoder.draw`."""
        # The tokens of drafts are almost free only while a pass is limited by reading the weights.
        if len(request.prompts) > self.max_batch:
            warnings.warn(
                f"decoder=jacobi got a batch of {len(request.prompts)} images, more than decoder.max_batch="
                f"{self.max_batch}: falling back to plain decoding, which gives the same images",
                stacklevel=4,
            )
            return super().draw(backend, request, identifier, progress)
        window = Window(backend, request, self.sampling, size=self.window)
        # Final codes, because drafts can be taken back.
        total = len(request.prompts) * math.prod(request.grid)
        for final in window.passes(identifier):
            if progress is not None:
                progress(final, total)
        return window.codes, window.max_logits


@dataclass(frozen=True, kw_only=True)
class Body:
    """Layout of the tokens from the first to the last code; tables (M + W,), W being that of any pass."""

    places: list[int]
    """Indices of the tokens that are codes."""
    forced: Tensor
    """Forced token ids; arbitrary where a code goes."""
    is_code: Tensor
    """True where a code goes; False for forced ids and for padding after the last code."""
    code_index: Tensor
    """Number of codes before each token."""


def lay_out(backend: Backend, grid: tuple[int, int], size: int) -> tuple[list[int], Body]:
    """Return the forced ids before the first code, and the layout of the tokens after them.

    Args:
        backend: the base model.
        grid: (h, w), the image size in codes.
        size: codes per forward pass.
    """
    prefix, followers = image_schedule(backend.grammar(*grid))
    tokens: list[int | None] = []  # None for a code
    for forced in followers[:-1]:
        tokens += [None, *forced]
    tokens.append(None)
    places = [token for token, forced in enumerate(tokens) if forced is None]
    # A pass can begin at the first token or after any code.
    tokens += [0] * max(span(places, first, size) for first in (0, *(code + 1 for code in places)))
    is_code = torch.tensor([token is None for token in tokens], device=backend.device)
    return prefix, Body(
        places=places,
        forced=torch.tensor([token or 0 for token in tokens], device=backend.device),
        is_code=is_code,
        code_index=is_code.long().cumsum(0) - is_code.long(),
    )


def span(codes: list[int], first: int, size: int) -> int:
    """Return the number of tokens from `first` to the `size`-th code after it, or to the last code.

    Args:
        codes: indices of an image's tokens that are codes, in order.
        first: index of a token; after the last code the result is 0.
        size: number of codes.
    """
    last = min(bisect_left(codes, first) + size, len(codes)) - 1
    return max(0, codes[last] - first + 1)


class Window:
    """A batch of images that is being decoded; `codes` (B, N) contains final codes and drafts."""

    def __init__(
        self, backend: Backend, request: GenerationRequest, sampling: Sampling, *, size: int
    ) -> None:
        """Lay out the batch; each forward pass checks `size` codes."""
        self._backend, self._sampling, self._size = backend, sampling, size
        prefix, self._body = lay_out(backend, request.grid, size)
        self._rows = batch_rows(backend, request, prefix, guided=sampling.guided)
        self._row_width = request.grid[1]
        self._longest = max(map(len, self._rows))
        self._seeds = seed_tensor(list(request.seeds), backend.device)
        self._num_codes = num_codes(backend)
        batch, most = len(request.prompts), len(self._body.places)
        self.max_logits = torch.full((batch, self._num_codes), -math.inf, device=backend.device)
        """(B, K), maximum over the passes so far; NaN propagates."""
        # One extra column: values that are not codes are written there instead of being masked out.
        self._codes = self._seeds.new_zeros(batch, most + 1)
        self._first = self._seeds.new_zeros(batch)  # index of the first token that is not final
        self._known = self._seeds.new_zeros(batch)  # number of codes that have a value, final or draft
        positions = torch.arange(most + 1, device=backend.device)
        # In parts, because the numbers that the noise is computed from need several times its memory.
        parts = [gumbel_noise(self._seeds, p, self._num_codes) for p in positions.split(NOISE_AT_ONCE)]
        self._noise = torch.cat(parts, dim=1)
        pad = torch.tensor([self._longest - len(row) for row in self._rows], device=backend.device)
        slots = torch.arange(self._longest + len(self._body.forced), device=backend.device)
        self._cache = backend.new_cache((slots - pad[:, None]).clamp_min(-1))

    @property
    def codes(self) -> Tensor:
        """Codes (B, N)."""
        return self._codes[:, :-1]

    def passes(self, identifier: Identifier | None) -> Iterator[int]:
        """Decode, and yield the total number of final codes after every forward pass."""
        places, first = self._body.places, [0] * len(self._codes)
        while width := max(span(places, each, self._size) for each in first):
            tokens = self._first[:, None] + torch.arange(width, device=self._seeds.device)  # (B, W)
            drafts = self._draft(tokens)
            # The first pass also runs the prompts.
            if not any(first):
                more = self._ids(tokens[:, :-1])
                hidden = prefill(
                    self._backend, self._rows, self._cache, identifier=identifier, more=self._per_row(more)
                )[:, -width:]
            else:
                # The hidden state that predicts a token is that of the token before it.
                hidden = self._look(tokens - 1, end=self._longest + max(first) + width - 1)
            draws = self._draw(hidden, tokens, drafts)
            drafted = (self._offset(tokens) < self._size - 1) | ~self._body.is_code[tokens]
            final = count_final(draws, drafts, drafted).minimum(places[-1] + 1 - self._first)
            self._first = self._first + final
            first = self._first.tolist()  # the only device synchronization of a pass
            yield sum(bisect_left(places, each) for each in first)

    def _offset(self, tokens: Tensor) -> Tensor:
        """Return the number of codes from the first token that is not final to each of `tokens` (B, W)."""
        return self._body.code_index[tokens] - self._body.code_index[self._first[:, None]]

    def _ids(self, tokens: Tensor) -> Tensor:
        """Return the token ids (B, W) of `tokens` (B, W): forced ids, final codes and drafts."""
        code = self._codes.gather(1, self._body.code_index[tokens]) + self._backend.code_offset
        return torch.where(self._body.is_code[tokens], code, self._body.forced[tokens])

    def _per_row(self, values: Tensor) -> Tensor:
        return torch.cat((values, values)) if self._sampling.guided else values

    def _draft(self, tokens: Tensor) -> Tensor:
        """Return the drafts (B, W) of `tokens`; make one for codes that have no value yet."""
        index = self._body.code_index[tokens]
        fresh = (index >= self._known[:, None]) & self._body.is_code[tokens]
        drafts = first_drafts(self._codes, self._known, index, self._row_width)
        self._store(self._codes, index, drafts, fresh)
        known = self._body.code_index[self._first] + self._size
        self._known = known.clamp_max(self._codes.shape[1] - 1)
        return self._codes.gather(1, index)

    def _store(self, table: Tensor, index: Tensor, values: Tensor, where: Tensor) -> None:
        """Write `values` (B, W, ...) to `table` (B, N + 1, ...) at `index` (B, W), only where `where` (B, W).

        The others go to the last column, which keeps the shapes static.
        """
        target = torch.where(where, index, table.shape[1] - 1)
        table[torch.arange(len(table), device=table.device)[:, None], target] = values

    def _look(self, tokens: Tensor, end: int) -> Tensor:
        """Run `tokens` (B, W) through the network, with `end` cache slots; return hidden states (R, W, D)."""
        embeds = self._per_row(self._backend.embed(self._ids(tokens)))
        slots = self._per_row(self._longest + tokens)
        slots = slots[0] if len(tokens) == 1 else slots  # equal slots for all rows are written faster
        return self._backend.forward(embeds, cache=self._cache.at(slots, end))

    def _draw(self, hidden: Tensor, tokens: Tensor, drafts: Tensor) -> Tensor:
        """Sample codes (B, W) for `tokens` and store them; for forced ids return the draft."""
        logits = self._sampling.guide(self._backend.image_logits(hidden))  # (B, W, K)
        torch.maximum(self.max_logits, logits.amax(1), out=self.max_logits)
        index, is_code = self._body.code_index[tokens], self._body.is_code[tokens]
        # All images get as many tokens as one of them needs; codes beyond their own window are not stored.
        in_window = is_code & (self._offset(tokens) < self._size)
        draws = torch.where(is_code, self._choose(logits, tokens, drafts), drafts)
        self._store(self._codes, index, draws, in_window)
        return draws

    def _choose(self, logits: Tensor, tokens: Tensor, drafts: Tensor) -> Tensor:
        """Sample a code (B, W) for each of `tokens` from guided logits (B, W, K).

        The drafts are not used here; subclasses with another acceptance rule need them.
        """
        index = self._body.code_index[tokens]
        rows = torch.arange(len(index), device=index.device)[:, None]
        return self._sampling.draw(logits, self._noise[rows, index])


def first_drafts(codes: Tensor, known: Tensor, index: Tensor, width: int) -> Tensor:
    """Return drafts (B, W) for the codes `index` (B, W).

    A draft copies the nearest code above it that has a value, or the last code if there is none above. Before
    the first pass no code has a value, and all drafts copy the first one, which is 0.

    Args:
        codes: (B, N), codes so far in raster order.
        known: (B,), number of codes that have a value.
        index: (B, W), codes that need a draft.
        width: codes per row.
    """
    last = (known - 1)[:, None]
    rows_up = (index - last + width - 1) // width  # rows to go up to reach a code that has a value
    source = index - rows_up.clamp_min(1) * width
    source = torch.where(source < 0, last, source)  # above the first row: copy the last code
    return codes.gather(1, source.clamp_min(0))


def count_final(draws: Tensor, drafts: Tensor, drafted: Tensor) -> Tensor:
    """Return the number of final tokens (B,): up to and including the first draw that differs from its draft.

    That first different draw is final too, because everything before it was correct.

    Args:
        draws: (B, W), codes sampled with the drafts as context.
        drafts: (B, W), codes that were fed.
        drafted: (B, W), true if this draft was an input of the pass, so that the logits after it depend on
            it.
    """
    # cumprod() is 1 up to the first difference and 0 after it.
    same = (draws == drafts) & drafted
    return (same.long().cumprod(1).sum(1) + 1).clamp_max(draws.shape[1])
