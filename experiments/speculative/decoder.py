"""Speculative Jacobi decoding with rejection sampling: a plug-in, loaded by `decoder._target_`.

An image is a sample from the distribution of plain decoding, but differs from that of plain with the same
seed. It depends on the window and the first drafts, and not on the batch. Only `relax` makes the decoder
lossy.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from speculative.rules import COUPLINGS, INITS, nearest_codes
from speculative.window import RejectionWindow
from torch import Tensor

from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.base import GenerationRequest, Progress
from personalar.generation.decoders.jacobi import JacobiDecoder
from personalar.models.base import Backend


class SpeculativeDecoder(JacobiDecoder):
    """Same call as `PlainDecoder`.

    Args:
        window: number of codes in a forward pass; the newlines between them come in addition.
        max_batch: number of images decoded together; a larger batch is split.
        init: first drafts: random, left, above or newline.
        coupling: maximal or independent; see `rules`.
        relax: number of similar codes whose probability is added to that of a draft, so that it is
            accepted more often; 0 is exact. **Lossy.**
        relax_distance: largest probability that they add in total, see `rules.relaxed`.
        sampling: cfg_scale, top_k, top_p, temperature; see `Sampling`.
    """

    def __init__(
        self,
        *,
        window: int = 16,
        max_batch: int = 1,
        init: str = "above",
        coupling: str = "maximal",
        relax: int = 0,
        relax_distance: float = 0.1,
        **sampling: float,
    ) -> None:
        super().__init__(window=window, max_batch=max_batch, **sampling)
        if relax < 0 or not 0 < relax_distance <= 1:
            raise ValueError(f"relax={relax} must be at least 0, relax_distance={relax_distance} in (0, 1]")
        for name, value, allowed in (("init", init, INITS), ("coupling", coupling, COUPLINGS)):
            if value not in allowed:
                raise ValueError(f"invalid value {name}={value!r}; allowed: {', '.join(allowed)}")
        self.init, self.coupling = init, coupling
        self.relax, self.relax_distance = relax, relax_distance

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Return codes (B, N) and the largest logit of each code (B, K)."""
        batch, codes = len(request.prompts), math.prod(request.grid)
        near = nearest_codes(backend.vq.quantize.embedding.weight, self.relax) if self.relax else None
        images: list[Tensor] = []
        max_logits: list[Tensor] = []
        done = 0
        for start in range(0, batch, self.max_batch):
            part = slice(start, start + self.max_batch)
            some = replace(
                request,
                prompts=request.prompts[part],
                seeds=request.seeds[part],
                contexts=request.contexts and request.contexts[part],
            )
            window = RejectionWindow(
                backend,
                some,
                self.sampling,
                size=self.window,
                init=self.init,
                coupling=self.coupling,
                near=near,
                distance=self.relax_distance,
            )
            for final in window.passes(identifier):
                if progress is not None:
                    progress(done + final, batch * codes)
            done += final
            images.append(window.codes)
            max_logits.append(window.max_logits)
        return torch.cat(images), torch.cat(max_logits)
