"""Speculative Jacobi decoding: one forward pass checks a window of draft codes and can accept several.

A code is the argmax of logits plus noise, and the noise depends only on seed and position. The accepted codes
are therefore exactly those of plain decoding, whatever the drafts (shared-noise coupling, arXiv 2510.24211).
"""

from __future__ import annotations

import math
import warnings

from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.base import GenerationRequest, Progress
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.decoders.window import Window
from personalar.models.base import Backend


class JacobiDecoder(PlainDecoder):
    """Speculative decoder; called like `PlainDecoder`.

    Args:
        window: codes that one forward pass checks, at least 2.
        max_batch: largest batch that is decoded this way; larger ones use plain decoding, which is faster
            for them.
        sampling: cfg_scale, top_k, top_p, temperature; see `Sampling`.
    """

    def __init__(self, *, window: int = 16, max_batch: int = 1, **sampling: float) -> None:
        super().__init__(**sampling)  # type: ignore[arg-type]
        self.window, self.max_batch = window, max_batch

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Sample with a window of drafts; see `PlainDecoder.draw`."""
        # The tokens of drafts are almost free only while a pass is limited by reading the weights.
        if len(request.prompts) > self.max_batch:
            warnings.warn(
                f"decoder=jacobi got a batch of {len(request.prompts)} images, more than decoder.max_batch="
                f"{self.max_batch}: falling back to plain decoding, which gives the same images",
                stacklevel=4,
            )
            return super().draw(backend, request, identifier, progress)
        window = Window(backend, request, self.sampling, size=self.window)
        # Final codes, because drafts can be taken back.
        total = len(request.prompts) * math.prod(request.grid)
        for final in window.passes(identifier):
            if progress is not None:
                progress(final, total)
        return window.codes, window.max_logits
