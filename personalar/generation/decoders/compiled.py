"""The compiled decoder: plain decoding whose blocks are fused by torch.compile and replayed as CUDA graphs.

One graph per width of a step and length of cache, in buckets, so that attention reads little more than what
is filled. Graphs are captured once per shape of batch and hold for other prompts and for weights copied into
place. Without a CUDA device the decoder says so and decodes plainly; the images are the same.

The compiler sees one block, and its program serves all of them. Drawing a code is not compiled: its noise
multiplies beyond 64 bits, which compilers for a CPU may not expect.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from personalar.generation.base import GenerationRequest, Identifier, Progress
from personalar.generation.decoders.plain import NOISE_AHEAD, PlainDecoder
from personalar.generation.sampling import Sampling, gumbel_noise, seed_tensor
from personalar.generation.schedule import Schedule, num_codes, plan, prefill
from personalar.models.base import Backend

PROGRAMS = 64
"""How often a block may be compiled in a process; after that it is captured as it is, which is slower."""
Replay = Callable[[], object]
Function = Callable[..., Any]


class CompiledDecoder(PlainDecoder):
    """Same call as `PlainDecoder`.

    Args:
        bucket: slots by which the length of cache that a step reads is rounded up.
        sampling: cfg_scale, top_k, top_p, temperature; see `Sampling`.
    """

    def __init__(self, *, bucket: int = 128, **sampling: float) -> None:
        super().__init__(**sampling)  # type: ignore[arg-type]
        if bucket < 1:
            raise ValueError(f"bucket={bucket} must be at least 1 slot")
        self.bucket = bucket
        self._key: tuple[Any, ...]
        self._replays: dict[tuple[int, int], Replay]
        self._pool: Any
        self._buffers: Step | None
        self._stream: torch.cuda.Stream | None = None
        """Where graphs are captured: one, as each keeps the memory that it once used."""
        self.forget()

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Return codes (B, N), N being those of the largest image, and each code's largest logit (B, K)."""
        if not self.can_capture(backend.device):
            warnings.warn(
                f"decoder=compiled needs a CUDA device, got {backend.device.type}: decoding plainly, "
                "which gives the same images; say decoder=plain to be rid of this message",
                stacklevel=4,
            )
            return super().draw(backend, request, identifier, progress)
        if not backend.has_fixed_addresses:  # in training, for a few pictures: graphs would not hold
            return super().draw(backend, request, identifier, progress)
        with torch.inference_mode(False), torch.no_grad():  # buffers outlive the caller's inference mode
            schedule = plan(backend, request, guided=self.sampling.guided)
            step = self._step(backend, schedule)
            step.start(request, schedule, identifier)
            for index in range(1, schedule.num_steps):
                self._replay(step, schedule, index)()
                if progress is not None and index % NOISE_AHEAD == 0:
                    progress(index * len(step.codes), step.codes.numel())
            if progress is not None:
                progress(step.codes.numel(), step.codes.numel())
            return step.codes.clone(), step.peaks

    @staticmethod
    def can_capture(device: torch.device) -> bool:
        """Tell whether graphs can be captured there."""
        return device.type == "cuda"

    @staticmethod
    def lower(function: Function) -> Function:
        """Return `function` as a fused program; sizes that differ between calls become dynamic."""
        return torch.compile(function)

    def capture(self, run: Callable[[], None], rewind: Callable[[], None]) -> Replay:
        """Return what repeats `run`; `rewind` undoes a run."""
        beside = self._stream = self._stream or torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):  # compiles, and lets libraries allocate
                run()
                rewind()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # One pool for all, as they never run at once; thread_local, as pictures are decoded beside it.
        with torch.cuda.graph(graph, pool=self._pool, stream=beside, capture_error_mode="thread_local"):
            run()
        self._pool = graph.pool()
        rewind()
        return graph.replay

    def _step(self, backend: Backend, schedule: Schedule) -> Step:
        """Return the buffers for a batch: those of the one before, where shapes and weights are the same."""
        slots = -(-schedule.positions.shape[1] // self.bucket) * self.bucket
        weights = tuple(p.data_ptr() for p in backend.parameters())  # type: ignore[attr-defined]
        key = (len(schedule.rows), tuple(schedule.forced.shape), schedule.num_steps, slots, weights)
        if self._buffers is None or key != self._key:
            self.forget()
            self._buffers = Step(backend, schedule, self.sampling, bucket=self.bucket)
            self._key = key  # last: what runs out of memory leaves nothing that looks complete
        return self._buffers

    def forget(self) -> None:
        """Free the graphs and buffers of the last batch, of which keys and values may fill the device."""
        self._key, self._replays, self._pool, self._buffers = (), {}, None, None

    def _replay(self, step: Step, schedule: Schedule, index: int) -> Replay:
        """Return the graph of step `index`, captured when it is met first."""
        width = schedule.width(index)
        end = -(-schedule.starts[index + 1] // self.bucket) * self.bucket
        if (width, end) not in self._replays:
            with fused(step.backend.blocks, self.lower):
                self._replays[width, end] = self.capture(
                    partial(step, width, end), partial(step.seek, schedule, index)
                )
        return self._replays[width, end]


@contextmanager
def fused(blocks: Sequence[nn.Module], lower: Callable[[Function], Function]) -> Iterator[None]:
    """Let `blocks`, which are alike, run as `lower` of their class's `forward` while the context lasts."""
    before = [vars(block).get("forward") for block in blocks]
    program = lower(type(blocks[0]).forward)
    for block in blocks:
        block.forward = partial(program, block)
    try:
        with torch._dynamo.config.patch(recompile_limit=PROGRAMS):  # torch's own limit is 8
            yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


class Step:
    """The buffers of a batch, and the step on them; `start` fills them for other batches of equal shapes.

    The code to draw and the slots to write are tensors on the device, so that nothing waits for the host.

    Args:
        bucket: the cache is a multiple of that many slots long.
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

    def keep(self, hidden: Tensor) -> None:
        """Draw a code of every image from hidden states (R, T, D), and keep it."""
        logits = self.sampling.guide(self.backend.image_logits(hidden[:, -1]))
        torch.maximum(self.peaks, logits, out=self.peaks)
        noise = gumbel_noise(self.seeds, self.index, logits.shape[-1])[:, 0]
        self.codes.index_copy_(1, self.index, self.sampling.draw(logits, noise)[:, None])
