"""Two clocks: the time that passes, and this process's time at work."""

from __future__ import annotations

import statistics
import time

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
