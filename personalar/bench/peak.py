"""The most memory that one contender of a measurement needs.

On a GPU apart from those before it. On a CPU `keep_memory` lets the process hold on to what they had, so that
it is the most so far.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """The most memory that something needed, in bytes."""

    used: int = 0
    reserved: int = 0
    """On a GPU: what torch kept of it, with the free pieces between tensors; 0 elsewhere."""

    def or_more(self, other: Peak) -> Peak:
        """Return the larger of each."""
        return Peak(*map(max, self, other))


def release_memory(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Begin to watch the peak of memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (watch := Path("/proc/self/clear_refs")).exists():
        watch.write_text("5")  # resets VmHWM


def peak_of(device: torch.device) -> Peak:
    """Return the most memory since `reset_peak`: torch's on a GPU, the whole process's elsewhere."""
    if device.type == "cuda":
        return Peak(torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return Peak(next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0))


def reason(error: Exception) -> str:
    """Return in one line why something could not be measured."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = (str(error).splitlines() or [""])[0]
    return f"failed: {type(error).__name__}: {first}"
