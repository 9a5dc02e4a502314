"""Choose the batch size from the free memory, and halve it after an out-of-memory error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from personalar.core.process import free_host_bytes
from personalar.models.base import Backend

CACHE_SHARE = 0.9
"""Share of the free memory for the KV cache; the rest is for activations, masks and noise."""
ImagesDone = Callable[[int], None]
"""Called with the number of images sampled since the last call."""
Result = TypeVar("Result")


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on `device`; None if unknown."""
    if device.type == "cuda":
        # Memory that PyTorch's allocator has reserved but not used is free for us, but not for the driver.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free_host_bytes() if device.type == "cpu" else None


def largest_batch(limit: int, backend: Backend, *, free: int, rows: int, length: int) -> int:
    """Return the batch size: at most `limit`, at least 1, and so that the KV cache fits into `free`.

    Args:
        limit: upper bound, in images.
        backend: the base; a cache of one token is allocated to measure its size.
        free: available memory in bytes.
        rows: sequences per image; 2 with guidance.
        length: tokens of the longest sequence.
    """
    token = backend.new_cache(torch.zeros(1, 1, dtype=torch.int64, device=backend.device))
    token_bytes = sum(t.nbytes for t in (*token.keys, *token.values))
    # At least one: if that does not fit either, the error is that of the allocation.
    return max(1, min(limit, int(CACHE_SHARE * free // (token_bytes * rows * length))))


def even_batch_size(count: int, at_once: int) -> int:
    """Return the batch size that divides `count` images into the fewest batches of nearly equal size.

    `at_once` is the largest batch allowed. Equal batches are better than full ones and a small rest: a small
    batch takes nearly as long as a large one, and each new size makes `decoder=compiled` capture new graphs.
    """
    # -(-a // b) rounds up.
    parts = max(1, -(-count // at_once))
    return -(-count // parts)


def draw_in_batches(
    draw: Callable[[slice], Result], count: int, at_once: int, *, smallest: int = 1
) -> list[Result]:
    """Call `draw` for slices of `count` images, and halve the batch size after an out-of-memory error.

    Args:
        draw: samples the images of a slice.
        count: number of images.
        at_once: initial batch size.
        smallest: the batch size is not reduced below this; the error is then raised.

    Returns:
        The results of `draw`, in order.
    """
    results: list[Result] = []
    start, at_once = 0, even_batch_size(count, at_once)
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
        # Not inside `except`: the exception's traceback keeps the tensors of the failed batch alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results


def _out_of_memory(error: RuntimeError) -> bool:
    # On a CPU PyTorch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
