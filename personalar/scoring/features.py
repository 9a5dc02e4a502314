"""Features by content: a picture or a text that was seen before is not computed again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

MOST_KEPT = 8192
"""Rows of one cache: 25 MB at a width of 768."""


class FeatureCache:
    """A forward pass in batches that is skipped for known content.

    References, bounds, diversity, drift and repeated prompts all ask for the features of the same pictures
    and texts.

    Args:
        forward: of B items at most, to (B, D) float32 on the CPU.
        key: equal for items with the same content.
        batch_size: items in one forward.
    """

    def __init__(
        self, forward: Callable[[Sequence[Any]], Tensor], key: Callable[[Any], Hashable], batch_size: int
    ) -> None:
        self.forward, self.key, self.batch_size = forward, key, batch_size
        self.known: OrderedDict[Hashable, Tensor] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, items: Sequence[Any]) -> Tensor:
        """Return (B, D), a row for each item; (0, 0) without items."""
        keys = [self.key(item) for item in items]
        found = {key: self.known[key] for key in keys if key in self.known}
        unknown = {key: item for key, item in zip(keys, items, strict=True) if key not in found}
        places = list(unknown)
        for start in range(0, len(places), self.batch_size):
            part = places[start : start + self.batch_size]
            rows = self.forward([unknown[key] for key in part])
            found.update(zip(part, rows, strict=True))
        self._keep(found)
        return torch.stack([found[key] for key in keys]) if keys else torch.empty(0, 0)

    def _keep(self, rows: dict[Hashable, Tensor]) -> None:
        for key, row in rows.items():
            self.known[key] = row
            self.known.move_to_end(key)
        while len(self.known) > MOST_KEPT:
            self.known.popitem(last=False)
