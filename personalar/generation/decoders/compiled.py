"""Plain decoding with torch.compile and CUDA graphs.

There is one graph per step width and cache length. The length is rounded up to buckets, so that attention
reads little more than the filled slots. Graphs are captured once per batch shape and stay valid for other
prompts, and for weights that are copied in place. Without a CUDA device the decoder warns and decodes like
`PlainDecoder`; the images are the same.

One transformer block is compiled and the program is shared by all blocks. Sampling a code is not compiled:
its hash relies on 64-bit integer overflow, which C++ compilers treat as undefined behaviour.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.base import GenerationRequest, Progress
from personalar.generation.decoders.plain import PlainDecoder, Step
from personalar.generation.schedule import Schedule
from personalar.models.base import Backend

PROGRAMS = 64
"""Compilations of a block per process; afterwards it is captured without compilation, which is slower."""
Replay = Callable[[], object]
Function = Callable[..., Any]


class CompiledDecoder(PlainDecoder):
    """Decoder with CUDA graphs; called like `PlainDecoder`.

    Args:
        bucket: the cache length that a step reads is rounded up to a multiple of this number of slots.
        sampling: cfg_scale, top_k, top_p, temperature; see `Sampling`.
    """

    def __init__(self, *, bucket: int = 128, **sampling: float) -> None:
        super().__init__(**sampling)  # type: ignore[arg-type]
        self.bucket = bucket
        self._key: tuple[Any, ...]
        self._replays: dict[tuple[int, int], Replay]
        self._pool: Any
        self._buffers: Step | None
        self._stream: torch.cuda.Stream | None = None
        """The stream for capturing; only one, because PyTorch keeps a memory pool per stream."""
        self.forget()

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Sample with CUDA graphs; see `PlainDecoder.draw`."""
        if not self.can_capture(backend.device):
            warnings.warn(
                f"decoder=compiled needs a CUDA device, got {backend.device.type}: falling back to plain "
                "decoding, which gives the same images; pass decoder=plain to silence this warning",
                stacklevel=4,
            )
            return PlainDecoder(**asdict(self.sampling)).draw(backend, request, identifier, progress)
        # A graph stores addresses: weights that move (sharded or offloaded in training) would invalidate it.
        if not backend.has_fixed_addresses:
            return PlainDecoder(**asdict(self.sampling)).draw(backend, request, identifier, progress)
        # The buffers are reused by later calls; inference tensors could not be changed outside of the mode.
        with torch.inference_mode(False), torch.no_grad():
            return super().draw(backend, request, identifier, progress)

    @staticmethod
    def can_capture(device: torch.device) -> bool:
        """Return True if CUDA graphs can be captured on `device`."""
        return device.type == "cuda"

    @staticmethod
    def lower(function: Function) -> Function:
        """Compile `function`; sizes that differ between calls become dynamic."""
        return torch.compile(function)

    def capture(self, run: Callable[[], None], rewind: Callable[[], None]) -> Replay:
        """Capture `run` as a CUDA graph and return its replay; `rewind` restores the state before a run."""
        side_stream = self._stream = self._stream or torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            # Warm-up, as PyTorch requires: compilation and library workspaces must not be captured.
            for _ in range(2):
                run()
                rewind()
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        # All graphs share a memory pool, because they never run at the same time. "thread_local", because
        # calls of other threads, such as NCCL's watchdog in a distributed run, must not abort the capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=side_stream, capture_error_mode="thread_local"):
            run()
        self._pool = graph.pool()
        rewind()
        return graph.replay

    def new_step(self, backend: Backend, schedule: Schedule) -> Step:
        """Return buffers for a batch; reuse the previous ones if shapes and weights' addresses are equal."""
        # Rounded up, so that prompts of similar length share a cache and its graphs.
        slots = -(-schedule.positions.shape[1] // self.bucket) * self.bucket
        # A graph contains addresses: another model, or a reloaded one, needs new graphs.
        weights = tuple(p.data_ptr() for p in backend.transformer.parameters())
        key = (len(schedule.rows), len(schedule.forced), schedule.num_steps, slots, weights)
        if self._buffers is None or key != self._key:
            self.forget()
            self._buffers = Step(backend, schedule, self.sampling, bucket=self.bucket)
            # Set last: if the allocation fails, the next batch must not find a key without buffers.
            self._key = key
        return self._buffers

    def forget(self) -> None:
        """Free the graphs and buffers of the last batch; its KV cache can take most of the memory."""
        self._key, self._replays, self._pool, self._buffers = (), {}, None, None

    def next_code(self, step: Step, schedule: Schedule, index: int) -> None:
        """Replay the graph for step `index`."""
        self._replay(step, schedule, index)()

    def _replay(self, step: Step, schedule: Schedule, index: int) -> Replay:
        """Return the graph for step `index`; capture it when its shape occurs for the first time."""
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
    """Replace the forward method of `blocks` by one compiled program, inside the context.

    Args:
        blocks: transformer blocks of one class and shape.
        lower: compiles a function.
    """
    before = [vars(block).get("forward") for block in blocks]
    # Compile the class's function and not each block's bound method: one program serves all blocks.
    program = lower(type(blocks[0]).forward)
    for block in blocks:
        block.forward = partial(program, block)
    try:
        with torch._dynamo.config.patch(recompile_limit=PROGRAMS):  # the default is 8
            yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward
