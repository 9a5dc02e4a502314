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
from personalar.generation.schedule import Schedule, num_codes, plan, prefill
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
        schedule = plan(backend, request, guided=self.sampling.guided)
        step = self.new_step(backend, schedule)
        step.start(request, schedule, identifier)
        for index in range(1, schedule.num_steps):
            self.next_code(step, schedule, index)
            # Not at every step: a callback is Python work between two steps.
            if progress is not None and index % REPORT_EVERY == 0:
                progress(index * len(step.codes), step.codes.numel())
        if progress is not None:
            progress(step.codes.numel(), step.codes.numel())
        # A copy, because the next batch may overwrite the buffer.
        return step.codes.clone(), step.max_logits

    def new_step(self, backend: Backend, schedule: Schedule) -> Step:
        """Return the buffers for a batch."""
        return Step(backend, schedule, self.sampling)

    def next_code(self, step: Step, schedule: Schedule, index: int) -> None:
        """Sample the code `index` of every image."""
        step(schedule.width(index), schedule.starts[index + 1])


class Step:
    """The static buffers of a batch, and one decoding step on them, which can be captured as a CUDA graph.

    The index of the next code and the cache slot are tensors on the device, so a step never synchronizes with
    the host. `start` reuses the buffers for another batch of the same shape.

    Args:
        backend: the base model.
        schedule: layout of the batch.
        sampling: sampling parameters.
        bucket: the cache's capacity is a multiple of this number of slots.
    """

    def __init__(self, backend: Backend, schedule: Schedule, sampling: Sampling, *, bucket: int = 1) -> None:
        self.backend, self.sampling = backend, sampling
        capacity = -(-schedule.positions.shape[1] // bucket) * bucket
        self.cache = backend.new_cache(schedule.padded_positions(capacity))
        # Everything below is allocated once: graphs store the addresses.
        batch = len(schedule.rows) // (2 if sampling.guided else 1)
        self.codes = schedule.forced.new_zeros(batch, schedule.num_steps)  # (B, N)
        self.max_logits = torch.empty(len(self.codes), num_codes(backend), device=self.codes.device)
        """(B, K), maximum over the steps so far; NaN propagates."""
        self.forced = schedule.forced.clone()
        self.seeds = self.codes.new_zeros(len(self.codes))
        self.index = self.codes.new_zeros(1)
        """Index of the next code."""
        self.slot = self.codes.new_zeros(1)
        """First cache slot of the next step."""
        self.first_slot = self.codes.new_zeros(1)
        """Cache slot of the first code."""

    def start(self, request: GenerationRequest, schedule: Schedule, identifier: Identifier | None) -> None:
        """Begin a batch: run its prompts and sample the first code of every image."""
        self.cache.place(schedule.padded_positions(self.cache.capacity))
        self.seeds.copy_(seed_tensor(list(request.seeds), self.seeds.device))
        self.forced.copy_(schedule.forced)
        self.first_slot.fill_(schedule.starts[1])
        self.max_logits.fill_(-math.inf)
        self.seek(schedule, 0)
        self.keep(prefill(self.backend, schedule.rows, self.cache, identifier=identifier))
        self.seek(schedule, 1)

    def seek(self, schedule: Schedule, step: int) -> None:
        """Set the index and the cache slot to those of `step`."""
        self.index.fill_(step)
        self.slot.fill_(schedule.starts[step])

    def __call__(self, width: int, end: int) -> None:
        """Run one step: feed the last code and `width - 1` forced ids, and sample the next code.

        Args:
            width: tokens of the step.
            end: attention reads the first `end` slots of the cache.
        """
        slots = self.slot + torch.arange(width, device=self.slot.device)
        last = self.codes.index_select(1, self.index - 1) + self.backend.code_offset  # (B, 1)
        if width > 1:
            forced = self.forced.index_select(0, slots[1:] - self.first_slot)
            last = torch.cat((last, forced.expand(len(last), -1)), dim=1)
        embeds = self.backend.embed(last)  # (B, width, D)
        embeds = torch.cat((embeds, embeds)) if self.sampling.guided else embeds
        self.keep(self.backend.forward(embeds, cache=self.cache.at(slots, end)))
        # In the graph too, so that a replay needs no work on the host.
        self.index.add_(1)
        self.slot.add_(width)

    def keep(self, hidden: Tensor) -> None:
        """Sample the next code of every image from hidden states (R, T, D), and store it."""
        logits = self.sampling.guide(self.backend.image_logits(hidden[:, -1]))  # (B, K)
        torch.maximum(self.max_logits, logits, out=self.max_logits)
        noise = gumbel_noise(self.seeds, self.index, logits.shape[-1])[:, 0]  # (B, K)
        self.codes.index_copy_(1, self.index, self.sampling.draw(logits, noise)[:, None])


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
