"""Speculative Jacobi decoding: a window of drafts is checked in one forward, and several codes become final.

Images of a batch go at their own pace; newlines are drafts that are always right. `coupling` holds the rules,
`draft` the first drafts. With coupling "gumbel" the image is that of plain decoding, code for code; with the
others it is another draw from the same distribution, and depends on window and first drafts too, but never on
the batch. Only `relax` makes it lossy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from personalar.generation.base import GenerationRequest, Identifier, Progress
from personalar.generation.decoders.coupling import COUPLINGS
from personalar.generation.decoders.draft import INITS
from personalar.generation.decoders.plain import PlainDecoder
from personalar.generation.decoders.window import Window
from personalar.models.base import Backend


class JacobiDecoder(PlainDecoder):
    """Same call as `PlainDecoder`.

    Args:
        window: codes that one forward looks at, and the newlines among them.
        init: first drafts; see `draft.first_drafts`.
        coupling: "gumbel", "maximal" or "independent"; see `coupling`.
        max_batch: images decoded this way at once. For more, a forward's time grows with its tokens and plain
            decoding is faster: "gumbel" then decodes plainly, which gives the same images; the others decode
            `max_batch` at a time.
        relax: how many of the codes that look most like a draft lend it their probability, so that it stays
            more often; 0 is exact. **Lossy**; not for "gumbel", which looks at no probabilities.
        relax_distance: how much of it they may lend in all, see `coupling.relaxed`.
        sampling: cfg_scale, top_k, top_p, temperature; see `Sampling`.
    """

    def __init__(
        self,
        *,
        window: int = 16,
        init: str = "above",
        coupling: str = "gumbel",
        max_batch: int = 1,
        relax: int = 0,
        relax_distance: float = 0.1,
        **sampling: float,
    ) -> None:
        super().__init__(**sampling)  # type: ignore[arg-type]
        if window < 2:
            raise ValueError(f"window={window} must be at least 2; decoder=plain draws one code at a time")
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch} must be at least 1")
        if relax < 0 or not 0 < relax_distance <= 1:
            raise ValueError(f"relax={relax} must be at least 0, relax_distance={relax_distance} in (0, 1]")
        if relax and coupling == "gumbel":
            raise ValueError(f"relax={relax} needs coupling=maximal or independent; gumbel is always exact")
        for name, value, allowed in (("init", init, INITS), ("coupling", coupling, COUPLINGS)):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not known; allowed: {', '.join(allowed)}")
        self.window, self.init, self.coupling, self.max_batch = window, init, coupling, max_batch
        self.relax, self.relax_distance = relax, relax_distance

    def draw(
        self,
        backend: Backend,
        request: GenerationRequest,
        identifier: Identifier | None,
        progress: Progress | None,
    ) -> tuple[Tensor, Tensor]:
        """Return codes (B, N), N being those of the largest image, and each code's largest logit (B, K)."""
        batch = len(request.prompts)
        if batch > self.max_batch and self.coupling == "gumbel":
            return super().draw(backend, request, identifier, progress)
        sizes = [h * w for h, w in request.grids]
        near = backend.nearest_codes(self.relax) if self.relax else None
        images: list[Tensor] = []
        peaks: list[Tensor] = []
        done = 0
        for start in range(0, batch, self.max_batch):
            part = slice(start, start + self.max_batch)
            some = GenerationRequest(
                prompts=request.prompts[part], grid=request.grids[part], seeds=request.seeds[part]
            )
            window = Window(
                backend, some, self.sampling, size=self.window, init=self.init, coupling=self.coupling,
                near=near, distance=self.relax_distance,
            )  # fmt: skip
            for final in window.passes(identifier):
                if progress is not None:
                    progress(done + final, sum(sizes))
            done += final
            images.append(F.pad(window.codes, (0, max(sizes) - window.codes.shape[1])))
            peaks.append(window.peaks)
        return torch.cat(images), torch.cat(peaks)
