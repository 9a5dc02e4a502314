"""Lay out a batch for decoding: the cache slot and position of every token, before the first code is drawn.

An image's layout fixes all of its tokens except the codes, so cache slots, positions and the forced ids
between codes (newlines) are known in advance. All images of a batch advance by one code per step.

Shapes: B images, R rows (B, or 2B with guidance, unconditional rows last), L cache slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.base import GenerationRequest
from personalar.models.base import Backend, KVCache


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
    """(L - starts[1],) int64, token ids from the first code on; 0 in the first slot of a step, where a code
    goes."""

    @property
    def num_steps(self) -> int:
        """Number of steps, which is the number of codes of an image."""
        return len(self.starts) - 1

    def width(self, step: int) -> int:
        """Return the number of tokens that a step feeds."""
        return self.starts[step + 1] - self.starts[step]

    def padded_positions(self, capacity: int) -> Tensor:
        """Return `positions`, padded with empty slots to (R, capacity)."""
        return F.pad(self.positions, (0, capacity - self.positions.shape[1]), value=-1)


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
    prefix, followers = image_schedule(backend.grammar(*request.grid))
    rows = batch_rows(backend, request, prefix, guided=guided)
    steps = [[0, *forced] for forced in followers[:-1]]
    device, longest = backend.device, max(map(len, rows))
    # Prompts are left-padded to one length, so that all first codes share a slot; padding is negative here.
    pad = torch.tensor([longest - len(row) for row in rows], device=device)[:, None]  # (R, 1)
    starts = list(accumulate([longest, *map(len, steps)], initial=0))
    return Schedule(
        rows=rows,
        starts=starts,
        positions=(torch.arange(starts[-1], device=device) - pad).clamp_min(-1),
        forced=torch.tensor(list(chain(*steps)), dtype=torch.int64, device=device),
    )


def batch_rows(
    backend: Backend, request: GenerationRequest, prefix: Sequence[int], *, guided: bool
) -> list[list[int]]:
    """Return the token ids of each row before the first code; `prefix` are those of the image."""
    before = list(request.prompts)
    if guided and request.contexts is not None:
        before += request.contexts
    elif guided:
        before += [backend.unconditional_prompt(prompt) for prompt in request.prompts]
    return [[*ids, *prefix] for ids in before]


def num_codes(backend: Backend) -> int:
    """Return K, the number of image codes; found by running the output head on one embedding."""
    code = torch.full((1, 1), backend.code_offset, device=backend.device)
    return backend.image_logits(backend.embed(code)).shape[-1]


def prefill(
    backend: Backend,
    rows: list[list[int]],
    cache: KVCache,
    *,
    identifier: Identifier | None,
    more: Tensor | None = None,
) -> Tensor:
    """Run the prompts through the network and fill the cache.

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
    embeds = backend.embed(ids)
    if identifier is not None:
        embeds = identifier(ids, embeds)
    slots = torch.arange(ids.shape[1], device=backend.device)
    return backend.forward(embeds, cache=cache.at(slots, len(slots)), ids=ids)
