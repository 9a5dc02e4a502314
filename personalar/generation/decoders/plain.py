"""The plain decoder: one code of every image at a time, static cache, guidance as extra rows of the batch.

Forced tokens (size tokens, newlines) are not sampled, a newline travels with the code before it, the head
computes image codes only, and nothing is read back from the device before the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from personalar.generation.base import GenerationRequest, Grid, Identifier, Progress
from personalar.generation.sampling import Sampling, gumbel_noise, seed_tensor
from personalar.generation.schedule import plan, prefill
from personalar.models.base import Backend

NOISE_AHEAD = 16  # codes: few calls, little memory


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

    def forget(self) -> None:
        """Free what outlives a call; here nothing does."""

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
        """Draw one image per prompt and seed; return codes (B, h, w) int64, a list where `grid` is one.

        Args:
            prompts: ids before the image, any lengths.
            grid: (h, w) codes of all images, or a list of them, one per image.
            identifier: learned rows for reserved ids in the prompts.
            progress: called about once per row of codes.

        Raises:
            FloatingPointError: the model's logits were not numbers.
        """
        request = GenerationRequest(prompts=prompts, grid=grid, seeds=seeds)
        codes, peaks = self.draw(backend, request, identifier, progress)
        check_finite(peaks)
        return request.split(codes)

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Return codes (B, N), N being those of the largest image, and each code's largest logit (B, K)."""
        guided, batch = self.sampling.guided, len(request.prompts)
        schedule = plan(backend, request, guided=guided)
        cache = schedule.new_cache(backend)
        hidden = prefill(backend, schedule.rows, cache, identifier=identifier)
        codes = schedule.forced.new_zeros(batch, schedule.num_steps)
        peaks = torch.full((), -math.inf, device=backend.device)
        noise = NoiseAhead(request.seeds, backend.device)
        for step in range(schedule.num_steps):
            if step:
                embeds = backend.embed(schedule.fill(step, codes[:, step - 1] + backend.code_offset))
                hidden = backend.forward(torch.cat((embeds, embeds)) if guided else embeds, cache=cache)
            logits = self.sampling.guide(backend.image_logits(hidden[:, -1]))  # (B, K)
            peaks = torch.maximum(peaks, logits)  # NaN stays
            codes[:, step] = self.sampling.draw(logits, noise.at(step, logits.shape[-1]))
            if progress is not None and ((step + 1) % NOISE_AHEAD == 0 or step + 1 == schedule.num_steps):
                progress((step + 1) * batch, codes.numel())
        return codes, peaks


class NoiseAhead:
    """Gumbel noise of a batch, made for some codes at a time: few calls and little memory."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._seeds = seed_tensor(list(seeds), device)

    def at(self, index: int, num_codes: int) -> Tensor:
        """Return noise (B, K) of code `index`; ask in order."""
        ahead = index % NOISE_AHEAD
        if ahead == 0:
            positions = torch.arange(index, index + NOISE_AHEAD, device=self._seeds.device)
            self._noise = gumbel_noise(self._seeds, positions, num_codes)  # (B, ahead, K)
        return self._noise[:, ahead]


def check_finite(peaks: Tensor) -> None:
    """Check the largest logits of every image, (B, K), in which NaN and infinity stay; -inf is allowed.

    Without this, NaN would draw pictures of one colour and no error.

    Raises:
        FloatingPointError: with how many images are concerned, likely causes and what to do.
    """
    lost = int((~(peaks < math.inf).all(-1)).sum())  # NaN is not smaller either; the one wait for the device
    if lost:
        raise FloatingPointError(
            f"the model's logits are NaN or infinite for {lost} of {len(peaks)} pictures, which would be "
            "noise or one colour: its precision is too narrow (model.dtype=float16 overflows beyond 65504: "
            "choose bfloat16 or float32), its files are damaged (get them again), or its weights were left "
            "by a training that diverged (lower model.recipe.stages.*.lr and identifier_lr)"
        )
