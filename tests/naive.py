"""The oracle that decoders are tested against: no cache, no batch, every pass over the full sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.sampling import cfg_combine, gumbel_noise, seed_tensor
from personalar.models.base import Backend, GenerationRequest, Grid, Identifier, Progress


class NaiveDecoder(PlainDecoder):
    """Same arguments and same images as `PlainDecoder`, of which it has the arguments alone, slowly."""

    @torch.no_grad()
    def __call__(
        self,
        backend: Backend,
        prompts: list[list[int]],
        grid: Grid,
        seeds: list[int],
        identifier: Identifier | None = None,
        progress: Progress | None = None,
    ) -> Tensor | list[Tensor]:
        """Draw one image per prompt and seed; return codes (B, h, w) int64, a list where `grid` is one."""
        request = GenerationRequest(prompts=prompts, grid=grid, seeds=seeds)
        images = []
        for prompt, shape, seed in zip(request.prompts, request.grids, request.seeds, strict=True):
            images.append(self._draw(backend, list(prompt), shape, seed, identifier))
            if progress is not None:
                total = sum(h * w for h, w in request.grids)
                progress(sum(image.numel() for image in images), total)
        return request.collect(images)

    def _draw(
        self,
        backend: Backend,
        prompt: list[int],
        grid: tuple[int, int],
        seed: int,
        identifier: Identifier | None,
    ) -> Tensor:
        seeds = seed_tensor([seed], backend.device)
        answer: list[int] = []
        codes: list[int] = []
        for forced in backend.grammar(*grid):
            if forced is not None:
                answer.append(forced)
                continue
            logits = self._last_logits(backend, prompt + answer, identifier)
            if self.sampling.cfg_scale != 1.0:
                alone = [*backend.unconditional_prompt, *answer]
                without = self._last_logits(backend, alone, identifier)
                logits = cfg_combine(logits, without, self.sampling.cfg_scale)
            position = torch.tensor([len(codes)], device=backend.device)
            noise = gumbel_noise(seeds, position, logits.shape[-1])[:, 0]
            codes.append(int(self.sampling.draw(logits, noise)))
            answer.append(codes[-1] + backend.code_offset)
        return torch.tensor(codes, device=backend.device).view(grid)

    def _last_logits(self, backend: Backend, ids: list[int], identifier: Identifier | None) -> Tensor:
        tensor = torch.tensor([ids], device=backend.device)
        embeds = backend.embed(tensor)
        if identifier is not None:
            embeds = identifier(tensor, embeds)
        return backend.image_logits(backend.forward(embeds)[:, -1])  # (1, K)
