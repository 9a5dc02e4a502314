"""The place of every token of a batch, known before the first code is drawn.

The layout of an image fixes all its tokens but the codes, so the slots of the cache, their positions and the
ids between two codes (newlines) are tables. Images advance together, one code a step; a step is as wide as
its widest image needs, and the others leave the slots before their code empty.

Shapes: B images, R rows (B, or 2B with guidance: the unconditional ones come last), L slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from personalar.generation.base import GenerationRequest, Identifier
from personalar.models.base import Backend, Cache

CODE = -1  # in tables of forced ids: a code goes here


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The slots after the first code of one image size, in the steps of a batch."""

    ids: list[int]
    """Forced ids, CODE, or anything where the slot is empty."""
    offsets: list[int]
    """Positions counted from the first code; -1: empty."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The tables of one batch."""

    rows: list[list[int]]
    """Ids of every row up to the first code, R of them."""
    starts: list[int]
    """First slot of every step, and L; step 0 is the prompt, step k feeds code k - 1 and what follows it."""
    positions: Tensor
    """(R, L) int64, -1 where a slot is empty."""
    forced: Tensor
    """(B, L - starts[1]) int64: the ids after the first code."""
    is_code: Tensor
    """Like `forced`: where the code goes that was drawn last."""

    @property
    def num_steps(self) -> int:
        """Draws: the codes of the largest image."""
        return len(self.starts) - 1

    def width(self, step: int) -> int:
        """Return how many slots a step feeds."""
        return self.starts[step + 1] - self.starts[step]

    def new_cache(self, backend: Backend, *, multiple: int = 1) -> Cache:
        """Return a cache laid out for this batch, of a length that is a multiple of `multiple`."""
        rows, slots = self.positions.shape
        capacity = -(-slots // multiple) * multiple
        cache = backend.new_cache(capacity=capacity, pad=self.positions.new_zeros(rows))
        cache.place(self.placed(capacity))
        return cache

    def placed(self, capacity: int) -> Tensor:
        """Return the positions (R, capacity) of a cache that is longer than the batch needs."""
        return F.pad(self.positions, (0, capacity - self.positions.shape[1]), value=-1)

    def fill(self, step: int, ids: Tensor) -> Tensor:
        """Return what `step` (from 1) feeds, (B, T), for the ids (B,) that were drawn before it."""
        if self.width(step) == 1:
            return ids[:, None]
        window = slice(self.starts[step] - self.starts[1], self.starts[step + 1] - self.starts[1])
        return torch.where(self.is_code[:, window], ids[:, None], self.forced[:, window])


def image_schedule(grammar: Sequence[int | None]) -> tuple[list[int], list[list[int]]]:
    """Split a grammar into the forced ids before the first code, and those after each code.

    For one row of two codes: [BOI, H, W, None, None, NEWLINE, EOI] is ([BOI, H, W], [[], [NEWLINE, EOI]]).
    """
    grammar = list(grammar)
    first = grammar.index(None)
    followers: list[list[int]] = []
    for free, ids in groupby(grammar[first:], key=lambda index: index is None):
        if free:
            followers += [[] for _ in ids]
        else:
            followers[-1] = list(ids)  # type: ignore[arg-type]  # the group of None is the other branch
    return grammar[:first], followers  # type: ignore[return-value]


def plan(backend: Backend, request: GenerationRequest, *, guided: bool) -> Schedule:
    """Lay out a batch; with `guided`, every image has a second row without its prompt."""
    layouts = {grid: image_schedule(backend.grammar(*grid)) for grid in dict.fromkeys(request.grids)}
    prefixes = [layouts[grid][0] for grid in request.grids]
    rows = [[*prompt, *prefix] for prompt, prefix in zip(request.prompts, prefixes, strict=True)]
    if guided:
        rows += [[*backend.unconditional_prompt, *prefix] for prefix in prefixes]
    widths = _step_widths([followers for _, followers in layouts.values()])
    tails = {grid: _tail(followers, widths) for grid, (_, followers) in layouts.items()}
    own = [tails[grid] for grid in request.grids]
    device = backend.device
    lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]  # (R, 1)
    longest = max(map(len, rows))
    offsets = torch.tensor([tail.offsets for tail in own], device=device)  # (B, L - longest)
    repeated = torch.cat((offsets, offsets)) if guided else offsets
    head = torch.arange(longest, device=device) - (longest - lengths)  # negative where left-padded
    return Schedule(
        rows=rows,
        starts=list(accumulate([longest, *widths], initial=0)),
        positions=torch.cat((head, torch.where(repeated < 0, -1, repeated + lengths)), dim=1).clamp_min(-1),
        forced=torch.tensor([tail.ids for tail in own], device=device),
        is_code=torch.tensor([[index == CODE for index in tail.ids] for tail in own], device=device),
    )


def num_codes(backend: Backend) -> int:
    """Return K, the image codes that the head knows."""
    code = torch.full((1, 1), backend.code_offset, device=backend.device)
    return backend.image_logits(backend.embed(code)).shape[-1]


def _step_widths(layouts: list[list[list[int]]]) -> list[int]:
    """Return the tokens that each step after the prompt feeds: what the widest image needs."""
    steps = range(1, max(map(len, layouts)))
    return [max(1 + len(layout[k - 1]) for layout in layouts if k < len(layout)) for k in steps]


def _tail(followers: list[list[int]], widths: list[int]) -> Tail:
    ids: list[int] = []
    offsets: list[int] = []
    position = 0
    for step, width in enumerate(widths, 1):
        tokens = [CODE, *followers[step - 1]] if step < len(followers) else []
        ids += [0] * (width - len(tokens)) + tokens
        offsets += [-1] * (width - len(tokens)) + list(range(position, position + len(tokens)))
        position += len(tokens)
    return Tail(ids=ids, offsets=offsets)


def prefill(
    backend: Backend,
    rows: list[list[int]],
    cache: Cache,
    *,
    identifier: Identifier | None,
    more: Tensor | None = None,
) -> Tensor:
    """Run `rows`, left-padded to one length, and `more` ids (R, T') into `cache`; return (R, T + T', D).

    Equal rows are run once: all unconditional ones, and the images of one prompt.
    The identifier acts here only: codes are never identifiers.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[row[0]] * (longest - len(row)) + list(row) for row in rows], device=backend.device)
    ids = ids if more is None else torch.cat((ids, more), dim=1)
    first = [i for i, row in enumerate(rows) if more is not None or row not in rows[:i]]  # where a row is new
    ids = ids[first]
    embeds = backend.embed(ids)
    if identifier is not None:
        embeds = identifier(ids, embeds)
    if len(first) == len(rows):
        return backend.forward(embeds, cache=cache)
    twins = torch.tensor([first.index(rows.index(row)) for row in rows], device=backend.device)
    return backend.forward(embeds, cache=cache.shared(first, twins))[twins]
