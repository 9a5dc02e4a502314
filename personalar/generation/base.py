"""The contract of decoders, and their requests: one image for each prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from personalar.generation.sampling import Sampling
from personalar.models.base import Backend

Progress = Callable[[int, int], None]
"""Called with (codes done, codes in all) of the images being decoded, about once per row of codes."""

Grid = tuple[int, int] | Sequence[tuple[int, int]]
"""(h, w) in codes: of all images of a batch, or one per image."""


class Identifier(Protocol):
    """Learned rows that replace the embeddings of reserved ids."""

    def __call__(self, ids: Tensor, embeds: Tensor) -> Tensor:
        """Replace the rows of `embeds` (B, T, D) that `ids` (B, T) names."""
        ...


class Decoder(Protocol):
    """Samples image codes; see `personalar.generation.decoders`."""

    sampling: Sampling

    def forget(self) -> None:
        """Free everything kept between calls."""
        ...

    def __call__(
        self,
        backend: Backend,
        prompts: list[list[int]],
        grid: tuple[int, int],
        seeds: list[int],
        identifier: Identifier | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Return codes (B, h, w) for B prompts."""
        ...


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Images to draw: one per prompt. Raises ValueError for none, or if prompts and seeds do not pair up."""

    prompts: Sequence[Sequence[int]]
    """Ids before the image, per image."""
    grid: Grid
    """(h, w) in codes: of all images, or one per image."""
    seeds: Sequence[int]
    """One per image; with weights and prompt it determines the image."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not self.prompts or any(len(prompt) == 0 for prompt in self.prompts):
            raise ValueError(
                f"got {len(self.prompts)} prompts, some or all empty; give at least one token each"
            )
        if len(self.seeds) != len(self.prompts):
            raise ValueError(
                f"got {len(self.seeds)} seeds for {len(self.prompts)} prompts; give one per image"
            )
        if len(self.grids) != len(self.prompts):
            raise ValueError(
                f"got {len(self.grids)} grids for {len(self.prompts)} prompts; "
                "give one (h, w), or one per image"
            )
        for h, w in self.grids:
            if min(h, w) < 1:
                raise ValueError(f"got an image of {h}x{w} codes; both must be at least 1")

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(h, w) of every image."""
        if isinstance(self.grid[0], int):
            return [(self.grid[0], self.grid[1])] * len(self.prompts)  # type: ignore[list-item]
        return [(h, w) for h, w in self.grid]  # type: ignore[misc]

    def collect(self, images: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Return the codes of every image as asked for: (B, h, w), or a list where `grid` is one."""
        return torch.stack(list(images)) if isinstance(self.grid[0], int) else list(images)

    def split(self, codes: Tensor) -> Tensor | list[Tensor]:
        """Cut codes (B, N), N being those of the largest image, to the images asked for."""
        shapes = zip(codes, self.grids, strict=True)
        return self.collect([row[: h * w].view(h, w) for row, (h, w) in shapes])
