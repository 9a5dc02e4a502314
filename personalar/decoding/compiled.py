"""The compiled decoder: plain decoding whose steps are fused by torch.compile and replayed as CUDA graphs.

One graph for every width of a step and every length of cache, in buckets, so that attention reads what is
filled and little more. Buffers and weights stay where they are: graphs are captured once for a shape of
batch, and hold for other prompts and for a subject's weights that are copied in. Where there is no CUDA
device the decoder says so and decodes plainly; the images are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from personalar.decoding.plain import NOISE_AHEAD, PlainDecoder
from personalar.decoding.schedule import Schedule, plan
from personalar.decoding.step import Step
from personalar.models.base import Backend, GenerationRequest, Identifier, Progress

Replay = Callable[[], object]


class CompiledDecoder(PlainDecoder):
    """Same call as `PlainDecoder`.

    Args:
        bucket: slots by which the length of cache that a step reads is rounded up.
        sampling: cfg_scale, top_k, top_p, temperature; see `Sampling`.
    """

    def __init__(
        self,
        *,
        bucket: int = 128,
        **sampling: float,
    ) -> None:
        super().__init__(**sampling)  # type: ignore[arg-type]
        if bucket < 1:
            raise ValueError(f"bucket={bucket} must be at least 1 slot")
        self.bucket = bucket
        self._key: tuple[Any, ...] = ()
        self._replays: dict[tuple[int, int], Replay] = {}

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> Tensor:
        """Return codes (B, N), N being those of the largest image."""
        if not self.can_capture(backend.device):
            warnings.warn(
                f"decoder=compiled needs a CUDA device, got {backend.device.type}: decoding plainly, "
                "which gives the same images; say decoder=plain to be rid of this message",
                stacklevel=4,
            )
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
            return step.codes.clone()

    @staticmethod
    def can_capture(device: torch.device) -> bool:
        """Tell whether graphs can be captured there."""
        return device.type == "cuda"

    @staticmethod
    def lower(step: Step) -> Callable[[int, int], None]:
        """Return `step` as one fused program; lengths of cache are symbols in it."""
        return torch.compile(step.__call__, fullgraph=True)

    @staticmethod
    def capture(run: Callable[[], None], rewind: Callable[[], None]) -> Replay:
        """Return what repeats `run`; `rewind` undoes a run."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # compiles, and lets libraries allocate
                run()
                rewind()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # pictures are decoded beside it
            run()
        rewind()
        return graph.replay

    def _step(self, backend: Backend, schedule: Schedule) -> Step:
        """Return the buffers for a batch: those of the one before, where shapes and weights are the same."""
        slots = -(-schedule.positions.shape[1] // self.bucket) * self.bucket
        weights = tuple(p.data_ptr() for p in backend.parameters())  # type: ignore[attr-defined]
        key = (len(schedule.rows), tuple(schedule.forced.shape), schedule.num_steps, slots, weights)
        if key != self._key:
            self._key, self._replays = key, {}
            self._buffers = Step(backend, schedule, self.sampling, bucket=self.bucket)
            self._program = self.lower(self._buffers)
        return self._buffers

    def _replay(self, step: Step, schedule: Schedule, index: int) -> Replay:
        """Return the graph of step `index`, captured when it is met first."""
        width = schedule.width(index)
        end = -(-schedule.starts[index + 1] // self.bucket) * self.bucket
        if (width, end) not in self._replays:
            self._replays[width, end] = self.capture(
                partial(self._program, width, end), partial(step.seek, schedule, index)
            )
        return self._replays[width, end]
