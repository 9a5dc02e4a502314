"""One step of plain decoding with static shapes: what a compiler and a captured graph can work with.

Which code is drawn and which slots are written stands in tensors on the device, so a step has no arguments
but its width and the length of cache it looks at, and nothing waits for the host.
"""

from __future__ import annotations

import math

import torch

from personalar.generation.base import GenerationRequest, Identifier
from personalar.generation.sampling import Sampling, gumbel_noise, seed_tensor
from personalar.generation.schedule import Schedule, num_codes, prefill
from personalar.models.base import Backend


class Step:
    """The buffers of a batch, and the step on them; `start` fills them for other batches of equal shapes.

    Args:
        bucket: the cache is a multiple of so many slots long.
    """

    def __init__(self, backend: Backend, schedule: Schedule, sampling: Sampling, *, bucket: int) -> None:
        self.backend, self.sampling = backend, sampling
        self.cache = schedule.new_cache(backend, multiple=bucket)
        self.codes = schedule.forced.new_zeros(len(schedule.forced), schedule.num_steps)
        self.peaks = torch.empty(len(self.codes), num_codes(backend), device=self.codes.device)
        """The largest logit of every code so far; NaN stays."""
        self.forced, self.is_code = schedule.forced.clone(), schedule.is_code.clone()
        self.seeds = self.codes.new_zeros(len(self.codes))
        self.index = self.codes.new_zeros(1)
        """The code to draw."""
        self.slot = self.codes.new_zeros(1)
        """The first slot to write."""
        self.first_slot = self.codes.new_zeros(1)
        """The slot of the first code."""

    def start(self, request: GenerationRequest, schedule: Schedule, identifier: Identifier | None) -> None:
        """Take over a batch: run its prompts and draw its first codes."""
        self.cache.place(schedule.placed(self.cache.capacity))
        self.seeds.copy_(seed_tensor(list(request.seeds), self.seeds.device))
        self.forced.copy_(schedule.forced)
        self.is_code.copy_(schedule.is_code)
        self.first_slot.fill_(schedule.starts[1])
        self.peaks.fill_(-math.inf)
        self.seek(schedule, 0)
        self.keep(prefill(self.backend, schedule.rows, self.cache, identifier=identifier))
        self.seek(schedule, 1)

    def seek(self, schedule: Schedule, step: int) -> None:
        """Go to `step`."""
        self.index.fill_(step)
        self.slot.fill_(schedule.starts[step])

    def __call__(self, width: int, end: int) -> None:
        """Feed the code before and the `width - 1` tokens between, looking at `end` slots; draw the next."""
        slots = self.slot + torch.arange(width, device=self.slot.device)
        last = self.codes.index_select(1, self.index - 1) + self.backend.code_offset  # (B, 1)
        if width > 1:
            place = slots - self.first_slot
            last = torch.where(self.is_code.index_select(1, place), last, self.forced.index_select(1, place))
        embeds = self.backend.embed(last)
        embeds = torch.cat((embeds, embeds)) if self.sampling.guided else embeds
        self.keep(self.backend.forward(embeds, cache=self.cache.at(slots, end)))
        self.index.add_(1)
        self.slot.add_(width)

    def keep(self, hidden: torch.Tensor) -> None:
        """Draw a code of every image from hidden states (R, T, D), and keep it."""
        logits = self.sampling.guide(self.backend.image_logits(hidden[:, -1]))
        torch.maximum(self.peaks, logits, out=self.peaks)
        noise = gumbel_noise(self.seeds, self.index, logits.shape[-1])[:, 0]
        self.codes.index_copy_(1, self.index, self.sampling.draw(logits, noise)[:, None])
