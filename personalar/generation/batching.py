"""Batch sizes: as many images together as fit, and half as many when that was too many."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from personalar.core.process import free_host_bytes
from personalar.models.base import Backend

SPARE = 0.9  # of the free memory: activations, masks and noise are small beside the cache, but not nothing
PICTURES_AT_ONCE = 4  # made from codes together, beside the drawing; two suffice to keep a CPU busy
Progress = Callable[[int], None]
"""Called with the number of images that were drawn since the last call."""
Result = TypeVar("Result")


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that tensors on `device` can still take; None if unknown."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free_host_bytes() if device.type == "cpu" else None


def largest_batch(limit: int, backend: Backend, *, free: int, rows: int, length: int) -> int:
    """Return how many images to draw together: `limit`, or as many as their keys and values fit.

    Args:
        free: bytes they may take.
        rows: sequences of one image, two with guidance.
        length: tokens of the longest.
    """
    token = backend.new_cache(capacity=1, pad=torch.zeros(1, dtype=torch.int64, device=backend.device))
    token_bytes = sum(t.nbytes for t in (*token.keys, *token.values))
    return max(1, min(limit, int(SPARE * free // (token_bytes * rows * length))))


def even(count: int, at_once: int) -> int:
    """Return the size of the fewest equal parts of `count`, at most `at_once`; the last may be smaller.

    A batch of a new size costs `decoder=compiled` new graphs, and a small one is as slow as a large one.
    """
    parts = max(1, -(-count // at_once))
    return -(-count // parts)


def draw_in_batches(
    draw: Callable[[slice], Result], count: int, at_once: int, *, smallest: int = 1
) -> list[Result]:
    """Call `draw` on slices of `count` images, `at_once` each; halve that whenever memory runs out.

    Raises what `draw` raised when even `smallest` images do not fit.
    """
    results: list[Result] = []
    start, at_once = 0, even(count, at_once)
    while start < count:
        part = slice(start, min(count, start + at_once))
        try:
            results.append(draw(part))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if at_once <= smallest or not _out_of_memory(error):
                raise
            at_once = max(smallest, (part.stop - part.start) // 2)
        else:
            start = part.stop
            continue
        # Only here, where the exception and with it the tensors of the failed batch are gone.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
