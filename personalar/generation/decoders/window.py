"""The window of speculative Jacobi decoding: the state of a batch of images, and one pass over it.

Token t of an image (codes and forced ids between them, from the first code) lies in slot
`longest prompt + t`: images at different places share one cache. A pass feeds the last final token and the
drafts after it; the next pass overwrites what it wrote for wrong drafts.

Shapes: B images, R rows (B, or 2B with guidance), W tokens of a pass (`size` codes and the ids among them),
K image codes, N codes of the largest image, M tokens of it up to its last code.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from personalar.generation.base import GenerationRequest, Identifier
from personalar.generation.sampling import Sampling, gumbel_noise, random_codes, seed_tensor
from personalar.generation.schedule import image_schedule, num_codes, prefill
from personalar.models.base import Backend


@dataclass(frozen=True, kw_only=True)
class Body:
    """The tokens from the first code to the last of every image, (B, M + the largest W); forced after."""

    places: list[list[int]]
    """The tokens of every image that are codes, in order."""
    forced: Tensor
    """Ids that the layout fixes; anything where a code is free."""
    is_code: Tensor
    code_index: Tensor
    """Codes before each token."""
    lengths: Tensor
    """Tokens of every image, (B,)."""
    widths: Tensor
    """Codes in a row, (B,)."""


def lay_out(backend: Backend, request: GenerationRequest, size: int) -> tuple[list[list[int]], Body]:
    """Return the forced ids before every image's first code, and the tables of what comes after."""
    shapes = list(dict.fromkeys(request.grids))
    layouts = [image_schedule(backend.grammar(*grid)) for grid in shapes]
    bodies = [
        [*(token for forced in followers[:-1] for token in (None, *forced)), None] for _, followers in layouts
    ]
    places = [[token for token, forced in enumerate(body) if forced is None] for body in bodies]
    lengths = [len(body) for body in bodies]
    widest = max(span(codes, first, size) for codes in places for first in (0, *(code + 1 for code in codes)))
    padded = [body + [0] * (max(lengths) + widest - len(body)) for body in bodies]
    own = [shapes.index(grid) for grid in request.grids]
    is_code = torch.tensor([[t is None for t in body] for body in padded], device=backend.device)[own]
    return [layouts[i][0] for i in own], Body(
        places=[places[i] for i in own],
        forced=torch.tensor([[t or 0 for t in body] for body in padded], device=backend.device)[own],
        is_code=is_code,
        code_index=is_code.long().cumsum(1) - is_code.long(),
        lengths=torch.tensor(lengths, device=backend.device)[own],
        widths=torch.tensor([w for _, w in request.grids], device=backend.device),
    )


def span(codes: list[int], first: int, size: int) -> int:
    """Return how many tokens from `first` on hold `size` of the `codes`, or all that are left; 0 at the end.

    Args:
        codes: the tokens of an image that are codes, in order.
    """
    last = min(bisect_left(codes, first) + size, len(codes)) - 1
    return max(0, codes[last] - first + 1)


class Window:
    """A batch of images while it is decoded; `codes` (B, N) holds final codes and drafts."""

    def __init__(
        self, backend: Backend, request: GenerationRequest, sampling: Sampling, *, size: int
    ) -> None:
        """Lay out the batch; a forward looks at `size` codes."""
        self._backend, self._sampling, self._size = backend, sampling, size
        prefixes, self._body = lay_out(backend, request, size)
        self._rows = [[*prompt, *prefix] for prompt, prefix in zip(request.prompts, prefixes, strict=True)]
        if sampling.guided:
            self._rows += [[*backend.unconditional_prompt, *prefix] for prefix in prefixes]
        self._longest = max(map(len, self._rows))
        self._seeds = seed_tensor(list(request.seeds), backend.device)
        self._num_codes = num_codes(backend)
        batch, most = len(request.prompts), max(h * w for h, w in request.grids)
        self.peaks = torch.full((batch, self._num_codes), -math.inf, device=backend.device)
        """The largest logit of every code so far, (B, K); NaN stays."""
        self._codes = self._seeds.new_zeros(batch, most + 1)  # the last column takes what is no code
        self._first = self._seeds.new_zeros(batch)  # the first token that is not final
        self._known = self._seeds.new_zeros(batch)  # codes that were drawn, final or not
        positions = torch.arange(most + 1, device=backend.device)
        self._noise = gumbel_noise(self._seeds, positions, self._num_codes)
        pad = torch.tensor([self._longest - len(row) for row in self._rows], device=backend.device)
        self._cache = backend.new_cache(capacity=self._longest + self._body.forced.shape[1], pad=pad)

    @property
    def codes(self) -> Tensor:
        """Codes (B, N); those beyond an image's own number mean nothing."""
        return self._codes[:, :-1]

    def passes(self, identifier: Identifier | None) -> Iterator[int]:
        """Decode, yielding after every forward how many codes of all images are final.

        Raises:
            RuntimeError: a forward made no token final, and so would the next.
        """
        places, number = self._body.places, 0
        first = [0] * len(places)
        while width := max(span(*image, self._size) for image in zip(places, first, strict=True)):
            tokens = self._first[:, None] + torch.arange(width, device=self._seeds.device)  # (B, W)
            drafts = self._draft(tokens)
            if number == 0:
                more = self._ids(tokens[:, :-1])
                hidden = prefill(
                    self._backend, self._rows, self._cache, identifier=identifier, more=self._per_row(more)
                )[:, -width:]
            else:
                hidden = self._look(tokens - 1, end=self._longest + max(first) + width - 1)
            number += 1
            draws = self._draw(hidden, tokens, drafts)
            drafted = (self._offset(tokens) < self._size - 1) | ~self._body.is_code.gather(1, tokens)
            final = count_final(draws, drafts, drafted).minimum(self._body.lengths - self._first)
            self._first = self._first + final
            before, first = first, self._first.tolist()  # the one wait for the device
            done, total = sum(map(bisect_left, places, first)), sum(map(len, places))
            if first == before:
                raise RuntimeError(
                    f"decoder=jacobi: pass {number} made no token final, after {done} of {total} codes; each "
                    "pass must make at least one final: this is a fault of the decoder; use decoder=plain"
                )
            yield done

    def _offset(self, tokens: Tensor) -> Tensor:
        """Return how many codes stand between the first that is not final and each of `tokens` (B, W)."""
        index = self._body.code_index.gather(1, tokens)
        return index - self._body.code_index.gather(1, self._first[:, None])

    def _ids(self, tokens: Tensor) -> Tensor:
        """Return the ids (B, W) of tokens (B, W), drafts included."""
        code = self._codes.gather(1, self._body.code_index.gather(1, tokens)) + self._backend.code_offset
        return torch.where(self._body.is_code.gather(1, tokens), code, self._body.forced.gather(1, tokens))

    def _per_row(self, values: Tensor) -> Tensor:
        return torch.cat((values, values)) if self._sampling.guided else values

    def _draft(self, tokens: Tensor) -> Tensor:
        """Return the drafts (B, W) of `tokens`; the first ones are made now."""
        index = self._body.code_index.gather(1, tokens)
        fresh = (index >= self._known[:, None]) & self._body.is_code.gather(1, tokens)
        self._store(self._codes, index, self._guess(index), fresh)
        known = self._body.code_index.gather(1, self._first[:, None])[:, 0] + self._size
        self._known = known.clamp_max(self._codes.shape[1] - 1)
        return self._codes.gather(1, index)

    def _guess(self, index: Tensor) -> Tensor:
        """Return first drafts (B, W) for the codes `index` (B, W)."""
        copied = first_drafts(self._codes, self._known, index, self._body.widths)
        at_random = random_codes(self._seeds, index, self._num_codes)
        return torch.where(copied < 0, at_random, copied)

    def _store(self, table: Tensor, index: Tensor, values: Tensor, where: Tensor) -> None:
        """Put `values` (B, W, ...) into `table` (B, N + 1, ...) at `index` (B, W), `where` (B, W) only."""
        target = torch.where(where, index, table.shape[1] - 1)
        table[torch.arange(len(table), device=table.device)[:, None], target] = values

    def _look(self, tokens: Tensor, end: int) -> Tensor:
        """Feed `tokens` (B, W), each at its place; return hidden states (R, W, D)."""
        embeds = self._per_row(self._backend.embed(self._ids(tokens)))
        slots = self._per_row(self._longest + tokens)
        slots = slots[0] if len(tokens) == 1 else slots  # one image: rows share their slots, which is faster
        return self._backend.forward(embeds, cache=self._cache.at(slots, end))

    def _draw(self, hidden: Tensor, tokens: Tensor, drafts: Tensor) -> Tensor:
        """Return draws (B, W) for `tokens`, and keep them; where no code belongs, the draft."""
        logits = self._sampling.guide(self._backend.image_logits(hidden))  # (B, W, K)
        torch.maximum(self.peaks, logits.amax(1), out=self.peaks)
        index, is_code = self._body.code_index.gather(1, tokens), self._body.is_code.gather(1, tokens)
        looked_at = is_code & (self._offset(tokens) < self._size)  # another image's window may be longer
        draws = torch.where(is_code, self._choose(logits, tokens, drafts), drafts)
        self._store(self._codes, index, draws, looked_at)
        return draws

    def _choose(self, logits: Tensor, tokens: Tensor, drafts: Tensor) -> Tensor:
        """Return a code (B, W) for each of `tokens` from guided logits (B, W, K), whatever the drafts."""
        index = self._body.code_index.gather(1, tokens)
        rows = torch.arange(len(index), device=index.device)[:, None]
        return self._sampling.draw(logits, self._noise[rows, index])


def first_drafts(codes: Tensor, known: Tensor, index: Tensor, widths: Tensor) -> Tensor:
    """Return drafts (B, W) for codes `index` (B, W) that no pass has looked at; -1: nothing to copy.

    A draft copies the nearest known code above, or in the first row the last known one. It may depend on the
    codes before it and never on the window: otherwise images would not be those of plain decoding.

    Args:
        codes: (B, N) codes so far, in reading order.
        known: (B,) how many of them were drawn or drafted.
        widths: (B,) codes in a row.
    """
    last, width = (known - 1)[:, None], widths[:, None]
    rows_up = (index - last + width - 1) // width  # as many as it takes to reach a known code
    source = index - rows_up.clamp_min(1) * width
    source = torch.where(source < 0, last, source)  # nothing above the first row: copy left
    copied = codes.gather(1, source.clamp_min(0))
    return torch.where(source < 0, -1, copied)


def count_final(draws: Tensor, drafts: Tensor, drafted: Tensor) -> Tensor:
    """Return how many of (B, W) draws are final, (B,): through the first that differs from its draft."""
    same = (draws == drafts) & drafted
    return (same.long().cumprod(1).sum(1) + 1).clamp_max(draws.shape[1])
