"""The contract between a base model and everything above it.

Above a backend everything is token ids, codes and images in [0, 1]; nothing knows a VQ model, a vocabulary or
a checkpoint format. A backend never samples, never reads config and keeps no inference state: the cache is an
argument. Shapes: B batch, T tokens, D width, K image codes, (h, w) codes of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

Progress = Callable[[int, int], None]
"""Called with (codes done, codes in all) of the images being decoded, about once per row of codes."""


Grid = tuple[int, int] | Sequence[tuple[int, int]]
"""(h, w) in codes: of all images of a batch, or one per image."""


class Cache(Protocol):
    """Keys and values of a batch; made by `Backend.new_cache`, moved on by `Backend.forward`."""

    length: int
    keys: list[Tensor]
    values: list[Tensor]

    def rewind(self, num_tokens: int) -> None:
        """Forget the last `num_tokens` tokens of every row."""
        ...

    def place(self, positions: Tensor) -> None:
        """Forget all, and say which position of its row each slot holds, (B, L) int64; -1: it is empty."""
        ...

    def shared(self, rows: Sequence[int], twins: Tensor) -> Any:
        """Return what `Backend.forward` takes as cache to run `rows` alone, for all that equal them.

        `twins` (B,) int64 names the one of `rows` that every row equals.
        """
        ...

    def at(self, slots: Tensor, end: int) -> Any:
        """Return what `Backend.forward` takes as cache to write `slots` and read below `end`."""
        ...


class Identifier(Protocol):
    """Learned rows that stand in for embeddings of reserved ids."""

    def __call__(self, ids: Tensor, embeds: Tensor) -> Tensor:
        """Replace in `embeds` (B, T, D) what `ids` (B, T) names."""
        ...


class Backend(Protocol):
    """A base model. The contract test runs every implementation through all of it."""

    @property
    def device(self) -> torch.device:
        """Where token ids and codes must lie."""
        ...

    @property
    def unconditional_prompt(self) -> Sequence[int]:
        """Ids before the image in the unconditional context of guidance; Lumina-mGPT has none."""
        ...

    @property
    def code_offset(self) -> int:
        """The id of image code 0; codes are one block of ids in order."""
        ...

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated parts of the network, all of one class: `decoder=compiled` compiles its `forward`."""
        ...

    @property
    def has_fixed_addresses(self) -> bool:
        """Whether `forward` reads every weight at one address, call after call: what captured graphs need."""
        ...

    @property
    def is_cut_up(self) -> bool:
        """Whether no process holds all weights (ZeRO 3): every pass then takes all processes."""
        ...

    def preprocess(
        self,
        image: Image.Image,
        *,
        size: tuple[int, int] | None = None,
        crop: Literal["center", "random"] = "center",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return (3, H, W) in [0, 1] of `size` (width, height), by default the best this model knows."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to codes (B, h, w) int64."""
        ...

    def decode_images(self, codes: Tensor) -> Tensor:
        """Map codes (B, h, w) to images (B, 3, H, W) in [0, 1]."""
        ...

    def decode_bytes(self, images: int, grid: tuple[int, int]) -> int:
        """Return the bytes that `decode_images` of so many images of (h, w) codes takes beside weights."""
        ...

    def grammar(self, h: int, w: int) -> Sequence[int | None]:
        """Return the ids of an image of (h, w) codes: forced ones, and None where a code is free."""
        ...

    def new_cache(self, *, capacity: int, pad: Tensor) -> Cache:
        """Allocate a cache of `capacity` tokens for rows left-padded by `pad` (B,) slots."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to embeddings (B, T, D)."""
        ...

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Map embeddings (B, T, D) to hidden states (B, T, D); causal, continuing `cache` if there is one."""
        ...

    def nearest_codes(self, count: int) -> Tensor:
        """Return the `count` other codes that look most like each image code, (K, count) int64."""
        ...

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to float32 logits of the image codes (..., K)."""
        ...


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Images to draw: one per prompt.

    Raises ValueError when there is nothing to draw or prompts and seeds do not pair up.
    """

    prompts: Sequence[Sequence[int]]
    """Ids before the image, per image."""
    grid: Grid
    """(h, w) in codes: of all images, or one per image."""
    seeds: Sequence[int]
    """One per image; with weights and prompt it determines the image."""

    def __post_init__(self) -> None:
        """Check what a caller can get wrong."""
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
