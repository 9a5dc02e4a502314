"""Plain autoregressive decoding: one code of every image per step, with a static KV cache.

Guidance adds unconditional rows to the batch. Forced tokens (size tokens, newlines) are not sampled; they are
fed together with the code before them, which saves forward passes. The output head computes the logits of
image codes only, and the host does not wait for the device before the end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.base import GenerationRequest, Progress
from personalar.generation.sampling import Sampling, gumbel_noise, seed_tensor
from personalar.generation.schedule import plan, prefill
from personalar.models.base import Backend

REPORT_EVERY = 16
"""Codes of an image between two reports of progress."""


class PlainDecoder:
    """Samples one code of every image per forward pass.

    Args:
        cfg_scale: classifier-free guidance scale; at 1 it is off and no unconditional rows are computed.
        top_k: see `Sampling`.
        top_p: see `Sampling`.
        temperature: see `Sampling`.
    """

    def __init__(
        self, *, cfg_scale: float = 1.0, top_k: int = 0, top_p: float = 1.0, temperature: float = 1.0
    ) -> None:
        self.sampling = Sampling(cfg_scale=cfg_scale, top_k=top_k, top_p=top_p, temperature=temperature)

    def forget(self) -> None:
        """Free buffers kept between calls; this decoder has none."""

    @torch.no_grad()
    def __call__(
        self,
        backend: Backend,
        prompts: list[list[int]],
        grid: tuple[int, int],
        seeds: list[int],
        identifier: Identifier | None = None,
        progress: Progress | None = None,
        contexts: list[list[int]] | None = None,
    ) -> Tensor:
        """Sample codes (B, h, w), one image per prompt and seed; see `Decoder`.

        Raises:
            FloatingPointError: some logits were NaN or infinite.
        """
        request = GenerationRequest(prompts=prompts, grid=grid, seeds=seeds, contexts=contexts)
        codes, max_logits = self.draw(backend, request, identifier, progress)
        check_finite(max_logits)
        return codes.reshape(-1, *grid)

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Sample a request; subclasses override this method.

        Returns:
            Codes (B, N), where N is the number of codes of an image, and the maximum over all steps of the
            guided logits (B, K), for `check_finite`.
        """
        guided, batch = self.sampling.guided, len(request.prompts)
        schedule = plan(backend, request, guided=guided)
        cache = schedule.new_cache(backend)
        hidden = prefill(backend, schedule.rows, cache, identifier=identifier)
        codes = schedule.forced.new_zeros(batch, schedule.num_steps)
        max_logits = torch.full((), -math.inf, device=backend.device)
        seeds = seed_tensor(list(request.seeds), backend.device)
        places = torch.arange(schedule.num_steps, device=backend.device)
        for step in range(schedule.num_steps):
            if step:
                embeds = backend.embed(schedule.fill(step, codes[:, step - 1] + backend.code_offset))
                # Guidance: the unconditional row is fed the same code.
                hidden = backend.forward(torch.cat((embeds, embeds)) if guided else embeds, cache=cache)
            logits = self.sampling.guide(backend.image_logits(hidden[:, -1]))  # (B, K)
            max_logits = torch.maximum(max_logits, logits)  # maximum() propagates NaN
            noise = gumbel_noise(seeds, places[step : step + 1], logits.shape[-1])[:, 0]  # (B, K)
            codes[:, step] = self.sampling.draw(logits, noise)
            if progress is not None and ((step + 1) % REPORT_EVERY == 0 or step + 1 == schedule.num_steps):
                progress((step + 1) * batch, codes.numel())
        return codes, max_logits


def check_finite(max_logits: Tensor) -> None:
    """Raise an error if some logits were NaN or infinite; they would give images of one colour or noise.

    The check is on the maximum over all steps, so that a batch needs one device synchronization only.

    Args:
        max_logits: (B, K), the maximum of each code's logits; -inf is allowed.

    Raises:
        FloatingPointError: with the number of images, likely causes and fixes.
    """
    # `not (x < inf)` is true for NaN too, which compares as False.
    bad = int((~(max_logits < math.inf).all(-1)).sum())
    if bad:
        raise FloatingPointError(
            f"the model's logits are NaN or infinite for {bad} of {len(max_logits)} pictures, which would be "
            "noise or a single colour. Possible causes: the precision is too low (model.dtype=float16 "
            "overflows beyond 65504: use bfloat16 or float32); the base's files are damaged (download them "
            "again); the training diverged (lower model.recipe.stages.*.lr and identifier_lr)"
        )
