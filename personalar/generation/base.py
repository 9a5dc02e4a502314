"""The contract of decoders, and the request that they get: one image per prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from personalar.concepts.adapters.identifier import Identifier
from personalar.generation.sampling import Sampling
from personalar.models.base import Backend

Progress = Callable[[int, int], None]
"""Called with (codes drawn so far, codes in total) of a batch, about once per row of codes."""


class Decoder(Protocol):
    """Samples image codes autoregressively; implementations are in `personalar.generation.decoders`."""

    sampling: Sampling
    """Guidance scale, top-k, top-p and temperature."""

    def forget(self) -> None:
        """Free buffers and graphs that are kept between calls."""
        ...

    def __call__(
        self,
        backend: Backend,
        prompts: list[list[int]],
        grid: tuple[int, int],
        seeds: list[int],
        identifier: Identifier | None = None,
        progress: Progress | None = None,
        contexts: list[list[int]] | None = None,
    ) -> Any:
        """Sample one image per prompt and seed.

        Args:
            backend: the base model.
            prompts: token ids of B prompts, of any lengths.
            grid: (h, w), the image size in codes.
            seeds: B seeds; an image depends on weights, prompt and seed only.
            identifier: learned embeddings for reserved ids in the prompts.
            progress: see `Progress`.
            contexts: token ids of B contexts of guidance instead of the base's unconditional ones; passed
                only if there is a negative prompt.

        Returns:
            Codes (B, h, w), int64, in [0, number of codes).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A batch of images to sample, one per prompt, seed and context."""

    prompts: Sequence[Sequence[int]]
    """Per image the token ids before the first image token."""
    grid: tuple[int, int]
    """(h, w), the image size in codes."""
    seeds: Sequence[int]
    """One per image."""
    contexts: Sequence[Sequence[int]] | None = None
    """Per image the token ids before the image in the context of guidance; None: the unconditional ones."""
