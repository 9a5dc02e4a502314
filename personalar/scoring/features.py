"""Cache features by content, so that no picture or text is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor


class FeatureCache:
    """Computes features in batches and keeps them; 8192 of width 768 need 25 MB.

    References, bounds, diversity, drift and repeated prompts need features of the same pictures and texts.

    Args:
        forward: maps up to `batch_size` items to features (B, D), float32 on the CPU.
        key: returns equal keys for items with the same content.
        batch_size: items per forward pass.
    """

    def __init__(
        self, forward: Callable[[Sequence[Any]], Tensor], key: Callable[[Any], Hashable], batch_size: int
    ) -> None:
        self.forward, self.key, self.batch_size = forward, key, batch_size
        self.known: dict[Hashable, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, items: Sequence[Any]) -> Tensor:
        """Return features (B, D) of B items; shape (0, 0) without items."""
        keys = [self.key(item) for item in items]
        unknown = {key: item for key, item in zip(keys, items, strict=True) if key not in self.known}
        places = list(unknown)
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            rows = self.forward([unknown[key] for key in part])
            self.known.update(zip(part, rows, strict=True))
        return torch.stack([self.known[key] for key in keys]) if keys else torch.empty(0, 0)
