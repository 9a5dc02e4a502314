"""The plain decoder: one code at a time, static cache, guidance as extra rows of the batch.

What makes it fast is what it leaves out: forced tokens (size tokens, newlines) are not sampled, a newline
travels with the code before it, the head computes image codes only, and nothing is read back from the device
before the end.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from personalar.decoding.sampling import Sampling, cfg_combine, gumbel_noise, seed_tensor
from personalar.models.base import Backend, GenerationRequest, Identifier, Progress


class PlainDecoder:
    """Callable `(backend, prompts, grid, seeds) -> codes`.

    Args:
        cfg_scale: classifier-free guidance; 1 is off, and then the unconditional rows are not computed.
        top_k, top_p, temperature: see `Sampling`.
    """

    def __init__(
        self, *, cfg_scale: float = 1.0, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0
    ) -> None:
        self.sampling = Sampling(cfg_scale=cfg_scale, top_k=top_k, top_p=top_p, temperature=temperature)

    @torch.no_grad()
    def __call__(
        self,
        backend: Backend,
        prompts: list[list[int]],
        grid: tuple[int, int],
        seeds: list[int],
        identifier: Identifier | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Draw one image per prompt and seed; return codes (B, h, w) int64.

        Args:
            prompts: ids before the image, any lengths.
            grid: (h, w) codes.
            identifier: learned rows for reserved ids in the prompts.
            progress: called once per row of codes.
        """
        request = GenerationRequest(prompts=prompts, grid=grid, seeds=seeds)
        prefix, followers = image_schedule(backend.grammar(*grid))
        rows = [[*prompt, *prefix] for prompt in prompts]
        guided = self.sampling.cfg_scale != 1.0
        if guided:
            rows += [[*backend.unconditional_prompt, *prefix]] * len(prompts)
        hidden, cache = prefill(
            backend, rows, num_more=sum(map(len, followers)) + len(followers), identifier=identifier
        )
        codes = torch.zeros(len(prompts), len(followers), dtype=torch.int64, device=backend.device)
        noise = RowNoise(request, backend.device)
        for index, forced in enumerate(followers):
            logits = backend.image_logits(hidden[:, -1])  # (B or 2B, K)
            if guided:
                logits = cfg_combine(*logits.chunk(2), self.sampling.cfg_scale)
            codes[:, index] = self.sampling.draw(logits, noise.at(index, logits.shape[-1]))
            if progress is not None and (index + 1) % grid[1] == 0:
                progress((index + 1) * len(prompts), codes.numel())
            if index + 1 < len(followers):
                ids = next_ids(codes[:, index] + backend.code_offset, forced)  # (B, 1 or 2)
                embeds = backend.embed(ids)
                hidden = backend.forward(torch.cat((embeds, embeds)) if guided else embeds, cache=cache)
        return codes.view(len(prompts), *grid)


class RowNoise:
    """Gumbel noise of a batch, made for one row of codes at a time: few calls and little memory."""

    def __init__(self, request: GenerationRequest, device: torch.device) -> None:
        self._seeds = seed_tensor(list(request.seeds), device)
        self._width = request.grid[1]

    def at(self, index: int, num_codes: int) -> Tensor:
        """Return noise (B, K) of code `index`; ask in order."""
        column = index % self._width
        if column == 0:
            positions = torch.arange(index, index + self._width, device=self._seeds.device)
            self._row = gumbel_noise(self._seeds, positions, num_codes)  # (B, w, K)
        return self._row[:, column]


def image_schedule(grammar: list[int | None]) -> tuple[list[int], list[list[int]]]:
    """Split a grammar into the forced ids before the first code, and those after each code.

    For one row of two codes: [BOI, H, W, None, None, NEWLINE, EOI] is ([BOI, H, W], [[], [NEWLINE, EOI]]).
    """
    first = grammar.index(None)
    followers: list[list[int]] = []
    for free, ids in groupby(grammar[first:], key=lambda index: index is None):
        if free:
            followers += [[] for _ in ids]
        else:
            followers[-1] = list(ids)
    return grammar[:first], followers


def prefill(
    backend: Backend, rows: list[list[int]], *, num_more: int, identifier: Identifier | None
) -> tuple[Tensor, object]:
    """Run `rows`, left-padded to one length; return hidden states (B, T, D) and the cache.

    The cache has `num_more` free slots.
    The identifier acts here only: codes are never identifiers.
    """
    longest = max(map(len, rows))
    pad = torch.tensor([longest - len(row) for row in rows], device=backend.device)
    ids = torch.tensor([[row[0]] * (longest - len(row)) + list(row) for row in rows], device=backend.device)
    embeds = backend.embed(ids)
    if identifier is not None:
        embeds = identifier(ids, embeds)
    cache = backend.new_cache(capacity=longest + num_more, pad=pad)
    return backend.forward(embeds, cache=cache), cache


def next_ids(sampled: Tensor, forced: list[int]) -> Tensor:
    """Return (B, 1 + forced): the sampled id (B,) and what the grammar puts after it."""
    sampled = sampled[:, None]
    if not forced:
        return sampled
    return torch.cat((sampled, sampled.new_tensor(forced).expand(len(sampled), -1)), dim=1)
