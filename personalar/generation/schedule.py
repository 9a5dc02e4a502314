"""Lay out a batch for decoding: the cache slot and position of every token, before the first code is drawn.

An image's layout fixes all of its tokens except the codes, so cache slots, positions and the forced ids
between codes (newlines) are known in advance. All images of a batch advance by one code per step. A step is
as wide as the image with the most forced ids needs; images with fewer leave slots before their code empty.

Shapes: B images, R rows (B, or 2B with guidance, unconditional rows last), L cache slots.
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

CODE = -1
"""Marks the place of a code in tables of forced ids."""


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The cache slots from the first code on, for one image size."""

    ids: list[int]
    """Per slot a forced id or CODE; any number if the slot is empty."""
    offsets: list[int]
    """Per slot its position, counted from the first code; -1 if the slot is empty."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The layout of one batch."""

    rows: list[list[int]]
    """Token ids of each of the R rows before the first code."""
    starts: list[int]
    """First slot of each step, and L at the end. Step 0 feeds the prompt; step k feeds code k - 1 and the
    forced ids after it."""
    positions: Tensor
    """(R, L) int64, position of each slot; -1 if the slot is empty."""
    forced: Tensor
    """(B, L - starts[1]) int64, token ids from the first code on; arbitrary where a code goes."""
    is_code: Tensor
    """(B, L - starts[1]) bool, True where the code of the previous step goes."""

    @property
    def num_steps(self) -> int:
        """Number of steps, which is the number of codes of the largest image."""
        return len(self.starts) - 1

    def width(self, step: int) -> int:
        """Return the number of tokens that a step feeds."""
        return self.starts[step + 1] - self.starts[step]

    def new_cache(self, backend: Backend, *, multiple: int = 1) -> Cache:
        """Return a KV cache for this batch, with a capacity that is a multiple of `multiple` slots."""
        rows, slots = self.positions.shape
        capacity = -(-slots // multiple) * multiple
        cache = backend.new_cache(capacity=capacity, pad=self.positions.new_zeros(rows))
        cache.place(self.padded_positions(capacity))
        return cache

    def padded_positions(self, capacity: int) -> Tensor:
        """Return `positions`, padded with empty slots to (R, capacity)."""
        return F.pad(self.positions, (0, capacity - self.positions.shape[1]), value=-1)

    def fill(self, step: int, ids: Tensor) -> Tensor:
        """Return the token ids (B, T) that `step` feeds, from step 1 on.

        Args:
            step: number of the step.
            ids: token ids (B,) of the codes that the previous step drew.
        """
        if self.width(step) == 1:
            return ids[:, None]
        window = slice(self.starts[step] - self.starts[1], self.starts[step + 1] - self.starts[1])
        return torch.where(self.is_code[:, window], ids[:, None], self.forced[:, window])


def image_schedule(grammar: Sequence[int | None]) -> tuple[list[int], list[list[int]]]:
    """Split an image's grammar into the forced ids before the first code, and those after each code.

    Example of one row of two codes: [BOI, H, W, None, None, NEWLINE, EOI] gives
    ([BOI, H, W], [[], [NEWLINE, EOI]]).

    Args:
        grammar: token ids of an image in order, None for a code.
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
    """Lay out a batch; with `guided`, every image gets a second row with the unconditional prompt."""
    layouts = {grid: image_schedule(backend.grammar(*grid)) for grid in dict.fromkeys(request.grids)}
    prefixes = [layouts[grid][0] for grid in request.grids]
    rows = [[*prompt, *prefix] for prompt, prefix in zip(request.prompts, prefixes, strict=True)]
    if guided:
        rows += unconditional_rows(backend, request, prefixes)
    widths = _step_widths([followers for _, followers in layouts.values()])
    tails = {grid: _tail(followers, widths) for grid, (_, followers) in layouts.items()}
    own = [tails[grid] for grid in request.grids]
    device = backend.device
    lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]  # (R, 1)
    longest = max(map(len, rows))
    offsets = torch.tensor([tail.offsets for tail in own], device=device)  # (B, L - longest)
    repeated = torch.cat((offsets, offsets)) if guided else offsets
    # Prompts are left-padded to one length, so that all first codes share a slot; padding is negative here.
    head = torch.arange(longest, device=device) - (longest - lengths)
    return Schedule(
        rows=rows,
        starts=list(accumulate([longest, *widths], initial=0)),
        positions=torch.cat((head, torch.where(repeated < 0, -1, repeated + lengths)), dim=1).clamp_min(-1),
        forced=torch.tensor([tail.ids for tail in own], device=device),
        is_code=torch.tensor([[index == CODE for index in tail.ids] for tail in own], device=device),
    )


def unconditional_rows(
    backend: Backend, request: GenerationRequest, prefixes: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return each image's second row: the context of guidance, and the ids before its codes."""
    contexts = request.contexts
    if contexts is None:
        contexts = [backend.unconditional_prompt(prompt) for prompt in request.prompts]
    return [[*context, *prefix] for context, prefix in zip(contexts, prefixes, strict=True)]


def num_codes(backend: Backend) -> int:
    """Return K, the number of image codes; found by running the output head on one embedding."""
    code = torch.full((1, 1), backend.code_offset, device=backend.device)
    return backend.image_logits(backend.embed(code)).shape[-1]


def _step_widths(layouts: list[list[list[int]]]) -> list[int]:
    """Return the width of each step after the prompt: a code and the most forced ids of any image."""
    widths = []
    for step in range(1, max(map(len, layouts))):
        forced = [len(layout[step - 1]) for layout in layouts if step < len(layout)]
        widths.append(1 + max(forced))
    return widths


def _tail(followers: list[list[int]], widths: list[int]) -> Tail:
    ids: list[int] = []
    offsets: list[int] = []
    position = 0
    for step, width in enumerate(widths, 1):
        tokens = [CODE, *followers[step - 1]] if step < len(followers) else []
        # Empty slots come first, so that the last slot of a step is filled for every image.
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
    """Run the prompts through the network and fill the cache.

    Equal rows are computed once: images that share a prompt, and equal unconditional rows.

    Args:
        backend: the base model.
        rows: token ids of R rows; they are left-padded to the longest, T.
        cache: KV cache of R rows.
        identifier: learned embeddings. They occur in prompts only, never among codes.
        more: further token ids (R, T') after the prompts, or None.

    Returns:
        Hidden states (R, T + T', D).
    """
    longest = max(map(len, rows))
    # Padding is masked out, so its id does not matter.
    ids = torch.tensor([[row[0]] * (longest - len(row)) + list(row) for row in rows], device=backend.device)
    ids = ids if more is None else torch.cat((ids, more), dim=1)
    # Indices of rows that are computed: the first of each group of equal rows.
    first = [i for i, row in enumerate(rows) if more is not None or row not in rows[:i]]
    ids = ids[first]
    embeds = backend.embed(ids)
    if identifier is not None:
        embeds = identifier(ids, embeds)
    if len(first) == len(rows):
        return backend.forward(embeds, cache=cache, ids=ids)
    source_rows = torch.tensor([first.index(rows.index(row)) for row in rows], device=backend.device)
    return backend.forward(embeds, cache=cache.shared(first, source_rows), ids=ids)[source_rows]
