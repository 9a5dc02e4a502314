"""Encode proxies with the base's image tokenizer: there can be hundreds, so several at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from personalar.core.console import Reporter
from personalar.data.codes import ENCODE_BATCH, cached_codes
from personalar.models.base import Backend


@torch.no_grad()
def encode_whole(
    backend: Backend, pictures: Sequence[Image.Image], progress: Callable[[int], object]
) -> list[Tensor]:
    """Return the codes (1, h, w) int64 of each picture, without random crops.

    Args:
        backend: the base whose image tokenizer encodes.
        pictures: RGB, of any sizes; neighbours of one shape share a batch.
        progress: called after each batch with its number of pictures.
    """
    found: list[Tensor] = []
    for size, group in groupby(pictures, backend.best_size):
        alike = list(group)
        for start in range(0, len(alike), ENCODE_BATCH):
            batch = alike[start : start + ENCODE_BATCH]
            pixels = torch.stack([backend.preprocess(picture, size=size) for picture in batch])
            found += backend.encode_images(pixels).cpu().split(1)
            progress(len(batch))
    return found


def proxy_codes(
    load: Callable[[], Backend],
    proxies: Sequence[Image.Image],
    *,
    cache: Path,
    key: object,
    reporter: Reporter,
) -> list[Tensor]:
    """Return the codes (1, h, w) of each proxy; empty without proxies.

    Args:
        load: returns the base; called only if the codes are not cached.
        cache: folder of the cached codes.
        key: everything that determines the codes; see `codes.cached_tensors`.
    """
    if not proxies:
        return []

    def make() -> list[Tensor]:
        with reporter.phase("codes of the proxies", len(proxies), "proxies") as advance:
            return encode_whole(load(), proxies, advance)

    return cached_codes(cache / "proxy_codes.safetensors", key, make)
