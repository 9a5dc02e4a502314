"""Two clocks, the time that passes and this process's time at work, and a counter of forwards."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

WARM_UP = 3  # steps
Moment = tuple[float, float]


def now() -> Moment:
    """Return the time, and this process's time at work, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def seconds_per_step(times: list[Moment]) -> Moment:
    """Return the median time, and time at work, between the ends of two steps, warm-up left out."""
    pairs = list(zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False))
    passed, worked = (statistics.median(b[clock] - a[clock] for a, b in pairs) for clock in (0, 1))
    return passed, worked


@contextmanager
def counted_forwards(owner: Any) -> Iterator[list[int]]:
    """Yield a list that grows by one with every `owner.forward`; steps of a captured graph pass it by."""
    forward, calls = owner.forward, []
    owner.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
    try:
        yield calls
    finally:
        del owner.forward  # the class's own again
